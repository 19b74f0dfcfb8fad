"""Any slice of any topic, without a group: what replay, training, snapshots and the followers of a topic
read by.

Comes in: topics, offsets, a deadline. Goes out: committed records in offset order. Nothing is committed
here. As in source.py, an exception out of the library means a new client, which goes on where the old one
was.
"""

import contextlib
import logging
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal

from kafka import KafkaConsumer, TopicPartition
from kafka.errors import KafkaError

from forecaster.errors import BrokerError
from forecaster.shell.kafka.batches import Look, look_first
from forecaster.shell.kafka.client import connect, fatal, reader_settings, told
from forecaster.shell.kafka.notes import Span
from forecaster.shell.kafka.record import Record
from forecaster.shell.kafka.source import to_records
from forecaster.shell.kafka.spec import KafkaSpec
from forecaster.shell.kafka.unreadable import Gaps, culprit, next_readable

log = logging.getLogger(__name__)

Start = Literal["beginning", "end"] | float
"""Where to begin in a topic; a number is a time (epoch s): the first record at or after it."""

NOTHING: Mapping[int, Sequence[Span]] = MappingProxyType({})
_CONNECT_TIMEOUT_S = 2.0
_CALL_TIMEOUT_MS = 10_000
_SLICE_S = 0.5
_RETRY_S = 1.0  # between two tries to connect, where somebody waits for records
_RETRY_IN_LOOP_S = 5 * _CONNECT_TIMEOUT_S  # and where a loop is kept from its work by each


class Log:
    """Questions about topics, and bounded reads. Not thread safe. Raises BrokerError when nobody answers."""

    def __init__(self, spec: KafkaSpec, now: Callable[[], float] = time.monotonic) -> None:
        self._spec, self._now = spec, now
        self._consumer: KafkaConsumer | None = None

    def partitions(self, topic: str) -> list[int]:
        """The partitions of a topic; empty if it does not exist."""
        return sorted(self._ask(lambda consumer: consumer.partitions_for_topic(topic)))

    def required(self, topic: str) -> list[int]:
        """The same; BrokerError if it does not exist."""
        partitions = self.partitions(topic)
        if not partitions:
            servers = self._spec.bootstrap_servers
            raise BrokerError(f"there is no topic {topic!r} at {servers}: see forecaster check")
        return partitions

    def beginning_offsets(self, topic: str, partitions: Collection[int]) -> dict[int, int]:
        """The first offset that retention has left."""
        asked = _tps(topic, partitions)
        return _by_number(self._ask(lambda c: c.beginning_offsets(asked, timeout_ms=_CALL_TIMEOUT_MS)))

    def end_offsets(self, topic: str, partitions: Collection[int]) -> dict[int, int]:
        """The offset after the last record that a committed read can give now."""
        asked = _tps(topic, partitions)
        return _by_number(self._ask(lambda c: c.end_offsets(asked, timeout_ms=_CALL_TIMEOUT_MS)))

    def spans(self, topic: str, partitions: Collection[int]) -> dict[int, Span]:
        """From the first offset to the end of each partition: all that there is to read now."""
        starts, ends = self.beginning_offsets(topic, partitions), self.end_offsets(topic, partitions)
        return {partition: (starts[partition], ends[partition]) for partition in partitions}

    def offsets_for_times(self, topic: str, times_s: Mapping[int, float]) -> dict[int, int]:
        """The first record at or after a time (epoch s) on each partition; the end if there is none."""
        asked = {TopicPartition(topic, p): max(0, round(time_s * 1000)) for p, time_s in times_s.items()}
        found = self._ask(lambda c: c.offsets_for_times(asked, timeout_ms=_CALL_TIMEOUT_MS))
        ends = self.end_offsets(topic, times_s.keys())
        return ends | {p.partition: at.offset for p, at in found.items() if at is not None}

    def read(
        self,
        topic: str,
        ranges: Mapping[int, Span],
        timeout_s: float,
        over: Mapping[int, Sequence[Span]] = NOTHING,
    ) -> Iterator[list[Record]]:
        """The records with start <= offset < end of each partition, in offset order within it.

        What retention has removed is skipped. What may kill who decodes it is not decoded: batches that are to be
        passed `over`, and those that begin at an end or behind it. Raises BrokerError if for `timeout_s` nothing gets
        on; what the caller does with the records does not count.
        """
        wanted = {TopicPartition(topic, p): span for p, span in ranges.items() if span[0] < span[1]}

        def spares(partition: TopicPartition, batch: Span) -> bool:
            number = partition.partition
            return batch[0] >= ranges[number][1] or any(
                first < batch[1] and batch[0] < behind for first, behind in over.get(number, ())
            )

        starts = {partition: start for partition, (start, _) in wanted.items()}
        reader = _Reader(self._spec, starts, spares)
        deadline_s = self._now() + timeout_s
        try:
            while wanted:
                before = dict(reader.positions)
                records = reader.poll(_SLICE_S)
                records = [r for r in records if r.offset < ranges[r.partition][1]]
                if records:
                    yield records
                done = {p for p, (_, end) in wanted.items() if reader.positions[p] >= end}
                reader.leave_out(done)
                wanted = {partition: span for partition, span in wanted.items() if partition not in done}
                if reader.positions != before:
                    deadline_s = self._now() + timeout_s
                elif wanted and self._now() > deadline_s:
                    raise BrokerError(_too_late(reader, wanted, timeout_s))
        finally:
            reader.close()

    def close(self) -> None:
        """End the client. Never raises."""
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            _close(consumer)

    def _ask(self, question: Callable[[KafkaConsumer], Any]) -> Any:
        try:
            if self._consumer is None:
                self._consumer = connect(KafkaConsumer, reader_settings(self._spec))
            return question(self._consumer)
        except KafkaError as error:
            self.close()
            servers = self._spec.bootstrap_servers
            raise fatal(error) or BrokerError(f"no answer from {servers}: {told(error)}") from error


