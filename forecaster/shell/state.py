"""State on its way to the state topic: pages of the partitions that are served, one at a time, and swaps and skips
before anything depends on them.

In come folded batches, commits and the model that is to serve; out go records through the delivery of the predictions.
A page follows the commit of its offset, or goes into the transaction that commits it. A swap is written at the offset
that each partition has come to, a skip with the batch that it is about; until that is acknowledged nothing is read, so
no prediction depends on what is not on the log.
"""

import time
from collections import deque
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from pydantic import Field

from forecaster.core import pages, snapshot
from forecaster.core.birth import Loan
from forecaster.core.fold import LOAN_EVERY, Fold
from forecaster.core.model import Model
from forecaster.core.pages import PAGE_BYTES, Skip, Swap
from forecaster.core.programs import Programs
from forecaster.core.spec import Spec
from forecaster.core.table import SLOTS
from forecaster.shell.kafka import Record
from forecaster.shell.kafka.delivery import Delivery
from forecaster.shell.metrics import Metrics
from forecaster.shell.saved import Saved, is_past, loan_key, page_key, skip_key, swap_key
from forecaster.shell.skips import Skips

MEMBER_BYTES = 300  # of the host side of a series, about
MOST_WAITING = 16  # pages that wait for the commit of their offset


class StateSpec(Spec):
    """How often the series are written to the state topic, from which a restart or another worker goes on."""

    interval_s: float = Field(
        60.0,
        gt=0,
        description="Every page of a partition that has moved on is written again after so long; what a restart has to "
        "read back grows with it.",
    )
    bytes_per_s: int = Field(
        2 << 20,
        ge=1 << 10,
        description="Most bytes of pages a second; where that is not enough for interval_s, it takes longer.",
    )


class Target(NamedTuple):
    """The model that is to serve."""

    model: Model
    reason: str
    programs: Programs | None = None  # of a network of another cell or size


class Due(NamedTuple):
    """A swap on the log that the fold has not come to; without a model, which cannot be had, nothing changes."""

    offset: int
    model: Model | None


@dataclass(eq=False)
class _Partition:
    """What is known of a partition of ours and of what the state topic holds of it."""

    folded: int  # offset of the next tick
    committed: int
    version: str | None  # of the last swap, or of the pages; None: the topic says nothing
    keys: set[bytes] = field(default_factory=set[bytes])
    written: list[int] = field(default_factory=list[int])  # by bucket: offset of its page, -1 without one
    bucket: int = 0  # is written next
    due: deque[Due] = field(default_factory=deque[Due])
    loans: deque[tuple[int, Loan]] = field(default_factory=deque[tuple[int, Loan]])


class Sent(NamedTuple):
    """Swaps on their way: the token of their batch."""

    target: Target
    partitions: dict[int, _Partition]


class _Round(NamedTuple):
    """All buckets, each with a page at `floor` or later."""

    buckets: int
    floor: int


class _Captured(NamedTuple):
    partition: int
    offset: int
    key: bytes
    data: bytes
    complete: _Round | None  # with this page, if it is the last of a round


