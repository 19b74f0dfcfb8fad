"""The watchdogs, with clocks and turns that the tests move."""

import subprocess
import sys
import textwrap

import pytest

from forecaster.errors import StuckError
from forecaster.shell.watchdog import AWAY_S, LOOK_S, BrokerWatch, LoopWatch, PartitionWatch

LIMIT_S = 100.0


class World:
    def __init__(self) -> None:
        self.now_s, self.turns = 1000.0, 0
        self.ended: list[float] = []
        self.loop = LoopWatch(lambda: self.turns, LIMIT_S, lambda: self.now_s, self.ended.append)
        self.partitions = PartitionWatch(LIMIT_S, lambda: self.now_s)

    def looks(self, seconds: float, *, turning: bool = False) -> None:
        """The watch looks at the loop as often as it does in so many seconds."""
        for _ in range(round(seconds / LOOK_S)):
            self.now_s += LOOK_S
            self.turns += turning
            self.loop.look()


def test_a_loop_that_turns_is_left_alone_and_one_that_hangs_is_ended() -> None:
    world = World()
    world.looks(10 * LIMIT_S, turning=True)
    world.looks(LIMIT_S)
    assert world.ended == []
    world.looks(LOOK_S)
    assert world.ended == [LIMIT_S + LOOK_S]


def test_a_process_that_was_stopped_for_an_hour_has_not_hung() -> None:
    world = World()
    world.looks(10, turning=True)
    world.now_s += 3600
    world.looks(5)
    assert world.ended == []


@pytest.mark.process
def test_a_hanging_loop_ends_with_its_code_and_shows_where_it_hangs() -> None:
    program = textwrap.dedent("""
        import threading
        from forecaster.shell.watchdog import LoopWatch

        def where_it_hangs():
            threading.Event().wait()

        LoopWatch(lambda: 0, 0.0).start()
        where_it_hangs()
    """)
    ended = subprocess.run(
        [sys.executable, "-c", program], check=False, capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == StuckError.exit_code == 6
    assert "where_it_hangs" in ended.stderr


def test_a_broker_may_be_away_for_a_while_and_not_for_ever() -> None:
    now = [1000.0]
    watch = BrokerWatch(LIMIT_S, lambda: now[0])
    watch.look(0.0)  # what was before the first look does not count
    now[0] += LIMIT_S
    watch.look(0.0)
    now[0] += 1
    with pytest.raises(StuckError, match=r"no broker has answered for 101 s.*kafka\.give_up_s"):
        watch.look(0.0)
    watch.look(now[0] - LIMIT_S)


def stuck_after(world: World, seconds: float, positions: dict[int, int], lag: dict[int, int]) -> None:
    world.now_s += seconds
    world.partitions.look(positions, lag)


def test_a_partition_that_stands_still_although_it_has_lag_is_stuck() -> None:
    world = World()
    stuck_after(world, 0, {0: 5, 1: 5}, {0: 3, 1: 3})
    stuck_after(world, 50, {0: 5, 1: 6}, {0: 3, 1: 2})
    stuck_after(world, 50, {0: 5, 1: 6}, {0: 3, 1: 2})
    assert world.partitions.stuck_s == 100
    with pytest.raises(StuckError, match="partition 0 has lag and stands at 5"):
        stuck_after(world, 20, {0: 5, 1: 7}, {0: 3, 1: 1})


def test_without_lag_nothing_is_stuck() -> None:
    world = World()
    for _ in range(5):
        stuck_after(world, 50, {0: 5, 1: 5}, {0: 0})
    assert world.partitions.stuck_s == 0


def test_work_that_is_taken_back_again_and_again_is_no_advance() -> None:
    world = World()
    stuck_after(world, 0, {0: 9}, {0: 3})
    stuck_after(world, 60, {0: 5}, {0: 7})
    with pytest.raises(StuckError):
        stuck_after(world, 60, {0: 8}, {0: 4})


def test_a_new_client_does_not_make_a_partition_young_but_another_owner_does() -> None:
    world = World()
    stuck_after(world, 0, {0: 5}, {0: 3})
    stuck_after(world, 20, {}, {})
    stuck_after(world, 20, {0: 5}, {0: 3})
    assert world.partitions.stuck_s == 40
    stuck_after(world, AWAY_S + 1, {}, {})
    stuck_after(world, 1000, {0: 5}, {0: 3})
    assert world.partitions.stuck_s == 0


def test_a_partition_that_goes_on_from_somewhere_else_starts_over() -> None:
    world = World()
    stuck_after(world, 0, {0: 500}, {0: 3})
    world.partitions.forget(0)
    for position in range(4):
        stuck_after(world, 50, {0: position}, {0: 3})
    assert world.partitions.stuck_s == 0
