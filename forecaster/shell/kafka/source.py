"""Ticks in: a member of the consumer group that never hangs, never commits by itself, and mends its client.

Comes in: the spec and one topic. Goes out: records, and what happened to the partitions (`Change`).
Nothing may escape from here but our own fatal errors: whatever else comes out of the library ends in a new
client, because after an exception the old one may spin for ever.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from operator import itemgetter
from typing import Any, NamedTuple

from kafka import KafkaConsumer, TopicPartition
from kafka.errors import (
    KafkaError,
    KafkaTimeoutError,
    LogTruncationError,
    NoOffsetForPartitionError,
    OffsetOutOfRangeError,
    UnknownTopicOrPartitionError,
)
from kafka.structs import ConsumerGroupMetadata, OffsetAndMetadata

from forecaster.errors import DataError, ForecasterError
from forecaster.shell.kafka import joining, policy
from forecaster.shell.kafka.batches import look_first
from forecaster.shell.kafka.client import connect, fatal, member_settings, told
from forecaster.shell.kafka.listener import Listener
from forecaster.shell.kafka.notes import Span
from forecaster.shell.kafka.parked import free_line
from forecaster.shell.kafka.progress import Progress
from forecaster.shell.kafka.record import Assigned, Change, Lost, Moved, MoveReason, Record, Revoked
from forecaster.shell.kafka.spec import KafkaSpec
from forecaster.shell.kafka.unreadable import Gaps, culprit, next_readable

log = logging.getLogger(__name__)

Committed = tuple[int, str]
"""A committed offset and its metadata."""


class Notes(NamedTuple):
    """What stands in the metadata of a partition's commits."""

    working: str
    leaving: str
    """In the last one, when the partition is handed over in order."""


NO_NOTES = Notes("", "")

_FIELDS = itemgetter(0, 1, 3, 4, 6, 7, 8)  # of the library's record, in the order of ours
_CONNECT_SLICE_S = 2.0  # the loop turns at least this often while no broker answers
_BACKOFF_S = (0.0, 0.5, 1.0, 2.0, 5.0)  # before the next client, by failures in a row
_CALL_TIMEOUT_MS = 5_000  # for one question to the broker
_ALONE_S = 1.0  # for the next record of one partition
_HEARTBEATS = 2  # by then a member knows whether partitions are being shared out anew


def to_records(records: Iterable[Any]) -> Iterable[Record]:
    """The library's records -> ours."""
    return map(Record._make, map(_FIELDS, records))


