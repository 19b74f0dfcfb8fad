"""When to retrain: by schedule, by drift, and for the first model, from what this worker has seen.

In come ticks, event times and errors of what is served here, and retrains that anybody asked for or that ended; out
goes, now and then, a reason to ask for one. Whoever trains is told through the control topic; nothing is trained here.
"""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from forecaster.core import drift
from forecaster.core.drift import Drift
from forecaster.shell.retrain import RetrainSpec, Trigger

MOST_DRIFTS = 1000  # requests that are remembered


@dataclass(frozen=True)
class Situation:
    """What the loop knows at a turn."""

    decides: bool  # whether the schedule of the fleet is this worker's to keep
    serving: bool  # whether a model serves
    ticks: int  # taken in so far
    event_s: float  # newest event time among them; -inf before the first


class Schedule:
    """Counts from the last retrain that anybody asked for."""

    def __init__(self, spec: RetrainSpec, now: Callable[[], float] = time.monotonic) -> None:
        self.spec = spec
        self.drift = Drift()
        self._now = now
        self._risen = False
        self._drifted_s: deque[float] = deque(maxlen=MOST_DRIFTS)
        self._ended_s = float("-inf")
        self._asked_ticks, self._asked_event_s = 0, float("-inf")
        self._first_ticks = 0  # how many there have to be for another attempt at the first model

    def observe_errors(self, total: float, count: float, event_s: float) -> bool:
        """Take in scaled errors of the serving model; whether they have risen for good, and the budget is not spent."""
        if not self.spec.drift:
            return False
        lately = sum(at_s > event_s - 3600.0 for at_s in self._drifted_s)
        allowed = lately < self.spec.drift_per_hour
        self.drift, found = drift.observe(self.drift, total, count, self.spec, allowed=allowed)
        self._risen |= found
        return found

    def swapped(self) -> None:
        """Another model serves: its errors have a level of their own."""
        self.drift = Drift()

    def asked(self, ticks: int, event_s: float) -> None:
        """Somebody asked for a retrain: the interval begins anew."""
        self._asked_ticks, self._asked_event_s = ticks, event_s
        self._first_ticks = max(2 * ticks, 1000)

    def drifted(self, event_s: float) -> None:
        """Somebody asked for a retrain because errors had risen, at this event time: it counts for the whole fleet."""
        self._drifted_s.append(event_s)

    def ended(self) -> None:
        """A retrain came to its end: the cooldown begins."""
        self._ended_s = self._now()

    def due(self, now: Situation, *, waiting: bool) -> Trigger | None:
        """Why to ask for a retrain now. `waiting`: one was asked for and has not ended."""
        risen, self._risen = self._risen, False
        if waiting:
            return None
        if risen:
            return Trigger.DRIFT
        if not now.decides:
            return None
        if not now.serving:
            return Trigger.STARTUP if self.spec.on_start and now.ticks >= self._first_ticks else None
        if self._asked_event_s == float("-inf"):  # nothing was asked for since this worker came in
            self._asked_ticks, self._asked_event_s = now.ticks, now.event_s
        cooled = self._now() - self._ended_s >= self.spec.cooldown_s
        return Trigger.SCHEDULE if cooled and self.due_ratio(now) >= 1.0 else None

    def due_ratio(self, now: Situation) -> float:
        """How much of the interval since the last retrain has passed, in ticks or in event time; at 1 one is due."""
        if not now.decides or self._asked_event_s == float("-inf"):
            return 0.0
        by_ticks = (now.ticks - self._asked_ticks) / self.spec.ticks_between(self._asked_ticks)
        by_time = (now.event_s - self._asked_event_s) / self.spec.every_s if self.spec.every_s else 0.0
        return max(by_ticks, by_time)

    def drift_ratio(self) -> float:
        """How near the errors are to calling for a retrain: 1 does."""
        return drift.statistic(self.drift, self.spec)
