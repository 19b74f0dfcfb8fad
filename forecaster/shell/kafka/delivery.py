"""At least once: offsets are committed only when every message that answers them is acknowledged.

Comes in: batches of messages, each with the offsets that it answers. Goes out: commits through the source,
and what has settled. Several batches may be in flight; nothing here waits for the broker but `flush` and
`close`. When a message fails for good, the work since the last commit is taken back and done again.
"""

import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from forecaster.errors import BrokerError
from forecaster.shell.crash import Point, passing
from forecaster.shell.kafka.client import fatal, told
from forecaster.shell.kafka.sink import Headers, Sink
from forecaster.shell.kafka.source import Source
from forecaster.shell.kafka.spec import KafkaSpec

_REVOKE_WAIT_S = 0.5  # heartbeats wait as long
_MOST_RESETS = 5  # in a row without one commit between them: repeating does not help


@dataclass(frozen=True)
class Settled:
    """A batch whose `messages` are all on the log since `at_s` (monotonic)."""

    token: Any
    messages: int
    at_s: float


class Delivery(Protocol):
    """How a batch of messages and the offsets that it answers reach the broker."""

    resets: int
    """How often work was taken back; the source then reports Lost and Assigned."""
    atomic: bool
    """Whether messages and offsets of a batch take effect together."""
    committed: dict[int, int]
    """The offsets that were committed here, by partition."""

    @property
    def able(self) -> bool:
        """Whether a batch could be delivered if the broker takes it."""
        ...

    @property
    def outstanding(self) -> int:
        """Messages that were sent and have not settled."""
        ...

    def begin(self, token: Any = None) -> "Batch":
        """A batch that answers what was just polled; call it right after `source.changes`."""
        ...

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
        """Queue a message; it belongs to the batch that is finished next."""
        ...

    def finish(self, batch: "Batch", offsets: Mapping[int, int]) -> None:
        """All messages of the batch were sent; they answer each partition up to before its offset."""
        ...

    def poll(self) -> list[Settled]:
        """Move on what can be moved; returns what has settled since the last call."""
        ...

    def room(self) -> bool:
        """Whether another batch may be read."""
        ...

    def flush(self, timeout_s: float) -> bool:
        """Wait until all is acknowledged and committed."""
        ...

    def close(self, timeout_s: float) -> None:
        """End the producer; what was not committed will be done again by whoever reads next."""
        ...


@dataclass
class Batch:
    """Work in flight: `epochs` are the assignments it was begun under, `mark` the messages it waits for."""

    token: Any
    epochs: dict[int, int]
    offsets: dict[int, int] = field(default_factory=dict)
    messages: int = 0
    mark: int = 0
    acknowledged_s: float = 0.0

    def acknowledged(self, at_s: float) -> None:
        """A part of the messages was acknowledged; the last part counts."""
        self.acknowledged_s = max(self.acknowledged_s, at_s)


