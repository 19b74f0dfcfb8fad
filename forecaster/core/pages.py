"""Pages, swaps, skips and loans as bytes: what outlives a worker, on its way to and from the state topic.

In come a partition's series (their host side and their rows) as of one offset; out go bytes without pickle, and back,
or the reason why not. A page holds one hash bucket of the series. Here are the codec and how a log is replayed over
pages; `snapshot.py` fills them and takes them over, `shell/state` knows the topic.

    magic "fcst" · schema (1 byte) · BLAKE2b-128 of the rest · zstandard of MessagePack of one struct below
"""

from collections import deque
from collections.abc import Iterable, Sequence
from enum import StrEnum
from hashlib import blake2b

import msgspec
import numpy as np
import zstandard

from forecaster.core.birth import Loan
from forecaster.core.grid import Bar, Clock, GridSpec
from forecaster.core.model import ModelSpec
from forecaster.core.table import YOUNG, Index, Rows, Series, slot_of

SCHEMA = 1
MEANING = 1  # raised when a column or a member comes to mean something else without changing its shape
PAGE_BYTES = 512 * 1024  # of a page at most; a broker takes a megabyte by default

_MAGIC = b"fcst"
_DIGEST_BYTES = 16
_HEAD_BYTES = len(_MAGIC) + 1 + _DIGEST_BYTES
_MOST_BYTES = 64 << 20  # that a record of ours may unpack to


class Refusal(StrEnum):
    """Why something on the state topic is not used."""

    DAMAGED = "damaged"
    """Not the bytes that were written, or not ours at all."""
    NEWER = "newer"
    """Written by a newer release."""
    LAYOUT = "layout"
    """Of rows that have another shape or meaning."""
    FOREIGN = "foreign"
    """Of another consumer group or another ticks topic."""
    AHEAD = "ahead"
    """Of ticks that are not committed."""


class OpenBar(msgspec.Struct, array_like=True, frozen=True):
    """A bar that is not closed yet."""

    index: int
    n: int
    total: float
    low: float
    high: float
    last: float
    last_s: float
    source: int
    covariates: tuple[float, ...] = ()


class Member(msgspec.Struct, array_like=True, frozen=True):
    """The host side of one series: `Series` and its `Clock`."""

    name: str
    born: int  # offset of its first tick
    carry: int  # index into the page's `versions`: the model that its carry belongs to; -1: none
    base: float
    fresh: bool
    stepped_s: float
    time_s: float
    value: float
    sequence: int | None
    closed: int | None
    level: float
    bars: tuple[OpenBar, ...]
    age: int = YOUNG
    last: float = 0.0
    farthest: float = 0.0


class Column(msgspec.Struct, array_like=True, frozen=True):
    """A column of the rows of a page, little-endian and in C order."""

    name: str
    dtype: str
    shape: tuple[int, ...]  # of a row
    data: bytes


class Page(msgspec.Struct, tag="page", frozen=True):
    """The series of one bucket of a partition, with all ticks before `offset` taken in and none after."""

    source: str  # consumer group and ticks topic
    layout: str
    offset: int
    bucket: int
    buckets: int
    version: str  # of the model that the partition is served with
    watermark_s: float
    swept_s: float | None
    versions: tuple[str, ...]
    members: tuple[Member, ...]
    columns: tuple[Column, ...]


class Swap(msgspec.Struct, tag="swap", frozen=True):
    """From tick `offset` on the partition is served with model `version`."""

    source: str
    offset: int
    version: str
    previous: str


class Skip(msgspec.Struct, tag="skip", frozen=True):
    """The ticks of the partition at `offset` up to before `until` were too old to be answered: nobody takes them in."""

    source: str
    offset: int
    until: int
    ticks: int  # how many these are: not every offset holds one


class Lent(msgspec.Struct, tag="loan", frozen=True):
    """The loan that a partition made in a stretch of its log: rows that are ahead cannot make it again."""

    source: str
    layout: str
    stretch: int
    columns: tuple[Column, ...]


Stored = Page | Swap | Skip | Lent
_decoder = msgspec.msgpack.Decoder(Stored)


# --------------------------------------------------------------------------- bytes


def encode(stored: Stored) -> bytes:
    """The bytes of a page, a swap, a skip or a loan."""
    packed = zstandard.compress(msgspec.msgpack.encode(stored), 1)
    return _MAGIC + bytes([SCHEMA]) + _digest(packed) + packed


def decode(data: bytes) -> Stored | Refusal:
    """What the bytes hold, or why they are refused."""
    if len(data) < _HEAD_BYTES or not data.startswith(_MAGIC):
        return Refusal.DAMAGED
    if data[len(_MAGIC)] > SCHEMA:
        return Refusal.NEWER
    packed = data[_HEAD_BYTES:]
    if data[len(_MAGIC) + 1 : _HEAD_BYTES] != _digest(packed):
        return Refusal.DAMAGED
    try:
        unpacked = zstandard.ZstdDecompressor().decompress(packed, max_output_size=_MOST_BYTES)
        return _decoder.decode(unpacked)
    except (zstandard.ZstdError, msgspec.DecodeError, RecursionError):
        return Refusal.DAMAGED


