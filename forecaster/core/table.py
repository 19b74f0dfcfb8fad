"""The series table: one row a series, a struct of arrays on the device, and the index of who owns which row.

In come row numbers; out go the rows' contents (`gather`, `lagged`) and, from what changed, the next table (`scatter`).
Reading and writing are separate programs: in one, XLA copies the whole table at every batch. The table never
grows: its size is configured, its rows are allotted as series appear and freed when they have been idle.
"""

from collections.abc import Callable, Collection
from functools import partial
from itertools import islice
from typing import NamedTuple
from zlib import crc32

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int
from pydantic import Field

from forecaster.core.grid import Clock
from forecaster.core.spec import Spec

SLOTS = 1 << 14  # hash values of series names; a bucket is those that are equal modulo the number of buckets


def slot_of(name: str) -> int:
    """The hash of a series name: the same in every process."""
    return crc32(name.encode()) % SLOTS


class SeriesSpec(Spec):
    """How many series are kept, and for how long."""

    max_series: int = Field(
        10_000,
        ge=8,
        description="Most series kept at once by a worker; a row takes about 10 KB. Up to 16 start sooner.",
    )
    idle_s: float = Field(
        7 * 86400.0,
        gt=0,
        description="A series is dropped when its last tick is so much older (event time) than its partition's newest;"
        " what all were silent for does not count until the next tick. Longer than the usual time between two of its"
        " ticks, or it is new with each.",
    )
    rebuild_ticks: int = Field(
        100_000,
        ge=0,
        description="Most ticks of a partition that are read back from the log to rebuild its series.",
    )


class Layout(NamedTuple):
    """Widths of the columns; hashable, so a static argument of the compiled programs."""

    memory: int  # values kept a series
    context: int  # steps for which scale, time and covariates are kept too
    trace: int  # numbers of these
    carry: int
    horizon: int
    levels: int
    waiting: int  # words of 16 bits that wait for each step ahead
    running: int  # floats of running statistics
    lines: int  # experts whose forecast is a few numbers an origin
    experts: int
    regressors: int


class Rows(NamedTuple):
    """State of the series; the leading axis is the row. Three kinds of columns (`KINDS`):

    whole     written as a whole at each step
    ring      holds step number n at place n modulo its length
    triangle  what waits for its targets: the forecast for step n + h made at step n is at h(h-1)/2 + n modulo h, where
              it is read at step n + h, and replaced in the same step by the forecast made there
    """

    count: Array  # pyright: ignore[reportIncompatibleMethodOverride] - int32 (row,), steps seen
    base: Array  # float32 (row,), what `value` is relative to
    value: Array  # ring, float32 (row, memory)
    trace: Array  # ring, float16 (row, context, trace): logarithms of scale and seconds since the step before, days of
    #               week, and what the covariates told
    running: Array  # float32 (row, running)
    origin: Array  # ring, float32 (row, horizon, 2 + lines): last value; scale, below 0 where the forecast was not
    #                published; experts' few numbers
    waiting: Array  # triangle, uint16 (row, triangle, word): experts' points and quantiles, by `waiting.pack`
    regressors: Array  # ring, float16 (row, horizon, regressors): inputs of the linear expert
    covariance: Array  # float32 (row, pairs of regressors): the linear expert's inverse covariance
    weights: Array  # float32 (row, regressors, horizon): and its weights
    blend: Array  # float32 (row, 3, expert, horizon): errors in scales, regrets of the mix, and their squares
    carry: Array  # float32 (row, carry)
    offset: Array  # float32 (row, horizon, level): conformal correction


KINDS = {
    "count": "whole",
    "base": "whole",
    "value": "ring",
    "trace": "ring",
    "running": "whole",
    "origin": "ring",
    "waiting": "triangle",
    "regressors": "ring",
    "covariance": "whole",
    "weights": "whole",
    "blend": "whole",
    "carry": "whole",
    "offset": "whole",
}
"""How each column of `Rows` is written, in their order."""


