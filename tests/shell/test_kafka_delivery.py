"""At least once, without a broker: what may be committed when, and what happens when a message is lost."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
from kafka.errors import KafkaTimeoutError, TopicAuthorizationFailedError

from forecaster.errors import BrokerError
from forecaster.shell.kafka import KafkaSpec
from forecaster.shell.kafka.delivery import AtLeastOnce


@dataclass
class FakeSource:
    spec: KafkaSpec = field(default_factory=lambda: KafkaSpec(commit_interval_s=1.0))
    epochs: dict[int, int] = field(default_factory=lambda: {0: 1, 1: 1})
    commits: list[dict[int, int]] = field(default_factory=list)
    rewinds: list[str] = field(default_factory=list)
    before_revoke: Any = None
    pending: list[Callable[[bool], None]] = field(default_factory=list)

    def commit_soon(self, offsets: Mapping[int, int], done: Callable[[bool], None]) -> None:
        self.commits.append(dict(offsets))
        self.pending.append(done)

    def answer(self, committed: bool = True) -> None:
        self.pending.pop(0)(committed)

    def commit(self, offsets: Mapping[int, int], timeout_s: float) -> bool:
        del timeout_s
        self.commits.append(dict(offsets))
        return True

    def rewind(self, reason: str) -> None:
        self.rewinds.append(reason)
        self.epochs = {partition: epoch + 1 for partition, epoch in self.epochs.items()}


class FakeSink:
    def __init__(self) -> None:
        self.sent = self.acknowledged = 0
        self.failure: Exception | None = None
        self.closed = False
        self.called: list[Callable[[float], None]] = []

    @property
    def outstanding(self) -> int:
        return self.sent - self.acknowledged

    def send(self, *_: Any, **__: Any) -> None:
        self.sent += 1

    def settle(self) -> int:
        return self.acknowledged

    def acknowledge(self, count: int, at_s: float = 0.0) -> None:
        self.acknowledged += count
        for called in self.called:
            called(at_s)

    def when_done(self, called: Callable[[float], None]) -> None:
        self.called.append(called)

    def flush(self, timeout_s: float) -> bool:
        del timeout_s
        self.acknowledged = self.sent
        return self.failure is None

    def close(self, timeout_s: float) -> None:
        del timeout_s
        self.closed = True


class World:
    def __init__(self) -> None:
        self.now_s = 0.0
        self.source = FakeSource()
        self.sinks: list[FakeSink] = []
        self.delivery = AtLeastOnce(self.source, self._make_sink, lambda: self.now_s)  # type: ignore[arg-type]

    def _make_sink(self, _: KafkaSpec) -> Any:
        self.sinks.append(FakeSink())
        return self.sinks[-1]

    @property
    def sink(self) -> FakeSink:
        return self.sinks[-1]

    def batch(self, messages: int, offsets: dict[int, int], token: Any = None) -> None:
        batch = self.delivery.begin(token)
        for _ in range(messages):
            self.delivery.send("predictions", b"value", b"key")
        self.delivery.finish(batch, offsets)


@pytest.fixture
def world() -> World:
    return World()


def test_nothing_is_committed_before_its_messages_are_acknowledged(world: World) -> None:
    world.batch(3, {0: 10})
    world.sink.acknowledge(2)
    assert world.delivery.poll() == []
    assert world.source.commits == []
    world.sink.acknowledge(1)
    world.delivery.poll()
    assert world.source.commits == [{0: 10}]


def test_batches_settle_in_order_with_their_tokens_and_the_time_of_the_last_acknowledgement(
    world: World,
) -> None:
    world.batch(2, {0: 10}, token="first")
    world.batch(1, {1: 5}, token="second")
    world.sink.acknowledge(2, at_s=7.0)
    (first,) = world.delivery.poll()
    assert (first.token, first.messages, first.at_s) == ("first", 2, 7.0)
    world.sink.acknowledge(1, at_s=8.0)
    (second,) = world.delivery.poll()
    assert (second.token, second.messages, second.at_s) == ("second", 1, 8.0)


def test_a_batch_without_messages_waits_for_those_before_it(world: World) -> None:
    world.batch(1, {0: 10})
    world.batch(0, {0: 20})
    assert world.delivery.poll() == []
    world.sink.acknowledge(1)
    assert len(world.delivery.poll()) == 2
    assert world.source.commits == [{0: 20}]


def test_one_commit_at_a_time_and_at_most_one_in_each_interval(world: World) -> None:
    for offset in (10, 20, 30):
        world.batch(1, {0: offset})
        world.sink.acknowledge(1)
        world.delivery.poll()
    assert world.source.commits == [{0: 10}]
    world.now_s = 2.0
    world.delivery.poll()
    assert world.source.commits == [{0: 10}], "the first is not answered yet"
    world.source.answer()
    world.delivery.poll()
    assert world.source.commits == [{0: 10}, {0: 30}]


def test_a_commit_that_fails_is_tried_again(world: World) -> None:
    world.batch(1, {0: 10})
    world.sink.acknowledge(1)
    world.delivery.poll()
    world.source.answer(committed=False)
    world.now_s = 2.0
    world.delivery.poll()
    assert world.source.commits == [{0: 10}, {0: 10}]


def test_what_was_committed_is_not_committed_again(world: World) -> None:
    world.batch(1, {0: 10, 1: 4})
    world.sink.acknowledge(1)
    world.delivery.poll()
    world.source.answer()
    world.now_s = 2.0
    world.delivery.poll()
    assert world.source.commits == [{0: 10, 1: 4}]


def test_a_partition_that_is_gone_is_never_committed(world: World) -> None:
    world.batch(1, {0: 10, 1: 4})
    del world.source.epochs[0]
    world.sink.acknowledge(1)
    world.delivery.poll()
    assert world.source.commits == [{1: 4}]


def test_a_partition_that_went_and_came_back_is_not_committed_for_work_from_before(world: World) -> None:
    batch = world.delivery.begin()
    world.source.epochs[0] += 1
    world.delivery.finish(batch, {0: 10})
    world.delivery.poll()
    assert world.source.commits == []


def test_before_a_revoke_what_is_acknowledged_is_offered_for_these_partitions_alone(world: World) -> None:
    world.batch(1, {0: 10, 1: 4})
    world.sink.acknowledge(1)
    assert world.source.before_revoke(frozenset({1})) == {1: 4}


def test_a_lost_message_takes_all_uncommitted_work_back(world: World) -> None:
    world.batch(2, {0: 10})
    world.batch(2, {0: 20})
    lost = world.sink
    lost.failure = KafkaTimeoutError("delivery timed out")
    world.delivery.poll()
    assert world.source.rewinds == ["delivery failed"]
    assert world.delivery.resets == 1
    assert lost.closed
    assert world.sink is not lost

    world.batch(1, {0: 5})
    world.sink.acknowledge(1)
    world.delivery.poll()
    assert world.source.commits == [{0: 5}], "nothing of before is committed"


def test_messages_that_can_never_be_delivered_end_it(world: World) -> None:
    def fail() -> None:
        world.sink.failure = KafkaTimeoutError("delivery timed out")
        world.delivery.poll()

    for _ in range(5):
        fail()
    with pytest.raises(BrokerError, match="cannot be delivered"):
        fail()


def test_a_right_that_is_missing_ends_it_at_once(world: World) -> None:
    world.batch(1, {0: 10})
    world.sink.failure = TopicAuthorizationFailedError({"predictions"})
    with pytest.raises(BrokerError, match="denies a right"):
        world.delivery.poll()


def test_flush_commits_everything(world: World) -> None:
    world.batch(2, {0: 10})
    world.batch(2, {0: 20, 1: 4})
    assert world.delivery.flush(1.0)
    assert world.source.commits == [{0: 20, 1: 4}]
    assert len(world.delivery.poll()) == 2
