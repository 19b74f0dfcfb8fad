"""Partitions that come, are rebuilt, are served and leave, with a source and a rebuild that the test moves."""

from collections.abc import Collection, Sequence
from typing import cast

import pytest
from structlog.testing import capture_logs

from forecaster.core.tick import Tick
from forecaster.shell import assignment
from forecaster.shell.assignment import Assignment
from forecaster.shell.kafka import Assigned, KafkaSpec, Lost, Moved, MoveReason, Record, Revoked, TopicsSpec
from forecaster.shell.kafka.delivery import AtLeastOnce
from forecaster.shell.kafka.sink import Sink
from forecaster.shell.kafka.source import Source
from forecaster.shell.metrics import Metrics
from forecaster.shell.rebuild import Item, Short
from forecaster.shell.skips import Skips
from forecaster.shell.state import StateSpec, StateTopic
from tests.folds import SPEC, START_S, make_fold
from tests.lists import ListSink, ListSource


class FakeSource:
    """Positions, and which partitions may be read."""

    def __init__(self) -> None:
        self.positions: dict[int, int | None] = {}
        self.reading: set[int] = set()
        self.apart: set[int] = set()
        self.noted: list[int] = []
        self.answers = True
        self.passed: dict[int, Sequence[tuple[int, int]]] = dict.fromkeys(range(9), ())

    def position(self, partition: int) -> int | None:
        return self.positions.get(partition)

    def before_rebuilding(self, partition: int) -> bool:
        self.noted += [partition] * self.answers
        return self.answers

    def pause(self, partitions: Collection[int]) -> None:
        self.reading -= set(partitions)

    def resume(self, partitions: Collection[int]) -> None:
        self.reading |= set(partitions)


class FakeRebuild:
    """Hands out what the test puts in; done when the test says so."""

    made: list["FakeRebuild"]

    def __init__(self, _: object, __: object, ends: dict[int, int], most: int, *more: object) -> None:
        self.partitions, self.ends, self.most = frozenset(ends), dict(ends), most
        self.passed = more[-1]
        self.chunks: list[Item] = []
        self.short: dict[int, Short] = {}
        self.done, self.cancelled = False, False
        self.made.append(self)

    def poll(self) -> Item:
        return self.chunks.pop(0) if self.chunks else []

    def cancel(self) -> None:
        self.cancelled = True


class World:
    """An assignment, and everything around it."""

    def __init__(self) -> None:
        self.source, self.fold = FakeSource(), make_fold()
        self.metrics = Metrics(horizon=SPEC.horizon, levels=SPEC.levels)
        delivery = AtLeastOnce(cast("Source", ListSource([])), make_sink=lambda _: cast("Sink", ListSink()))
        skips = Skips(0.0, "g:ticks")
        self.state = StateTopic(StateSpec(), "state", "g:ticks", self.fold, delivery, self.metrics, skips)
        source = cast("Source", self.source)
        self.ours = Assignment(
            source, self.fold, self.state, self.metrics, KafkaSpec(), TopicsSpec(), 500, lambda: 7.0
        )

    def assign(self, *partitions: int, position: int | None = 100) -> None:
        for partition in partitions:
            self.source.positions[partition] = position
        self.ours.apply([Assigned(frozenset(partitions))])

    def serve(self, *partitions: int) -> None:
        self.assign(*partitions)
        self.ours.rebuild()
        FakeRebuild.made[-1].done = True
        self.ours.rebuild()
        assert self.ours.serving >= set(partitions)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    FakeRebuild.made = []
    monkeypatch.setattr(assignment, "Rebuild", FakeRebuild)
    return World()


def record(partition: int) -> Record:
    return Record("ticks", partition, 5, 0, None, b"{}")


def test_a_new_partition_is_read_only_once_it_is_rebuilt(world: World) -> None:
    assert not world.ours.ever
    world.assign(0, 1)
    assert (world.ours.ever, world.ours.waiting) == (True, {0, 1})
    assert world.ours.rebuild() == []
    (rebuild,) = FakeRebuild.made
    assert (rebuild.ends, rebuild.most) == ({0: 100, 1: 100}, 500)
    rebuild.chunks = [[record(0), record(1)]]
    assert world.ours.rebuild() == [record(0), record(1)]
    assert world.source.reading == set()
    rebuild.done = True
    assert world.ours.rebuild() == []
    assert (world.ours.serving, world.ours.waiting, world.source.reading) == ({0, 1}, set(), {0, 1})


def test_nothing_is_read_back_before_every_position_is_known(world: World) -> None:
    world.assign(0)
    world.assign(1, position=None)
    assert world.ours.rebuild() == []
    assert FakeRebuild.made == []
    world.source.positions[1] = 3
    world.ours.rebuild()
    assert FakeRebuild.made[0].ends == {0: 100, 1: 3}


