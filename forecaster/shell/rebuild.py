"""Rows of new partitions, from their pages and the log behind these: read on a thread of its own, without publishing.

In come partitions with the offsets at which serving goes on; out come, for the loop to take over, the pages of each,
what else its state topic says, and then the records before those offsets, chunk by chunk. The group's consumer is not
touched: a second, group-less one reads.
"""

import threading
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from queue import Empty, Full, Queue
from typing import NamedTuple

import structlog

from forecaster.core.model import Model, ModelSpec, untrained
from forecaster.core.pages import Page, Replay
from forecaster.errors import BugError, ForecasterError
from forecaster.shell.kafka import KafkaSpec, Record, TopicsSpec
from forecaster.shell.kafka.log import NOTHING, Log
from forecaster.shell.kafka.notes import Span
from forecaster.shell.models import Models
from forecaster.shell.models.convert import from_stored
from forecaster.shell.saved import Saved, choose
from forecaster.shell.state import Due

CHUNKS = 4  # read ahead at most so many
PATIENCE_S = 0.005  # of who asks for the next
RETRY_S = 1.0
_log = structlog.get_logger(__name__)


class Short(StrEnum):
    """Why a partition was not rebuilt as far back as wanted, so that series of it start young."""

    GONE = "gone"
    """The log begins later: retention."""
    UNREAD = "unread"
    """Log or state topic could not be read, time after time."""
    DEADLY = "deadly"
    """Workers have died of reading it back, so that it was not tried again."""


class Loaded(NamedTuple):
    """A page to be taken over."""

    partition: int
    page: Page


class Known(NamedTuple):
    """All pages of a partition have come; what else is known of it before its log is read."""

    partition: int
    saved: Saved  # without the pages
    replay: Replay
    model: Model | None  # that served at the first of the offsets; None: not known, what serves now does
    due: list[Due]
    models_missing: int


Item = Loaded | Known | list[Record]


