"""Exactly once: the messages of a batch and the offsets that they answer, in one Kafka transaction.

Comes in: batches, one at a time. Goes out: committed transactions. A transaction is open between the first
`send` and `finish` only, never while the source is polled, so a rebalance never meets an open one. The
library's producer can commit although messages were lost, and mixes up its state after an error; so each
acknowledgement is checked before the offsets are sent, each call has a deadline, and after any doubt the
producer is thrown away: a new one with the same identity ends the old transaction, and then what is
committed on the broker is the truth.
"""

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

from kafka.errors import InvalidProducerEpochError, KafkaError, KafkaTimeoutError, ProducerFencedError
from kafka.structs import ConsumerGroupMetadata, MemberState

from forecaster.errors import BrokerError, FencedError, ForecasterError
from forecaster.shell.crash import Point, passing
from forecaster.shell.kafka.client import fatal, told
from forecaster.shell.kafka.delivery import Batch, Settled
from forecaster.shell.kafka.sink import Headers, Sink
from forecaster.shell.kafka.source import Source
from forecaster.shell.kafka.spec import KafkaSpec

log = logging.getLogger(__name__)

_MOST_RESETS = 5  # in a row without one commit between them: repeating does not help
_RETRY_S = 1.0


class Doubt(Exception):  # noqa: N818 - not an error of anybody: the outcome is not known, or may not be trusted
    """The transaction cannot be trusted; the message says why."""


