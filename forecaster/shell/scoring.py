"""Forecasts of a run matched with what came: sums by series and step ahead, and the scores made of them.

In come the steps of a run in order, with the forecast issued at each; out go scores by data set, step ahead and
series. A forecast counts once all its targets have come, or have stayed away: a step whose value is NaN, a bar without
a tick, judges nothing. Only what waits and a short past are kept. The yardstick is the last value, with the quantiles
of the changes it has seen lately; loss and error are in units of the mean absolute change of each series' warm-up, and
series count alike however long they are.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from forecaster.shell.pipeline import mean_weights

Floats = NDArray[np.float64]

WINDOW = 500  # known changes from which the last value has its quantiles
RENEWED_EVERY = 16  # origins; they change slowly
BANDS = ((0.1, 0.9), (0.2, 0.8))  # the 80 % and the 60 % interval
OUTER, INNER = 0.1, 0.9  # the loss is the mean over the levels in between


class Score(NamedTuple):
    """Scores of one step ahead, one series or one data set; NaN where nothing was judged."""

    forecasts: int
    sql: float  # 2 x pinball loss, mean over levels, in units of the mean absolute change
    last_sql: float  # the last value's
    mase: float  # absolute error of the median, in the same units
    last_mase: float
    rmsse: float  # root of the mean squared error of the mean, in units of the root mean squared change
    coverage_80: float  # edges count as inside
    coverage_60: float
    coverage_80_ties_half: float  # edges count half
    coverage_60_ties_half: float
    width_80: float  # in the same units

    @property
    def relative_sql(self) -> float:
        """Loss over the last value's loss."""
        return self.sql / self.last_sql if self.last_sql else float("nan")

    @property
    def skill(self) -> float:
        """1 - loss / loss of the last value."""
        return 1.0 - self.relative_sql


class Unjudged(StrEnum):
    """Why a series has no scores."""

    CONSTANT = "constant in its warm-up"
    """It did not move there, so there is nothing to measure its errors by."""
    TOO_SHORT = "too short"
    """It has no change in its warm-up, or no forecast whose targets all came."""


class Moment(NamedTuple):
    """Sums over the forecasts that one batch completed: for what is drawn over time."""

    at: int  # records taken in by then
    forecasts: int  # with a target that came
    inside: Floats  # (band,), shares summed over forecasts
    loss: float
    last_loss: float


class Sums:
    """Of one series, by step ahead. Axes: horizon, then level or band."""

    def __init__(self, horizon: int, levels: int) -> None:
        self.judged = np.zeros(horizon)  # forecasts whose target came
        self.loss, self.last_loss = np.zeros(horizon), np.zeros(horizon)
        self.error, self.last_error = np.zeros(horizon), np.zeros(horizon)
        self.square, self.width = np.zeros(horizon), np.zeros(horizon)
        self.inside = np.zeros((horizon, len(BANDS)))
        self.below = np.zeros((horizon, levels))  # what came was below the quantile; on it counts half
        self.fell = np.zeros((horizon, levels + 1))  # what came fell between these quantiles


@dataclass
class _Series:
    """What is kept of one series while it streams."""

    sums: Sums
    offset: NDArray[np.float32]  # (waiting, horizon, level), quantiles minus the value at the origin
    values: Floats = field(default_factory=lambda: np.zeros(0))  # newest last: a short past, then what waits
    changes: int = 0
    change: float = 0.0  # sum of absolute changes of the warm-up
    square: float = 0.0  # and of their squares

    def judged(self) -> bool:
        """Whether any forecast was."""
        return bool(self.sums.judged.any())

    def scale(self) -> float:
        """Mean absolute change of the warm-up; 0: the series did not move, and cannot be judged."""
        return self.change / self.changes if self.changes else 0.0


