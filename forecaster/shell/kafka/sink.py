"""Messages out: sent in order, bounded, and counted as sent only when the broker has acknowledged them.

Comes in: messages. Goes out: how many of them, in sending order, are acknowledged, and the first that
failed for good. The producer repeats by itself, in order, until the delivery timeout; what happens after
it is for the caller to decide (see delivery.py).
"""

import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from kafka import KafkaProducer, TopicPartition
from kafka.errors import InvalidRecordError, KafkaError, MessageSizeTooLargeError

from forecaster.errors import BrokerError
from forecaster.shell.crash import Point, passing
from forecaster.shell.kafka.client import Settings, close_producer, connect, fatal, told, writer_settings
from forecaster.shell.kafka.spec import KafkaSpec

log = logging.getLogger(__name__)

Headers = Sequence[tuple[str, bytes]]
_KEY_SHOWN_BYTES = 64
_OVERHEAD_BYTES = 1024  # more than a record has besides key, value and headers


class _Place:
    """A partition of a topic, and the shortest way into its queue.

    The library's own `send` looks up the partition, checks types and formats a log line for each message:
    a third of its cost. Here these are done once for a partition. Without a partition, and for what is
    large, it is used.
    """

    def __init__(self, producer: Any, topic: str, partition: int | None) -> None:
        self.latest: Any = None
        self._producer = producer
        self._topic = topic
        self._partition = TopicPartition(topic, partition) if partition is not None else None
        self._most_bytes = producer.config["max_request_size"] - _OVERHEAD_BYTES
        self._queue = producer._accumulator.append  # noqa: SLF001
        self._wake_up = producer._sender.wakeup  # noqa: SLF001
        self._join_transaction: Any = None
        if producer.config["transactional_id"]:
            manager = producer._transaction_manager  # noqa: SLF001
            self._join_transaction = manager.maybe_add_partition_to_transaction

    def append(
        self, timestamp_ms: int | None, key: bytes | None, value: bytes | None, headers: Headers, size: int
    ) -> Any:
        """Queue a message; the future of its acknowledgement."""
        if self._partition is None or headers or size > self._most_bytes:
            partition = self._partition.partition if self._partition is not None else None
            return self._producer.send(self._topic, value, key, list(headers), partition, timestamp_ms)
        if self._join_transaction is not None:
            self._join_transaction(self._partition)
        future, full, new, _ = self._queue(self._partition, timestamp_ms, key, value, ())
        if full or new:
            self._wake_up()
            passing(Point.SENDING)
        return future


