"""Live scores of a series against sums over a table of forecasts and what came."""

import numpy as np
import pytest

from forecaster.demo.scores import SeriesScores
from forecaster.shell.prediction import Prediction, TickSource

LEVELS = (0.1, 0.5, 0.9)


def prediction(series: str, offset: int, last: float, quantiles: np.ndarray) -> Prediction:
    return Prediction(
        schema=1,
        series=series,
        issued_at=float(offset),
        last=last,
        step_s=None,
        target_times=None,
        horizon=len(quantiles),
        levels=LEVELS,
        quantiles=tuple(map(tuple, quantiles.tolist())),
        mean=tuple(quantiles[:, 1].tolist()),
        status="ok",
        anomaly=None,
        model="m",
        source=TickSource("ticks", 0, offset),
    )


def test_scores_are_those_of_all_forecasts_whose_targets_have_come() -> None:
    rng = np.random.default_rng(5)
    ticks, horizon = 60, 4
    values = rng.normal(size=ticks).cumsum()
    quantiles = values[:, None, None] + np.sort(rng.normal(size=(ticks, horizon, 3)), axis=-1)
    scores = SeriesScores()
    for tick in range(ticks):
        scores.add(prediction("a", tick, values[tick], quantiles[tick]))
    pairs = [(t, h) for t in range(ticks) for h in range(1, horizon + 1) if t + h < ticks]
    error = sum(abs(values[t + h] - quantiles[t, h - 1, 1]) for t, h in pairs)
    last_error = sum(abs(values[t + h] - values[t]) for t, h in pairs)
    inside = sum(quantiles[t, h - 1, 0] <= values[t + h] <= quantiles[t, h - 1, 2] for t, h in pairs)
    assert scores.skill == pytest.approx(1 - error / last_error)
    assert scores.coverage == pytest.approx(inside / len(pairs))


def test_an_edge_counts_half() -> None:
    scores = SeriesScores()
    scores.add(prediction("a", 0, 1.0, np.array([[0.0, 1.0, 2.0]])))
    scores.add(prediction("a", 1, 2.0, np.array([[2.0, 2.0, 2.0]])))
    assert scores.coverage == 0.5


def test_nothing_is_said_before_anything_came() -> None:
    scores = SeriesScores()
    scores.add(prediction("a", 0, 1.0, np.array([[0.0, 1.0, 2.0]])))
    assert scores.coverage is None
    assert scores.skill is None


def test_a_constant_series_has_no_skill() -> None:
    scores = SeriesScores()
    for offset in range(3):
        scores.add(prediction("a", offset, 1.0, np.array([[1.0, 1.0, 1.0]])))
    assert scores.skill is None
    assert scores.coverage == 0.5