class Scorer:
    """Takes the steps of a run in, batch by batch, and has the scores so far at any time."""

    def __init__(self, levels: Sequence[float], horizon: int) -> None:
        self.levels, self.horizon = tuple(levels), horizon
        self.moments: list[Moment] = []
        self._q = np.asarray(levels)
        self._judged = np.flatnonzero((self._q > OUTER - 1e-9) & (self._q < INNER + 1e-9))
        self._bands = [
            (self.levels.index(low), self.levels.index(high))
            if low in self.levels and high in self.levels
            else None
            for low, high in BANDS
        ]
        self._mean = mean_weights(levels)
        self._series: dict[str, _Series] = {}

    # ------------------------------------------------------------------ in

    def warm(self, names: Sequence[str], values: Floats) -> None:
        """Steps of the warm-up: what errors are measured by."""
        for name, at in _grouped(names):
            self._observe(self._of(name), values[at])

    def add(self, at: int, names: Sequence[str], values: Floats, offset: NDArray[np.float32]) -> Moment:
        """Steps with their forecasts: quantiles minus the value, (step, horizon, level)."""
        total = Moment(at, 0, np.zeros(len(BANDS)), 0.0, 0.0)
        for name, rows in _grouped(names):
            series = self._of(name)
            if not len(series.offset):
                # The first forecast is made at the last value of the warm-up.
                first = 1 + int(np.isfinite(values[rows]).argmax())
                self._observe(series, values[rows[:first]])
                series.values = series.values[:-first]
            series.values = np.concatenate([series.values, values[rows]])
            series.offset = np.concatenate([series.offset, offset[rows]])
            whole = len(series.offset) - self.horizon
            if whole > 0:
                total = _plus(total, self._settle(series, whole))
        self.moments.append(total)
        return total

    def _of(self, name: str) -> _Series:
        if name not in self._series:
            shape = self.horizon, len(self.levels)
            self._series[name] = _Series(Sums(*shape), np.zeros((0, *shape), np.float32))
        return self._series[name]

    def _observe(self, series: _Series, values: Floats) -> None:
        known = np.concatenate([series.values, values])
        before, came = _finite(series.values)[-1:], _finite(values)
        change = np.diff(np.concatenate([before, came]))
        series.changes += len(change)
        series.change += float(np.abs(change).sum())
        series.square += float((change**2).sum())
        series.values = known[-WINDOW - self.horizon :]

    def _settle(self, series: _Series, whole: int) -> Moment:
        """Judge the oldest `whole` forecasts, whose targets have all come, if there is a unit to do it in."""
        scale = series.scale()
        if not scale:
            series.offset, series.values = series.offset[whole:], series.values[-2 * self.horizon :]
            return Moment(0, 0, np.zeros(len(BANDS)), 0.0, 0.0)
        first = len(series.values) - len(series.offset)
        origin = series.values[first : first + whole]
        actual = sliding_window_view(series.values, self.horizon)[first + 1 : first + 1 + whole]
        there = np.isfinite(actual) & np.isfinite(origin)[:, None]
        origin, actual = np.where(there, origin[:, None], 0.0), np.where(there, actual, 0.0)
        offset = np.where(there[..., None], series.offset[:whole], 0.0)
        quantiles = origin[..., None] + offset  # 0, which is what came, where nothing is judged
        last = origin[..., None] + self._last_value(series.values, first, whole) * there[..., None]
        miss = actual[..., None] - quantiles
        loss = _pinball(miss[..., self._judged], self._q[self._judged])
        last_loss = _pinball(actual[..., None] - last, self._q[self._judged])
        inside = np.full((whole, self.horizon, len(BANDS)), np.nan)
        for i, band in enumerate(self._bands):
            if band is not None:
                low, high = (quantiles[..., edge] for edge in band)
                inside[..., i] = there & (actual >= low) & (actual <= high)
                if i == 0:
                    series.sums.width += (high - low).sum(0)
        sums = series.sums
        sums.judged += there.sum(0)
        sums.loss += loss.sum(0)
        sums.last_loss += last_loss.sum(0)
        sums.error += np.abs(miss[..., self.levels.index(0.5)]).sum(0)
        sums.last_error += np.abs(actual - origin).sum(0)
        sums.square += ((actual - quantiles @ self._mean) ** 2).sum(0)
        sums.inside += inside.sum(0)
        sums.below += (((miss < 0) + 0.5 * (miss == 0)) * there[..., None]).sum(0)
        sums.fell += (_fell(miss, self._q) * there[..., None]).sum(0)
        series.offset = series.offset[whole:]
        series.values = series.values[-WINDOW - 2 * self.horizon :]
        each = 1 / np.maximum(there.sum(1), 1)  # forecasts count alike, however many of their targets came
        return Moment(
            0,
            int(there.any(1).sum()),
            (inside.sum(1) * each[:, None]).sum(0),
            float((loss.sum(1) * each).sum()) / scale,
            float((last_loss.sum(1) * each).sum()) / scale,
        )

    def _last_value(self, values: Floats, first: int, whole: int) -> Floats:
        """Quantiles of the last value's errors at each origin, (origin, horizon, judged level): of the changes that
        were known there, with either sign.
        """
        out = np.zeros((whole, self.horizon, len(self._judged)))
        for h in range(1, self.horizon + 1):
            change = np.abs(values[h:] - values[:-h])
            for start in range(0, whole, RENEWED_EVERY):
                end = max(first + start - h + 1, 0)
                known = _finite(change[max(0, end - WINDOW) : end])
                if len(known):
                    both = np.concatenate([known, -known])
                    out[start : start + RENEWED_EVERY, h - 1] = np.quantile(both, self._q[self._judged])
        return out

    # ------------------------------------------------------------------ out

    @property
    def forecasts(self) -> int:
        """Forecasts judged so far, mean over steps ahead."""
        return int(sum(series.sums.judged.mean() for series in self._series.values()))

    def by_series(self) -> dict[str, Score]:
        """Scores of each series that was judged, by name."""
        return {name: _mean_score([self._steps(self._series[name])]) for name in self._judgeable()}

    def unjudged(self, name: str) -> Unjudged | None:
        """Why a series has no scores; None: it has."""
        series = self._series.get(name)
        if series is None or not series.changes:
            return Unjudged.TOO_SHORT
        if not series.scale():
            return Unjudged.CONSTANT
        return None if series.judged() else Unjudged.TOO_SHORT

    def unit(self, name: str) -> float:
        """What errors of a series are measured by: the mean absolute change of its warm-up; 0: it did not move."""
        return self._of(name).scale()

    def by_horizon(self) -> list[Score]:
        """Scores of each step ahead, mean of the series."""
        rows = [self._steps(self._series[name]) for name in self._judgeable()]
        return [
            _mean_score([{k: v[h : h + 1] for k, v in row.items()} for row in rows])
            for h in range(self.horizon)
        ]

    def overall(self) -> Score:
        """Scores of the data set, mean of the series."""
        return _mean_score([self._steps(self._series[name]) for name in self._judgeable()])

    def fell(self) -> Floats:
        """Share of what came between quantiles, (horizon, level + 1), below the first and above the last included.

        What lies on quantiles is spread over all bins that touch it, as each would explain it: the PIT histogram for
        outcomes that repeat (Czado, Gneiting, Held 2009, "Predictive model assessment for count data"). Mean over
        the series.
        """
        judged = [self._series[name].sums for name in self._judgeable()]
        shares = np.array([sums.fell / _counts(sums.judged)[:, None] for sums in judged])
        return known_mean(shares.reshape(-1, self.horizon, len(self.levels) + 1))

    def below(self) -> Floats:
        """Share of what came below each quantile, (horizon, level), by `fell`."""
        return np.cumsum(self.fell(), axis=1)[:, :-1]

    def _judgeable(self) -> list[str]:
        return sorted(name for name, series in self._series.items() if series.judged())

    def _steps(self, series: _Series) -> dict[str, Floats]:
        """By step ahead, (horizon,)."""
        sums, n, scale = series.sums, _counts(series.sums.judged), series.scale()
        ties = [
            (sums.below[:, band[1]] - sums.below[:, band[0]]) / n if band else np.full(self.horizon, np.nan)
            for band in self._bands
        ]
        return {
            "forecasts": sums.judged,
            "sql": sums.loss / n / scale,
            "last_sql": sums.last_loss / n / scale,
            "mase": sums.error / n / scale,
            "last_mase": sums.last_error / n / scale,
            "mean_square": sums.square / n / (series.square / series.changes),
            "coverage_80": sums.inside[:, 0] / n,
            "coverage_60": sums.inside[:, 1] / n,
            "coverage_80_ties_half": ties[0],
            "coverage_60_ties_half": ties[1],
            "width_80": sums.width / n / scale if self._bands[0] else np.full(self.horizon, np.nan),
        }


