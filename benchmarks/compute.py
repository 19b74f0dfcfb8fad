"""The compute alone: the whole `advance` and the write into the table, without Kafka, JSON or the host's index.

Each measured batch touches rows spread over the whole table, whose forecasts are all due, so that everything a busy
series costs is paid. The network is there, with weights as they are drawn: they do not change what is computed.
"""

import gc
import time
import tracemalloc
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import psutil

from benchmarks.report import Row
from forecaster.core import birth, row, table
from forecaster.core.advance import Serving
from forecaster.core.model import ModelSpec, init
from forecaster.core.perceive import Steps
from forecaster.core.programs import SHAPES, Recipe
from forecaster.core.stats import SEASONS
from forecaster.core.table import Index, SeriesSpec

BATCH, LARGE_BATCH = 512, 4096
WIDE = SHAPES[0].lanes  # of the program that runs large batches
GROUPS = 4  # sets of rows that take turns
WORKERS = 2  # at once
START_S = 120.0  # for all of them to have grown up
HEADROOM = 1.3  # of memory, over what the largest table takes


class Bench:
    """A table of `rows` rows, and batches of `size` of them, in calls of WIDE, by row, as the fold makes them."""

    def __init__(self, spec: ModelSpec, rows: int, size: int) -> None:
        rng = np.random.default_rng(0)
        self.size = size
        self._calls = [slice(start, start + WIDE) for start in range(0, size, WIDE)]
        self._spec = spec
        self._serving = Serving(
            init(spec, 0), jnp.zeros(SEASONS, jnp.int32), jnp.asarray(True), jnp.float32(0.9)
        )
        self._rows = table.empty(row.layout(spec), rows)
        recipe = Recipe(spec, rows, SHAPES)
        self._advance, self._write = recipe(("advance", WIDE)), recipe(("write", WIDE))
        self._groups = [
            np.sort(rng.choice(rows, size, replace=False).astype(np.int32)) for _ in range(GROUPS)
        ]
        self._values = np.cumsum(rng.normal(size=(4 * spec.horizon, size)), axis=0).astype(np.float32)
        self._turn = 0
        self._grow_up()

    def seconds(self) -> float:
        """One batch."""
        group, steps = self._groups[self._turn % GROUPS], self._steps()
        calls = [jax.tree.map(lambda x, call=call: x[call], (group, steps)) for call in self._calls]
        results: list[Any] = []
        began_s = time.perf_counter()
        for idx, some in calls:
            changes, *told = self._advance(self._serving, self._rows, idx, some)
            self._rows = self._write(self._rows, idx, changes)
            results.append(told)
        jax.block_until_ready((self._rows.count, results))
        took_s = time.perf_counter() - began_s
        self._turn += 1
        return took_s

    def _steps(self) -> Steps:
        value = self._values[self._turn // GROUPS % len(self._values)]
        yes = np.ones(self.size, bool)
        minutes, week = np.full(self.size, 60.0, np.float32), np.full(self.size, 1.5, np.float32)
        none = np.zeros((self.size, len(self._spec.covariates)), np.float32)
        return Steps(value, minutes, week, yes, yes, yes, none)

    def _grow_up(self) -> None:
        """Plant the rows, and step them until every forecast that waits is due."""
        loan = jax.tree.map(lambda x: jnp.broadcast_to(x, (self.size, *x.shape)), birth.unlent(self._spec))
        plant: Callable[..., Any] = jax.jit(birth.plant, donate_argnums=0)
        for group in self._groups:
            self._rows = plant(self._rows, group, jnp.full(self.size, 100.0), loan)
        for _ in range(GROUPS * 2 * self._spec.horizon):
            self.seconds()


def run(quick: bool) -> Iterator[Row]:
    """Steps a second, what the length of the table costs, and memory."""
    spec = ModelSpec()
    a_row = row_bytes(spec)
    repeats = 20 if quick else 100
    shape = f"{spec.cell} {spec.hidden}, horizon {spec.horizon}, {len(spec.levels)} levels"
    seconds = large_s(repeats // 2)
    yield Row(
        "advance + write, batch 4,096",
        LARGE_BATCH / seconds,
        "series-steps/s",
        f"{1e3 * seconds:.2f} ms a batch, in calls of {WIDE}; {shape}",
    )
    each_s = at_once(WORKERS, repeats)
    yield Row(
        f"the same, {WORKERS} workers at once",
        sum(LARGE_BATCH / took_s for took_s in each_s),
        "series-steps/s",
        " and ".join(f"{1e3 * took_s:.2f}" for took_s in each_s) + " ms a batch",
    )
    rows = most_rows(a_row, 20_000 if quick else 1_000_000)
    short, long = Bench(spec, 1_000, BATCH), Bench(spec, rows, BATCH)
    pairs = np.array([(short.seconds(), long.seconds()) for _ in range(repeats)])
    short_s, long_s = np.median(pairs, axis=0)
    yield Row(
        f"advance + write, batch {BATCH}",
        BATCH / short_s,
        "series-steps/s",
        f"{1e3 * short_s:.2f} ms a batch, 1,000 rows in the table",
    )
    yield Row(
        f"batch {BATCH}: {rows:,} rows against 1,000",
        long_s / short_s,
        "times as long",
        f"{1e3 * long_s:.2f} ms against {1e3 * short_s:.2f} ms, taken in turns",
    )
    del short, long
    gc.collect()
    yield Row("a row of the table", a_row, "bytes", f"100,000 series take {a_row * 1e5 / 2**30:.2f} GiB")
    yield Row("a series in the host's index", host_bytes(), "bytes", "10,000 series, with their names")


def large_s(repeats: int, others: Any = None) -> float:
    """Seconds of a large batch, the median; begun when the others are ready, too."""
    bench = Bench(ModelSpec(), 2 * LARGE_BATCH, LARGE_BATCH)
    if others is not None:
        others.wait(START_S)
    return float(np.median([bench.seconds() for _ in range(repeats)]))


def at_once(workers: int, repeats: int) -> list[float]:
    """The same in as many processes side by side."""
    context = get_context("spawn")  # a fork would have threads of XLA that do not run
    with context.Manager() as manager:
        barrier: Any = manager.Barrier(workers)
        with context.Pool(workers) as pool:
            return pool.starmap(large_s, [(repeats, barrier)] * workers, 1)


def row_bytes(spec: ModelSpec) -> float:
    """Bytes of the device's memory for each series."""
    return sum(column.nbytes for column in table.empty(row.layout(spec), 8)) / 8


def host_bytes(series: int = 10_000) -> float:
    """Bytes of Python's memory for each series."""
    index = Index(SeriesSpec(max_series=series))
    tracemalloc.start()
    for i in range(series):
        index.allot(0, f"series-{i:05}")
    took, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return took / series


def most_rows(a_row: float, wanted: int) -> int:
    """The longest table that fits: `wanted` rows, or a fifth as often as it takes."""
    room = psutil.virtual_memory().available / HEADROOM
    while wanted * a_row > room:
        wanted //= 5
    return wanted
