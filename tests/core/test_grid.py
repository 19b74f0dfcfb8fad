"""Ticks to steps, against plain lists: each tick a step, and bars with gaps, late, duplicate and same-time ticks."""

import math
from collections import defaultdict
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from forecaster.core.grid import Clock, GridSpec, Step, close_bars, due_s, place_in_bar, place_tick
from forecaster.core.tick import Outcome, Tick

A, L, D = Outcome.ACCEPTED, Outcome.LATE, Outcome.DUPLICATE


def tick(time_s: float, value: float, sequence: int | None = None) -> Tick:
    return Tick("a", time_s, value, sequence)


def bars(
    ticks: list[Tick], spec: GridSpec, same_time: str = "drop_equal"
) -> tuple[list[Outcome], list[Step]]:
    """Feed ticks with offsets 0, 1, ...; each moves the series' own time on."""
    clock, outcomes, steps = Clock(), [], []
    for offset, one in enumerate(ticks):
        outcomes.append(place_in_bar(clock, one, offset, spec, same_time))
        steps += close_bars(clock, clock.time_s, spec)
    return outcomes, steps


# --- each tick a step ---


@pytest.mark.parametrize(
    ("policy", "ticks", "expected"),
    [
        ("drop_equal", [(1, 5), (1, 5), (1, 6), (2, 6)], [A, D, A, A]),
        ("drop_equal", [(2, 5), (1, 5), (2, 5)], [A, L, D]),
        ("keep", [(1, 5), (1, 5), (0, 5)], [A, A, L]),
        ("sequence", [(1, 5, 1), (1, 5, 1), (1, 7, 1), (1, 5, 2), (1, 5, 1)], [A, D, D, A, L]),
        ("sequence", [(1, 5), (1, 5), (1, 6)], [A, D, A]),  # without numbers: by value
    ],
)
def test_ticks_of_the_same_time_follow_the_policy(
    policy: str, ticks: list[tuple[float, ...]], expected: list[Outcome]
) -> None:
    clock = Clock()
    assert [place_tick(clock, tick(*map(int, t)), policy) for t in ticks] == expected


TIMES = st.integers(0, 40).map(float)
TICKS = st.lists(st.tuples(TIMES, st.integers(-3, 3).map(float)), max_size=60)


@settings(deadline=None)
@given(TICKS)
def test_on_the_tick_grid_time_never_runs_back(found: list[tuple[float, float]]) -> None:
    clock = Clock()
    taken: list[tuple[float, float]] = []
    for time_s, value in found:
        newest = taken[-1] if taken else (-math.inf, 0.0)
        expected = L if time_s < newest[0] else D if (time_s, value) == newest else A
        assert place_tick(clock, tick(time_s, value), "drop_equal") is expected
        if expected is A:
            taken.append((time_s, value))


# --- bars ---


@pytest.mark.parametrize(
    ("aggregate", "value"), [("last", 3.0), ("mean", 3.0), ("sum", 9.0), ("min", 1.0), ("max", 5.0)]
)
def test_a_bar_keeps_what_it_is_told(aggregate: str, value: float) -> None:
    spec = GridSpec(interval_s=10, aggregate=aggregate)  # type: ignore[arg-type]
    outcomes, steps = bars([tick(1, 1), tick(5, 5), tick(9, 3), tick(10, 7)], spec)
    assert outcomes == [A, A, A, A]
    assert steps == [Step(10.0, value, 2, True)]  # [0, 10): the tick at 10 is the next bar's


def test_the_last_tick_of_a_bar_is_the_latest_in_time_its_source_the_latest_in_the_log() -> None:
    spec = GridSpec(interval_s=10, lateness_s=5)
    _, steps = bars([tick(8, 8), tick(3, 3), tick(15, 0)], spec)
    assert steps == [Step(10.0, 8.0, 1, True)]