def _mean_score(rows: Sequence[Mapping[str, Floats]]) -> Score:
    """The mean over steps ahead, then over series."""
    if not rows:
        return Score(0, *[float("nan")] * (len(Score._fields) - 1))
    columns = {key: [float(known_mean(row[key])) for row in rows] for key in rows[0]}
    columns["rmsse"] = [value**0.5 for value in columns.pop("mean_square")]
    forecasts = int(sum(columns.pop("forecasts")))
    return Score(forecasts, **{key: float(known_mean(np.array(values))) for key, values in columns.items()})


def known_mean(values: Floats) -> Floats:
    """Over the first axis, of what is not NaN; NaN where nothing is."""
    known = np.isfinite(values)
    return np.where(known, values, 0.0).sum(0) / _counts(known.sum(0))


def _counts(n: NDArray[Any]) -> Floats:
    """To divide by; what is divided by none is NaN."""
    return np.where(n > 0, n, np.nan)


def _finite(values: Floats) -> Floats:
    return values[np.isfinite(values)]


def _pinball(miss: Floats, q: Floats) -> Floats:
    """2 x pinball loss of `miss` = what came minus the quantile, mean over levels."""
    return 2 * np.maximum(q * miss, (q - 1) * miss).mean(-1)


def _fell(miss: Floats, q: Floats) -> Floats:
    """Between which quantiles what came fell, one in all: (..., level + 1) for `miss` (..., level)."""
    width = np.diff(np.concatenate([[0.0], q, [1.0]]))
    bins = np.arange(len(width))
    first, last = ((miss > 0).sum(-1, keepdims=True), (miss >= 0).sum(-1, keepdims=True))
    share = np.where((first <= bins) & (bins <= last), width, 0.0)
    return share / share.sum(-1, keepdims=True)


def _plus(a: Moment, b: Moment) -> Moment:
    return Moment(
        a.at, a.forecasts + b.forecasts, a.inside + b.inside, a.loss + b.loss, a.last_loss + b.last_loss
    )


def _grouped(names: Sequence[str]) -> Iterable[tuple[str, NDArray[np.intp]]]:
    """Each name with the places where it stands, in order."""
    places: dict[str, list[int]] = {}
    for i, name in enumerate(names):
        places.setdefault(name, []).append(i)
    return ((name, np.array(at, np.intp)) for name, at in places.items())
