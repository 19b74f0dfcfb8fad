"""The source with a client that misbehaves: what it does then, without a broker."""

import zlib
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
from kafka import TopicPartition
from kafka.errors import (
    CommitFailedError,
    FencedInstanceIdError,
    KafkaTimeoutError,
    OffsetOutOfRangeError,
    TopicAuthorizationFailedError,
)

from forecaster.errors import BrokerError, FencedError
from forecaster.shell.kafka import Assigned, KafkaSpec, Lost, Moved, MoveReason
from forecaster.shell.kafka.source import Source


class FakeClient:
    """The library's consumer, as far as the source uses it; `script` is what each poll does."""

    def __init__(self, clock: list[float]) -> None:
        self.script: list[Callable[[], Any]] = []
        self.closed = False
        self.listener: Any = None
        self.ends: dict[TopicPartition, int] = {}
        self.commits: list[Any] = []
        self._paused: set[TopicPartition] = set()
        heartbeat = SimpleNamespace(last_receive=clock[0])
        self._coordinator = SimpleNamespace(
            _join_task=None,
            _lock=nullcontext(),
            _heartbeat_enabled=True,
            heartbeat=heartbeat,
            state="<stable>",
            rejoin_needed=False,
            rejoining=False,
            group_instance_id=None,
        )
        self._subscription = SimpleNamespace(assignment={})
        self._fetcher = SimpleNamespace(_next_partition_records=None, PartitionRecords=object)

    def partitions_for_topic(self, _: str) -> set[int]:
        return {0, 1}

    def subscribe(self, _: list[str], listener: Any) -> None:
        self.listener = listener

    def assign(self, *numbers: int) -> None:
        partitions = [TopicPartition("ticks", number) for number in numbers]
        for partition in partitions:
            state = SimpleNamespace(position=SimpleNamespace(offset=5), highwater=9)
            self._subscription.assignment[partition] = state
        self.listener.on_partitions_assigned(partitions)

    def poll(self, **_: Any) -> dict[TopicPartition, list[Any]]:
        return self.script.pop(0)() if self.script else {}

    def pause(self, *partitions: TopicPartition) -> None:
        self._paused |= set(partitions)

    def resume(self, *partitions: TopicPartition) -> None:
        self._paused -= set(partitions)

    def paused(self) -> set[TopicPartition]:
        return self._paused

    def seek(self, partition: TopicPartition, offset: int) -> None:
        self._subscription.assignment[partition].position = SimpleNamespace(offset=offset)

    def beginning_offsets(self, partitions: Iterable[TopicPartition], **_: Any) -> dict[TopicPartition, int]:
        return dict.fromkeys(partitions, 7)

    def end_offsets(self, partitions: Iterable[TopicPartition], **_: Any) -> dict[TopicPartition, int]:
        return {partition: self.ends.get(partition, 0) for partition in partitions}

    def commit(self, offsets: Any, **_: Any) -> None:
        self.commits.append(offsets)

    def commit_async(self, offsets: Any, **_: Any) -> None:
        self.commits.append(offsets)

    def close(self, **_: Any) -> None:
        self.closed = True


class World:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.clock = [100.0]
        self.clients: list[FakeClient] = []
        self.refuse: Exception | None = None
        monkeypatch.setattr("forecaster.shell.kafka.source.connect", self._connect)
        monkeypatch.setattr("forecaster.shell.kafka.source.time.sleep", lambda _: None)
        self.source = Source(KafkaSpec(stall_s=60, session_timeout_s=30), "ticks", lambda: self.clock[0])

    def _connect(self, _: object, settings: dict[str, Any]) -> FakeClient:
        if self.refuse is not None:
            raise self.refuse
        (self.assignor,) = settings["partition_assignment_strategy"]
        self.clients.append(FakeClient(self.clock))
        return self.clients[-1]

    @property
    def client(self) -> FakeClient:
        return self.clients[-1]

    def join(self) -> None:
        self.source.poll(0.0)
        self.client.assign(0, 1)
        assert self.source.changes() == [Assigned(frozenset({0, 1}))]

    def given(self, *numbers: int) -> None:
        """The group has decided; of partitions that are new the listener is told beside that."""
        partitions = [TopicPartition("ticks", number) for number in numbers]
        self.assignor.on_assignment(SimpleNamespace(partitions=lambda: partitions), 1)

    def fail(self, error: BaseException) -> None:
        def raising() -> None:
            raise error

        self.client.script.append(raising)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return World(monkeypatch)