def test_a_bar_waits_for_late_ticks_as_long_as_it_is_told() -> None:
    spec = GridSpec(interval_s=10, lateness_s=5, aggregate="sum")
    outcomes, steps = bars([tick(1, 1), tick(14, 100), tick(2, 2), tick(15, 100), tick(3, 4)], spec)
    assert outcomes == [A, A, A, A, L]
    assert steps == [Step(10.0, 3.0, 2, True)]


def test_a_gap_is_filled_and_its_fillers_answer_nobody() -> None:
    _, steps = bars([tick(1, 4), tick(35, 6), tick(45, 0)], GridSpec(interval_s=10))
    assert steps == [
        Step(10.0, 4.0, 0, True),
        Step(20.0, 4.0, -1, False),
        Step(30.0, 4.0, -1, False),
        Step(40.0, 6.0, 1, False),
    ]


def test_a_bar_has_the_covariates_of_its_latest_tick_and_a_filler_none() -> None:
    spec = GridSpec(interval_s=10, lateness_s=5, aggregate="mean")
    ticks = [(8, (1.0, math.nan)), (3, (2.0, 3.0)), (27, (4.0, 5.0)), (45, (6.0, 7.0))]
    _, steps = bars([Tick("a", time_s, 0.0, None, more) for time_s, more in ticks], spec)
    np.testing.assert_array_equal(
        [step.covariates for step in steps], [[1, math.nan], [math.nan] * 2, [4, 5]]
    )


def test_nothing_adds_up_to_nothing() -> None:
    _, steps = bars([tick(1, 4), tick(25, 6), tick(35, 0)], GridSpec(interval_s=10, aggregate="sum"))
    assert [step.value for step in steps] == [4.0, 0.0, 6.0]


@pytest.mark.parametrize(("longest", "fresh"), [(2, False), (1, True), (0, True)])
def test_a_gap_that_is_too_long_starts_the_series_anew(longest: int, fresh: bool) -> None:
    _, steps = bars([tick(1, 4), tick(35, 6), tick(45, 0)], GridSpec(interval_s=10, longest_gap=longest))
    assert steps[-1] == Step(40.0, 6.0, 1, fresh)
    assert len(steps) == (2 if fresh else 4)


def test_the_same_tick_twice_counts_once_in_a_bar() -> None:
    spec = GridSpec(interval_s=10, aggregate="sum")
    outcomes, steps = bars([tick(1, 4), tick(1, 4), tick(1, 5), tick(11, 0)], spec)
    assert outcomes == [A, D, A, A]
    assert steps[0].value == 9.0
    assert bars([tick(1, 4), tick(1, 4), tick(11, 0)], spec, "keep")[1][0].value == 8.0


INTERVALS_S = [
    Fraction(text) for text in ("0.001", "0.05", "0.1", "0.2", "0.3", "0.7", "1.1", "2.5", "60", "3600")
]


@settings(deadline=None)
@given(
    interval_s=st.sampled_from(INTERVALS_S),
    start_s=st.fractions(0, 2**31 - 4000 * 100),
    lateness=st.integers(0, 2),
)
def test_a_tick_on_the_edge_is_of_the_bar_that_begins_there(
    interval_s: Fraction, start_s: Fraction, lateness: int
) -> None:
    """However binary fractions round its time: one tick a bar makes neither a gap nor a bar of two."""
    first, count = start_s // interval_s, 100
    times_s = [float((first + n) * interval_s) for n in range(count)]
    spec = GridSpec(interval_s=float(interval_s), aggregate="sum", lateness_s=float(lateness * interval_s))
    outcomes, steps = bars([tick(time_s, n) for n, time_s in enumerate(times_s)], spec)
    assert outcomes == [A] * count
    assert [(step.value, step.source) for step in steps] == [(n, n) for n in range(count - 1 - lateness)]


