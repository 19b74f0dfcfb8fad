"""Slices for training: what serving takes in, and what came too late for it, in the order of event times."""

import json
import random

import pytest

from forecaster.core.grid import GridSpec
from forecaster.core.tick import Outcome, TickSpec, make_decoder
from forecaster.shell.kafka import Record
from forecaster.shell.slices import Slicer
from tests.folds import make_fold

TICKS = [("a", 10.0, 1.0), ("b", 11.0, 7.0), ("a", 20.0, 2.0), ("a", 30.0, 3.0), ("b", 31.0, 8.0)]


def records(ticks: list[tuple[object, ...]], partition: int = 0) -> list[Record]:
    """One record a tick: series, time, value and perhaps a sequence number."""
    names = ("series", "ts", "value", "n")
    bodies = [json.dumps(dict(zip(names, tick, strict=False))).encode() for tick in ticks]
    return [Record("ticks", partition, offset, 10**12, None, body) for offset, body in enumerate(bodies)]


def sliced(
    found: list[Record], tick: TickSpec | None = None, grid: GridSpec | None = None
) -> list[tuple[str, list[float], list[float]]]:
    slicer = Slicer(tick or TickSpec(), grid or GridSpec())
    slicer.add(found)
    return [(part.series, part.time_s.tolist(), part.value.tolist()) for part in slicer.slices()]


def test_the_order_of_arrival_does_not_matter() -> None:
    expected = [("a", [10.0, 20.0, 30.0], [1.0, 2.0, 3.0]), ("b", [11.0, 31.0], [7.0, 8.0])]
    assert sliced(records([*TICKS])) == expected
    shuffled = random.Random(1).sample(TICKS, len(TICKS))
    assert sorted(sliced(records([*shuffled]))) == expected


def test_what_serving_counts_as_late_is_learned_from() -> None:
    late = records([("a", 10.0, 1.0), ("a", 30.0, 3.0), ("a", 20.0, 2.0)])
    decode = make_decoder(TickSpec())
    ticks = [decode(None, record.value, record.timestamp_ms) for record in late]
    assert make_fold().admit(0, [0, 1, 2], ticks)[2] is Outcome.LATE  # type: ignore[arg-type]
    assert sliced(late) == [("a", [10.0, 20.0, 30.0], [1.0, 2.0, 3.0])]


def test_what_came_twice_is_there_once() -> None:
    again = [("a", 10.0, 1.0), ("a", 20.0, 2.0), ("a", 10.0, 1.0), ("a", 20.0, 5.0)]
    assert sliced(records([*again])) == [("a", [10.0, 20.0, 20.0], [1.0, 2.0, 5.0])]


def test_the_same_time_is_ordered_by_sequence_number() -> None:
    by_sequence = TickSpec(sequence="n", same_time="sequence")
    ticks = [("a", 10.0, 1.0, 1), ("a", 20.0, 3.0, 3), ("a", 20.0, 2.0, 2), ("a", 20.0, 9.0, 2)]
    assert sliced(records([*ticks]), by_sequence) == [("a", [10.0, 20.0, 20.0], [1.0, 2.0, 3.0])]


def test_series_of_two_partitions_are_two_and_rubbish_is_none() -> None:
    found = [
        *records([("a", 1.0, 1.0)]),
        *records([("a", 2.0, 2.0)], partition=1),
        Record("t", 0, 9, 0, None, b"{"),
    ]
    assert sliced(found) == [("a", [1.0], [1.0]), ("a", [2.0], [2.0])]


def test_a_late_tick_changes_a_bar_that_serving_had_closed() -> None:
    grid = GridSpec(interval_s=10, aggregate="sum")
    ticks = [("a", 1.0, 1.0), ("a", 11.0, 5.0), ("a", 21.0, 9.0), ("a", 2.0, 2.0)]
    assert sliced(records([*ticks]), grid=grid) == [("a", [10.0, 20.0], [3.0, 5.0])]


@pytest.mark.parametrize(("close_by", "bars_of_a"), [("series", [10.0]), ("partition", [10.0, 20.0])])
def test_bars_close_as_in_serving(close_by: str, bars_of_a: list[float]) -> None:
    grid = GridSpec.model_validate({"interval_s": 10, "close_by": close_by})
    found = sliced(records([("a", 1.0, 1.0), ("a", 11.0, 5.0), ("b", 35.0, 7.0)]), grid=grid)
    assert found[0][:2] == ("a", bars_of_a)


def test_a_long_gap_gives_two_slices() -> None:
    grid = GridSpec(interval_s=10, longest_gap=1)
    ticks = [("a", 1.0, 1.0), ("a", 11.0, 2.0), ("a", 101.0, 3.0), ("a", 111.0, 4.0)]
    assert sliced(records([*ticks]), grid=grid) == [
        ("a", [10.0, 20.0], [1.0, 2.0]),
        ("a", [110.0], [3.0]),
    ]


def test_bars_that_an_outage_left_empty_are_filled_and_say_so() -> None:
    slicer = Slicer(TickSpec(), GridSpec(interval_s=10.0))
    slicer.add(records([("a", 5.0, 1.0), ("a", 15.0, 2.0), ("a", 45.0, 3.0), ("a", 55.0, 4.0)]))
    (part,) = slicer.slices()
    assert part.value.tolist() == [1.0, 2.0, 2.0, 2.0, 3.0]
    assert part.filled is not None
    assert part.filled.tolist() == [False, False, True, True, False]