@pytest.mark.parametrize(
    "error",
    [
        KafkaTimeoutError(),
        ValueError("x"),
        zlib.error("x"),
        RuntimeError("IO loop died"),
        AssertionError(),
        KeyError(1),
    ],
    ids=lambda error: type(error).__name__,
)
def test_whatever_comes_out_of_the_client_ends_in_a_new_one(world: World, error: Exception) -> None:
    world.join()
    world.fail(error)
    broken = world.client
    assert world.source.poll(0.0) == []
    assert broken.closed
    assert world.source.changes() == [Lost(frozenset({0, 1}))]
    assert world.source.assigned == frozenset()
    assert world.source.rebuilds == {"error": 1}
    world.join()
    assert world.client is not broken


def test_a_client_that_was_thrown_away_has_no_say_any_more(world: World) -> None:
    world.join()
    old = world.client
    world.source.rebuild("test")
    world.source.changes()
    world.source.poll(0.0)
    old.assign(0)
    assert world.source.assigned == frozenset()
    assert world.source.changes() == []


def test_a_partition_begins_paused_under_a_new_number(world: World) -> None:
    world.join()
    first = dict(world.source.epochs)
    assert world.client.paused() == {TopicPartition("ticks", 0), TopicPartition("ticks", 1)}
    world.source.rebuild("test")
    world.source.changes()
    world.clock[0] += 10
    world.join()
    assert all(world.source.epochs[partition] > epoch for partition, epoch in first.items())


def test_a_report_may_be_asked_for_while_partitions_and_the_client_come_and_go(world: World) -> None:
    world.join()
    assert world.source.lag() == {0: 4, 1: 4}

    class Meanwhile(dict[TopicPartition, Any]):
        """The loop goes on each time that the report looks here."""

        def get(self, key: TopicPartition, default: Any = None) -> Any:
            found = super().get(key, default)
            happens.pop()()
            return found

    client = world.client
    client._subscription.assignment = Meanwhile(client._subscription.assignment)
    happens = [lambda: None] * 3 + [lambda: world.source.epochs.pop(1)]
    assert world.source.lag() == {0: 4, 1: 4}
    happens = [lambda: None] * 3 + [lambda: world.source.rebuild("test")]
    assert world.source.lag() == {}


def test_nobody_there_is_waited_for_and_asked_less_and_less_often(world: World) -> None:
    world.refuse = KafkaTimeoutError("nobody")
    asked = 0
    for _ in range(100):
        before, world.clients = world.source._failures, []
        assert world.source.poll(0.0) == []
        asked += world.source._failures - before
        world.clock[0] += 0.5
    assert 8 <= asked <= 15, "50 seconds, at last every five"
    assert not world.source.connected
    world.refuse = None
    world.clock[0] += 10
    world.join()
    assert world.source.connected


@pytest.mark.parametrize(
    ("error", "ours"),
    [(FencedInstanceIdError(), FencedError), (TopicAuthorizationFailedError({"ticks"}), BrokerError)],
)
def test_what_a_retry_cannot_mend_is_raised(world: World, error: Exception, ours: type[Exception]) -> None:
    world.join()
    world.fail(error)
    with pytest.raises(ours):
        world.source.poll(0.0)
    assert world.client.closed


def test_a_static_member_whose_heartbeats_were_stopped_has_lost_its_identity(world: World) -> None:
    world.join()
    world.client._coordinator._heartbeat_enabled = False
    world.source.poll(0.0)  # a dynamic member has none to lose
    world.client._coordinator.group_instance_id = "worker-1"
    with pytest.raises(FencedError, match="worker-1"):
        world.source.poll(0.0)


def test_a_client_that_hears_nothing_is_replaced(world: World) -> None:
    world.join()
    for _ in range(6):
        world.clock[0] += 10
        world.source.poll(0.0)
    assert world.source.rebuilds == {}
    for _ in range(2):
        world.clock[0] += 10
        world.source.poll(0.0)
    assert world.source.rebuilds == {"silent": 1}


def test_a_join_may_take_as_long_as_the_slowest_member(world: World) -> None:
    world.join()
    world.client._coordinator.state = "<rebalancing>"
    world.client._coordinator.request_rejoin = lambda: None
    world.clock[0] += 170
    world.source.poll(0.0)
    assert world.source.rebuilds == {}


def test_a_partition_with_lag_that_gives_nothing_gets_a_new_client(world: World) -> None:
    world.join()
    world.client.ends = {TopicPartition("ticks", 0): 6, TopicPartition("ticks", 1): 5}
    world.source.resume({0})
    for _ in range(8):
        world.clock[0] += 10
        world.client._coordinator.heartbeat.last_receive = world.clock[0]
        world.source.poll(0.0)
    assert world.source.rebuilds == {"stalled": 1}


