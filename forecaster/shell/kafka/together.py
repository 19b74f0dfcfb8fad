"""Messages that appear together or not at all, for commands beside the stream: each batch a transaction of its own.

Comes in: batches of messages. Goes out: committed transactions, or an error after which nobody knows whether the last
one came about: the next writer of the same identity ends it, and finds out by reading.
"""

import time
from collections.abc import Iterable
from typing import NamedTuple, Self

from kafka.errors import InvalidProducerEpochError, KafkaError, ProducerFencedError

from forecaster.errors import BrokerError, FencedError, ForecasterError
from forecaster.shell.kafka.client import fatal, told
from forecaster.shell.kafka.sink import Headers, Sink
from forecaster.shell.kafka.spec import KafkaSpec
from forecaster.shell.kafka.transaction import Doubt, cause_of, transactional_settings, wait_for


class Message(NamedTuple):
    """What is to be written, and where."""

    topic: str
    value: bytes | None
    key: bytes | None
    headers: Headers
    partition: int
    timestamp_ms: int | None = None


class Together:
    """A writer with an identity; an earlier one of the same identity is shut out from here on."""

    def __init__(self, spec: KafkaSpec, identity: str) -> None:
        """Connect. Raises BrokerError, and ConfigError for a setting that the broker refuses."""
        self._spec, self._identity = spec, identity
        self._sink = Sink(spec, **transactional_settings(spec, identity))
        try:
            self._sink.connect().init_transactions()
        except KafkaError as error:
            self.close()
            raise self._ours(error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def write(self, messages: Iterable[Message]) -> None:
        """Write them in one transaction, and wait for it. Raises BrokerError; after it only `close` makes sense."""
        deadline_s = time.monotonic() + self._spec.transaction_timeout_s
        sink = self._sink
        try:
            sink.producer.begin_transaction()
            for message in messages:
                sink.send(
                    message.topic,
                    message.value,
                    message.key,
                    headers=message.headers,
                    partition=message.partition,
                    timestamp_ms=message.timestamp_ms,
                )
            if not sink.flush(deadline_s - time.monotonic()):
                raise sink.failure or Doubt("messages were not acknowledged in time")
            wait_for(sink, sink.producer._transaction_manager.begin_commit(), deadline_s - time.monotonic())  # noqa: SLF001
        except (KafkaError, Doubt) as error:
            raise self._ours(error) from error

    def close(self) -> None:
        """End the client. Never raises."""
        self._sink.close(timeout_s=1.0)

    def _ours(self, error: Exception) -> ForecasterError:
        cause = cause_of(self._sink, error)
        if isinstance(cause, ProducerFencedError | InvalidProducerEpochError):
            return FencedError(
                f"another writer with transactional id {self._identity!r} has begun: leave it to that one"
            )
        return fatal(cause) or BrokerError(f"a transaction did not come about: {told(cause)}")
