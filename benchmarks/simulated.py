"""`python -m benchmarks.simulated [KIND...]`: how forecasts of made-up series, each of a known kind, do.

Real data say how good forecasts are; these say that nothing falls apart where a kind of series is pure: no skill is
to be had on a random walk, and none may be lost. Every kind is a data set of its own, with the default configuration.
"""

import argparse
import csv
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from forecaster.config import Config
from forecaster.shell import results
from forecaster.shell.evaluate import Study, Tell, evaluate
from forecaster.shell.terminal import Watch

Floats = NDArray[np.float64]
Make = Callable[[np.random.Generator], Floats]

STEPS, SERIES = 900, 20
STEP_S = 60.0
WARM_UP = 0.6
SHAPE = STEPS, SERIES


def _walk(rng: np.random.Generator) -> Floats:
    return 100 + rng.normal(size=SHAPE).cumsum(0)


def _heavy_walk(rng: np.random.Generator) -> Floats:
    return 100 + rng.standard_t(3, SHAPE).cumsum(0)


def _bursts(rng: np.random.Generator) -> Floats:
    """A random walk whose steps are five times as large in bursts of some 20 steps, a tenth of the time."""
    wild = _switching(rng, 1 / 180, 1 / 20)
    return 100 + (rng.normal(size=SHAPE) * np.where(wild, 5.0, 1.0)).cumsum(0)


def _switching(rng: np.random.Generator, start: float, end: float) -> NDArray[np.bool_]:
    """On and off by chance: the chances of each at a step."""
    chance, out = rng.random(SHAPE), np.zeros(SHAPE, bool)
    for t in range(1, STEPS):
        out[t] = np.where(out[t - 1], chance[t] >= end, chance[t] < start)
    return out


def _ticking(rng: np.random.Generator) -> Floats:
    """A price on a coarse grid: two of three steps change nothing."""
    return 100 + (rng.choice([-0.1, 0.0, 0.1], SHAPE, p=[1 / 6, 2 / 3, 1 / 6])).cumsum(0)


def _autoregression(rng: np.random.Generator) -> Floats:
    noise, out = rng.normal(size=SHAPE), np.zeros(SHAPE)
    for t in range(1, STEPS):
        out[t] = 0.8 * out[t - 1] + noise[t]
    return 10 + out


def _noise(rng: np.random.Generator) -> Floats:
    return 10 + rng.standard_t(3, SHAPE)


def _counts(rng: np.random.Generator) -> Floats:
    """Mostly zero: demand for a spare part."""
    return rng.poisson(rng.uniform(0.1, 0.6, SERIES), SHAPE) * rng.integers(1, 6, SHAPE).astype(float)


def _season(rng: np.random.Generator) -> Floats:
    """A cycle of 24 steps on a trend, a tenth of its height in noise."""
    t, phase = np.arange(STEPS)[:, None], rng.uniform(0, 2 * np.pi, SERIES)
    wave = np.sin(2 * np.pi * t / 24 + phase) + 0.5 * np.sin(4 * np.pi * t / 24 + 2 * phase)
    return 100 + 10 * wave + rng.normal(0, 0.05, SERIES) * t + rng.normal(size=SHAPE)


def _shifts(rng: np.random.Generator) -> Floats:
    """Noise around a level that jumps every 100 steps or so."""
    jumps = (rng.random(SHAPE) < 0.01) * rng.normal(0, 10, SHAPE)
    return 100 + jumps.cumsum(0) + rng.normal(size=SHAPE)


def _stairs(rng: np.random.Generator) -> Floats:
    """Constant but for a jump every 30 steps or so."""
    return 100 + ((rng.random(SHAPE) < 1 / 30) * rng.normal(0, 1, SHAPE)).cumsum(0)


def _square(rng: np.random.Generator) -> Floats:
    """On and off, each for 10 to 30 steps, in a series always as many, with little noise."""
    half = rng.integers(10, 31, SERIES)
    on = (np.arange(STEPS)[:, None] + rng.integers(0, 60, SERIES)) // half % 2
    return 10.0 * on + rng.normal(0, 0.1, SHAPE)


KINDS: dict[str, tuple[Make, str]] = {
    "walk": (_walk, "random walk"),
    "heavy_walk": (_heavy_walk, "random walk, t with 3 degrees of freedom"),
    "bursts": (_bursts, "random walk, at times five times as volatile"),
    "ticking": (_ticking, "random walk on a coarse grid, mostly still"),
    "autoregression": (_autoregression, "AR(1), 0.8"),
    "noise": (_noise, "t with 3 degrees of freedom around a mean"),
    "counts": (_counts, "mostly zeros, now and then a few"),
    "season": (_season, "cycle of 24 with a trend"),
    "shifts": (_shifts, "noise around a level that jumps"),
    "stairs": (_stairs, "constant but for rare jumps"),
    "square": (_square, "on and off"),
}


def study(kind: str, seed: int, folder: Path, tell: Tell) -> Study:
    """Make the series of a kind, and backtest them."""
    values = KINDS[kind][0](np.random.default_rng(seed))
    path = folder / f"{kind}_{seed}.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(("series", "ts", "value"))
        for t, row in enumerate(values):
            rows.writerows((f"s{i}", 1.7e9 + STEP_S * t, value) for i, value in enumerate(row))
    return evaluate(path, Config(), WARM_UP, folder, tell)


def asked(parser: argparse.ArgumentParser, default: Sequence[str]) -> argparse.Namespace:
    """What was asked for on the command line, kinds of series first; ends the program where one is unknown."""
    parser.add_argument(
        "kinds",
        nargs="*",
        default=list(default),
        metavar="KIND",
        help=f"of {', '.join(KINDS)}; default: {', '.join(default)}",
    )
    arguments = parser.parse_args()
    if unknown := set(arguments.kinds) - set(KINDS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    return arguments


def main() -> int:
    """Run all kinds, or those that were named, and print a table; the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.simulated", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--seeds", type=int, default=1, help="data sets of each kind")
    arguments = asked(parser, tuple(KINDS))
    console = Console(stderr=True)
    print(
        "| series | seed | relative sQL | 80 % | 60 % | retrains kept |\n| --- | ---: | ---: | ---: | ---: | ---: |"
    )
    for kind in arguments.kinds:
        for seed in range(arguments.seeds):
            with tempfile.TemporaryDirectory() as folder, Watch(console, kind) as watch:
                judged = study(kind, seed, Path(folder), watch)
            s = judged.scorer.overall()
            kept = sum(map(results.promoted, judged.verdicts))
            shares = f"{s.relative_sql:.3f} | {s.coverage_80:.3f} | {s.coverage_60:.3f}"
            print(f"| {KINDS[kind][1]} | {seed} | {shares} | {kept} of {len(judged.verdicts)} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
