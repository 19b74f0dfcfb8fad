"""When a retrain is asked for: against ticks, event times, errors and a clock that the tests move."""

import pytest

from forecaster.shell.retrain import RetrainSpec, Trigger
from forecaster.shell.schedule import Schedule, Situation

QUIET = {"on_start": False, "every_ticks": 0, "every_ratio": 0.0, "cooldown_s": 0.0}


def schedule(clock: list[float] | None = None, **changes: object) -> Schedule:
    held = clock or [1000.0]
    return Schedule(RetrainSpec.model_validate(QUIET | changes), lambda: held[0])


def due(
    made: Schedule, ticks: int = 0, event_s: float = 0.0, *, waiting: bool = False, **situation: bool
) -> Trigger | None:
    """What is due; as the loop does, what is due is taken note of as asked for."""
    now = Situation(**({"decides": True, "serving": True} | situation), ticks=ticks, event_s=event_s)
    found = made.due(now, waiting=waiting)
    if found:
        made.asked(ticks, event_s)
    return found


def test_the_schedule_counts_ticks_from_the_last_request() -> None:
    made = schedule(every_ticks=100)
    assert due(made, 5000) is None  # it counts from where it came in
    assert due(made, 5099) is None
    assert due(made, 5100) is Trigger.SCHEDULE
    assert due(made, 5150) is None
    made.asked(5160, 0.0)  # somebody else did
    assert due(made, 5259) is None
    assert due(made, 5260) is Trigger.SCHEDULE


def test_a_retrain_is_due_when_what_was_seen_has_grown_by_its_share() -> None:
    made = schedule(every_ratio=0.5, every_ticks=10_000)
    assert due(made, 1000) is None
    assert due(made, 1499) is None
    nearly = Situation(decides=True, serving=True, ticks=1499, event_s=0.0)
    assert made.due_ratio(nearly) == pytest.approx(0.998)
    assert due(made, 1500) is Trigger.SCHEDULE
    many = schedule(every_ratio=0.5, every_ticks=10_000)
    assert due(many, 10**6) is None
    assert due(many, 10**6 + 10_000) is Trigger.SCHEDULE


def test_the_schedule_counts_event_time_and_waits_for_the_cooldown() -> None:
    clock = [1000.0]
    made = schedule(clock, every_s=3600.0, cooldown_s=60.0)
    assert due(made, event_s=1e9) is None
    assert due(made, event_s=1e9 + 3600) is Trigger.SCHEDULE
    made.ended()
    assert due(made, event_s=1e9 + 2 * 3600) is None
    clock[0] += 60
    assert due(made, event_s=1e9 + 2 * 3600) is Trigger.SCHEDULE


def test_while_nothing_serves_it_tries_at_once_and_again_when_there_is_twice_as_much() -> None:
    made = schedule(on_start=True)
    assert due(made, 800, serving=False) is Trigger.STARTUP
    assert due(made, 1599, serving=False) is None
    assert due(made, 1600, serving=False) is Trigger.STARTUP


def test_only_the_worker_that_decides_keeps_the_schedule() -> None:
    made = schedule(every_ticks=100, on_start=True)
    assert due(made, 800, serving=False, decides=False) is None
    assert due(made, 5000) is None
    assert due(made, 9000, decides=False) is None


def rise(made: Schedule) -> list[bool]:
    return [made.observe_errors(1000.0 if i < 50 else 3000.0, 1000, 60.0 * i) for i in range(100)]


def test_a_risen_error_is_due_once_whoever_decides() -> None:
    made = schedule()
    assert rise(made).index(True) > 50
    assert due(made, decides=False) is Trigger.DRIFT
    assert due(made) is None
    assert not any(rise(schedule(drift=False)))


def test_while_a_retrain_waits_or_runs_nothing_is_due_and_drift_is_forgotten() -> None:
    made = schedule(every_ticks=100)
    rise(made)
    assert due(made, 5000, waiting=True) is None
    assert due(made, 5000) is None
    assert due(made, 6000, waiting=True) is None
    assert due(made, 6000) is Trigger.SCHEDULE


def test_the_budget_of_drift_is_what_the_whole_fleet_has_asked_for_in_an_hour() -> None:
    made = schedule(drift_per_hour=2)
    for at_s in (0.0, 1800.0):
        made.drifted(at_s)  # two workers have

    def errors(first: int, mean: float, blocks: int) -> list[float]:
        """Event times at which drift is found, a minute a block."""
        minutes = range(first, first + blocks)
        return [60.0 * i for i in minutes if made.observe_errors(mean * 1000, 1000, 60.0 * i)]

    assert not errors(0, 1.0, 40)
    assert errors(40, 3.0, 30) == [3600.0], "an hour after the first of them"
    made.drifted(3600.0)
    assert not errors(70, 3.0, 19), "nor again, in the level of now"
    made.swapped()
    assert errors(1000, 1.0, 40) == []
    assert errors(1040, 3.0, 10)
