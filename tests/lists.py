"""The two ends of the daemon without a broker: ticks from a list, messages into a list."""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from forecaster.shell.kafka import Assigned, Change, KafkaSpec, Lost, Record


class ListSource:
    """Records from a list, in place of a consumer: all partitions are assigned at the first poll, paused.

    `finished` is true when every record was given. Nothing blocks, so timeouts are ignored.
    """

    def __init__(self, records: Iterable[Record], spec: KafkaSpec | None = None) -> None:
        self.spec = spec or KafkaSpec.model_validate({})
        self.epochs: dict[int, int] = {}
        self.rebuilds: Counter[str] = Counter()
        self.before_revoke: Callable[[frozenset[int]], Mapping[int, int]] = lambda _: {}
        self.connected = True
        self.last_contact_s = 0.0
        self.commits: dict[int, int] = {}
        self._log: dict[int, list[Record]] = {}
        for record in records:
            self._log.setdefault(record.partition, []).append(record)
        self._next = dict.fromkeys(self._log, 0)
        self._paused: set[int] = set(self._log)
        self._changes: list[Change] = []

    def poll(self, timeout_s: float) -> list[Record]:
        """The next records of resumed partitions, at most `max_poll_records`, grouped by partition."""
        del timeout_s
        if not self.epochs:
            self._assign()
        records: list[Record] = []
        for partition in sorted(self.assigned - self._paused):
            room = self.spec.max_poll_records - len(records)
            batch = self._log[partition][self._next[partition] :][:room]
            self._next[partition] += len(batch)
            records += batch
        return records

    def changes(self) -> list[Change]:
        """What happened to partitions since the last call."""
        changes, self._changes = self._changes, []
        return changes

    def pause(self, partitions: Collection[int]) -> None:
        """Give no records of these until they are resumed."""
        self._paused |= set(partitions)

    def resume(self, partitions: Collection[int]) -> None:
        """Give records of these from now on."""
        self._paused -= set(partitions)

    @property
    def assigned(self) -> frozenset[int]:
        """Partitions that are ours: all there are."""
        return frozenset(self.epochs)

    @property
    def finished(self) -> bool:
        """Whether every record was given."""
        return all(self._next[partition] >= len(log) for partition, log in self._log.items())

    def position(self, partition: int) -> int | None:
        """The offset of the next record."""
        if partition not in self._log:
            return None
        log, at = self._log[partition], self._next[partition]
        return log[at].offset if at < len(log) else log[-1].offset + 1

    def positions(self) -> dict[int, int]:
        """The offsets of the next records."""
        return {partition: at for partition in self._log if (at := self.position(partition)) is not None}

    def lag(self) -> dict[int, int]:
        """Records that were not given yet, by partition."""
        return {partition: len(log) - self._next[partition] for partition, log in self._log.items()}

    readable_lag = lag

    def committed(self, partitions: Collection[int]) -> dict[int, tuple[int, str]]:
        """What `commit` noted, with empty metadata."""
        return {p: (self.commits[p], "") for p in partitions if p in self.commits}

    def commit(self, offsets: Mapping[int, int], metadata: str = "", timeout_s: float = 5.0) -> bool:
        """Note the offsets."""
        del metadata, timeout_s
        self.commits |= offsets
        return True

    def commit_soon(
        self, offsets: Mapping[int, int], done: Callable[[bool], None], metadata: str = ""
    ) -> None:
        """Note the offsets."""
        done(self.commit(offsets, metadata))

    def rewind(self, reason: str) -> None:
        """Give again what is not committed."""
        self.rebuilds[reason] += 1
        self._changes.append(Lost(self.assigned))
        for partition, log in self._log.items():
            self._next[partition] = sum(r.offset < self.commits.get(partition, 0) for r in log)
        self._assign()

    def close(self, timeout_s: float = 5.0) -> None:
        """Own nothing."""
        del timeout_s
        self.epochs.clear()

    def _assign(self) -> None:
        self.epochs = {partition: self.epochs.get(partition, 0) + 1 for partition in self._log}
        self._paused = set(self._log)
        self._changes.append(Assigned(self.assigned))


class Message(NamedTuple):
    """A message as it would have gone to a topic."""

    topic: str
    value: bytes | None
    key: bytes | None
    headers: Sequence[tuple[str, bytes]] = ()
    partition: int | None = None
    timestamp_ms: int | None = None


class ListSink:
    """Messages into a list, in place of a producer; each is acknowledged as soon as it is sent."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.failure: Exception | None = None
        self.outstanding = 0

    @property
    def sent(self) -> int:
        """Messages sent."""
        return len(self.messages)

    @property
    def acknowledged(self) -> int:
        """Messages acknowledged: all of them."""
        return len(self.messages)

    def send(self, topic: str, value: bytes | None, key: bytes | None, **more: Any) -> None:
        """Append a message; `more` as in `Message`."""
        self.messages.append(Message(topic, value, key, **more))

    def of(self, topic: str) -> list[Message]:
        """The messages of one topic, in order."""
        return [message for message in self.messages if message.topic == topic]

    def room(self) -> bool:
        """Always."""
        return True

    def settle(self) -> int:
        """How many are acknowledged."""
        return self.acknowledged

    def when_done(self, called: Callable[[float], None]) -> None:
        """At once; nothing was waited for."""
        called(0.0)

    def flush(self, timeout_s: float) -> bool:
        """Nothing to wait for."""
        del timeout_s
        return True

    def close(self, timeout_s: float) -> None:
        """Nothing to end; the messages stay."""
        del timeout_s
