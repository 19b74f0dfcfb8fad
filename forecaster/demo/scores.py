"""Predictions of one series, in order -> how good they lately were: coverage and skill, in the series'
own units.

On the tick grid each prediction tells the value that the earlier ones were waiting for, so what a
subscriber sees on the predictions topic is enough to judge it. Nothing is fetched or drawn here.
"""

from collections import deque
from typing import NamedTuple

from forecaster.shell.prediction import Prediction

LOW, MEDIAN, HIGH = 0.1, 0.5, 0.9  # the band and its middle
WINDOW = 240  # ticks that the scores look back


class Band(NamedTuple):
    """The 80 % interval at one step, and the median."""

    low: float
    median: float
    high: float


class Issued(NamedTuple):
    """What is kept of a prediction until its last target has come."""

    last: float
    bands: tuple[Band, ...]  # step


class Settled(NamedTuple):
    """Sums over the forecast steps that one tick settled."""

    steps: int
    covered: float
    error: float
    last_error: float


def bands(prediction: Prediction) -> tuple[Band, ...]:
    """The 80 % interval and the median of each step."""
    columns = (prediction.quantile(level) for level in (LOW, MEDIAN, HIGH))
    return tuple(Band(*row) for row in zip(*columns, strict=True))


class SeriesScores:
    """The last value, forecast and recent scores of one series."""

    def __init__(self) -> None:
        self.newest: Prediction | None = None
        self.bands: tuple[Band, ...] = ()
        self.values: deque[float] = deque(maxlen=64)
        self._waiting: deque[Issued] = deque()
        self._settled: deque[Settled] = deque(maxlen=WINDOW)

    def add(self, prediction: Prediction) -> None:
        """Settle what waited for this tick; keep its forecast waiting."""
        if self._waiting:
            self._settled.append(_settle(self._waiting, prediction.last))
        self.newest = prediction
        self.bands = bands(prediction)
        self.values.append(prediction.last)
        self._waiting.appendleft(Issued(prediction.last, self.bands))
        if len(self._waiting) > prediction.horizon:
            self._waiting.pop()

    @property
    def coverage(self) -> float | None:
        """Share of what came inside the band, an edge counting half; None before anything came."""
        steps = sum(settled.steps for settled in self._settled)
        return sum(settled.covered for settled in self._settled) / steps if steps else None

    @property
    def skill(self) -> float | None:
        """1 - error of the median / error of the last value; None while the last value was never wrong."""
        last_error = sum(settled.last_error for settled in self._settled)
        return 1.0 - sum(settled.error for settled in self._settled) / last_error if last_error else None


def _settle(waiting: deque[Issued], actual: float) -> Settled:
    """`waiting` is newest first: the one issued k ticks ago forecast this tick as its step k."""
    covered = error = last_error = 0.0
    for step, issued in enumerate(waiting):
        low, median, high = issued.bands[step]
        covered += 0.5 * (low <= actual <= high) + 0.5 * (low < actual < high)
        error += abs(actual - median)
        last_error += abs(actual - issued.last)
    return Settled(len(waiting), covered, error, last_error)
