"""`python -m benchmarks.shapes`: what a step costs with other sizes of the compiled programs.

Under the loads that throughput is measured with. All folds run in one process and take the same ticks in turns, so that
what else the machine does hits all of them. Each number is the median of some rounds, in µs a step: admitting,
planning, computing, writing.
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

_, DEEP, LONE = SHAPES
WIDER = Shape(256, 1, 800, 2200)
TRIED: tuple[Sequence[Shape], ...] = (
    SHAPES,
    (WIDER, DEEP, LONE),
    (WIDER, Shape(32, 16, 907, 308), LONE),
)
BATCH, ROUNDS = 2_000, 30


def main() -> int:
    """Print a row for each choice of shapes; the exit code."""
    spec = ModelSpec(horizon=HORIZON, levels=LEVELS)
    folds = [Fold(spec, SeriesSpec(max_series=ROWS), GridSpec(), "keep", shapes=shapes) for shapes in TRIED]
    for fold in folds:
        fold.compile()
    spent_us: dict[tuple[str, int], list[float]] = defaultdict(list)
    for turn in range(ROUNDS + 1):  # the first one plants the rows
        for scenario in SCENARIOS:
            offsets = range(turn * BATCH, (turn + 1) * BATCH)
            ticks = _ticks(scenario.name, scenario.choose(BATCH, scenario.series), offsets)
            for number in np.roll(np.arange(len(folds)), turn).tolist():  # none is always first
                fold = folds[number]
                began_s = time.perf_counter()
                fold.admit(0, offsets, ticks)
                fold.run()
                jax.block_until_ready(fold.rows)
                if turn:
                    spent_us[scenario.name, number].append(1e6 * (time.perf_counter() - began_s) / BATCH)
    print(", ".join(f"{name} {text}" for name, text in machine().items()), end="\n\n")
    print(
        f"| lanes | {' | '.join(scenario.what for scenario in SCENARIOS)} |\n|---|{'---|' * len(SCENARIOS)}"
    )
    for number, shapes in enumerate(TRIED):
        costs = [float(np.median(spent_us[scenario.name, number])) for scenario in SCENARIOS]
        lanes = ", ".join(str(shape.lanes) for shape in shapes)
        print(f"| {lanes} | {' | '.join(f'{cost:.1f}' for cost in costs)} |")
    return 0


def _ticks(load: str, numbers: np.ndarray, offsets: range) -> list[Tick]:
    values = 100 + np.random.default_rng(offsets.start).normal(size=len(numbers))
    names = [f"{load}-{number}" for number in numbers.tolist()]
    return [Tick(*tick) for tick in zip(names, map(float, offsets), values.tolist(), strict=True)]


if __name__ == "__main__":
    sys.exit(main())