@partial(jax.jit, static_argnums=(0, 1))
def empty(layout: Layout, rows: int) -> Rows:
    """A table of zeros; compiled as one, not column by column."""
    f32, f16, h, d = jnp.float32, jnp.float16, layout.horizon, layout.regressors
    return Rows(
        count=jnp.zeros(rows, jnp.int32),
        base=jnp.zeros(rows, f32),
        value=jnp.zeros((rows, layout.memory), f32),
        trace=jnp.zeros((rows, layout.context, layout.trace), f16),
        running=jnp.zeros((rows, layout.running), f32),
        origin=jnp.zeros((rows, h, 2 + layout.lines), f32),
        waiting=jnp.zeros((rows, h * (h + 1) // 2, layout.waiting), jnp.uint16),
        regressors=jnp.zeros((rows, h, d), f16),
        covariance=jnp.zeros((rows, d * (d + 1) // 2), f32),
        weights=jnp.zeros((rows, d, h), f32),
        blend=jnp.zeros((rows, 3, layout.experts, h), f32),
        carry=jnp.zeros((rows, layout.carry), f32),
        offset=jnp.zeros((rows, h, layout.levels), f32),
    )


def whole(column: Array, idx: Int[Array, " batch"]) -> Array:
    """The rows `idx` of a column; numbers past the end (padding) read the last row."""
    return column.at[idx].get(mode="clip")


def take(rows: Rows, idx: Int[Array, " batch"]) -> Rows:
    """Whole rows, copied out."""
    return Rows(*(whole(column, idx) for column in rows))


def put(rows: Rows, idx: Int[Array, " batch"], new: Rows) -> Rows:
    """Whole rows, written back; numbers past the end (padding) write nothing."""
    return Rows(*(column.at[idx].set(value, mode="drop") for column, value in zip(rows, new, strict=True)))


def lagged(
    column: Float[Array, "row length *item"],
    idx: Int[Array, " batch"],
    count: Int[Array, " batch"],
    lags: Int[Array, "batch lag"],
) -> Float[Array, "batch lag *item"]:
    """Values of a ring so many steps before the step that comes next (lag 1: the newest known).

    A lag from before the series began, or longer than the ring, reads the oldest value that is known.
    """
    length = column.shape[1]
    within = jnp.clip(lags, 1, jnp.clip(count, 1, length)[:, None])
    return column.at[_rows(idx), _modulo(count[:, None] - within, length)].get(mode="clip")


def _modulo(step: Array, length: Array | int) -> Array:
    """Step number modulo a length; both are not negative, and without a sign this is a third of the work."""
    return jnp.remainder(step.astype(jnp.uint32), jnp.asarray(length, jnp.uint32))


def _rows(idx: Int[Array, " batch"]) -> Array:
    """Row numbers beside an axis of places; without a sign, so that none has to be counted from the end."""
    return idx[:, None].astype(jnp.uint32)


def _places(count: Int[Array, " batch"], horizon: int) -> Array:
    h = jnp.arange(1, horizon + 1, dtype=jnp.uint32)
    return h * (h - 1) // 2 + _modulo(count[:, None], h)


def due(column: Array, idx: Int[Array, " batch"], count: Int[Array, " batch"], horizon: int) -> Array:
    """What waits in a triangle for step number `count`, by how many steps ago it was made; (batch, horizon, ...)."""
    return column.at[_rows(idx), _places(count, horizon)].get(mode="clip")


def origins(column: Array, idx: Int[Array, " batch"], count: Int[Array, " batch"], horizon: int) -> Array:
    """What a ring of `horizon` steps holds, 1 to `horizon` steps before step number `count`; (batch, horizon, ...)."""
    slot = _modulo(count[:, None] + horizon - jnp.arange(1, horizon + 1), horizon)
    return column.at[_rows(idx), slot].get(mode="clip")


def write(rows: Rows, idx: Int[Array, " batch"], new: Rows) -> Rows:
    """The table with one step written into rows `idx`; numbers past the end (padding) write nothing.

    `new` holds, for each row, what the step changes: of a ring one element, of a triangle one for each step ahead, of
    the others all. Compiled with `rows` donated this writes in place, whatever the number of rows.
    """
    return _write(rows, idx, new, lambda column, value: column.at[idx].set(value, mode="drop"))


def step(rows: Rows, valid: Array, new: Rows) -> Rows:
    """The same of a table that has no rows but these, where `valid`."""
    idx = jnp.where(valid, jnp.arange(valid.size), valid.size)

    def all_of(column: Array, value: Array) -> Array:
        return jnp.where(valid.reshape(-1, *(1,) * (column.ndim - 1)), value, column)

    return _write(rows, idx, new, all_of)


def _write(rows: Rows, idx: Int[Array, " batch"], new: Rows, whole: Callable[[Array, Array], Array]) -> Rows:
    number = new.count - 1  # of the step

    def change(kind: str, column: Array, value: Array) -> Array:
        value = value.astype(column.dtype)
        if kind == "ring":
            return column.at[idx.astype(jnp.uint32), _modulo(number, column.shape[1])].set(value, mode="drop")
        if kind == "triangle":
            return column.at[_rows(idx), _places(number, value.shape[1])].set(value, mode="drop")
        return whole(column, value)

    return Rows(*map(change, KINDS.values(), rows, new))


YOUNG = 8  # steps in which a row can still turn out to have begun with a bad tick
ASTRAY = 1000.0  # times as far away as two steps after it are from each other


class Series:
    """One series of one partition: which row is its, and where it stands. Mutable, on the host."""

    __slots__ = ("age", "base", "born", "clock", "farthest", "fresh", "last", "name", "row", "stepped_s")

    def __init__(self, name: str, row: int, born: int = 0) -> None:
        self.name = name
        self.row = row
        self.born = born  # offset of the tick with which it appeared: the order of its partition's series
        self.base = 0.0  # float64: what the row's values are relative to
        self.fresh = True  # whether its next step starts the row anew
        self.stepped_s = 0.0  # event time of its newest step
        self.age = 0  # steps since the row began, up to YOUNG
        self.last = 0.0  # float64: value of its newest step
        self.farthest = 0.0  # from the base, so far
        self.clock = Clock()

    def step(self, value: float, time_s: float, fresh: bool) -> bool:
        """Take note of a step; whether the row starts anew with it.

        It does where it began with a value that was none: the first one is what all others are relative to in
        float32, and where it lies ASTRAY times farther away than the step from the second to the next, these are lost.
        """
        fresh = fresh or self.fresh
        if not fresh and self.age < YOUNG:
            self.age += 1
            fresh = 0 < ASTRAY * abs(value - self.last) < self.farthest
            self.farthest = max(self.farthest, abs(value - self.base))
        if fresh:
            self.base, self.stepped_s, self.fresh = value, time_s, False
            self.age, self.farthest = 0, 0.0
        self.last = value
        return fresh


class Index:
    """Who owns which row. A series is keyed by (partition, name); free rows are allotted lowest first."""

    def __init__(self, spec: SeriesSpec) -> None:
        self.spec = spec
        self.partitions: dict[int, dict[str, Series]] = {}
        self.watermark_s: dict[int, float] = {}  # newest event time of each partition
        self.allotted = 0  # rows, in all
        self.evicted = 0
        self.split: set[str] = set()  # names seen in two partitions at once
        self.swept_s: dict[int, float] = {}  # event time of each partition's last sweep
        self._home: dict[str, int] = {}
        self._slots: dict[int, dict[int, set[str]]] = {}  # names of a partition by their hash
        self._free = list(range(spec.max_series - 1, -1, -1))

    def __len__(self) -> int:
        return self.spec.max_series - len(self._free)

    def allot(self, partition: int, name: str, born: int = 0) -> Series | None:
        """A row for a series that appears at offset `born`, or None when every row is taken."""
        if not self._free:
            return None
        home = self._home.setdefault(name, partition)
        if home != partition and name in self.partitions.get(home, ()):
            self.split.add(name)
        series = Series(name, self._free.pop(), born)
        self.allotted += 1
        self.partitions.setdefault(partition, {})[name] = series
        self._slots.setdefault(partition, {}).setdefault(slot_of(name), set()).add(name)
        return series

    def evict(self, partition: int, name: str) -> None:
        """Free the row of a series."""
        self._free.append(self.partitions[partition].pop(name).row)
        self._slots[partition][slot_of(name)].discard(name)
        if self._home.get(name) == partition:
            del self._home[name]
        self.split.discard(name)

    def drop(self, partition: int) -> int:
        """Free all rows of a partition that moved away; how many those were."""
        names = list(self.partitions.get(partition, ()))
        for name in names:
            self.evict(partition, name)
        for book in (self.partitions, self.watermark_s, self.swept_s, self._slots):
            book.pop(partition, None)
        return len(names)

    def bucket(self, partition: int, bucket: int, buckets: int) -> list[Series]:
        """The series of a partition whose hash is `bucket` modulo `buckets`, a power of two, in order of birth."""
        members, slots = self.partitions.get(partition, {}), self._slots.get(partition, {})
        names = (name for slot in range(bucket, SLOTS, buckets) for name in slots.get(slot, ()))
        return sorted((members[name] for name in names), key=lambda series: series.born)

    def sample(self, most: int, partitions: Collection[int]) -> list[tuple[int, Series]]:
        """With its partition each, up to so many series that have taken a step: those whose hashes are least."""
        found = (
            (partition, self.partitions[partition][name])
            for slot in range(SLOTS)
            for partition in sorted(partitions)
            for name in sorted(self._slots.get(partition, {}).get(slot, ()))
        )
        return list(islice(((p, series) for p, series in found if not series.fresh), most))

    def order(self, partition: int) -> None:
        """Put the series of a partition, restored bucket by bucket, in the order in which they appeared."""
        members = self.partitions.get(partition, {})
        self.partitions[partition] = dict(sorted(members.items(), key=lambda item: item[1].born))

    def sweep(self, partition: int, before_s: float, spare: Callable[[str], bool] | None = None) -> int:
        """Evict what is idle, looking only now and then (in event time, so that a replay does the same).

        `before_s` is the partition's newest event time before the tick that moved it on: what is older than that by
        `idle_s` was silent while others spoke, and after a silence of all of them nothing is. `spare` says of which
        series it is not the time yet, since a replay has not come to where they are.
        """
        now_s = self.watermark_s[partition]
        if now_s < self.swept_s.setdefault(partition, now_s) + self.spec.idle_s / 8:
            return 0
        self.swept_s[partition] = now_s
        members = self.partitions.get(partition, {})
        idle = [name for name, s in members.items() if s.clock.time_s < before_s - self.spec.idle_s]
        if spare is not None:
            idle = [name for name in idle if not spare(name)]
        for name in idle:
            self.evict(partition, name)
        self.evicted += len(idle)
        return len(idle)

    def stepped(self, partition: int, most: int) -> np.ndarray:
        """Rows of the first so many series of a partition that have taken a step, in the order of birth; int32."""
        members = self.partitions.get(partition, {}).values()
        return np.fromiter(islice((s.row for s in members if not s.fresh), most), np.int32)