def test_nothing_is_read_back_before_the_batches_that_kill_are_known(world: World) -> None:
    del world.source.passed[1]
    world.assign(0, 1)
    world.ours.rebuild()
    assert FakeRebuild.made == []
    world.source.passed[1] = [(7, 9)]
    world.ours.rebuild()
    assert FakeRebuild.made[0].passed == {0: (), 1: [(7, 9)]}


def test_a_partition_that_leaves_takes_its_rows_along(world: World) -> None:
    world.serve(0, 1)
    for partition in (0, 1):
        world.fold.admit(partition, [0], [Tick(f"s{partition}", START_S, 1.0)])
    world.fold.run()
    world.ours.apply([Revoked(frozenset({1}))])
    assert (world.ours.serving, len(world.fold.index)) == ({0}, 1)
    world.ours.apply([Lost(frozenset({0}))])
    assert (world.ours.serving, len(world.fold.index)) == (set(), 0)


def test_what_leaves_while_it_is_rebuilt_makes_the_others_start_over(world: World) -> None:
    world.assign(0, 1)
    world.ours.rebuild()
    world.fold.admit(0, [0], [Tick("half", START_S, 1.0)])
    world.fold.run()
    world.ours.apply([Revoked(frozenset({1}))])
    assert FakeRebuild.made[0].cancelled
    assert len(world.fold.index) == 0
    world.ours.rebuild()
    assert FakeRebuild.made[1].ends == {0: 100}


def test_a_partition_that_comes_while_others_are_rebuilt_waits_for_its_turn(world: World) -> None:
    world.assign(0)
    world.ours.rebuild()
    world.assign(1)
    FakeRebuild.made[0].done = True
    world.ours.rebuild()
    assert (world.ours.serving, world.ours.waiting) == ({0}, {1})
    world.ours.rebuild()
    assert FakeRebuild.made[1].partitions == {1}


def test_a_partition_that_is_lost_and_comes_back_is_rebuilt_again(world: World) -> None:
    world.serve(0)
    world.ours.apply([Lost(frozenset({0})), Assigned(frozenset({0}))])
    assert (world.ours.serving, world.ours.waiting) == (set(), {0})


def test_nothing_is_read_while_the_broker_takes_nothing(world: World) -> None:
    world.serve(0)
    world.ours.hold(full=True)
    assert world.source.reading == set()
    world.serve(1)  # rebuilt meanwhile: it waits, too
    assert world.source.reading == set()
    world.ours.hold(full=False)
    assert world.source.reading == {0, 1}


def test_a_move_of_the_position_is_counted_by_reason_and_by_what_it_passes_over(world: World) -> None:
    reason = next(iter(MoveReason))
    world.ours.apply([Moved(0, 5, 9, reason)])
    assert world.metrics.position_moves[reason]._value.get() == 1
    assert world.metrics.offsets_lost[reason]._value.get() == 4
    world.ours.apply([Moved(0, None, 9, reason)])
    assert world.metrics.position_moves[reason]._value.get() == 2
    assert world.metrics.offsets_lost[reason]._value.get() == 4


def test_a_first_start_is_no_cause_for_a_warning(world: World) -> None:
    with capture_logs() as told:
        world.ours.apply([Moved(0, None, 0, reason) for reason in MoveReason])
    assert [event["log_level"] for event in told] == [
        "info" if reason == MoveReason.START else "warning" for reason in MoveReason
    ]


def test_closing_ends_the_reading_back(world: World) -> None:
    world.assign(0)
    world.ours.rebuild()
    world.ours.close()
    assert FakeRebuild.made[0].cancelled


def test_partitions_on_which_workers_died_are_rebuilt_one_by_one_and_noted(world: World) -> None:
    world.source.apart, world.source.answers = {0, 2}, False
    world.assign(0, 1, 2)
    for rebuilt in ({1}, {0}, {2}):
        world.ours.rebuild()
        if rebuilt != {1} and not world.source.answers:
            assert len(FakeRebuild.made) == 1, "without a note it is not begun"
            world.source.answers = True
            world.ours.rebuild()
        assert FakeRebuild.made[-1].partitions == rebuilt
        FakeRebuild.made[-1].done = True
        world.ours.rebuild()
    assert world.source.noted == [0, 2]
    assert not world.ours.waiting


def test_an_assignment_of_nothing_is_one_and_said_once(world: World) -> None:
    nothing = Assigned(frozenset())
    with capture_logs() as events:
        world.ours.apply([nothing])
        world.ours.apply([nothing])
        assert (world.ours.ever, world.ours.waiting, world.ours.rebuild()) == (True, set(), [])
        world.assign(0)
        world.ours.apply([Revoked(frozenset({0})), nothing])
    assert [event["event"] for event in events] == [
        "standby",
        "partitions_assigned",
        "partitions_revoked",
        "standby",
    ]