def test_a_partition_without_lag_or_that_is_paused_may_be_silent(world: World) -> None:
    world.join()
    world.client.ends = {TopicPartition("ticks", 0): 6, TopicPartition("ticks", 1): 5}
    world.source.resume({1})
    for _ in range(30):
        world.clock[0] += 10
        world.client._coordinator.heartbeat.last_receive = world.clock[0]
        world.source.poll(0.0)
    assert world.source.rebuilds == {}


def test_what_lies_behind_an_open_transaction_is_lag_that_nobody_can_read(world: World) -> None:
    world.join()
    world.source.resume({0, 1})
    world.client.ends = {TopicPartition("ticks", 0): 5, TopicPartition("ticks", 1): 5}
    assert world.source.readable_lag() == world.source.lag() == {0: 4, 1: 4}, "not looked at yet"

    def silence() -> None:
        for _ in range(12):
            world.clock[0] += 10
            world.client._coordinator.heartbeat.last_receive = world.clock[0]
            world.source.poll(0.0)

    silence()
    assert world.source.rebuilds == {}
    assert (world.source.lag(), world.source.readable_lag()) == ({0: 4, 1: 4}, {0: 0, 1: 0})

    world.source.pause({1})  # by us: what is held back is not the producer's doing
    silence()
    assert world.source.readable_lag() == {0: 0, 1: 4}

    world.client.ends[TopicPartition("ticks", 0)] = 9  # it was committed, and yet nothing comes
    silence()
    assert world.source.rebuilds == {"stalled": 1}


def test_an_offset_that_is_gone_is_replaced_by_policy_and_told(world: World) -> None:
    world.join()
    world.fail(OffsetOutOfRangeError({TopicPartition("ticks", 1): 5}))
    assert world.source.poll(0.0) == []
    assert world.source.changes() == [Moved(1, 5, 7, MoveReason.OUT_OF_RANGE)]
    assert world.source.positions() == {0: 5, 1: 7}
    assert world.source.lag() == {0: 4, 1: 2}


def test_before_a_revoke_finished_work_is_committed_and_nothing_after(world: World) -> None:
    world.join()
    world.source.before_revoke = lambda partitions: dict.fromkeys(partitions, 6)
    world.client.listener.on_partitions_revoked({TopicPartition("ticks", 1)})
    (commit,) = world.client.commits
    assert {partition.partition: at.offset for partition, at in commit.items()} == {1: 6}
    assert world.source.assigned == {0}


def test_commits_that_a_lost_client_owed_an_answer_have_failed(world: World) -> None:
    world.join()
    answers: list[bool] = []
    world.source.commit_soon({0: 6}, answers.append)
    world.source.rebuild("test")
    assert answers == [False]


def test_a_commit_that_fails_is_said(world: World) -> None:
    world.join()

    def failing(offsets: Any, timeout_ms: int) -> None:
        raise CommitFailedError

    world.client.commit = failing  # type: ignore[method-assign]
    assert not world.source.commit({0: 6})
    assert (world.source.commits, world.source.commit_failures) == (1, 1)


def test_a_member_for_which_the_group_has_nothing_is_told_so_once_that_is_settled(world: World) -> None:
    world.source.poll(0.0)
    for _ in range(2):
        world.given()
        world.source.poll(0.0)
        assert world.source.changes() == [], "others may be letting go of something"
        world.clock[0] += 2 * world.source.spec.heartbeat_s
        world.client._coordinator.rejoin_needed = True
        world.source.poll(0.0)
        assert world.source.changes() == [], "it is being shared out anew"
        world.client._coordinator.rejoin_needed = False
        world.source.poll(0.0)
        assert world.source.changes() == [Assigned(frozenset())]
        world.source.poll(0.0)
        assert world.source.changes() == []


def test_a_member_that_gets_its_partitions_from_others_is_never_told_that_there_are_none(
    world: World,
) -> None:
    world.source.poll(0.0)
    world.given()
    world.clock[0] += world.source.spec.heartbeat_s
    world.given(0, 1)
    world.client.assign(0, 1)
    world.clock[0] += 5 * world.source.spec.heartbeat_s
    world.source.poll(0.0)
    assert world.source.changes() == [Assigned(frozenset({0, 1}))]


def test_work_that_is_taken_back_before_any_assignment_is_none(world: World) -> None:
    world.source.poll(0.0)
    world.source.rewind("a test")
    assert world.source.changes() == []
