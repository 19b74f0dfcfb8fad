"""What the parts know becomes what a scrape shows: on a real fold, with a source and a delivery of numbers only."""

import math
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from forecaster.core.experts import NAMES
from forecaster.core.fold import Fold
from forecaster.core.tick import Tick
from forecaster.shell.figures import Figures
from forecaster.shell.metrics import Metrics, Phase, count_compiles
from tests.folds import ROWS, SPEC, make_fold


def scrape(metrics: Metrics) -> dict[tuple[str, ...], float]:
    """Samples by name and label values."""
    families = text_string_to_metric_families(generate_latest(metrics.registry).decode())
    return {(s.name, *s.labels.values()): s.value for family in families for s in family.samples}


@pytest.fixture
def parts() -> tuple[Metrics, Fold, Any, Any]:
    metrics = Metrics(horizon=SPEC.horizon, levels=SPEC.levels)
    fold = make_fold()
    source = SimpleNamespace(
        lag=lambda: {0: 7}, readable_lag=lambda: {0: 2}, rebuilds=Counter(), commits=0, commit_failures=0
    )
    return metrics, fold, source, SimpleNamespace(outstanding=3, resets=0)


def test_totals_of_the_parts_become_counters_that_only_rise(parts: tuple[Metrics, Fold, Any, Any]) -> None:
    metrics, fold, source, delivery = parts
    figures = Figures(metrics, fold, source, delivery)
    for _ in range(3):
        source.rebuilds["stalled"] += 2
        source.rebuilds["delivery failed"] += 1
        source.commits += 5
        source.commit_failures += 1
        delivery.resets += 1
        figures.tell()
        figures.tell()
    shown = scrape(metrics)
    assert shown["forecaster_consumer_rebuilds_total", "stalled"] == 6
    assert shown["forecaster_consumer_rebuilds_total", "error"] == 0
    assert shown["forecaster_commits_total",] == 15
    assert shown["forecaster_commit_failures_total",] == 3
    assert shown["forecaster_delivery_resets_total",] == 3
    assert shown["forecaster_consumer_lag_messages", "0"] == 7
    assert shown["forecaster_consumer_lag_unreadable_messages",] == 5
    assert shown["forecaster_outstanding_messages",] == 3


def test_the_newest_event_time_is_known_from_restored_rows_on_and_outlives_them(
    parts: tuple[Metrics, Fold, Any, Any],
) -> None:
    metrics, fold, source, delivery = parts
    figures = Figures(metrics, fold, source, delivery)
    newest_s = list[float]()
    for watermark_s in ({}, {0: 5.0, 1: 7.0, 2: -math.inf}, {2: -math.inf}, {}):
        fold.index.watermark_s = watermark_s
        figures.tell()
        newest_s.append(scrape(metrics)["forecaster_last_tick_timestamp_seconds",])
    assert newest_s == [0.0, 7.0, 7.0, 7.0]


def test_series_are_young_until_their_warm_up_and_weights_add_up(
    parts: tuple[Metrics, Fold, Any, Any],
) -> None:
    metrics, fold, source, delivery = parts
    figures = Figures(metrics, fold, source, delivery)
    fold.admit(0, range(6), [Tick("old", float(i), i % 2) for i in range(6)])
    fold.admit(1, range(2), [Tick("new", float(i), 1.0 + i) for i in range(2)])
    fold.admit(1, [2], [Tick("old", 0.0, 5.0)])
    fold.run()
    figures.tell()
    shown = scrape(metrics)
    assert shown["forecaster_series", "young"] == 2
    assert shown["forecaster_series", "active"] == 1
    assert shown["forecaster_series_allotted_total",] == 3
    assert shown["forecaster_series_in_two_partitions",] == 1
    assert shown["forecaster_series_capacity",] == ROWS
    assert shown["forecaster_table_bytes",] == sum(column.nbytes for column in fold.rows)
    weights = {name: shown["forecaster_expert_weight_ratio", name] for name in NAMES}
    assert sum(weights.values()) == pytest.approx(1.0, abs=1e-5)
    assert weights["network"] == 0.0  # no model was trained yet
    assert weights["seasonal"] == 0.0  # six steps show no season
    assert weights["last_value"] > 0.0


def test_telling_compiles_nothing_once_it_is_made(parts: tuple[Metrics, Fold, Any, Any]) -> None:
    metrics, fold, source, delivery = parts
    figures = Figures(metrics, fold, source, delivery)
    fold.admit(0, [0], [Tick("a", 0.0, 1.0)])
    stop = count_compiles(metrics)
    try:
        figures.tell()
        fold.drop(0)
        figures.tell()
    finally:
        stop()
    assert scrape(metrics)["forecaster_compiles_total", Phase.STARTUP] == 0