class ExactlyOnce:
    """Commits each batch, with its offsets, as it is finished; the interface is `delivery.Delivery`."""

    def __init__(
        self,
        source: Source,
        make_sink: Callable[..., Sink] = Sink,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.resets = 0
        self.atomic = True
        self.committed: dict[int, int] = {}
        self._source = source
        self._make_sink = make_sink
        self._now = now
        self._sink: Sink | None = None
        self._opened_s: float | None = None
        self._sent_before = 0
        self._retry_at_s = -float("inf")
        self._doubted = False
        self._fruitless = 0
        self._settled: list[Settled] = []

    @property
    def able(self) -> bool:
        """Whether there is a producer."""
        return self._sink is not None

    @property
    def outstanding(self) -> int:
        """Messages of the open transaction that are on their way."""
        return self._sink.outstanding if self._sink is not None else 0

    def begin(self, token: Any = None) -> Batch:
        """A batch of what was just polled."""
        return Batch(token, dict(self._source.epochs))

    def send(
        self,
        topic: str,
        value: bytes | None,
        key: bytes | None,
        *,
        headers: Headers = (),
        partition: int | None = None,
        timestamp_ms: int | None = None,
    ) -> None:
        """Queue a message in the transaction, which the first one opens; dropped without a producer."""
        if self._opened_s is None and not self._open():
            return
        if self._sink is not None:
            self._sink.send(
                topic, value, key, headers=headers, partition=partition, timestamp_ms=timestamp_ms
            )

    def finish(self, batch: Batch, offsets: Mapping[int, int]) -> None:
        """Commit what was sent, with the offsets. Raises FencedError, and BrokerError if it never works."""
        if self._opened_s is None and (not offsets or not self._open()):
            return
        sink, opened_s = self._sink, self._opened_s
        if sink is None or opened_s is None:
            return
        try:
            self._commit(sink, batch, offsets)
        except (KafkaError, Doubt) as error:
            self._take_back(error, sink, self._now() - opened_s)
            return
        messages, self._sent_before = sink.sent - self._sent_before, sink.sent
        self._opened_s = None
        self._fruitless = 0
        self._source.committed_now(offsets)
        self.committed |= offsets
        self._settled.append(Settled(batch.token, messages, self._now()))

    def poll(self) -> list[Settled]:
        """What was committed since the last call; gets a new producer when the old one was thrown away."""
        self._ready()
        settled, self._settled = self._settled, []
        return settled

    def room(self) -> bool:
        """Whether there is a producer that may open transactions."""
        return self._ready()

    def flush(self, timeout_s: float) -> bool:
        """Nothing is ever in flight between batches; False when there is no producer."""
        del timeout_s
        return self._sink is not None and self._opened_s is None

    def close(self, timeout_s: float) -> None:
        """End the producer; a transaction that is open is aborted by the broker when the next one begins."""
        sink, self._sink = self._sink, None
        self._opened_s = None
        if sink is not None:
            sink.close(timeout_s)

    # -- the transaction

    def _open(self) -> bool:
        if not self._ready() or self._sink is None:
            return False
        try:
            self._sink.producer.begin_transaction()
        except KafkaError as error:
            self._take_back(error, self._sink, 0.0)
            return False
        self._opened_s = self._now()
        return True

    def _commit(self, sink: Sink, batch: Batch, offsets: Mapping[int, int]) -> None:
        deadline_s = self._now() + self._source.spec.request_timeout_s
        ours = self._source.epochs
        if any(batch.epochs.get(p) is None or batch.epochs[p] != ours.get(p) for p in offsets):
            raise Doubt("a partition moved while its batch was being worked on")
        if not sink.flush(self._source.spec.request_timeout_s):
            raise sink.failure or Doubt("messages were not acknowledged in time")
        passing(Point.ACKNOWLEDGED)
        member = self._source.group_metadata()
        if not is_member(member):
            raise Doubt(f"not a member of the group any more: {member}")
        transaction = sink.producer._transaction_manager  # noqa: SLF001 - the public calls have no deadline
        commits = self._source.to_commit(offsets)
        if commits:
            sending = transaction.send_offsets_to_transaction(commits, member)
            passing(Point.OFFSETS_ASKED)
            wait_for(sink, sending, deadline_s - self._now())
            passing(Point.OFFSETS_SENT)
        ending = transaction.begin_commit()
        passing(Point.END_ASKED)
        wait_for(sink, ending, deadline_s - self._now())
        passing(Point.COMMITTED)

    # -- the producer

    def _ready(self) -> bool:
        """Whether there is a producer; tries to get one now and then."""
        if self._sink is not None:
            return True
        if self._now() < self._retry_at_s:
            return False
        spec = self._source.spec
        sink = self._make_sink(spec, **transactional_settings(spec, spec.stable_transactional_id))
        try:
            sink.connect().init_transactions()  # ends what an earlier producer of ours has left open
        except (KafkaError, OSError) as error:  # OSError: no descriptor is left for a client
            sink.close(timeout_s=0.0)
            ours = fatal(error)
            if ours is not None:
                raise ours from error
            log.warning("no transactional producer yet: %s", told(error))
            self._retry_at_s = self._now() + _RETRY_S
            return False
        self._sink = sink
        self._sent_before = 0
        if self._doubted:
            self._doubted = False
            self._source.rewind("transaction in doubt")
        return True

    def _take_back(self, error: Exception, sink: Sink, open_s: float) -> None:
        """Throw the producer away. Its transaction ends when the next one introduces itself."""
        cause = cause_of(sink, error)
        self.close(timeout_s=0.0)
        self._fruitless += 1
        if (ours := self._final(cause, open_s)) is not None:
            self._retry_at_s = float("inf")  # a new producer would end the work of who took over
            raise ours from error
        log.warning("transaction in doubt: %s", told(cause))
        self.resets += 1
        self._doubted = True
        self._ready()

    def _final(self, cause: Exception, open_s: float) -> ForecasterError | None:
        """Why it makes no sense to go on; None if it does."""
        if isinstance(cause, ProducerFencedError | InvalidProducerEpochError):
            if open_s >= self._source.spec.transaction_timeout_s:
                return None  # the broker itself has ended what was open for too long
            identity = self._source.spec.stable_transactional_id
            return FencedError(f"another worker took over transactional id {identity!r}; give each its own")
        if self._fruitless > _MOST_RESETS:
            return BrokerError(f"transactions do not work: {told(cause)}")
        return fatal(cause)


def is_member(member: ConsumerGroupMetadata | None) -> bool:
    """Whether the broker can tell this worker from one that was thrown out.

    It lets offsets of nobody (generation -1, no member id) pass: the library forgets who it was when it is
    thrown out.
    """
    if member is None or member.state != MemberState.STABLE:
        return False
    return member.generation_id > 0 and bool(member.member_id)


def wait_for(sink: Sink, result: Any, timeout_s: float) -> None:
    """Wait for a step of a transaction, which the library's own calls would do for ever. Raises Doubt."""
    sink.producer._sender.wakeup()  # noqa: SLF001
    if not result.wait(timeout_ms=max(1.0, timeout_s * 1000)):
        raise Doubt("the broker did not answer in time")


def transactional_settings(spec: KafkaSpec, identity: str) -> dict[str, Any]:
    """Keywords that make a producer transactional: everything ends before the broker's own time limit."""
    most_ms = round(spec.transaction_timeout_s * 1000)
    least_ms = round((spec.request_timeout_s + spec.linger_s) * 1000)
    return {
        "transactional_id": identity,
        "transaction_timeout_ms": most_ms,
        "delivery_timeout_ms": max(least_ms, min(most_ms, round(spec.delivery_timeout_s * 1000))),
        "retry_backoff_ms": 10,  # the library sleeps so long while the last transaction is being ended
    }


def cause_of(sink: Sink, error: Exception) -> Exception:
    """What is behind an error: once fenced, the library only says that it is in an error state."""
    producer = sink.producer
    last = producer._transaction_manager.last_error if producer is not None else None  # noqa: SLF001
    for candidate in (last, sink.failure, error):
        if isinstance(candidate, Exception) and not isinstance(candidate, KafkaTimeoutError):
            return candidate
    return error
