"""Metrics: what a scrape shows after what the loop reports, by Prometheus' own rules and plain arithmetic."""

import inspect
import re
import threading
from pathlib import Path

import numpy as np
import psutil
import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from pydantic import ValidationError

import forecaster
from forecaster.core.tick import Outcome, Reason
from forecaster.shell.limits import cpu_cores, memory_limit_bytes
from forecaster.shell.metrics import (
    REBUILD_REASONS,
    REBUILD_SHORTFALLS,
    SERIES_CAP,
    Metrics,
    MetricsSpec,
    Phase,
    Stage,
    State,
    compiling,
    count_compiles,
)
from forecaster.shell.signals import ASKED

PACKAGE = Path(forecaster.__file__).parent
LEVELS = (0.05, 0.5, 0.95)
HORIZON = 3


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(horizon=HORIZON, levels=LEVELS)


def scraped(metrics: Metrics, name: str) -> dict[tuple[str, ...], float]:
    """Samples of `name` in the exposition, by their label values in the order of the labels' names."""
    families = text_string_to_metric_families(generate_latest(metrics.registry).decode())
    return {
        tuple(value for _, value in sorted(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
        if sample.name == name
    }


def test_labels_with_known_values_are_there_before_anything_happens(metrics: Metrics) -> None:
    assert scraped(metrics, "forecaster_ticks_total") == {(outcome,): 0 for outcome in Outcome}
    assert scraped(metrics, "forecaster_dead_letters_total") == {(reason,): 0 for reason in Reason}
    assert scraped(metrics, "forecaster_forecasts_scored_total") == {("1",): 0, ("2",): 0, ("3",): 0}
    assert scraped(metrics, "forecaster_quantile_covered_total") == {("0.05",): 0, ("0.5",): 0, ("0.95",): 0}
    assert scraped(metrics, "forecaster_prediction_latency_seconds_count") == {(): 0}


def test_names_follow_the_conventions_of_prometheus(metrics: Metrics) -> None:
    families = [
        family
        for family in text_string_to_metric_families(generate_latest(metrics.registry).decode())
        if not family.name.startswith(("process_", "python_"))
    ]
    assert len(families) > 50
    for family in families:
        assert family.name.startswith("forecaster_")
        assert family.documentation.endswith(".")
        assert not family.name.endswith(("_ms", "_milliseconds", "_count", "_created", "_minutes"))
        labels = {label for sample in family.samples for label in sample.labels}
        assert not labels & {"quantile", "type", "job", "instance"}
        assert "le" not in labels or family.type == "histogram"
        for sample in family.samples:
            assert sample.name.endswith("_total") == (family.type == "counter")


def test_labels_are_the_words_of_those_who_count() -> None:
    from forecaster.shell import rebuild

    assert set(REBUILD_SHORTFALLS) == set(rebuild.Short)
    said = re.findall(r'rebuild(?:s\[|\()"(\w+)"', (PACKAGE / "shell" / "kafka" / "source.py").read_text())
    assert set(REBUILD_REASONS) == set(said)


def test_an_unknown_outcome_is_a_bug_and_not_a_new_label(metrics: Metrics) -> None:
    with pytest.raises(KeyError):
        metrics.ticks["whatever"].inc()


def test_enums_and_their_words_are_the_same_label(metrics: Metrics) -> None:
    metrics.ticks[Outcome.LATE].inc(2)
    metrics.ticks["late"].inc()
    assert scraped(metrics, "forecaster_ticks_total")[("late",)] == 3


def test_a_batch_of_latencies_lands_in_the_buckets_that_hold_them(metrics: Metrics) -> None:
    rng = np.random.default_rng(5)
    values = np.concatenate([rng.lognormal(-5, 2, 1000), [0.001, 10.0, 10.1, 0.0]])
    metrics.prediction_latency.observe_many(values[:700])
    metrics.prediction_latency.observe_many(values[700:])
    metrics.prediction_latency.observe_many([])
    buckets = scraped(metrics, "forecaster_prediction_latency_seconds_bucket")
    assert buckets == {(bound,): (values <= float(bound)).sum() for (bound,) in buckets}
    assert ("+Inf",) in buckets
    assert ("0.001",) in buckets
    assert scraped(metrics, "forecaster_prediction_latency_seconds_count") == {(): len(values)}
    assert scraped(metrics, "forecaster_prediction_latency_seconds_sum")[()] == pytest.approx(values.sum())


def test_one_moment_for_many_ticks_counts_like_each_of_them(metrics: Metrics) -> None:
    other = Metrics(horizon=HORIZON, levels=LEVELS)
    metrics.prediction_latency.observe_same(0.0025, 7)
    other.prediction_latency.observe_many([0.0025] * 7)
    name = "forecaster_prediction_latency_seconds_bucket"
    assert scraped(metrics, name) == scraped(other, name)


def test_scores_add_up_so_that_skill_and_coverage_are_ratios(metrics: Metrics) -> None:
    for _ in range(2):
        metrics.observe_scores(
            scored=[4, 3, 2],
            absolute_error=[1.0, 2.0, 3.0],
            last_value_absolute_error=[2.0, 2.0, 2.0],
            pinball_loss=np.array([0.5, 1.0, 1.5], np.float32),
            last_value_pinball_loss=[1.0, 1.0, 1.0],
            quantile_scored=[9, 9, 9],
            quantile_covered=[0.5, 4.5, 9.0],
        )
    assert scraped(metrics, "forecaster_forecasts_scored_total") == {("1",): 8, ("2",): 6, ("3",): 4}
    loss = sum(scraped(metrics, "forecaster_pinball_loss_total").values())
    last = sum(scraped(metrics, "forecaster_last_value_pinball_loss_total").values())
    assert 1 - loss / last == pytest.approx(0.0)
    covered, scored = metrics.quantile_covered.read(), metrics.quantile_scored.read()
    np.testing.assert_allclose(covered / scored, [1 / 18, 0.5, 1.0])


def test_scores_of_another_shape_are_refused(metrics: Metrics) -> None:
    with pytest.raises(ValueError, match="broadcast"):
        metrics.scored.add(np.ones(HORIZON + 1))


def test_a_revoked_partition_leaves_no_stale_lag(metrics: Metrics) -> None:
    metrics.set_lag({0: 5, 1: 7})
    metrics.forget_partitions([0, 9])
    assert scraped(metrics, "forecaster_consumer_lag_messages") == {("1",): 7}


def test_a_stage_that_raises_is_timed_too(metrics: Metrics) -> None:
    with pytest.raises(ZeroDivisionError), metrics.stage(Stage.ADVANCE):
        _ = 1 / 0
    counts = scraped(metrics, "forecaster_stage_duration_seconds_count")
    assert counts == {(stage,): float(stage == Stage.ADVANCE) for stage in Stage}


def test_a_retrain_is_told_from_its_begin_to_its_outcome(metrics: Metrics) -> None:
    metrics.retrain_began(100.0)
    assert scraped(metrics, "forecaster_retrain_in_progress") == {(): 1}
    metrics.retrain_ended("promoted", 20.0, 120.0, {"candidate": 0.7, "serving": 0.8, "last_value": 1.0})
    metrics.retrain_began(200.0)
    metrics.retrain_ended("crashed", 5.0, 205.0)
    assert scraped(metrics, "forecaster_retrain_in_progress") == {(): 0}
    assert scraped(metrics, "forecaster_retrain_last_attempt_timestamp_seconds") == {(): 200}
    assert scraped(metrics, "forecaster_retrain_last_success_timestamp_seconds") == {(): 120}
    outcomes = scraped(metrics, "forecaster_retrains_total")
    assert {outcome for (outcome,), count in outcomes.items() if count} == {"promoted", "crashed"}
    assert scraped(metrics, "forecaster_retrain_holdout_loss_ratio")[("candidate",)] == 0.7


def test_one_model_serves_at_a_time(metrics: Metrics) -> None:
    metrics.set_serving("v1", "gru", 1.0, 0.5)
    metrics.set_serving("v2", "lstm", 2.0, 1.5)
    assert scraped(metrics, "forecaster_model_info") == {("lstm", "v2"): 1}
    assert scraped(metrics, "forecaster_model_trained_timestamp_seconds") == {(): 2}
    assert scraped(metrics, "forecaster_model_data_end_timestamp_seconds") == {(): 1.5}


def test_states_exclude_each_other(metrics: Metrics) -> None:
    metrics.state.state(State.RUNNING)
    states = scraped(metrics, "forecaster_state")
    assert states == {(state,): float(state == State.RUNNING) for state in State}


def test_the_signals_that_are_exported_are_those_that_a_worker_lives_on_to_count(metrics: Metrics) -> None:
    names = {number.name.removeprefix("SIG") for number in ASKED}
    assert scraped(metrics, "forecaster_signals_total") == dict.fromkeys(((name,) for name in names), 0.0)


def test_compiles_are_counted_by_the_phase_in_which_they_happen(metrics: Metrics) -> None:
    import jax

    stop = count_compiles(metrics)
    try:
        jax.jit(lambda x: x + 1)(np.ones(3))
        metrics.phase = Phase.SERVING
        jax.jit(lambda x: x + 2)(np.ones(3))

        def in_background() -> None:
            with compiling(Phase.BACKGROUND):
                jax.jit(lambda x: x + 3)(np.ones(3))

        thread = threading.Thread(target=in_background)
        thread.start()
        thread.join()
    finally:
        stop()
    jax.jit(lambda x: x + 4)(np.ones(3))  # after the end: not counted
    counts = scraped(metrics, "forecaster_compiles_total")
    assert counts == {("startup",): 1, ("serving",): 1, ("background",): 1}
    assert all(seconds > 0 for seconds in scraped(metrics, "forecaster_compile_seconds_total").values())


def test_only_listed_series_have_a_label_of_their_own() -> None:
    metrics = Metrics(MetricsSpec(series=("a",)), horizon=HORIZON, levels=LEVELS)
    assert metrics.watched == {"a"}
    quantiles = np.arange(HORIZON * len(LEVELS), dtype=np.float32).reshape(HORIZON, len(LEVELS))
    metrics.observe_series("a", 5.0, quantiles)
    assert scraped(metrics, "forecaster_series_last_value") == {("a",): 5}
    forecast = scraped(metrics, "forecaster_series_forecast_value")
    assert forecast[("1", "0.05", "a")] == 0
    assert forecast[("3", "0.95", "a")] == 8
    assert {horizon for horizon, _, _ in forecast} == {"1", "3"}


def test_the_list_of_labelled_series_is_capped() -> None:
    with pytest.raises(ValidationError, match="at most 100"):
        MetricsSpec(series=tuple(str(n) for n in range(SERIES_CAP + 1)))


def test_two_workers_in_one_process_do_not_share_metrics(metrics: Metrics) -> None:
    other = Metrics(horizon=HORIZON, levels=LEVELS)
    metrics.commits.inc()
    assert scraped(other, "forecaster_commits_total") == {(): 0}


def test_the_exposition_stays_small() -> None:
    metrics = Metrics(horizon=12, levels=(0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95))
    samples = [
        sample
        for family in text_string_to_metric_families(generate_latest(metrics.registry).decode())
        for sample in family.samples
    ]
    assert len(samples) < 600


@pytest.mark.parametrize(
    ("file", "content", "limit"),
    [
        ("memory.max", "1048576\n", 1048576),
        ("memory/memory.limit_in_bytes", "2097152\n", 2097152),
        ("memory.max", "max\n", None),
        ("memory.max", "9223372036854771712\n", None),
    ],
)
def test_memory_is_what_the_container_may_use(
    tmp_path: Path, file: str, content: str, limit: int | None
) -> None:
    machine = memory_limit_bytes(tmp_path)
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text(content)
    assert memory_limit_bytes(tmp_path) == (limit or machine)


def test_cores_are_what_the_quota_allows(tmp_path: Path) -> None:
    machine = cpu_cores(tmp_path)
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert cpu_cores(tmp_path) == machine
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    assert cpu_cores(tmp_path) == 0.5


@pytest.fixture
def service(tmp_path: Path) -> Path:
    """The file that says in which cgroup a service runs, three levels below the root that is seen."""
    (tmp_path / "system.slice" / "ours.service" / "inner").mkdir(parents=True)
    own = tmp_path / "own"
    own.write_text("1:name=systemd:/elsewhere\n0::/system.slice/ours.service/inner\n")
    return own


@pytest.mark.parametrize(
    "group", [".", "system.slice", "system.slice/ours.service", "system.slice/ours.service/inner"]
)
def test_limits_are_those_of_our_own_cgroup_and_of_all_above_it(
    tmp_path: Path, service: Path, group: str
) -> None:
    for path, memory, cpu in (("system.slice", "9000000", "90000"), (group, "1048576", "50000")):
        (tmp_path / path / "memory.max").write_text(f"{memory}\n")
        (tmp_path / path / "cpu.max").write_text(f"{cpu} 100000\n")
    assert memory_limit_bytes(tmp_path, service) == 1048576
    assert cpu_cores(tmp_path, service) == 0.5


def test_a_cgroup_that_is_not_seen_from_here_has_the_limits_of_the_root(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "memory.max").write_text("1\n")  # of a neighbour
    (tmp_path / "root" / "memory.max").write_text("1048576\n")
    (tmp_path / "own").write_text("0::/../\n")
    assert memory_limit_bytes(tmp_path / "root", tmp_path / "own") == 1048576


def test_where_no_process_is_bound_to_cores_all_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(psutil.Process, "cpu_affinity")  # as on macOS
    assert cpu_cores(tmp_path) == psutil.cpu_count()


def test_every_metric_is_told_by_somebody() -> None:
    """Each is named outside of Metrics, or in a method of Metrics that is."""
    ours = inspect.getsource(Metrics)
    sources = [path.read_text().replace(ours, "") for path in PACKAGE.rglob("*.py")]
    told = {name for source in sources for name in re.findall(r"\.(\w+)\b", source)}
    methods = {name: method for name, method in vars(Metrics).items() if callable(method) and name[0] != "_"}
    for name in told & methods.keys():
        told |= set(re.findall(r"self\.(\w+)", inspect.getsource(methods[name])))
    declared = {name for name in vars(Metrics(horizon=1, levels=(0.5,))) if not name.startswith("_")}
    assert declared - told == set()
    assert {name for name in methods if name not in told} == set()