class StateTopic:
    """The state topic as its writer sees it. Never waits."""

    def __init__(
        self,
        spec: StateSpec,
        topic: str,
        source: str,
        fold: Fold,
        delivery: Delivery,
        metrics: Metrics,
        skips: Skips,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.source = source
        self._spec, self._topic, self._fold, self._delivery = spec, topic, fold, delivery
        self._metrics, self._skips, self._now = metrics, skips, now
        self._partitions: dict[int, _Partition] = {}
        self._serving: deque[int] = deque()  # the one whose page comes next is first
        self._captured: deque[_Captured] = deque()
        self._sent: Sent | None = None
        self._skipping: tuple[object, set[int]] | None = None  # token of a batch on its way; skips of these
        self._next_s = -float("inf")
        row_bytes = sum(column.nbytes for column in fold.rows) // fold.rows.count.shape[0]
        self._most_members = max(1, PAGE_BYTES // (row_bytes + MEMBER_BYTES))

    # ------------------------------------------------------------------ partitions

    def restored(self, partition: int, saved: Saved, due: Iterable[Due]) -> None:
        """What the topic holds of a partition whose log is read back next; `due` are its swaps, in order."""
        version = None if saved.version is None else self._fold.version(partition)
        written = saved.offsets if saved.whole else []
        self._partitions[partition] = _Partition(
            saved.start, saved.start, version, set(saved.keys), list(written), due=deque(due)
        )
        self._skips.follow(partition, saved.skips)

    def serve(self, partition: int, offset: int) -> None:
        """A partition is answered from `offset` on, which is committed."""
        ours = self._partitions.setdefault(partition, _Partition(offset, offset, None))
        ours.folded = ours.committed = offset
        while ours.due and ours.due[0].offset <= offset:
            self._pass(partition, ours)
        self._serving.append(partition)

    def forget(self, partitions: Iterable[int]) -> None:
        """Partitions that moved away, with what was on its way."""
        gone = set(partitions)
        for partition in gone:
            self._partitions.pop(partition, None)
        self._serving = deque(p for p in self._serving if p not in gone)
        self._captured = deque(c for c in self._captured if c.partition not in gone)
        self._skips.forget(gone)
        if self._skipping is not None:
            self._skipping[1].difference_update(gone)
        if self._sent is not None and gone & self._sent.partitions.keys():
            self._sent = None  # if it did arrive, whoever reads the topic next follows it

    # ------------------------------------------------------------------ swaps, skips

    @property
    def holds(self) -> bool:
        """Whether nothing may be read: swaps or skips are on their way to the log."""
        return self._sent is not None or bool(self._skipping and self._skipping[1])

    def skip(self, skips: Mapping[int, Skip], token: object) -> None:
        """Write, with the batch of this token, what it passes over; what comes behind is read when that is settled."""
        for partition, skip in skips.items():
            key = skip_key(skip)
            self._delivery.send(self._topic, pages.encode(skip), key, partition=partition)
            if ours := self._partitions.get(partition):
                ours.keys.add(key)
        if skips:
            self._skipping = token, set(skips)

    def settled(self, token: object) -> None:
        """A batch is on the log."""
        if self._skipping is not None and self._skipping[0] is token:
            self._skipping = None

    def parts(self, records: Sequence[Record]) -> Iterator[Sequence[Record]]:
        """The records, cut where a swap on the log is due, which happens between the parts."""
        if not any(ours.due for ours in self._partitions.values()):
            if records:
                yield records
            return
        part: list[Record] = []
        for record in records:
            ours = self._partitions.get(record.partition)
            if ours is not None and ours.due and ours.due[0].offset <= record.offset:
                if part:
                    yield part
                    part = []
                self._pass(record.partition, ours)
            part.append(record)
        if part:
            yield part

    def follow(self, target: Target | None) -> bool:
        """Move on towards the model that is to serve; whether it does so from now on."""
        if target is None or self.holds:
            return False
        behind = {p: self._partitions[p] for p in self._serving}
        behind = {
            p: ours for p, ours in behind.items() if not ours.due and ours.version != target.model.version
        }
        if not behind:
            return self._take_up(target)
        if self._delivery.room():
            self._sent = Sent(target, behind)
            batch = self._delivery.begin(self._sent)
            for partition, ours in behind.items():
                swap = Swap(self.source, ours.folded, target.model.version, self._fold.version(partition))
                key = swap_key(swap)
                self._delivery.send(self._topic, pages.encode(swap), key, partition=partition)
                ours.keys.add(key)
            self._delivery.finish(batch, {})
        return False

    def acknowledged(self, sent: Sent) -> bool:
        """Swaps are on the log: they take effect. Whether another model serves by that from now on."""
        if self._sent is not sent:
            return False  # what they were for has moved away meanwhile
        self._sent = None
        new = self._take_up(sent.target)
        for partition, ours in sent.partitions.items():
            ours.version = sent.target.model.version
            self._fold.swap(sent.target.model, partition)
        return new

    def _take_up(self, target: Target) -> bool:
        if self._fold.model.version == target.model.version:
            return False
        if target.programs is not None and target.model.spec != self._fold.spec:
            self._fold.adopt(target.model.spec, target.programs)
        self._fold.swap(target.model)
        return True

    def _pass(self, partition: int, ours: _Partition) -> None:
        """The fold has come to a swap that is on the log.

        Where its model cannot be had, or is of another network, the one before stays; what is to serve by now is
        swapped in afterwards.
        """
        due = ours.due.popleft()
        if due.model is not None and due.model.spec == self._fold.spec:
            self._fold.swap(due.model, partition)
        ours.version = self._fold.version(partition)

    # ------------------------------------------------------------------ pages

    def folded(self, offsets: Mapping[int, int]) -> None:
        """Batches were folded up to before these offsets."""
        for partition, offset in offsets.items():
            if ours := self._partitions.get(partition):
                ours.folded = offset
        self._skips.passed(offsets)
        while self._fold.lent:
            partition, stretch, loan = self._fold.lent.popleft()
            if ours := self._partitions.get(partition):
                ours.loans.append((stretch, loan))

    def behind(self) -> int:
        """Ticks that a restart would have to read back, of the partition where they are most."""
        ours = [self._partitions[p] for p in self._serving]
        return max((one.folded - max(0, min(one.written, default=0)) for one in ours), default=0)

    def attach(self, offsets: Mapping[int, int]) -> None:
        """A page for the transaction that commits these offsets, where there are transactions."""
        if self._delivery.atomic and self._now() >= self._next_s and (page := self._capture(offsets)):
            self._emit(page)

    def turn(self) -> None:
        """Where there are no transactions: copy out a page, and send one of which the offset is committed by now."""
        if self._delivery.atomic:
            return
        if self._now() >= self._next_s and len(self._captured) < MOST_WAITING:
            self._captured.extend(filter(None, [self._capture(self._partitions)]))
        if self._captured and self._captured[0].offset <= self._committed(self._captured[0].partition):
            batch = self._delivery.begin()
            self._emit(self._captured.popleft())
            self._delivery.finish(batch, {})

    def _committed(self, partition: int) -> int:
        return max(self._partitions[partition].committed, self._delivery.committed.get(partition, 0))

    def _capture(self, among: Container[int]) -> _Captured | None:
        """The next page of a partition that has moved on since it was last written, in turn."""
        for _ in range(len(self._serving)):
            partition = self._serving[0]
            self._serving.rotate(-1)
            if partition in among and (captured := self._page(partition, self._partitions[partition])):
                buckets = sum(len(self._partitions[p].written) for p in self._serving)
                wait_s = max(self._spec.interval_s / buckets, len(captured.data) / self._spec.bytes_per_s)
                self._next_s = self._now() + wait_s
                return captured
        return None

    def _page(self, partition: int, ours: _Partition) -> _Captured | None:
        if not ours.written:
            series = len(self._fold.index.partitions.get(partition, ()))
            ours.written = [-1] * min(SLOTS, 1 << (2 * series // self._most_members).bit_length())
        bucket, buckets = ours.bucket, len(ours.written)
        if ours.written[bucket] == ours.folded:
            return None
        members = len(self._fold.index.bucket(partition, bucket, buckets))
        if members > self._most_members and buckets < SLOTS:  # the pages so far stay until these are complete
            ours.bucket, ours.written = 0, [-1] * (2 * buckets)
            return None
        page = snapshot.take(self._fold, self.source, partition, bucket, buckets, ours.folded)
        ours.written[bucket], ours.bucket = ours.folded, (bucket + 1) % buckets
        complete = _Round(buckets, min(ours.written)) if not ours.bucket else None
        return _Captured(partition, ours.folded, page_key(page), pages.encode(page), complete)

    def _emit(self, captured: _Captured) -> None:
        """Send a page; before it the loans that it makes necessary, after a full round removals of what is past."""
        ours = self._partitions[captured.partition]
        layout = snapshot.layout(self._fold)
        records = [
            (loan_key(stretch), pages.encode(pages.to_lent(self.source, layout, stretch, loan)))
            for stretch, loan in ours.loans
        ]
        ours.loans.clear()
        records.append((captured.key, captured.data))
        ours.keys.update(key for key, _ in records)
        past: list[bytes] = []
        if captured.complete is not None:  # not what is captured by now, which may never be sent
            past = [key for key in ours.keys if is_past(key, *captured.complete, LOAN_EVERY)]
            ours.keys.difference_update(past)
        for key, value in (*records, *((key, None) for key in past)):
            self._delivery.send(self._topic, value, key, partition=captured.partition)
        self._metrics.state_pages["written"].inc()
        self._metrics.state_bytes.inc(len(captured.data))