class Rebuild:
    """One reading back. `poll` hardly blocks; when `done`, the partitions may be served."""

    def __init__(
        self,
        spec: KafkaSpec,
        topics: TopicsSpec,
        ends: Mapping[int, int],
        most: int,
        source: str,
        layout: str,
        network: ModelSpec,
        passed: Mapping[int, Sequence[Span]] = NOTHING,
        timeout_s: float = 60.0,
        retries: int = 3,
    ) -> None:
        """Only pages of this source and layout are used; where there is none, at most `most` records before an end are
        read. Batches that were `passed` over are not read, and a log that has nothing else before its
        end is left alone.

        After `retries` attempts in a row, each of `timeout_s` without any progress, it gives up: on one partition
        where it can, else on all that are left.
        """
        self.ends = dict(ends)
        self.partitions = frozenset(ends)
        self.short: dict[int, Short] = {}
        """Partitions whose log was not read as far as it should have been: their series start young."""
        self._spec, self._topics, self._most = spec, topics, most
        self._source, self._layout, self._network, self._passed = source, layout, network, passed
        self._timeout_s, self._retries = timeout_s, retries
        self._models: dict[str, Model] = {"": untrained(network)}
        self._serving: Model | None = None
        self._next: dict[int, int] = {}  # offset that is read next, of partitions whose pages were handed out
        self._items: Queue[Item] = Queue(CHUNKS)
        self._stop = threading.Event()
        self._through = False
        self._thread = threading.Thread(target=self._run, name="rebuild", daemon=True)
        self._thread.start()

    @property
    def done(self) -> bool:
        """Whether everything that could be read was handed out."""
        return self._through and self._items.empty()

    def poll(self) -> Item:
        """What comes next; no records when there is nothing yet. Waits a little: who asks again and again delays it.

        Raises BugError where nothing will ever come.
        """
        try:
            return self._items.get(timeout=PATIENCE_S)
        except Empty:
            if (
                not self._thread.is_alive() and not self._through
            ):  # in this order: what is dead changes nothing
                raise BugError("the thread that reads the log back has ended before its work") from None
            return []

    def cancel(self) -> None:
        """Read no further."""
        self._stop.set()

    def _run(self) -> None:
        failures, progress = 0, dict(self._next)
        while True:
            log = Log(self._spec)
            try:
                self._read_state(log)
                self._read_ticks(log)
                self._through = True
                return
            except BaseException as error:  # else what is not read back would be taken for what is not there
                ours = isinstance(error, ForecasterError)
                told = str(error) if ours else repr(error)
                _log.warning("rebuild_interrupted", topic=self._topics.ticks, error=told, exc_info=not ours)
                failures = failures + 1 if self._next == progress else 1
                progress = dict(self._next)
            finally:
                log.close()
            if failures == self._retries:
                self._give_up()
                failures, progress = 0, dict(self._next)
            if self._stop.wait(RETRY_S):
                return

    def _give_up(self) -> None:
        """The partition whose state could not be read, so that the others are; else all whose log could not."""
        unread = sorted(self.ends.keys() - self._next.keys())[:1]
        unread = unread or [p for p, end in self.ends.items() if self._next[p] < end]
        self.short |= dict.fromkeys(unread, Short.UNREAD)
        self._next |= {p: self.ends[p] for p in unread}

    def _read_state(self, log: Log) -> None:
        first = log.beginning_offsets(self._topics.ticks, list(self.ends))
        there = set(log.partitions(self._topics.state))
        for partition in sorted(self.ends.keys() - self._next.keys()):
            end, begin = self.ends[partition], first.get(partition, 0)
            records = self._newest(log, partition) if partition in there else {}
            saved = choose(records, self._source, self._layout, end, min(end, max(begin, end - self._most)))
            del records
            known = self._known(partition, saved)
            while saved.pages and self._put(Loaded(partition, saved.pages.pop())):
                pass
            self._put(known)
            unread = any(
                first <= saved.start < end <= behind for first, behind in self._passed.get(partition, ())
            )
            self._next[partition] = end if unread else max(begin, saved.start)
            if unread or saved.start < begin:
                self.short[partition] = Short.DEADLY if unread else Short.GONE

    def _newest(self, log: Log, partition: int) -> dict[bytes, bytes]:
        """The newest record of each key."""
        topic = self._topics.state
        newest: dict[bytes, bytes] = {}
        for records in log.read(topic, log.spans(topic, [partition]), self._timeout_s):
            for record in records:
                newest.pop(record.key or b"", None)
                if record.value is not None:
                    newest[record.key or b""] = record.value
            if self._stop.is_set():
                break
        return newest

    def _known(self, partition: int, saved: Saved) -> Known:
        wanted = [swap.version for swap in saved.swaps]
        if saved.version is not None:
            wanted.append(saved.version)
        self._fetch(wanted, serving=saved.version is None)
        missing = [version for version in wanted if version not in self._models]
        if missing:
            _log.warning("models_missing", partition=partition, versions=missing, mend="what serves now does")
        due = [Due(swap.offset, self._models.get(swap.version, self._serving)) for swap in saved.swaps]
        model = self._models.get(saved.version, self._serving) if saved.version is not None else self._serving
        return Known(
            partition,
            saved._replace(pages=[]),
            Replay(saved.offsets, saved.pages),
            model,
            due,
            len(missing),
        )

    def _fetch(self, versions: Iterable[str], *, serving: bool) -> None:
        """Read models that are not at hand, and what serves, for those that are gone."""
        wanted = {version for version in versions if version not in self._models}
        if not wanted and not (serving and self._serving is None):
            return
        registry = Models(self._spec, self._topics.models).read(pinned=wanted)
        serves = registry.serving.version if registry.serving is not None else ""
        if registry.missing:
            registry = Models(self._spec, self._topics.models).read(pinned=wanted | {serves})
        for version in {*wanted, serves} - self._models.keys():
            stored = registry.file(version)
            model = from_stored(stored) if stored is not None else None
            if isinstance(model, Model) and model.spec == self._network:
                self._models[version] = model
        self._serving = self._models.get(serves)

    def _read_ticks(self, log: Log) -> None:
        spans = {p: (self._next[p], end) for p, end in self.ends.items() if self._next[p] < end}
        if not spans:
            return
        for records in log.read(self._topics.ticks, spans, self._timeout_s, self._passed):
            if not self._put(records):
                return
            self._next |= {record.partition: record.offset + 1 for record in records}

    def _put(self, item: Item) -> bool:
        while not self._stop.is_set():
            try:
                self._items.put(item, timeout=0.1)
            except Full:
                continue
            return True
        return False
