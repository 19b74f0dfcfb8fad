"""`python -m benchmarks.shapes`: what a batch costs with other sizes of the compiled programs.

Under the loads that throughput is measured with, in large batches, and in small ones as at a thousand ticks/s. All
folds run in one process and take the same ticks in turns, so that what else the machine does hits all of them. Each
number is the median of some rounds, in ms a batch: admitting, planning, computing, writing.
"""

import sys
import time
from collections import defaultdict
from collections.abc import Sequence

import jax
import numpy as np

from benchmarks.report import machine
from benchmarks.stage import LEVELS, ROWS
from benchmarks.throughput import HORIZON, SCENARIOS
from forecaster.core.calls import Shape
from forecaster.core.fold import Fold
from forecaster.core.grid import GridSpec
from forecaster.core.model import ModelSpec
from forecaster.core.programs import SHAPES
from forecaster.core.table import SeriesSpec
from forecaster.core.tick import Tick
from forecaster.shell.limits import compute_on_one_core

_, DEEP, LONE = SHAPES
TRIED: tuple[Sequence[Shape], ...] = (
    SHAPES,
    (Shape(128, 1, 300, 750), Shape(8, 32, 460, 60), Shape(1, 128, 320, 20)),  # decision 29
    (Shape(256, 1, 800, 2200), DEEP, LONE),
)
CASES = tuple((scenario, 2_000) for scenario in SCENARIOS) + tuple(
    (SCENARIOS[0], batch) for batch in (1, 2, 4, 8, 15, 17, 30)
)
ROUNDS = 40


def main() -> int:
    """Print a row for each choice of shapes; the exit code."""
    compute_on_one_core()  # as a worker does
    spec = ModelSpec(horizon=HORIZON, levels=LEVELS)
    folds = [Fold(spec, SeriesSpec(max_series=ROWS), GridSpec(), "keep", shapes=shapes) for shapes in TRIED]
    for fold in folds:
        fold.compile()
    spent_ms: dict[tuple[int, int], list[float]] = defaultdict(list)
    at = 0
    for turn in range(ROUNDS + 1):  # the first one plants the rows
        for case, (scenario, batch) in enumerate(CASES):
            offsets = range(at, at := at + batch)
            ticks = _ticks(scenario.name, scenario.choose(batch, scenario.series), offsets)
            for number in np.roll(np.arange(len(folds)), turn).tolist():  # none is always first
                fold = folds[number]
                began_s = time.perf_counter()
                fold.admit(0, offsets, ticks)
                fold.run()
                jax.block_until_ready(fold.rows)
                if turn:
                    spent_ms[case, number].append(1e3 * (time.perf_counter() - began_s))
    print(", ".join(f"{name} {text}" for name, text in machine().items()), end="\n\n")
    heads = [", ".join(str(shape.lanes) for shape in shapes) for shapes in TRIED]
    print(f"| ticks | of | {' | '.join(heads)} |\n|---|---|{'---|' * len(heads)}")
    for case, (scenario, batch) in enumerate(CASES):
        costs = [float(np.median(spent_ms[case, number])) for number in range(len(folds))]
        print(f"| {batch} | {scenario.what} | {' | '.join(f'{cost:.2f}' for cost in costs)} |")
    return 0


def _ticks(load: str, numbers: np.ndarray, offsets: range) -> list[Tick]:
    values = 100 + np.random.default_rng(offsets.start).normal(size=len(numbers))
    names = [f"{load}-{number}" for number in numbers.tolist()]
    return [Tick(*tick) for tick in zip(names, map(float, offsets), values.tolist(), strict=True)]


if __name__ == "__main__":
    sys.exit(main())
