"""Which ticks are passed over for being too old: decided once, followed by everybody."""

import pytest

from forecaster.core.pages import Skip
from forecaster.shell.kafka import Record
from forecaster.shell.skips import Skips

NOW_S = 1_000_000.0


def records(offsets: range | list[int], age_s: float, partition: int = 0) -> list[Record]:
    """Records that were written so long ago."""
    written_ms = round((NOW_S - age_s) * 1000)
    return [Record("ticks", partition, offset, written_ms, b"k", b"v") for offset in offsets]


def make(limit_s: float = 60.0) -> Skips:
    return Skips(limit_s, "g:ticks", now=lambda: NOW_S)


def test_without_a_limit_nothing_is_too_old() -> None:
    assert make(0.0).decide(records(range(5), 1e6)) == {}


def test_what_is_too_old_is_skipped_with_its_offsets_and_its_number() -> None:
    skips = make()
    found = skips.decide(records([3, 4, 9], 61) + records(range(7), 59, partition=1))
    assert found == {0: Skip("g:ticks", 3, 10, 3)}
    assert [offset for offset in range(12) if (0, offset) in skips] == list(range(3, 10))
    assert (1, 3) not in skips


def test_what_came_together_is_answered_together_if_its_newest_is_young_enough() -> None:
    assert make().decide(records(range(5), 500) + records(range(5, 6), 59)) == {}


def test_a_record_without_a_time_is_not_too_old() -> None:
    timeless = [record._replace(timestamp_ms=-1) for record in records(range(5), 0)]
    assert make().decide(timeless) == {}


def test_skipping_goes_on_until_the_backlog_is_half_as_old_as_it_may_be() -> None:
    skips = make()
    for offset, age_s, skipped in (
        (0, 59, False),
        (1, 61, True),
        (2, 31, True),
        (3, 29, False),
        (4, 31, False),
    ):
        assert bool(skips.decide(records([offset], age_s))) is skipped, (offset, age_s)


def test_what_was_decided_before_is_followed_and_not_decided_again() -> None:
    skips = make()
    skips.follow(0, [Skip("g:ticks", 30, 40, 10), Skip("g:ticks", 10, 20, 10)])
    assert skips.decide(records(range(10, 20), 1e6)) == {}
    assert skips.decide(records(range(10, 25), 1e6)) == {0: Skip("g:ticks", 20, 25, 5)}
    assert skips.decide(records(range(25, 45), 1e6)) == {0: Skip("g:ticks", 25, 30, 5)}, (
        "the rest is answered"
    )
    assert all((0, offset) in skips for offset in range(10, 40))
    assert (0, 40) not in skips


@pytest.mark.parametrize("gone", ["passed", "moved away"])
def test_what_lies_behind_is_forgotten(gone: str) -> None:
    skips = make()
    skips.follow(0, [Skip("g:ticks", 10, 20, 10)])
    skips.passed({0: 19})
    assert skips
    if gone == "passed":
        skips.passed({0: 20})
    else:
        skips.forget([0])
    assert not skips
    assert (0, 15) not in skips
