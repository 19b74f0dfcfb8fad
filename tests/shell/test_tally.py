"""Counts are told once their offsets are committed, and never twice."""

from collections import Counter

import numpy as np
import pytest

from forecaster.core.score import Scores
from forecaster.core.tick import Outcome, Reason
from forecaster.shell import tally
from forecaster.shell.tally import Counts, Tally

FIRST = {0: 1, 1: 1}  # numbers of the first assignment


def accepted(count: int) -> Counts:
    return Counts(Counter({Outcome.ACCEPTED: count}), Counter())


def told(ours: Tally, committed: dict[int, int]) -> int:
    return sum(counts.outcomes[Outcome.ACCEPTED] for counts in ours.take(committed))


def test_nothing_is_told_before_its_offset_is_committed_and_then_once() -> None:
    ours = Tally()
    ours.add(FIRST, {0: 10, 1: 7}, {0: accepted(10), 1: accepted(7)})
    ours.add(FIRST, {0: 15}, {0: accepted(5)})
    assert told(ours, {}) == 0
    assert told(ours, {0: 9, 1: 6}) == 0
    assert told(ours, {0: 10, 1: 6}) == 10
    assert told(ours, {0: 15, 1: 7}) == 5 + 7
    assert told(ours, {0: 99, 1: 99}) == 0


def test_what_is_taken_back_is_told_as_it_is_done_again() -> None:
    ours = Tally()
    ours.add(FIRST, {0: 10, 1: 7}, {0: accepted(10), 1: accepted(7)})
    ours.add(FIRST, {0: 15}, {0: accepted(5)})
    assert told(ours, {0: 10}) == 10
    ours.add({0: 2, 1: 1}, {0: 14, 1: 8}, {0: accepted(4), 1: accepted(1)})
    assert told(ours, {0: 20, 1: 8}) == 4 + 7 + 1, "partition 1 was ours all the time"


def test_a_commit_that_is_known_of_late_counts_until_the_partition_goes_on() -> None:
    ours = Tally()
    ours.add(FIRST, {0: 10}, {0: accepted(10)})
    ours.add(FIRST, {0: 15}, {0: accepted(5)})
    assert told(ours, {0: 10}) == 10
    ours.add({0: 2}, {0: 20}, {0: accepted(5)})
    assert told(ours, {0: 20}) == 5


def test_what_waits_for_long_takes_no_more_room_and_nothing_of_it_is_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tally, "MOST", 3)
    ours, scores = Tally(), Scores(*([np.ones(2)] * 4), np.ones((2, 3)))
    for offset in range(1, 11):
        some = Counts(Counter({Outcome.LATE: 1}), Counter({Reason.NULL: 2}), 3, float(offset), scores)
        ours.add(FIRST, {0: offset}, {0: some})
    found = list(ours.take({0: 10}))
    assert len(found) == 3
    total = found[0].plus(found[1]).plus(found[2]).plus(accepted(1))
    assert total[:4] == (
        Counter({Outcome.LATE: 10, Outcome.ACCEPTED: 1}),
        Counter({Reason.NULL: 20}),
        30,
        10.0,
    )
    assert total.scores is not None
    assert all((np.asarray(column) == 10).all() for column in total.scores)