class Source:
    """One worker's share of the ticks topic.

    Connects when first polled, so that a broker that is away at start is waited for. `poll` gives the
    records of partitions that were resumed; `changes` what happened to partitions meanwhile, to be applied
    before the records. Every partition begins paused. Not thread safe, but for what a report asks on its own thread:
    `connected`, `last_contact_s`, `positions` and `lag`. The library's callbacks run while the caller waits in `poll`.
    A group that has no partition for us says so with an `Assigned` of none.

    `epochs` numbers the assignments of each partition that is ours: work that was begun under another
    number is void. `before_revoke(partitions)` is asked, inside the rebalance, for the offsets of finished
    work on partitions that are about to be handed over, so that their next owner repeats as little as
    possible; `after_revoke` is told which of them were committed, on the library's thread. `notes` go with the
    commits of each partition; `last_committed` are the offsets of those that are ours.

    Partitions that are `apart` are read by `poll_alone`; of each of their batches `before_decoding(partition, behind)`
    is told where it ends, and says whether it may be decoded now; `before_rebuilding(partition)` whether its log may be
    read back. `passed` are batches that a replay may not decode, by partition, once that is known.
    """

    def __init__(self, spec: KafkaSpec, topic: str, now: Callable[[], float] = time.monotonic) -> None:
        self.spec = spec
        self.topic = topic
        self.epochs: dict[int, int] = {}
        self.rebuilds: Counter[str] = Counter()
        self.commits = 0  # asked for
        self.commit_failures = 0  # of them
        self.notes: dict[int, Notes] = {}
        self.last_committed: dict[int, int] = {}
        self.before_revoke: Callable[[frozenset[int]], Mapping[int, int]] = lambda _: {}
        self.after_revoke: Callable[[Mapping[int, int]], None] = lambda _: None
        self.apart: set[int] = set()
        self.before_decoding: Callable[[int, int], bool] = lambda _, __: True
        self.before_rebuilding: Callable[[int], bool] = lambda _: True
        self.passed: dict[int, Sequence[Span]] = {}
        self._alone: int | None = None  # the partition that is being read alone
        self._now = now
        self._consumer: KafkaConsumer | None = None
        self._changes: list[Change] = []
        self._commits: list[Callable[[bool], None]] = []
        self._epoch = 0
        self._failures = 0
        self._retry_at_s = -float("inf")
        self._contact_s = now()
        self._progress = Progress(spec.stall_s, now)
        self._idle_since_s: float | None = None  # given nothing then, and not told of it yet
        self._readable: dict[int, int] = {}  # where committed reads end; of partitions silent for long
        self._gaps = Gaps(lambda partition, offset: next_readable(spec, partition, offset))

    # -- reading

    def poll(self, timeout_s: float, most: int | None = None) -> list[Record]:
        """Records of resumed partitions, grouped by partition, in offset order; at most `most`, or as configured.

        Waits at most about `timeout_s`; empty while no broker answers. Raises BrokerError (credentials, rights,
        `out_of_range = "stop"`), ConfigError (a setting that is refused), FencedError and DataError (`unreadable =
        "stop"`), nothing else.
        """
        consumer = self._consumer or self._connect(timeout_s)
        if consumer is None:
            return []
        try:
            joining.before_poll(consumer)
            self._pass_over(consumer)
            free_line(consumer)
            batches = consumer.poll(timeout_ms=round(timeout_s * 1000), max_records=most)
            joining.after_poll(consumer)
            self._tell_idle(consumer)
            records = [record for batch in batches.values() for record in to_records(batch)]
            self._watch(consumer, [partition.partition for partition in batches])
        except (NoOffsetForPartitionError, OffsetOutOfRangeError, LogTruncationError) as error:
            self._guarded(self._move, consumer, error)
            return []
        except ForecasterError:  # of a question that was asked in between
            raise
        except Exception as error:  # see the head of this file
            place = culprit(consumer, error)
            self._failed(error)
            if place is not None:
                self._unreadable(*place)
            return []
        if self._consumer is not consumer:  # it was thrown away after it gave these
            return []
        if records:
            self._failures = 0
        return records

    def poll_alone(self, partition: int) -> Record | None:
        """The next record of a partition that is `apart`, while all others wait; None where there is none yet.

        Waits for it where there is one: a client asks each broker one thing at a time, so a look in passing may find
        it busy with what others wait for.
        """
        consumer = self._consumer
        if consumer is None or partition not in self.epochs or not self._more(consumer, partition):
            return None
        paused = consumer.paused()
        others = [p for p in self.epochs if self._tp(p) not in paused]
        consumer.pause(*self._tps(others))
        consumer.resume(self._tp(partition))
        self._alone = partition
        try:
            found = self.poll(_ALONE_S, most=1)
        finally:
            self._alone = None
            if self._consumer is consumer:
                consumer.pause(*self._ours([partition]))
                consumer.resume(*self._ours(others))
        return found[0] if found else None

    def _more(self, consumer: KafkaConsumer, partition: int) -> bool:
        """Whether the log holds what was not read yet; False where nobody answers."""
        place, position = self._tp(partition), self.position(partition)
        try:
            end = consumer.end_offsets([place], timeout_ms=_CALL_TIMEOUT_MS)[place]
        except KafkaError as error:
            log.info("cannot ask where %s/%d ends: %s", self.topic, partition, error)
            return False
        return position is None or position < end

    def _spares(self, partition: TopicPartition, span: Span) -> bool:
        """Asked before a batch is decoded: none is spared, but one that is read alone is told of first."""
        number = partition.partition
        if number == self._alone and not self.before_decoding(number, span[1]):
            raise KafkaTimeoutError("nobody answers, so a batch that may kill is not decoded")
        return False

    def pass_over(self, partition: int, span: Span, metadata: str) -> bool:
        """Commit and read on behind a batch that killed who decoded it; False if nobody answered.

        Raises DataError with `unreadable = "stop"`.
        """
        offset, behind = span
        if self.spec.unreadable == "stop":
            raise DataError(
                f"{self.topic}/{partition}: the batch at offset {offset} kills whoever decodes it; reading could go on "
                f'at {behind}: commit that, or set kafka.unreadable = "skip"'
            )
        if self._consumer is None or not self.commit({partition: behind}, metadata):
            return False
        place = self._tp(partition)
        return self._guarded(
            self._seek, self._consumer, {place: behind}, MoveReason.UNREADABLE, {place: offset}
        )

    def changes(self) -> list[Change]:
        """What happened to partitions since the last call, in order."""
        changes, self._changes = self._changes, []
        return changes

    def pause(self, partitions: Collection[int]) -> None:
        """Give no records of these until they are resumed; what is not ours is ignored."""
        if self._consumer is not None:
            self._consumer.pause(*self._ours(partitions))

    def resume(self, partitions: Collection[int]) -> None:
        """Give records of these from now on; what is not ours, or is apart, is ignored."""
        if self._consumer is not None:
            self._consumer.resume(*self._ours(set(partitions) - self.apart))
            self._progress.restart(partitions)

    # -- what is known

    @property
    def assigned(self) -> frozenset[int]:
        """Partitions that are ours."""
        return frozenset(self.epochs)

    @property
    def connected(self) -> bool:
        """Whether a broker answered within the session timeout."""
        return self._consumer is not None and self._now() - self.last_contact_s < self.spec.session_timeout_s

    @property
    def last_contact_s(self) -> float:
        """When a broker last answered, on the clock that was given."""
        consumer = self._consumer
        if consumer is not None:
            self._contact_s = max(self._contact_s, consumer._coordinator.heartbeat.last_receive)  # noqa: SLF001
        return self._contact_s

    def position(self, partition: int) -> int | None:
        """The offset of the next record; None while it is not known, or the partition is not ours."""
        state = self._state(partition)
        return state.position.offset if state is not None and state.position is not None else None

    def positions(self) -> dict[int, int]:
        """All known positions."""
        found = {partition: self.position(partition) for partition in list(self.epochs)}
        return {partition: position for partition, position in found.items() if position is not None}

    def lag(self) -> dict[int, int]:
        """Records that are on the log and were not yet given, by partition, where both ends are known."""
        lags: dict[int, int] = {}
        for partition, position in self.positions().items():
            state = self._state(partition)
            if state is not None and state.highwater is not None:
                lags[partition] = max(0, state.highwater - position)
        return lags

    def readable_lag(self) -> dict[int, int]:
        """The same without records behind a transaction that somebody else leaves open, which nobody may read yet.

        Where these begin is known of partitions that gave nothing for `stall_s`.
        """
        lags = self.lag()
        for partition, end in self._readable.items():
            position = self.position(partition)
            if partition in lags and position is not None:
                lags[partition] = min(lags[partition], max(0, end - position))
        return lags

    def group_metadata(self) -> ConsumerGroupMetadata | None:
        """Who we are in the group right now, or None without a client."""
        return self._consumer.group_metadata() if self._consumer is not None else None

    # -- offsets

    def committed(self, partitions: Collection[int]) -> dict[int, Committed] | None:
        """Committed offsets with metadata; partitions without one are missing. None: nobody answered."""
        if self._consumer is None:
            return None
        found: dict[int, Committed] = {}
        try:
            for partition in partitions:
                at = self._consumer.committed(self._tp(partition), metadata=True, timeout_ms=_CALL_TIMEOUT_MS)
                if at is not None:
                    self.last_committed[partition] = at.offset
                    found[partition] = (at.offset, at.metadata or "")
        except KafkaError as error:
            self._raise_if_fatal(error)
            return None
        return found

    def commit(self, offsets: Mapping[int, int], metadata: str | None = None, timeout_s: float = 5.0) -> bool:
        """Commit the next offset of each partition and wait for it; False if it did not happen.

        Without `metadata` what stands in `notes` goes with it.
        """
        if not offsets:
            return True
        if self._consumer is None:
            return False
        self.commits += 1
        try:
            self._consumer.commit(self.to_commit(offsets, metadata), timeout_ms=round(timeout_s * 1000))
        except KafkaError as error:
            self.commit_failures += 1
            self._raise_if_fatal(error)
            log.info("commit of %s failed: %s", dict(offsets), error)
            return False
        self.committed_now(offsets)
        return True

    def committed_now(self, offsets: Mapping[int, int]) -> None:
        """These were committed just now, here or in a transaction."""
        self._contact_s = self._now()
        self.last_committed |= {p: offset for p, offset in offsets.items() if p in self.epochs}

    def take_leave(self) -> None:
        """Commit where everything stands once more, with the notes of one who leaves in order."""
        for partition, offset in list(self.last_committed.items()):
            if partition in self.notes:
                self.commit({partition: offset}, self.notes[partition].leaving, timeout_s=1.0)

    def commit_soon(self, offsets: Mapping[int, int], done: Callable[[bool], None]) -> None:
        """Commit without waiting; a later `poll` calls `done(committed)`."""
        if self._consumer is None:
            done(False)
            return

        self._commits.append(done)
        self.commits += 1

        def answered(_: object, answer: object) -> None:
            if done not in self._commits:
                return  # the client was thrown away meanwhile, and the caller knows
            self._commits.remove(done)
            if isinstance(answer, BaseException):
                self.commit_failures += 1
                log.info("commit of %s failed: %s", dict(offsets), answer)
            else:
                self.committed_now(offsets)
            done(not isinstance(answer, BaseException))

        try:
            self._consumer.commit_async(self.to_commit(offsets), callback=answered)
        except KafkaError as error:
            answered(None, error)
            self._raise_if_fatal(error)

    def rewind(self, reason: str) -> None:
        """Take work since the last commit back: partitions are lost, and assigned anew at its offsets."""
        log.warning("taking partitions %s back to their committed offsets: %s", sorted(self.epochs), reason)
        if self._consumer is None or not self._guarded(self._seek_to_committed, self._consumer):
            self._abandon()

    def rebuild(self, reason: str) -> None:
        """Throw the client away and join the group with a new one."""
        self.rebuilds[reason] += 1
        log.warning("rebuilding the consumer: %s", reason)
        self._abandon()

    def close(self, timeout_s: float = 5.0) -> None:
        """Leave the group. Never raises."""
        self._drop_client(timeout_s)
        self.epochs.clear()

    # -- the client

    def _connect(self, timeout_s: float) -> KafkaConsumer | None:
        wait_s = self._retry_at_s - self._now()
        if wait_s > 0:
            time.sleep(min(wait_s, timeout_s))
            return None
        assignor = joining.Assignor(self._given)
        settings = member_settings(self.spec) | {
            "partition_assignment_strategy": [assignor],
            "bootstrap_timeout_ms": round(_CONNECT_SLICE_S * 1000),
        }
        try:
            consumer = connect(KafkaConsumer, settings)
            _require_topic(consumer, self.topic)
            look_first(consumer, self._spares)
            consumer.subscribe([self.topic], listener=self._listen(consumer, assignor))
        except Exception as error:  # see the head of this file
            self._failed(error)
            return None
        self._consumer = consumer
        self._contact_s = self._now()
        return consumer

    def _listen(self, consumer: KafkaConsumer, assignor: joining.Assignor) -> Listener:
        def gain(partitions: frozenset[int]) -> None:
            consumer.pause(*self._tps(partitions))
            self._gain(partitions)

        def lose(partitions: frozenset[int]) -> None:
            assignor.forget()
            self._lose(partitions)

        return Listener(
            current=lambda: self._consumer is consumer,
            gain=gain,
            hand_over=lambda partitions: self._hand_over(consumer, partitions),
            lose=lose,
        )

    def _failed(self, error: BaseException) -> None:
        self._raise_if_fatal(error)
        if self._consumer is None:
            log.warning("cannot join through %s: %s", self.spec.bootstrap_servers, error)
        else:
            self.rebuilds["error"] += 1
            log.warning("rebuilding the consumer after %s", told(error))
        self._abandon()

    def _abandon(self) -> None:
        """Without a client nothing is ours: say so; connect again after a pause that grows."""
        self._drop_client(timeout_s=1.0)
        self._lose(self.assigned)
        self._retry_at_s = self._now() + _BACKOFF_S[min(self._failures, len(_BACKOFF_S) - 1)]
        self._failures += 1

    def _drop_client(self, timeout_s: float) -> None:
        consumer, self._consumer = self._consumer, None
        self._idle_since_s = None
        if consumer is None:
            return
        try:
            consumer.close(autocommit=False, timeout_ms=round(timeout_s * 1000))
        except Exception as error:  # it may fail in any way; its threads have to end
            log.info("closing the consumer failed: %s", error)
            consumer._client.close()  # noqa: SLF001
        commits, self._commits = self._commits, []
        for done in commits:
            done(False)

    def _guarded(self, step: Callable[..., None], *arguments: Any) -> bool:
        """Run a step that asks the broker; False if nobody answered. A surprise ends in a new client."""
        try:
            step(*arguments)
        except ForecasterError:
            raise
        except KafkaError as error:
            self._raise_if_fatal(error)
            log.info("no answer: %s", error)
            return False
        except Exception as error:  # see the head of this file
            self._failed(error)
            return False
        return True

    def _raise_if_fatal(self, error: BaseException) -> None:
        ours = fatal(error)
        if ours is not None:
            self._drop_client(timeout_s=1.0)
            raise ours from error

    # -- positions

    def _move(self, consumer: KafkaConsumer, error: KafkaError) -> None:
        """Set by policy the positions that the library has none for."""
        if isinstance(error, NoOffsetForPartitionError):
            self._start(consumer, policy.starting(consumer, self.spec, error.args[0]))
        elif isinstance(error, OffsetOutOfRangeError):
            self._replace(consumer, error.args[0])
        elif isinstance(error, LogTruncationError):
            safe = {
                partition: at.offset for partition, at in error.divergent_offsets.items() if at is not None
            }
            self._seek(consumer, safe, MoveReason.TRUNCATED)
            self._replace(
                consumer, {p: consumer.position(p) for p in error.divergent_offsets if p not in safe}
            )

    def _start(self, consumer: KafkaConsumer, offsets: policy.Offsets) -> None:
        """Begin here; committed at once, so that "latest" is decided only once."""
        commits = {partition: OffsetAndMetadata(offset, "", -1) for partition, offset in offsets.items()}
        consumer.commit(commits, timeout_ms=_CALL_TIMEOUT_MS)
        self._seek(consumer, offsets, MoveReason.START)

    def _replace(self, consumer: KafkaConsumer, wanted: Mapping[TopicPartition, int]) -> None:
        if wanted:
            offsets = policy.replacing(consumer, self.spec, wanted)
            self._seek(consumer, offsets, MoveReason.OUT_OF_RANGE, wanted)

    def _seek(
        self,
        consumer: KafkaConsumer,
        offsets: Mapping[TopicPartition, int],
        reason: MoveReason,
        wanted: Mapping[TopicPartition, int] | None = None,
    ) -> None:
        for partition, offset in sorted(offsets.items()):
            consumer.seek(partition, offset)
            was = (wanted or {}).get(partition)
            self._changes.append(Moved(partition.partition, was, offset, reason))
            log.info("%s/%d: reading from %d (%s, was %s)", *partition, offset, reason, was)

    def _unreadable(self, partition: TopicPartition, offset: int) -> None:
        """What is on the log there could not be decoded: after some tries, decide what becomes of it."""
        try:
            known = self._gaps.failed(partition, offset)
        except Exception as error:  # see the head of this file; it is found out at the next try
            log.warning("%s/%d: cannot look behind offset %d: %s", *partition, offset, error)
            return
        if known and self.spec.unreadable == "stop":
            raise DataError(
                f"{partition.topic}/{partition.partition}: offset {offset} cannot be decoded; reading could go on at "
                f'{self._gaps.after(partition, offset)}: commit that, or set kafka.unreadable = "skip"'
            )

    def _pass_over(self, consumer: KafkaConsumer) -> None:
        """Go on behind what cannot be decoded."""
        for partition in self._tps(self.epochs) if self._gaps else ():
            offset = self.position(partition.partition)
            behind = self._gaps.after(partition, offset) if offset is not None else None
            if behind is not None:
                self._seek(consumer, {partition: behind}, MoveReason.UNREADABLE, {partition: offset or 0})

    def _seek_to_committed(self, consumer: KafkaConsumer) -> None:
        ours = self.assigned
        committed = self.committed(ours)
        if committed is None or committed.keys() != ours:
            raise KafkaError("the committed offsets are not known")
        self._lose(ours)
        consumer.pause(*self._tps(ours))
        for partition, (offset, _) in committed.items():
            consumer.seek(self._tp(partition), offset)
        self._gain(ours)

    # -- partitions

    def _given(self, anything: bool) -> None:
        self._idle_since_s = None if anything else self._now()

    def _tell_idle(self, consumer: KafkaConsumer) -> None:
        """Say that the group has nothing for us; not at once: what a new member gets others have to let go of first."""
        since_s = self._idle_since_s
        patient = since_s is not None and self._now() - since_s >= _HEARTBEATS * self.spec.heartbeat_s
        if patient and joining.is_at_rest(consumer):
            self._idle_since_s = None
            self._changes.append(Assigned(frozenset()))

    def _gain(self, partitions: frozenset[int]) -> None:
        self._epoch += 1
        self.epochs.update(dict.fromkeys(partitions, self._epoch))
        if partitions:
            self._changes.append(Assigned(partitions))

    def _lose(self, partitions: frozenset[int]) -> None:
        self._forget(partitions)
        if partitions:
            self._changes.append(Lost(partitions))

    def _hand_over(self, consumer: KafkaConsumer, partitions: frozenset[int]) -> None:
        known = {
            p: offset for p, offset in self.last_committed.items() if p in partitions and p in self.notes
        }
        leaving = known | dict(self.before_revoke(partitions))
        # Sent before the request that rejoins, on the same connection.
        for partition, offset in leaving.items():
            metadata = self.notes.get(partition, NO_NOTES).leaving
            told = partial(self._handed_over, {partition: offset})
            consumer.commit_async(self.to_commit({partition: offset}, metadata), callback=told)
        self._forget(partitions)
        self._changes.append(Revoked(partitions))

    def _handed_over(self, offsets: Mapping[int, int], _: object, answer: object) -> None:
        if not isinstance(answer, BaseException):
            self.after_revoke(offsets)

    def _forget(self, partitions: Iterable[int]) -> None:
        for partition in partitions:
            self.epochs.pop(partition, None)
            self.last_committed.pop(partition, None)
            self._readable.pop(partition, None)
        self._progress.forget(partitions)

    def _watch(self, consumer: KafkaConsumer, gave: list[int]) -> None:
        """Notice brokers that no longer answer, and partitions that have lag and give nothing."""
        if gave:
            self._contact_s = self._now()
            self._progress.restart(gave)
            for partition in gave:
                self._readable.pop(partition, None)
        if not self._progress.due():
            return
        if self._now() - self.last_contact_s > self._silence_s(consumer):
            self.rebuild("silent")
            return
        paused = {partition.partition for partition in consumer.paused()}
        for partition in paused:
            self._readable.pop(partition, None)
        suspects = self._progress.suspects(self.assigned - paused)
        if not suspects:
            return
        ends = consumer.end_offsets(self._tps(suspects), timeout_ms=_CALL_TIMEOUT_MS)
        behind = [p for p in suspects if (self.position(p) or 0) < ends[self._tp(p)]]
        self._progress.restart(suspects)
        if behind:
            self._progress.be_patient()
            self.rebuild("stalled")
        else:
            self._note_readable({p: ends[self._tp(p)] for p in suspects})

    def _note_readable(self, ends: Mapping[int, int]) -> None:
        lag = self.lag()
        for partition in (p for p in ends if lag.get(p) and p not in self._readable):
            log.warning(
                "%s/%d: %d records wait behind a transaction that is open since offset %d",
                *self._tp(partition),
                lag[partition],
                ends[partition],
            )
        self._readable.update(ends)

    def _silence_s(self, consumer: KafkaConsumer) -> float:
        """How long no answer is no reason to worry; a join waits for the slowest member, without heartbeats."""
        joining_s = self.spec.max_poll_interval_s if joining.is_joining(consumer) else 0.0
        return self.spec.stall_s + joining_s

    def _state(self, partition: int) -> Any:
        """The library's own record of a partition: its public accessors may block on the network."""
        consumer = self._consumer
        if consumer is None:
            return None
        return consumer._subscription.assignment.get(self._tp(partition))  # noqa: SLF001

    def _tp(self, partition: int) -> TopicPartition:
        return TopicPartition(self.topic, partition)

    def _tps(self, partitions: Iterable[int]) -> list[TopicPartition]:
        return [self._tp(partition) for partition in partitions]

    def _ours(self, partitions: Iterable[int]) -> list[TopicPartition]:
        return self._tps(partition for partition in partitions if partition in self.epochs)

    def to_commit(
        self, offsets: Mapping[int, int], metadata: str | None = None
    ) -> dict[TopicPartition, OffsetAndMetadata]:
        """The library's form of a commit; without `metadata` with what stands in `notes`."""

        def note(partition: int) -> str:
            return self.notes.get(partition, NO_NOTES).working if metadata is None else metadata

        return {self._tp(p): OffsetAndMetadata(offset, note(p), -1) for p, offset in offsets.items()}


def _require_topic(consumer: KafkaConsumer, topic: str) -> None:
    """A member that joins before it knows the topic may be given nothing, for good."""
    if not consumer.partitions_for_topic(topic):
        consumer.close()
        raise UnknownTopicOrPartitionError(f"there is no topic {topic!r}")