def read_whole(spec: KafkaSpec, topic: str, timeout_s: float) -> Iterator[list[Record]]:
    """A topic from its beginning to where it ends now; a `Log` of its own. Raises BrokerError, also without a topic."""
    with contextlib.closing(Log(spec)) as reading:
        yield from reading.read(topic, reading.spans(topic, reading.required(topic)), timeout_s)


class Follower:
    """What is appended to some topics, for a loop that may not wait.

    Connects by itself, again and again; a topic that does not exist yet is waited for. `caught_up` is
    whether all that was there when it connected has been given, `reached` whether a broker has ever answered,
    `trouble` why there is no connection. The log says that once.
    """

    def __init__(
        self,
        spec: KafkaSpec,
        starts: Mapping[str, Start],
        *,
        interval_s: float = 0.1,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._spec = spec
        self._starts = dict(starts)
        self._interval_s = interval_s
        self._now = now
        self.reached = False
        self.trouble = ""
        self._next_s = -float("inf")
        self._reader: _Reader | None = None
        self._ends: dict[TopicPartition, int] = {}

    @property
    def caught_up(self) -> bool:
        """Whether everything that was there at the start has been given."""
        if self._reader is None:
            return False
        return all(self._reader.positions[partition] >= end for partition, end in self._ends.items())

    def poll(self, timeout_s: float = 0.0) -> list[Record]:
        """New records, in offset order within a partition; with no timeout at most every `interval_s`,
        else nothing.

        Raises BrokerError only if the broker refuses us.
        """
        wait_s = self._next_s - self._now()
        if wait_s > 0 and not (timeout_s and self._reader):
            time.sleep(min(wait_s, timeout_s))
            return []
        self._next_s = self._now() + self._interval_s
        self._reader = self._reader or self._connect()
        if self._reader is None:
            self._next_s = self._now() + (_RETRY_S if timeout_s else _RETRY_IN_LOOP_S)
            return []
        return self._reader.poll(timeout_s)

    def close(self) -> None:
        """End the client. Never raises."""
        if self._reader is not None:
            self._reader.close()

    def _connect(self) -> "_Reader | None":
        asking = Log(self._spec.model_copy(update={"connect_timeout_s": _CONNECT_TIMEOUT_S}))
        positions: dict[TopicPartition, int] = {}
        try:
            for topic, start in self._starts.items():
                partitions = asking.partitions(topic)
                self.reached = True
                if not partitions:
                    self._say(f"topic {topic!r} does not exist yet")
                    return None
                ends = asking.end_offsets(topic, partitions)
                self._ends |= {TopicPartition(topic, p): end for p, end in ends.items()}
                found = _resolve(asking, topic, start, ends)
                positions |= {TopicPartition(topic, p): offset for p, offset in found.items()}
        except BrokerError as error:
            if error.__cause__ is not None and fatal(error.__cause__) is not None:
                raise
            self._say(str(error))
            return None
        finally:
            asking.close()
        return _Reader(self._spec, positions)

    def _say(self, trouble: str) -> None:
        if trouble != self.trouble:
            log.warning("%s", trouble)
        self.trouble = trouble


class _Reader:
    """A client that reads on from `positions`, keeps them up to date, and replaces itself when it breaks."""

    def __init__(
        self, spec: KafkaSpec, positions: Mapping[TopicPartition, int], spares: Look = lambda _, __: False
    ) -> None:
        """Batches of which `spares` says so are passed over, and not decoded."""
        self.positions = dict(positions)
        self._spares = spares
        self.last_error: BaseException | None = None
        self._spec = spec
        self._consumer: KafkaConsumer | None = None
        self._left_out: set[TopicPartition] = set()
        self._gaps = Gaps(lambda partition, offset: next_readable(spec, partition, offset, spares))

    def poll(self, timeout_s: float) -> list[Record]:
        consumer = self._consumer
        try:
            consumer = consumer or self._connect()
            batches = consumer.poll(timeout_ms=round(timeout_s * 1000))
            for partition in self.positions:
                state = consumer._subscription.assignment[partition]  # noqa: SLF001 - position() may block
                if state.position is not None:
                    self.positions[partition] = state.position.offset
        except Exception as error:  # see the head of this file
            place = culprit(consumer, error) if consumer is not None else None
            self.close()
            if (ours := fatal(error)) is not None:
                raise ours from error
            if self.last_error is None or told(error) != told(self.last_error):
                log.warning("rebuilding a reader after %s", told(error))
            self.last_error = error
            if place is not None:
                self._pass_over(*place)
            time.sleep(min(timeout_s, _SLICE_S))
            return []
        if batches:
            self.last_error = None
        return [record for batch in batches.values() for record in to_records(batch)]

    def _pass_over(self, partition: TopicPartition, offset: int) -> None:
        """Go on behind what cannot be decoded, once it was tried often enough."""
        self.positions[partition] = offset
        with contextlib.suppress(KafkaError):  # nobody answers: it is found out at the next try
            if self._gaps.failed(partition, offset):
                self.positions[partition] = self._gaps.after(partition, offset) or offset

    def leave_out(self, partitions: Collection[TopicPartition]) -> None:
        self._left_out |= set(partitions)
        if self._consumer is not None and partitions:
            self._consumer.pause(*partitions)

    def close(self) -> None:
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            _close(consumer)

    def _connect(self) -> KafkaConsumer:
        settings = reader_settings(self._spec) | {
            "auto_offset_reset": "earliest",  # what retention has removed is skipped
            "bootstrap_timeout_ms": round(_CONNECT_TIMEOUT_S * 1000),
        }
        consumer = connect(KafkaConsumer, settings)
        look_first(consumer, self._spares)
        consumer.assign(list(self.positions))
        for partition, offset in self.positions.items():
            consumer.seek(partition, offset)
        consumer.pause(*self._left_out)
        self._consumer = consumer
        return consumer


def _resolve(asking: Log, topic: str, start: Start, ends: dict[int, int]) -> dict[int, int]:
    if start == "end":
        return ends
    if start == "beginning":
        return asking.beginning_offsets(topic, ends.keys())
    return asking.offsets_for_times(topic, dict.fromkeys(ends, start))


def _too_late(reader: _Reader, wanted: Mapping[TopicPartition, Span], timeout_s: float) -> str:
    where = ", ".join(
        f"{p.topic}/{p.partition} at {reader.positions[p]} of {end}" for p, (_, end) in wanted.items()
    )
    why = f"; last error: {told(reader.last_error)}" if reader.last_error else ""
    return f"the log could not be read any further in {timeout_s:g} s: {where}{why}"


def _close(consumer: KafkaConsumer) -> None:
    try:
        consumer.close(autocommit=False, timeout_ms=1_000)
    except Exception as error:  # it may fail in any way; its threads have to end
        log.info("closing a reader failed: %s", error)
        consumer._client.close()  # noqa: SLF001


def _tps(topic: str, partitions: Collection[int]) -> list[TopicPartition]:
    return [TopicPartition(topic, partition) for partition in partitions]


def _by_number(offsets: Mapping[TopicPartition, int]) -> dict[int, int]:
    return {partition.partition: offset for partition, offset in offsets.items()}
