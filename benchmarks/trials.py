"""`python -m benchmarks.trials [KIND...]`: how soon a bad model is rolled back, and whether a good one ever is.

For each kind of simulated series a model is trained and serves. In its place come others: one trained from another
seed, which is as good, and copies that are spoilt in ways that happen. Blocks of all are judged as in a worker.
"""

import argparse
import sys
from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from benchmarks.report import machine
from benchmarks.simulated import KINDS, SERIES, STEP_S, STEPS, asked
from forecaster.config import Config
from forecaster.core import trial
from forecaster.core.fold import Fold
from forecaster.core.history import Slice
from forecaster.core.model import Model
from forecaster.core.promote import Retrained, retrain
from forecaster.core.shadow import ROWS, Shadow
from forecaster.core.table import SeriesSpec
from forecaster.core.tick import Tick
from forecaster.core.trial import Trial

START_S, TRAINED = 1.7e9, 500  # steps that are trained on
FIT_S = 30.0
DEFAULT = ("season", "autoregression", "bursts", "walk")


def trained(values: NDArray[np.float64], config: Config, seed: int) -> Model:
    """A network that saw the first steps of all series, whether it beats the last value or not."""
    time_s = START_S + STEP_S * np.arange(TRAINED)
    history = [Slice(f"s{i}", time_s, values[:TRAINED, i]) for i in range(SERIES)]
    spec = config.training.model_copy(update={"seed": seed, "fit_s": FIT_S})
    result = retrain(history, spec, config.network)
    if not isinstance(result, Retrained):
        raise SystemExit(f"no model: {result}")
    return named(result.model, f"seed {seed}")


def named(model: Model, version: str) -> Model:
    """The same network under another name."""
    return model._replace(card=model.card.model_copy(update={"version": version}))


def others(good: Model, values: NDArray[np.float64], config: Config) -> Iterator[Model]:
    """What is promoted in its place."""
    yield named(trained(values, config, 1), "trained from another seed")
    for factor in (12.0, 2.0, 0.5):
        yield named(wider(good, factor), f"{factor:g} times as wide")
    bias = good.params["out.bias"]
    for shift in (5.0, 0.3):
        moved = good._replace(params=good.params | {"out.bias": bias + shift})
        yield named(moved, f"{shift:g} scales too high")
    rng = np.random.default_rng(0)
    shaken = {
        name: p + 0.1 * jnp.asarray(rng.normal(size=p.shape), p.dtype) for name, p in good.params.items()
    }
    yield named(good._replace(params=shaken), "noise on every weight")


def wider(model: Model, factor: float) -> Model:
    """All quantiles so many times as far from the median, in the units of the head."""
    horizon, levels, median = model.spec.horizon, len(model.spec.levels), model.spec.median
    params = dict(model.params)
    for name in ("out.kernel", "out.bias"):
        own = params[name].reshape(*params[name].shape[:-1], horizon, levels)
        middle = own[..., median : median + 1]
        params[name] = (middle + (own - middle) * factor).reshape(params[name].shape)
    return model._replace(params=params)


def tried(
    fold: Fold, values: NDArray[np.float64], good: Model, other: Model, config: Config
) -> tuple[Trial, str]:
    """The trial at its end, and the verdict."""

    def play(steps: range) -> Iterator[None]:
        for t in steps:
            ticks = [Tick(f"s{i}", START_S + STEP_S * t, float(values[t, i])) for i in range(SERIES)]
            fold.admit(0, range(t * SERIES, (t + 1) * SERIES), ticks)
            fold.run()
            yield

    fold.swap(good)
    for _ in play(range(TRAINED)):
        pass
    fold.swap(other)
    shadow, state = Shadow(fold, other, good), Trial()
    for _ in play(range(TRAINED, STEPS)):
        if block := shadow.turn(idle=True):
            state, verdict = trial.observe(state, block, config.training)
            if verdict is not None:
                return state, verdict.value
    return state, "open"


def main() -> int:
    """Print a row for each promotion; the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.trials", description=(__doc__ or "").split("\n")[0]
    )
    kinds = asked(parser, DEFAULT).kinds
    config = Config()
    print(", ".join(f"{name} {text}" for name, text in machine().items()), end="\n\n")
    print("| series | promoted | verdict | blocks | loss by then |\n| --- | --- | --- | ---: | ---: |")
    programs = None
    for kind in kinds:
        values = KINDS[kind][0](np.random.default_rng(1))
        good = trained(values, config, 0)
        for other in others(good, values, config):
            fold = Fold(config.network, SeriesSpec(max_series=SERIES), config.grid, spare=ROWS)
            if programs is None:
                programs = fold.programs(config.network)
            fold.adopt(config.network, programs)
            state, verdict = tried(fold, values, good, other, config)
            worse = f"{state.losses.worse_ratio:+.1%}"
            print(
                f"| {KINDS[kind][1]} | {other.version} | {verdict} | {state.blocks} | {worse} |", flush=True
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