def _digest(packed: bytes) -> bytes:
    return blake2b(packed, digest_size=_DIGEST_BYTES).digest()


# --------------------------------------------------------------------------- rows


def layout_of(rows: Rows, spec: ModelSpec, grid: GridSpec) -> str:
    """What the rows of a page have to agree in: columns, quantile levels, grid, covariates.

    The carry is free to differ: a row without one is warmed up again.
    """
    columns = [(name, c.dtype.name, c.shape[1:]) for name, c in zip(Rows._fields, rows, strict=True)]
    kept = [column for column in columns if column[0] != "carry"]
    text = repr((MEANING, kept, spec.levels, spec.context_length, spec.warm_up, grid.model_dump()))
    text += repr(spec.covariates) if spec.covariates else ""  # without any, as before there were such
    return blake2b(text.encode(), digest_size=8).hexdigest()


def to_columns(names: Sequence[str], arrays: Sequence[np.ndarray]) -> tuple[Column, ...]:
    """Arrays with a leading row axis as columns."""
    little = [np.ascontiguousarray(a, a.dtype.newbyteorder("<")) for a in arrays]
    return tuple(
        Column(name, a.dtype.name, a.shape[1:], a.tobytes()) for name, a in zip(names, little, strict=True)
    )


def to_array(column: Column, rows: int) -> np.ndarray:
    """The array of a column. Raises ValueError where the bytes are not as many as its shape asks for."""
    dtype = np.dtype(column.dtype).newbyteorder("<")
    return np.frombuffer(column.data, dtype).reshape(rows, *column.shape)


def to_lent(source: str, layout: str, stretch: int, loan: Loan) -> Lent:
    """A loan as it is kept."""
    arrays = [np.asarray(part)[None] for part in loan]
    return Lent(source, layout, stretch, to_columns(Loan._fields, arrays))


def to_loan(lent: Lent) -> Loan:
    """The loan that was kept."""
    parts = {column.name: to_array(column, 1)[0] for column in lent.columns}
    return Loan(**parts)


# --------------------------------------------------------------------------- series


def to_member(series: Series, carry: int) -> Member:
    """The host side of a series as it is kept."""
    clock = series.clock
    bars = tuple(
        OpenBar(index, b.n, b.total, b.low, b.high, b.last, b.last_s, b.source, b.covariates)
        for index, b in clock.bars.items()
    )
    return Member(
        series.name,
        series.born,
        carry,
        series.base,
        series.fresh,
        series.stepped_s,
        clock.time_s,
        clock.value,
        clock.sequence,
        clock.closed,
        clock.level,
        bars,
        series.age,
        series.last,
        series.farthest,
    )


def restore(member: Member, series: Series) -> None:
    """Set the host side of a series, whose row is its own, to what was kept."""
    series.born, series.base = member.born, member.base
    series.fresh, series.stepped_s = member.fresh, member.stepped_s
    series.age, series.last, series.farthest = member.age, member.last, member.farthest
    series.clock = clock = Clock()
    clock.time_s, clock.value, clock.sequence = member.time_s, member.value, member.sequence
    clock.closed, clock.level = member.closed, member.level
    for kept in member.bars:
        clock.bars[kept.index] = bar = Bar()
        bar.n, bar.total, bar.low, bar.high = kept.n, kept.total, kept.low, kept.high
        bar.last, bar.last_s, bar.source = kept.last, kept.last_s, kept.source
        bar.covariates = kept.covariates


# --------------------------------------------------------------------------- replay


class Replay:
    """How a partition's log is gone through again over pages that were written one after the other.

    Until its own page's offset a bucket sleeps. What pages say of the partition holds from their offset on.
    """

    def __init__(self, offsets: Sequence[int], marks: Iterable[Page]) -> None:
        """`offsets` by bucket, of its page or of the first tick that is known; `marks` are the pages."""
        self.until = max(offsets)
        self._offsets = offsets
        self._marks = deque(
            sorted((page.offset, page.watermark_s, page.swept_s or float("-inf")) for page in marks)
        )

    def sleeps(self, offset: int, name: str) -> bool:
        """Whether the series' bucket is already ahead of this offset."""
        return offset < self._offsets[slot_of(name) % len(self._offsets)]

    def advance(self, index: Index, partition: int, offset: int) -> None:
        """Set the partition's times to what they were at this offset, where a page says it."""
        while self._marks and self._marks[0][0] <= offset:
            _, watermark_s, swept_s = self._marks.popleft()
            for book, time_s in ((index.watermark_s, watermark_s), (index.swept_s, swept_s)):
                if time_s > book.get(partition, float("-inf")):
                    book[partition] = time_s
