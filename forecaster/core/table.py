"""The series table: one row a series, a struct of arrays on the device, and the index of who owns which row.

In come row numbers; out go the rows' contents (`gather`, `lagged`) and, from what changed, the next table (`scatter`).
Reading and writing are separate programs: in one, XLA copies the whole table at every batch. The table never
grows: its size is configured, its rows are allotted as series appear and freed when they have been idle.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int
from pydantic import Field

from forecaster.core.grid import Clock
from forecaster.core.spec import Spec


class SeriesSpec(Spec):
    """How many series are kept, and for how long."""

    max_series: int = Field(
        10_000, ge=8, description="Most series kept at once by a worker; a row takes about 10 KB."
    )
    idle_s: float = Field(
        7 * 86400.0,
        gt=0,
        description="A series is dropped when its last tick is this much older (event time) than its partition's newest.",
    )
    rebuild_ticks: int = Field(
        100_000,
        ge=0,
        description="Most ticks of a partition that are read back from the log to rebuild its series.",
    )


class Layout(NamedTuple):
    """Widths of the columns; hashable, so a static argument of the compiled programs."""

    memory: int  # values kept a series
    context: int  # steps for which scale and time are kept too
    carry: int
    horizon: int
    levels: int
    experts: int
    running: int  # floats of running statistics
    smooth: int  # floats of smoothing state


class Rows(NamedTuple):
    """State of the series; the leading axis is the row. A ring holds step number n at n modulo its length."""

    count: Array  # int32 (row,), steps seen
    base: Array  # float32 (row,), what `value` is relative to
    value: Array  # float32 (row, memory)
    scale: Array  # float32 (row, context)
    dt_s: Array  # float32 (row, context), seconds since the step before
    week: Array  # float32 (row, context), days since the week began
    running: Array  # float32 (row, running)
    carry: Array  # float32 (row, carry)
    origin: Array  # float32 (row, origin, 3): last value, scale, whether it was published
    pending: Array  # float16 (row, origin, horizon, level): quantiles waiting for their targets
    points: Array  # float16 (row, origin, horizon, expert): the experts' medians, waiting too
    blend: Array  # float32 (row, 2, expert, horizon): lately lost and mean absolute error of each expert
    smooth: Array  # float32 (row, smooth)
    offset: Array  # float32 (row, horizon, level): conformal correction


def empty(layout: Layout, rows: int) -> Rows:
    """A table of zeros."""
    f32, h = jnp.float32, layout.horizon
    return Rows(
        count=jnp.zeros(rows, jnp.int32),
        base=jnp.zeros(rows, f32),
        value=jnp.zeros((rows, layout.memory), f32),
        scale=jnp.zeros((rows, layout.context), f32),
        dt_s=jnp.zeros((rows, layout.context), f32),
        week=jnp.zeros((rows, layout.context), f32),
        running=jnp.zeros((rows, layout.running), f32),
        carry=jnp.zeros((rows, layout.carry), f32),
        origin=jnp.zeros((rows, h, 3), f32),
        pending=jnp.zeros((rows, h, h, layout.levels), jnp.float16),
        points=jnp.zeros((rows, h, h, layout.experts), jnp.float16),
        blend=jnp.zeros((rows, 2, layout.experts, h), f32),
        smooth=jnp.zeros((rows, layout.smooth), f32),
        offset=jnp.zeros((rows, h, layout.levels), f32),
    )


def take(rows: Rows, idx: Int[Array, " batch"]) -> Rows:
    """Whole rows, copied out; numbers past the end (padding) read the last row."""
    return Rows(*(column.at[idx].get(mode="clip") for column in rows))


def put(rows: Rows, idx: Int[Array, " batch"], new: Rows) -> Rows:
    """Whole rows, written back; numbers past the end (padding) write nothing."""
    return Rows(*(column.at[idx].set(value, mode="drop") for column, value in zip(rows, new, strict=True)))


def lagged(
    column: Float[Array, "row length"],
    idx: Int[Array, " batch"],
    count: Int[Array, " batch"],
    lags: Int[Array, "batch lag"],
) -> Float[Array, "batch lag"]:
    """Values of a ring so many steps before the step that comes next (lag 1: the newest known).

    A lag from before the series began, or longer than the ring, reads the oldest value that is known.
    """
    length = column.shape[1]
    within = jnp.clip(lags, 1, jnp.clip(count, 1, length)[:, None])
    return column.at[idx[:, None], jnp.remainder(count[:, None] - within, length)].get(mode="clip")


class Changes(NamedTuple):
    """What one step changes in each row: one element of each ring, one slot of what waits, and the small state."""

    count: Array
    base: Array
    value: Array  # (batch,)
    scale: Array  # (batch,)
    dt_s: Array  # (batch,)
    week: Array  # (batch,)
    running: Array
    carry: Array
    origin: Array  # (batch, 3)
    pending: Array  # (batch, horizon, level)
    points: Array  # (batch, horizon, expert)
    blend: Array
    smooth: Array
    offset: Array


def write(rows: Rows, idx: Int[Array, " batch"], new: Changes) -> Rows:
    """The table with one step written into rows `idx`; numbers past the end (padding) write nothing.

    Compiled with `rows` donated this writes in place, whatever the number of rows.
    """
    step = new.count - 1  # its number: where the rings hold it

    def whole(column: Array, value: Array) -> Array:
        return column.at[idx].set(value, mode="drop")

    def ring(column: Array, value: Array) -> Array:
        return column.at[idx, jnp.remainder(step, column.shape[1])].set(value, mode="drop")

    return Rows(
        count=whole(rows.count, new.count),
        base=whole(rows.base, new.base),
        value=ring(rows.value, new.value),
        scale=ring(rows.scale, new.scale),
        dt_s=ring(rows.dt_s, new.dt_s),
        week=ring(rows.week, new.week),
        running=whole(rows.running, new.running),
        carry=whole(rows.carry, new.carry),
        origin=ring(rows.origin, new.origin),
        pending=ring(rows.pending, new.pending),
        points=ring(rows.points, new.points),
        blend=whole(rows.blend, new.blend),
        smooth=whole(rows.smooth, new.smooth),
        offset=whole(rows.offset, new.offset),
    )


class Series:
    """One series of one partition: which row is its, and where it stands. Mutable, on the host."""

    __slots__ = ("base", "clock", "fresh", "name", "row", "stepped_s")

    def __init__(self, name: str, row: int) -> None:
        self.name = name
        self.row = row
        self.base = 0.0  # float64: what the row's values are relative to
        self.fresh = True  # whether its next step starts the row anew
        self.stepped_s = 0.0  # event time of its newest step
        self.clock = Clock()


class Index:
    """Who owns which row. A series is keyed by (partition, name); free rows are allotted lowest first."""

    def __init__(self, spec: SeriesSpec) -> None:
        self.spec = spec
        self.partitions: dict[int, dict[str, Series]] = {}
        self.watermark_s: dict[int, float] = {}  # newest event time of each partition
        self.evicted = 0
        self.split: set[str] = set()  # names seen in two partitions at once
        self._home: dict[str, int] = {}
        self._free = list(range(spec.max_series - 1, -1, -1))
        self._swept_s: dict[int, float] = {}

    def __len__(self) -> int:
        return self.spec.max_series - len(self._free)

    def allot(self, partition: int, name: str) -> Series | None:
        """A row for a series that has none, or None when every row is taken."""
        if not self._free:
            return None
        home = self._home.setdefault(name, partition)
        if home != partition and name in self.partitions.get(home, ()):
            self.split.add(name)
        series = Series(name, self._free.pop())
        self.partitions.setdefault(partition, {})[name] = series
        return series

    def evict(self, partition: int, name: str) -> None:
        """Free the row of a series."""
        self._free.append(self.partitions[partition].pop(name).row)
        if self._home.get(name) == partition:
            del self._home[name]
        self.split.discard(name)

    def drop(self, partition: int) -> int:
        """Free all rows of a partition that moved away; how many those were."""
        names = list(self.partitions.get(partition, ()))
        for name in names:
            self.evict(partition, name)
        for book in (self.partitions, self.watermark_s, self._swept_s):
            book.pop(partition, None)
        return len(names)

    def sweep(self, partition: int) -> int:
        """Evict what is idle, looking only now and then (in event time, so that a replay does the same)."""
        now_s = self.watermark_s[partition]
        if now_s < self._swept_s.setdefault(partition, now_s) + self.spec.idle_s / 8:
            return 0
        self._swept_s[partition] = now_s
        members = self.partitions.get(partition, {})
        idle = [name for name, s in members.items() if s.clock.time_s < now_s - self.spec.idle_s]
        for name in idle:
            self.evict(partition, name)
        self.evicted += len(idle)
        return len(idle)

    def rows(self, partition: int) -> np.ndarray:
        """Row numbers of a partition's series, in the order in which they appeared; int32."""
        return np.fromiter((s.row for s in self.partitions.get(partition, {}).values()), np.int32)