class Sink:
    """A producer whose outstanding messages and bytes are bounded by `room`, not by the library.

    `sent` and `acknowledged` count messages in sending order: when `acknowledged` reaches the value that
    `sent` had at some moment, everything up to that moment is on the log. `failure` is the first error
    that is final; after it only `close` makes sense.
    """

    def __init__(self, spec: KafkaSpec, **overrides: Any) -> None:
        self.spec = spec
        self.sent = 0
        self.acknowledged = 0
        self.outstanding_bytes = 0
        self.failure: Exception | None = None
        self._pending: deque[tuple[Any, int, bytes | None]] = deque()
        self._places: dict[tuple[str, int | None], _Place] = {}
        self._overrides: Settings = overrides
        self._producer: Any = None

    @property
    def outstanding(self) -> int:
        """Messages sent and not yet known to be acknowledged."""
        return len(self._pending)

    @property
    def producer(self) -> Any:
        """The library's producer, for transactions; None before `connect` and after `close`."""
        return self._producer

    @property
    def trouble(self) -> str:
        """Why `flush` said no, for the operator."""
        return told(self.failure) if self.failure is not None else "no answer"

    def room(self) -> bool:
        """Whether more may be sent now. Ask before a batch: the bound is soft by one."""
        self.settle()
        spec = self.spec
        return (
            len(self._pending) < spec.outstanding_messages and self.outstanding_bytes < spec.outstanding_bytes
        )

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
        """Queue one message. An error of the broker does not raise here: it becomes `failure`.

        A partition that the topic does not have is left to the key.
        """
        self.sent += 1
        if self.failure is not None:
            return
        size = len(value or b"") + len(key or b"")
        try:
            place = self._places.get((topic, partition)) or self._place(topic, partition)
            future = place.append(timestamp_ms, key, value, headers, size)
        except KafkaError as error:
            self._fail(error, topic, partition, size, key)
            return
        self.outstanding_bytes += size
        self._pending.append((future, size, key))
        place.latest = future

    def settle(self) -> int:
        """Take note of the acknowledgements that have come in; returns `acknowledged`."""
        pending = self._pending
        while pending and pending[0][0].is_done:
            future, size, key = pending.popleft()
            self.outstanding_bytes -= size
            if future.exception is not None:
                topic, partition = future._produce_future.topic_partition  # noqa: SLF001
                self._fail(future.exception, topic, partition, size, key)
            elif self.failure is None:
                self.acknowledged += 1
        return self.acknowledged

    def when_done(self, called: Callable[[float], None]) -> None:
        """Call `called(monotonic_s)` when all that was sent since the last such call is acknowledged.

        It runs on the sender thread, once for each partition: the latest call is the one that counts.
        """
        for place in self._places.values():
            if place.latest is not None:
                place.latest.add_both(lambda _: called(time.monotonic()))
                place.latest = None

    def flush(self, timeout_s: float) -> bool:
        """Wait until everything is acknowledged; False if that did not happen in time or something failed."""
        deadline_s = time.monotonic() + timeout_s
        while self.settle() < self.sent and self._pending and self.failure is None:
            left_s = deadline_s - time.monotonic()
            if left_s <= 0:
                return False
            with contextlib.suppress(KafkaError):  # `settle` looks at what came of it
                self._pending[0][0].get(left_s)
        return self.failure is None

    def partitions(self, topic: str) -> int:
        """How many partitions a topic has; raises BrokerError if it is missing or nobody answers."""
        try:
            producer = self._producer or self.connect()
            return len(producer.partitions_for(topic))
        except KafkaError as error:
            raise fatal(error) or BrokerError(
                f"topic {topic!r} is missing or no broker answers: {error}"
            ) from error

    def connect(self) -> Any:
        """Make the producer now; else the first message does. Raises the library's error."""
        self._producer = connect(KafkaProducer, writer_settings(self.spec) | self._overrides)
        return self._producer

    def close(self, timeout_s: float) -> None:
        """Send what is queued if there is time, then end. Never raises, leaves no thread behind."""
        if self._producer is not None:
            clean = self.flush(timeout_s)
            close_producer(self._producer, timeout_s if clean else 0.0)
            self._producer = None
        self._places.clear()
        self.settle()

    def _place(self, topic: str, partition: int | None) -> "_Place":
        """Where messages go; asks for the topic's partitions the first time."""
        producer = self._producer or self.connect()
        known = producer.partitions_for(topic)
        place = _Place(producer, topic, partition if partition in known else None)
        self._places[topic, partition] = place
        return place

    def _fail(
        self, error: Exception, topic: str, partition: int | None, size: int, key: bytes | None
    ) -> None:
        """Keep the first error, with a note of which message it is about and what can be done."""
        if self.failure is None:
            place = topic if partition is None else f"{topic}/{partition}"
            about = f"a message of {size} bytes to {place}, key {key and key[:_KEY_SHOWN_BYTES]!r}"
            error.add_note(about + _mend(error, topic, key))
            self.failure = error
            log.error("a message could not be delivered: %s", told(error))


def _mend(error: Exception, topic: str, key: bytes | None) -> str:
    if isinstance(error, MessageSizeTooLargeError):
        return (
            f"; raise max.message.bytes of topic {topic!r}, and kafka.max_message_bytes if that is smaller, or have"
            " fewer model.levels or a shorter model.horizon"
        )
    if isinstance(error, InvalidRecordError) and key is None:
        return f"; a compacted topic takes nothing without a key: set cleanup.policy of topic {topic!r} to delete"
    return ""
