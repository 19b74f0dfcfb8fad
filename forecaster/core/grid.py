"""Event times -> steps: each tick a step, or bars of a fixed interval.

In come ticks of one series in the order of the log; out go an outcome for each tick and the steps that it completes.
Late, duplicate and gap are decided here, from event times alone, so that a replay decides the same.

    interval 10 s, bars [start, end):     |--a--b----|----c-----|          |---d---
                                          0          10         20         30
    a, b -> bar ending 10 (closed by c) · c -> bar ending 20 · [20, 30) is a gap: filled with c's value
"""

from math import floor, nan
from typing import Literal, NamedTuple

from pydantic import Field, field_validator

from forecaster.core.spec import Spec
from forecaster.core.tick import Outcome, Tick

SHORTEST_S = 1e-3  # of a bar, far above what epoch seconds as float64 can tell apart
EDGE_S = 5e-7
"""A tick this near to the end of its bar is on the edge, and so the next bar's: neither times nor the ends of bars are
exact as float64, which tells times of today apart by 2.4e-7 s.
"""


class GridSpec(Spec):
    """How event times become steps."""

    interval_s: float = Field(
        0.0,
        ge=0,
        description="Length of a bar in seconds, at least 0.001; 0 makes each tick a step of its own.",
    )
    aggregate: Literal["last", "mean", "sum", "min", "max"] = Field(
        "last",
        description="What a bar keeps of its ticks' values; of their covariates the last tick's. A tick that comes"
        " again behind a newer one of its series is not known for a duplicate: sum and mean count it twice, so they"
        " need producers that repeat nothing (enable.idempotence).",
    )
    lateness_s: float = Field(
        0.0, ge=0, description="How long a bar waits for ticks that come late, in event time."
    )
    close_by: Literal["series", "partition"] = Field(
        "series",
        description="Whose event time closes a bar: the series' own, or the newest of its partition (idle series too).",
    )
    longest_gap: int = Field(
        48,
        ge=0,
        description="Most empty bars that are filled with the last value; a longer gap starts the series anew.",
    )

    @field_validator("interval_s")
    @classmethod
    def _not_too_short(cls, interval_s: float) -> float:
        if 0 < interval_s < SHORTEST_S:
            raise ValueError(f"should be 0 or at least {SHORTEST_S}")
        return interval_s


class Step(NamedTuple):
    """One step of a series, as the fold takes it in."""

    time_s: float  # of the tick, or the end of the bar
    value: float
    source: int  # offset of the (last) tick that it answers; -1: a filled gap, which gets no forecast
    fresh: bool  # whether the series starts anew with it
    covariates: tuple[float, ...] = ()  # of the (last) tick; NaN: missing


class Clock:
    """Where a series stands on the grid: its newest tick, and its open bars. Mutable, one a series."""

    __slots__ = ("bars", "closed", "level", "sequence", "time_s", "value")

    def __init__(self) -> None:
        self.time_s = float("-inf")  # event time of the newest step (ticks) or tick (bars)
        self.value = 0.0  # value of the newest tick
        self.sequence: int | None = None  # its sequence number
        self.closed: int | None = None  # index of the newest closed bar
        self.level = 0.0  # and its value
        self.bars: dict[int, Bar] = {}  # open ones by index


class Bar:
    """What a bar knows of its ticks so far."""

    __slots__ = ("covariates", "high", "last", "last_s", "low", "n", "source", "total")

    def __init__(self) -> None:
        self.n, self.total, self.low, self.high = 0, 0.0, float("inf"), float("-inf")
        self.last, self.last_s, self.source = 0.0, float("-inf"), -1
        self.covariates: tuple[float, ...] = ()  # of the last tick

    def add(self, tick: Tick, offset: int) -> None:
        """Take in one tick; of two with the same time the later in the log is the last."""
        self.n += 1
        self.total += tick.value
        self.low, self.high = min(self.low, tick.value), max(self.high, tick.value)
        self.source = max(self.source, offset)
        if tick.time_s >= self.last_s:
            self.last, self.last_s, self.covariates = tick.value, tick.time_s, tick.covariates

    def value(self, aggregate: str) -> float:
        """The bar's value."""
        if aggregate == "last":
            return self.last
        if aggregate == "min":
            return self.low
        if aggregate == "max":
            return self.high
        return self.total if aggregate == "sum" else self.total / self.n


def _same_time(clock: Clock, tick: Tick, policy: str) -> Outcome:
    if policy == "keep":
        return Outcome.ACCEPTED
    if policy == "sequence" and tick.sequence is not None and clock.sequence is not None:
        if tick.sequence == clock.sequence:
            return Outcome.DUPLICATE
        return Outcome.ACCEPTED if tick.sequence > clock.sequence else Outcome.LATE
    return Outcome.DUPLICATE if tick.value == clock.value else Outcome.ACCEPTED


def place_tick(clock: Clock, tick: Tick, same_time: str) -> Outcome:
    """Each tick a step: whether this one is (ACCEPTED), or is LATE or a DUPLICATE. Moves the clock when it is."""
    if tick.time_s <= clock.time_s:
        outcome = Outcome.LATE if tick.time_s < clock.time_s else _same_time(clock, tick, same_time)
        if outcome is not Outcome.ACCEPTED:
            return outcome
    clock.time_s, clock.value, clock.sequence = tick.time_s, tick.value, tick.sequence
    return Outcome.ACCEPTED


def place_in_bar(clock: Clock, tick: Tick, offset: int, spec: GridSpec, same_time: str) -> Outcome:
    """Put a tick into its bar, unless that bar is closed (LATE) or the tick is there already (DUPLICATE)."""
    index = floor((tick.time_s + EDGE_S) / spec.interval_s)
    if clock.closed is not None and index <= clock.closed:
        return Outcome.LATE
    if tick.time_s == clock.time_s and _same_time(clock, tick, same_time) is Outcome.DUPLICATE:
        return Outcome.DUPLICATE
    clock.bars.setdefault(index, Bar()).add(tick, offset)
    if tick.time_s >= clock.time_s:
        clock.time_s, clock.value, clock.sequence = tick.time_s, tick.value, tick.sequence
    return Outcome.ACCEPTED


def due_s(clock: Clock, spec: GridSpec) -> float:
    """The event time at which the oldest open bar of this series closes; infinity when none is open."""
    return (min(clock.bars) + 1) * spec.interval_s + spec.lateness_s if clock.bars else float("inf")


def reached(end_s: float, now_s: float) -> bool:
    """Whether event time `now_s` has come to where a bar closes, or to its edge."""
    return end_s <= now_s + EDGE_S


def close_bars(clock: Clock, now_s: float, spec: GridSpec) -> list[Step]:
    """The steps of all bars that end, with the allowed lateness, at or before event time `now_s`."""
    steps: list[Step] = []
    while clock.bars and reached(due_s(clock, spec), now_s):
        index = min(clock.bars)
        bar = clock.bars.pop(index)
        missing = 0 if clock.closed is None else index - clock.closed - 1
        fresh = clock.closed is None or missing > spec.longest_gap
        if not fresh:
            filler = 0.0 if spec.aggregate == "sum" else clock.level
            unknown = (nan,) * len(bar.covariates)
            steps.extend(
                Step((index - gap + 1) * spec.interval_s, filler, -1, False, unknown)
                for gap in range(missing, 0, -1)
            )
        clock.closed, clock.level = index, bar.value(spec.aggregate)
        steps.append(Step((index + 1) * spec.interval_s, clock.level, bar.source, fresh, bar.covariates))
    return steps
