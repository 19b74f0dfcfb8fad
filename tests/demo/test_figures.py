"""Figures from the daemon's own metrics object, scraped as text."""

from math import inf

import numpy as np
import pytest
from prometheus_client import generate_latest

from forecaster.demo import figures
from forecaster.demo.figures import Figures, Scrape, bucket_quantile
from forecaster.shell.metrics import Metrics

LEVELS = (0.1, 0.5, 0.9)


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(horizon=2, levels=LEVELS)


def scraped(metrics: Metrics, monkeypatch: pytest.MonkeyPatch, seen: Figures, time_s: float) -> Figures:
    """`seen` after one more scrape at `time_s`."""
    text = generate_latest(metrics.registry).decode()
    monkeypatch.setattr(figures, "scrape", lambda _: Scrape(text, time_s))
    seen.read()
    return seen


def test_rates_and_scores_are_those_between_scrapes(
    metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics.ticks["accepted"].inc(1000)
    seen = scraped(metrics, monkeypatch, Figures("http://none"), 10.0)
    assert seen.ticks_per_s == 0
    assert seen.coverage is None
    assert seen.skill is None
    metrics.ticks["accepted"].inc(190)
    metrics.ticks["late"].inc(10)
    metrics.observe_scores(
        scored=[10, 10],
        absolute_error=[1.0, 2.0],
        last_value_absolute_error=[2.0, 4.0],
        pinball_loss=[0, 0],
        last_value_pinball_loss=[0, 0],
        quantile_scored=[20, 20, 20],
        quantile_covered=[3, 10, 18],
    )
    seen = scraped(metrics, monkeypatch, seen, 12.0)
    assert seen.ticks_per_s == 100
    assert seen.coverage == pytest.approx(0.75)
    assert seen.skill == pytest.approx(0.5)


def test_the_outcome_of_the_last_retrain_is_the_counter_that_rose_last(
    metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = scraped(metrics, monkeypatch, Figures("http://none"), 1.0)
    assert seen.retrain_outcome == ""
    for time_s, outcome in enumerate(("promoted", "rejected", "promoted"), 2):
        metrics.retrain_ended(outcome, 3.0, 0.0)
        assert scraped(metrics, monkeypatch, seen, time_s).retrain_outcome == outcome


def test_latency_is_that_of_the_last_seconds(metrics: Metrics, monkeypatch: pytest.MonkeyPatch) -> None:
    metrics.prediction_latency.observe_many(np.full(1000, 5.0))  # the backlog, long ago
    seen = scraped(metrics, monkeypatch, Figures("http://none"), 0.0)
    assert seen.latency_s(0.5) is None
    metrics.prediction_latency.observe_many(np.full(100, 0.004))
    seen = scraped(metrics, monkeypatch, seen, 1.0)
    assert seen.latency_s(0.99) == pytest.approx(0.005, rel=0.05)


@pytest.mark.parametrize(
    ("share", "expected"), [(0.25, 0.5), (0.5, 1.0), (0.75, 1.5), (0.9, 1.8), (0.99, 1.98), (1.0, 2.0)]
)
def test_quantiles_are_interpolated_inside_their_bucket(share: float, expected: float) -> None:
    assert bucket_quantile(share, {1.0: 50.0, 2.0: 100.0, inf: 100.0}) == pytest.approx(expected)


def test_beyond_the_last_edge_nothing_more_is_known() -> None:
    assert bucket_quantile(0.99, {1.0: 50.0, inf: 100.0}) == 1.0
    assert bucket_quantile(0.5, {1.0: 0.0, inf: 0.0}) is None


def test_what_the_daemon_does_is_its_own_word(metrics: Metrics, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = Figures("http://none")
    assert seen.doing == "starting"
    for state in ("compiling", "running"):
        metrics.state.state(state)
        assert scraped(metrics, monkeypatch, seen, 1.0).doing == state


def test_a_daemon_that_does_not_answer_changes_nothing() -> None:
    seen = Figures("http://127.0.0.1:9")
    seen.read()
    assert not seen.ready
    assert seen.ticks_per_s == 0
