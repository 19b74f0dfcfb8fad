"""`python -m benchmarks.alarms [KIND...]`: how often a trial rolls back a model that is no worse, and what it costs.

For each kind of simulated series two networks are trained, from other seeds on the same data. Each is promoted in
the other's place on data of that kind that neither has seen, over and over; whatever is rolled back is a false alarm.
What a trial costs is measured with and without one in turn, within one process, in CPU time, which other work disturbs
less than the clock.
"""

import argparse
import sys
import time
from collections import Counter
from collections.abc import Iterator
from itertools import permutations
from math import comb

import numpy as np
from numpy.typing import NDArray

from benchmarks.report import machine
from benchmarks.simulated import KINDS, SERIES, STEP_S, asked
from benchmarks.trials import DEFAULT, START_S, TRAINED, named, trained
from forecaster.config import Config
from forecaster.core import trial
from forecaster.core.fold import Fold
from forecaster.core.model import Model, init, untrained
from forecaster.core.programs import Programs
from forecaster.core.shadow import ROWS, Shadow
from forecaster.core.table import SeriesSpec
from forecaster.core.tick import Tick
from forecaster.core.trial import Trial

SIZES = 1, SERIES  # series in a trial
FIT_STEPS = 100  # of a network: both have to be alike, not good
SURE = 0.95
BATCH, TURNS, ROUNDS = 256, 60, 6  # ticks in a turn; turns with or without a trial; of either
CROWDS = 1000, 100  # series of which a trial sees some, and all


def tried(fold: Fold, values: NDArray[np.float64], before: Model, model: Model, config: Config) -> Trial:
    """The trial of `model` at its end; steps come a block at a time."""
    spec, (steps, series) = config.training, values.shape

    def play(start: int, stop: int) -> None:
        ticks = [
            Tick(f"s{i}", START_S + STEP_S * t, float(values[t, i]))
            for t in range(start, stop)
            for i in range(series)
        ]
        fold.admit(0, range(start * series, stop * series), ticks)
        fold.run()

    fold.swap(before)
    play(0, TRAINED)
    fold.swap(model)
    shadow, state = Shadow(fold, model, before), Trial()
    for start in range(TRAINED, steps, config.network.horizon):
        play(start, min(start + config.network.horizon, steps))
        if block := shadow.turn(idle=True):
            state, verdict = trial.observe(state, block, spec)
            if verdict is not None:
                break
    shadow.close()
    return state


def at_most(lost: int, trials: int) -> float:
    """The share that a rate lies below, sure to SURE, after so many events (Clopper and Pearson 1934)."""
    low, high = lost / trials, 1.0
    for _ in range(40):
        rate = (low + high) / 2
        chance = sum(comb(trials, k) * rate**k * (1 - rate) ** (trials - k) for k in range(lost + 1))
        low, high = (rate, high) if chance > 1 - SURE else (low, rate)
    return high


def alarms(kind: str, sets: int, config: Config, programs: Programs) -> Iterator[str]:
    """A row of the table for each size of a trial."""
    make = KINDS[kind][0]
    seen = make(np.random.default_rng(1))
    short = config.model_copy(update={"training": config.training.model_copy(update={"steps": FIT_STEPS})})
    pair = [trained(seen, short, seed) for seed in (0, 1)]
    for series in SIZES:
        found: Counter[bool] = Counter()
        worse, lost_blocks, blocks = [], 0, 0
        for seed in range(sets):
            values = make(np.random.default_rng(100 + seed))[:, :series]
            for before, model in permutations(pair):
                fold = Fold(config.network, SeriesSpec(max_series=SERIES), config.grid, spare=ROWS)
                fold.adopt(config.network, programs)
                state = tried(fold, values, before, model, config)
                lost = state.evidence >= -np.log(trial.FALSE_ALARMS)
                found[lost] += 1
                worse.append(state.losses.worse_ratio)
                blocks += state.blocks
                lost_blocks += _lost_blocks(state)
        trials = found.total()
        yield (
            f"| {KINDS[kind][1]} | {series} | {found[True]} of {trials}, below {at_most(found[True], trials):.1%} |"
            f" {lost_blocks / blocks:.0%} | {np.min(worse):+.1%} to {np.max(worse):+.1%} |"
        )


def _lost_blocks(state: Trial) -> int:
    """How many of the blocks were lost, from what they came to as evidence."""
    win, loss = np.log((1 - trial.ALMOST_ALWAYS) / 0.5), np.log(trial.ALMOST_ALWAYS / 0.5)
    return round((state.evidence - state.blocks * win) / (loss - win))


def cost(crowd: int, config: Config) -> str:
    """A row: how long turns take with a trial, as a multiple of how long they take without, taken in turns."""
    shape = config.network
    models = [named(untrained(shape)._replace(params=init(shape, seed)), f"seed {seed}") for seed in range(2)]
    fold = Fold(shape, SeriesSpec(max_series=crowd), config.grid, spare=ROWS)
    fold.adopt(shape, fold.programs(shape))
    rng = np.random.default_rng(0)
    values, done = np.zeros(crowd), 0

    def turn(shadow: Shadow | None) -> float:
        nonlocal done
        which = rng.integers(0, crowd, BATCH)
        values[:] += rng.normal(size=crowd)
        ticks = [Tick(f"s{i}", START_S + done + n, float(values[i])) for n, i in enumerate(which.tolist())]
        began_s = time.process_time()
        fold.admit(0, range(done, done + BATCH), ticks)
        fold.run()
        if shadow is not None:
            shadow.turn(idle=False)
        done += BATCH
        return time.process_time() - began_s

    fold.swap(models[0])
    for _ in range(crowd * 40 // BATCH):
        turn(None)
    fold.swap(models[1])
    for _ in range(TURNS):
        turn(None)
    took: dict[bool, list[float]] = {False: [], True: []}
    for number in range(2 * ROUNDS):
        shadow = Shadow(fold, models[1], models[0]) if number % 2 else None
        turns = [turn(shadow) for _ in range(TURNS)]
        took[shadow is not None] += turns[
            TURNS // 4 :
        ]  # the carries of the copies have to be warmed up first
        if shadow is not None:
            shadow.close()
    without, beside = (np.array(took[which]) for which in (False, True))
    ratios = [beside.mean() / without.mean()]
    ratios += [np.quantile(beside, q) / np.quantile(without, q) for q in (0.5, 0.99)]
    cells = " | ".join(f"{ratio:.2f}" for ratio in ratios)
    return f"| {min(ROWS // 2, crowd)} of {crowd} | {cells} |"


def main() -> int:
    """Print both tables; the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.alarms", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--sets", type=int, default=10, help="data sets of each kind, two trials on each")
    arguments = asked(parser, DEFAULT)
    config = Config()
    print(", ".join(f"{name} {text}" for name, text in machine().items()), end="\n\n")
    print(
        f"| series in the sample | a turn of {BATCH} ticks, mean | p50 | p99 |\n| --- | ---: | ---: | ---: |"
    )
    for crowd in CROWDS:
        print(cost(crowd, config), flush=True)
    print("\n| series | how many | rolled back | blocks lost | loss against the one before |")
    print("| --- | ---: | --- | ---: | --- |")
    programs = Fold(config.network, SeriesSpec(max_series=SERIES), config.grid, spare=ROWS).programs(
        config.network
    )
    for kind in arguments.kinds:
        for row in alarms(kind, arguments.sets, config, programs):
            print(row, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
