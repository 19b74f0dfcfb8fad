"""Messages out: sent in order, bounded, and counted as sent only when the broker has acknowledged them.

Comes in: messages. Goes out: how many of them, in sending order, are acknowledged, and the first that
failed for good. The producer repeats by itself, in order, until the delivery timeout; what happens after
it is for the caller to decide (see delivery.py).
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from kafka import KafkaProducer
from kafka.errors import KafkaError, KafkaTimeoutError

from forecaster.errors import BrokerError
from forecaster.shell.kafka.client import Settings, close_producer, connect, fatal, writer_settings
from forecaster.shell.kafka.spec import KafkaSpec

log = logging.getLogger(__name__)

Headers = Sequence[tuple[str, bytes]]
_Message = tuple[bytes | None, bytes | None, list[tuple[str, bytes]]]  # value, key, headers


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
        self._pending: deque[tuple[Any, int]] = deque()
        self._latest: dict[tuple[str, int | None], Any] = {}
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
        try:
            future = self._queue(topic, (value, key, list(headers)), partition, timestamp_ms)
        except KafkaError as error:
            self._fail(error)
            return
        size = len(value or b"") + len(key or b"")
        self.outstanding_bytes += size
        self._pending.append((future, size))
        self._latest[topic, partition] = future

    def settle(self) -> int:
        """Take note of the acknowledgements that have come in; returns `acknowledged`."""
        pending = self._pending
        while pending and pending[0][0].is_done:
            future, size = pending.popleft()
            self.outstanding_bytes -= size
            if future.exception is not None:
                self._fail(future.exception)
            elif self.failure is None:
                self.acknowledged += 1
        return self.acknowledged

    def when_done(self, called: Callable[[float], None]) -> None:
        """Call `called(monotonic_s)` when all that was sent since the last such call is acknowledged.

        It runs on the sender thread, once for each partition: the latest call is the one that counts.
        """
        for future in self._latest.values():
            future.add_both(lambda _: called(time.monotonic()))
        self._latest.clear()

    def flush(self, timeout_s: float) -> bool:
        """Wait until everything is acknowledged; False if that did not happen in time or something failed."""
        if self._producer is not None and self._pending:
            try:
                self._producer.flush(timeout=timeout_s)
            except KafkaTimeoutError:
                self.settle()
                return False
        self.settle()
        return self.failure is None and not self._pending

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
            close_producer(self._producer, timeout_s)
            self._producer = None
        self.settle()

    def _queue(self, topic: str, message: _Message, partition: int | None, timestamp_ms: int | None) -> Any:
        producer = self._producer or self.connect()
        try:
            return producer.send(topic, *message, partition, timestamp_ms)
        except ValueError:  # no such partition
            if partition is None:
                raise
            return producer.send(topic, *message, None, timestamp_ms)

    def _fail(self, error: Exception) -> None:
        if self.failure is None:
            self.failure = error
            log.error("a message could not be delivered: %s: %s", type(error).__name__, error)