@settings(deadline=None)
@given(
    interval_s=st.sampled_from(INTERVALS_S),
    times_ms=st.lists(st.integers(0, 2**31 * 1000), min_size=1, max_size=20),
)
def test_times_in_milliseconds_fall_into_the_bars_of_exact_arithmetic(
    interval_s: Fraction, times_ms: list[int]
) -> None:
    spec, clock = GridSpec(interval_s=float(interval_s)), Clock()
    for time_ms in times_ms:
        place_in_bar(clock, tick(time_ms / 1e3, 0), 0, spec, "keep")
    assert clock.bars.keys() == {Fraction(time_ms, 1000) // interval_s for time_ms in times_ms}


@pytest.mark.parametrize("interval_s", [-1.0, 1e-300, 0.0009, math.inf, math.nan])
def test_a_bar_has_a_length_that_times_can_be_told_apart_by(interval_s: float) -> None:
    with pytest.raises(ValidationError, match="interval_s"):
        GridSpec(interval_s=interval_s)


def test_when_the_oldest_open_bar_is_due() -> None:
    spec, clock = GridSpec(interval_s=10, lateness_s=20), Clock()
    assert due_s(clock, spec) == math.inf
    for time_s in (25, 12):
        place_in_bar(clock, tick(time_s, 1), 0, spec, "keep")
    assert due_s(clock, spec) == 40.0


def naive_bars(found: list[tuple[float, float]], spec: GridSpec) -> tuple[list[bool], list[Step]]:
    """The same with the whole past at hand: whether each tick was in time, and the steps."""
    interval, now_s, newest = spec.interval_s, -math.inf, -math.inf
    in_time: list[bool] = []
    waiting: defaultdict[int, list[int]] = defaultdict(list)
    closed: list[tuple[int, float, int]] = []
    for offset, (time_s, _) in enumerate(found):
        index = int(time_s // interval)
        in_time.append(index > newest)
        if in_time[-1]:
            waiting[index].append(offset)
            now_s = max(now_s, time_s)
        for ripe in sorted(i for i in waiting if (i + 1) * interval + spec.lateness_s <= now_s):
            offsets, newest = waiting.pop(ripe), ripe
            closed.append((ripe, level_of([found[o] for o in offsets], spec.aggregate), offsets[-1]))
    steps: list[Step] = []
    for n, (index, level, source) in enumerate(closed):
        missing = index - closed[n - 1][0] - 1 if n else 0
        fresh = n == 0 or missing > spec.longest_gap
        filler = 0.0 if spec.aggregate == "sum" else closed[n - 1][1]
        if not fresh:
            steps += [Step((index - k + 1) * interval, filler, -1, False) for k in range(missing, 0, -1)]
        steps.append(Step((index + 1) * interval, level, source, fresh))
    return in_time, steps


def level_of(ticks: list[tuple[float, float]], aggregate: str) -> float:
    values = [value for _, value in ticks]
    newest = max(time_s for time_s, _ in ticks)
    last = [value for time_s, value in ticks if time_s == newest][-1]  # of equal times the later in the log
    mean = sum(values) / len(values)
    return {"last": last, "mean": mean, "sum": sum(values), "min": min(values), "max": max(values)}[aggregate]


@settings(deadline=None)
@given(
    found=TICKS,
    lateness=st.sampled_from([0.0, 3.0, 12.0]),
    gap=st.integers(0, 4),
    aggregate=st.sampled_from(["last", "mean", "sum", "min", "max"]),
)
def test_any_order_of_ticks_gives_the_bars_of_plain_lists(
    found: list[tuple[float, float]], lateness: float, gap: int, aggregate: str
) -> None:
    spec = GridSpec(interval_s=5, lateness_s=lateness, longest_gap=gap, aggregate=aggregate)  # type: ignore[arg-type]
    outcomes, steps = bars([tick(*one) for one in found], spec, "keep")
    in_time, expected = naive_bars(found, spec)
    assert [outcome is A for outcome in outcomes] == in_time
    assert steps == expected
    assert [step.time_s for step in steps] == sorted({step.time_s for step in steps})