class AtLeastOnce:
    """Commit what is acknowledged, every `commit_interval_s` at most, never for a partition that is gone."""

    def __init__(
        self,
        source: Source,
        make_sink: Callable[[KafkaSpec], Sink] = Sink,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.resets = 0
        self.atomic = False
        self.committed: dict[int, int] = {}
        self._source = source
        self._make_sink = make_sink
        self._sink = make_sink(source.spec)
        self._now = now
        self._in_flight: deque[Batch] = deque()
        self._settled: list[Settled] = []
        self._finished = 0
        self._to_commit: dict[int, tuple[int, int]] = {}  # partition -> epoch, offset
        self._committing: dict[int, tuple[int, int]] | None = None
        self._commit_at_s = -float("inf")
        self._fruitless = 0
        source.before_revoke, source.after_revoke = self._settle_before_revoke, self.committed.update

    @property
    def able(self) -> bool:
        """Always: a producer is made by the first message."""
        return True

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
        """Queue a message."""
        self._sink.send(topic, value, key, headers=headers, partition=partition, timestamp_ms=timestamp_ms)

    def finish(self, batch: Batch, offsets: Mapping[int, int]) -> None:
        """The offsets may be committed once all that was sent so far is acknowledged."""
        batch.offsets = dict(offsets)
        batch.mark = self._sink.sent
        batch.messages = batch.mark - self._finished
        batch.acknowledged_s = self._now() if not batch.messages else 0.0
        self._finished = batch.mark
        self._sink.when_done(batch.acknowledged)
        self._in_flight.append(batch)

    def poll(self) -> list[Settled]:
        """Collect acknowledgements, commit when it is time, take work back when a message failed for good."""
        self._collect()
        if self._sink.failure is not None:
            self._take_back(self._sink.failure)
        elif self._now() >= self._commit_at_s:
            self._commit()
        settled, self._settled = self._settled, []
        return settled

    @property
    def outstanding(self) -> int:
        """Messages on their way."""
        return self._sink.outstanding

    def room(self) -> bool:
        """Whether fewer messages and bytes are on their way than the limits allow."""
        return self._sink.room()

    def flush(self, timeout_s: float) -> bool:
        """Wait for the acknowledgements, then for the commit."""
        deadline_s = self._now() + timeout_s
        if not self._sink.flush(timeout_s):
            return False
        self._collect()
        offsets = self._committable()
        if not self._source.commit(offsets, timeout_s=max(0.1, deadline_s - self._now())):
            return False
        self._drop_committed(offsets)
        return True

    def close(self, timeout_s: float) -> None:
        """End the producer."""
        self._source.before_revoke = lambda _: {}
        self._sink.close(timeout_s)

    def _collect(self) -> None:
        acknowledged = self._sink.settle()
        while self._in_flight and self._in_flight[0].mark <= acknowledged:
            batch = self._in_flight.popleft()
            self._settled.append(Settled(batch.token, batch.messages, batch.acknowledged_s))
            for partition, offset in batch.offsets.items():
                epoch = batch.epochs.get(partition)
                if epoch is not None and epoch == self._source.epochs.get(partition):
                    self._to_commit[partition] = (epoch, offset)

    def _committable(self) -> dict[int, int]:
        """What may be committed now: acknowledged, and still under the assignment it was read under."""
        ours = self._source.epochs
        self._to_commit = {p: at for p, at in self._to_commit.items() if ours.get(p) == at[0]}
        return {partition: offset for partition, (_, offset) in self._to_commit.items()}

    def _commit(self) -> None:
        if self._committing is not None:
            return
        offsets = self._committable()
        if offsets:
            passing(Point.ACKNOWLEDGED)
            self._committing = dict(self._to_commit)
            self._commit_at_s = self._now() + self._source.spec.commit_interval_s
            self._source.commit_soon(offsets, self._committed)
            passing(Point.OFFSETS_ASKED)

    def _committed(self, done: bool) -> None:
        committing, self._committing = self._committing or {}, None
        if done:
            passing(Point.COMMITTED)
            self._drop_committed({partition: offset for partition, (_, offset) in committing.items()})

    def _drop_committed(self, offsets: Mapping[int, int]) -> None:
        self._fruitless = 0
        self.committed |= offsets
        for partition, offset in offsets.items():
            if self._to_commit.get(partition, (0, None))[1] == offset:
                del self._to_commit[partition]

    def _take_back(self, error: Exception) -> None:
        """A message is lost: forget all work since the last commit, and let it be read again."""
        ours = fatal(error)
        self._fruitless += 1
        if ours is not None or self._fruitless > _MOST_RESETS:
            raise ours or BrokerError(f"messages cannot be delivered: {told(error)}") from error
        self.resets += 1
        self._sink.close(timeout_s=0.0)
        self._sink = self._make_sink(self._source.spec)
        self._finished = 0
        self._in_flight.clear()
        self._to_commit.clear()
        self._committing = None
        self._source.rewind("delivery failed")

    def _settle_before_revoke(self, partitions: frozenset[int]) -> dict[int, int]:
        """On the client's thread, while the caller waits in `source.poll`: what is finished there."""
        until_s = time.monotonic() + _REVOKE_WAIT_S
        while self._in_flight and self._sink.failure is None and time.monotonic() < until_s:
            self._collect()
            time.sleep(0.005)
        return {p: offset for p, offset in self._committable().items() if p in partitions}
