"""Every Prometheus metric, declared once, in one object that is passed in.

Counts, durations and states come in from the loop, a batch at a time; a scrape reads them out and computes
nothing. No metric lives anywhere else, no label carries what a stranger can choose (series are labelled only
where the configuration lists them, up to a cap), and ratios are exported as two counters, so that they can be
summed over workers and taken over any span of time. What each metric tells an operator: docs/operations.md.
"""

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from enum import StrEnum
from importlib import metadata
from platform import python_version
from time import perf_counter
from typing import Any, TypeVar

import numpy as np
from jax import monitoring
from numpy.typing import ArrayLike, NDArray
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Enum,
    Gauge,
    GCCollector,
    Histogram,
    Info,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)
from pydantic import Field

from forecaster.core.advance import STATUSES
from forecaster.core.pages import Refusal
from forecaster.core.spec import Spec
from forecaster.core.tick import Outcome, Reason
from forecaster.core.trial import Verdict
from forecaster.shell import retrain
from forecaster.shell.instruments import BatchHistogram, VectorCounter
from forecaster.shell.kafka.record import MoveReason
from forecaster.shell.limits import cpu_cores, memory_limit_bytes

# A `_created` sample for each counter and bucket doubles what a scrape carries, and nothing here reads one.
disable_created_metrics()

SERIES_CAP = 100
"""Most series that may be labelled: each one costs a few time series in Prometheus."""

LATENCY_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
DELAY_S = (0.01, 0.05, 0.1, 0.5, 1, 5, 15, 60, 300, 900, 3600)
RUN_S = (1, 5, 15, 30, 60, 120, 300, 600, 1800, 3600)
BATCH = tuple(2**k for k in range(15))

JAX_COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"


class MetricsSpec(Spec):
    """What is exported beside the figures that every worker has."""

    series: tuple[str, ...] = Field(
        default=(),
        max_length=SERIES_CAP,
        description="Series whose last value and forecast are exported under their own label.",
    )


class Stage(StrEnum):
    """The parts of one turn of the loop, in order."""

    POLL = "poll"
    DECODE = "decode"
    GRID = "grid"
    ADVANCE = "advance"
    ENCODE = "encode"
    SEND = "send"
    COMMIT = "commit"


class Phase(StrEnum):
    """When a program was compiled; one compiled while `serving` made ticks wait and is a fault."""

    STARTUP = "startup"
    SERVING = "serving"
    BACKGROUND = "background"


class State(StrEnum):
    """How far the process has come. What follows on a signal to stop nobody can scrape: HTTP is closed first."""

    STARTING = "starting"
    COMPILING = "compiling"
    JOINING = "joining"
    REBUILDING = "rebuilding"
    RUNNING = "running"


REBUILD_REASONS = ("error", "stalled", "silent")
REBUILD_SHORTFALLS = ("gone", "unread", "deadly")

_M = TypeVar("_M", Counter, Gauge, Histogram)


class Metrics:
    """All metrics of one worker. Attributes are the metrics; those with a fixed set of labels are mappings
    from the label's value to its child, all of them present (at 0) from the start.

    `horizon` and `levels` are those of the model's configuration: they fix the shape of the scores.
    """

    def __init__(
        self,
        spec: MetricsSpec | None = None,
        *,
        horizon: int,
        levels: Sequence[float],
        registry: CollectorRegistry | None = None,
    ) -> None:
        self.registry = registry or CollectorRegistry()
        self.watched: frozenset[str] = frozenset((spec or MetricsSpec()).series)
        self.phase = Phase.STARTUP
        self._horizon = horizon
        self._levels = tuple(levels)
        self._declare_process()
        self._declare_input()
        self._declare_output()
        self._declare_series()
        self._declare_scores()
        self._declare_training()
        self._declare_watched()

    # --- declarations ------------------------------------------------------------------------------------

    def _declare_process(self) -> None:
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        build = Info(
            "forecaster_build", "Versions of the program and of what computes.", registry=self.registry
        )
        build.info(_versions())
        self.state = Enum(
            "forecaster_state",
            "Where the process is in its life.",
            states=list(State),
            registry=self.registry,
        )
        self.ready = self._gauge("ready", "1 while the worker answers ticks: compiled, assigned, rebuilt.")
        self.loop_iterations = self._counter("loop_iterations", "Turns of the main loop.")
        self.loop_last_iteration = self._gauge(
            "loop_last_iteration_timestamp_seconds", "When the main loop last finished a turn."
        )
        self.signals = self._counters(
            "signals", "Signals received that end nothing.", "signal", ("HUP", "USR1", "USR2")
        )
        self.config_reloads = self._counter("config_reloads", "Attempts to read the configuration again.")
        self.config_reload_failures = self._counter(
            "config_reload_failures", "Attempts to read the configuration again that changed nothing."
        )
        self.config_last_reload_successful = self._gauge(
            "config_last_reload_successful", "0 after a reload that was refused, else 1."
        )
        self.config_last_reload_successful.set(1)
        self._gauge(
            "memory_limit_bytes",
            "Memory this process may use, by its cgroup, those above it and the machine.",
        ).set(memory_limit_bytes())
        self._gauge(
            "cpu_cores_available",
            "Cores this process may use, by its cgroup, those above it and the machine.",
        ).set(cpu_cores())
        self.compiles = self._counters("compiles", "Programs compiled by XLA.", "phase", Phase)
        self.compile_seconds = self._counters("compile_seconds", "Time spent compiling.", "phase", Phase)

    def _declare_input(self) -> None:
        self.ticks = self._counters(
            "ticks",
            "Ticks whose offsets are committed, each under exactly one outcome.",
            "outcome",
            Outcome,
        )
        self.consumed_bytes = self._counter("consumed_bytes", "Bytes of keys and values, as they were read.")
        self.dead_letters = self._counters("dead_letters", "Ticks set aside, by reason.", "reason", Reason)
        self.missing_covariates = self._counter(
            "missing_covariates", "Configured covariates that ticks came without."
        )
        self.last_tick = self._gauge(
            "last_tick_timestamp_seconds",
            "Newest event time of our partitions, from rows that were restored or ticks since.",
        )
        self.lag = self._gauge("consumer_lag_messages", "Messages not yet consumed.", "partition")
        self.lag_unreadable = self._gauge(
            "consumer_lag_unreadable_messages",
            "Messages of the lag that nobody may read yet: a producer's transaction before them is open.",
        )
        self.assigned_partitions = self._gauge("assigned_partitions", "Partitions of the ticks topic held.")
        self.paused_partitions = self._gauge("paused_partitions", "Held partitions that are not being read.")
        self.rebalances = self._counters(
            "rebalances", "Changes of the assignment.", "event", ("assigned", "revoked", "lost")
        )
        self.consumer_rebuilds = self._counters(
            "consumer_rebuilds",
            "Times the consumer was thrown away and built anew.",
            "reason",
            REBUILD_REASONS,
        )
        self.broker_last_contact = self._gauge(
            "broker_last_contact_timestamp_seconds", "When a broker last answered."
        )
        self.partition_stuck = self._gauge(
            "partition_stuck_seconds", "How long the worst partition that has lag has not advanced."
        )
        self.position_moves = self._counters(
            "position_moves", "Times that a policy, not a commit, chose where to read.", "reason", MoveReason
        )
        self.offsets_lost = self._counters(
            "offsets_lost", "Offsets that were passed over unread by such a choice.", "reason", MoveReason
        )
        self.delivery_resets = self._counter(
            "delivery_resets", "Times that work was taken back to what is committed, and done again."
        )
        self.commits = self._counter("commits", "Attempts to commit offsets.")
        self.commit_failures = self._counter("commit_failures", "Attempts to commit offsets that failed.")

    def _declare_output(self) -> None:
        self.predictions = self._counters("predictions", "Predictions acknowledged.", "status", STATUSES)
        self.produced_bytes = self._counter(
            "produced_bytes", "Bytes of keys and values handed to the producer."
        )
        self.outstanding_messages = self._gauge(
            "outstanding_messages", "Messages sent, not yet acknowledged."
        )
        self.last_prediction = self._gauge(
            "last_prediction_timestamp_seconds", "When a prediction was last acknowledged."
        )
        self.prediction_latency = self._batched(
            "prediction_latency_seconds",
            "From the poll that returned a tick to its prediction's acknowledgement.",
            LATENCY_S,
        )
        self.event_to_prediction = self._batched(
            "event_to_prediction_seconds",
            "From a tick's event time to its prediction's acknowledgement.",
            DELAY_S,
        )
        self.stage_duration = self._labelled(
            Histogram(
                "forecaster_stage_duration_seconds",
                "Time of a batch, or of a part of it, in each stage of the loop.",
                ["stage"],
                buckets=LATENCY_S,
                registry=self.registry,
            ),
            Stage,
        )
        self.batch_size = Histogram(
            "forecaster_batch_size", "Ticks in a batch.", buckets=BATCH, registry=self.registry
        )

    def _declare_series(self) -> None:
        self.series = self._gauges(
            "series", "Series held: young ones are still warming up.", "state", ("young", "active")
        )
        self.series_capacity = self._gauge("series_capacity", "Rows of the series table.")
        self.table_bytes = self._gauge("table_bytes", "Memory of the series table.")
        self.series_allotted = self._counter("series_allotted", "Rows allotted.")
        self.series_evicted = self._counters(
            "series_evicted", "Rows given back.", "reason", ("idle", "revoked")
        )
        self.series_in_two_partitions = self._gauge(
            "series_in_two_partitions", "Series held in two partitions: their ticks are not keyed by series."
        )
        self.rebuilds = self._histogram(
            "rebuild_duration_seconds", "Time to rebuild the rows of an assignment.", RUN_S
        )
        self.rebuilt_series = self._counter("rebuilt_series", "Rows rebuilt by reading back the log.")
        self.rebuilt_ticks = self._counter("rebuilt_ticks", "Ticks read back to rebuild rows.")
        self.state_pages = self._counters(
            "state_pages", "Pages of series on the state topic.", "event", ("written", "read")
        )
        self.state_bytes = self._counter("state_written_bytes", "Bytes of pages written.")
        self.state_refused = self._counters(
            "state_refused",
            "Records of the state topic that could not be used; their rows are rebuilt from the log.",
            "reason",
            Refusal,
        )
        self.state_series_left_out = self._counter(
            "state_series_left_out", "Series of pages that found no row in the table."
        )
        self.state_models_missing = self._counter(
            "state_models_missing",
            "Models that a replay asked for and that are gone; what serves took their place.",
        )
        self.state_behind = self._gauge(
            "state_behind_messages",
            "Messages that a restart would have to read back, on the partition with most.",
        )
        self.rebuild_shortfalls = self._counters(
            "rebuild_shortfalls",
            "Partitions whose rows could not be rebuilt as far back as wanted.",
            "reason",
            REBUILD_SHORTFALLS,
        )

    def _declare_scores(self) -> None:
        steps = [str(h) for h in range(1, self._horizon + 1)]
        levels = [f"{level:g}" for level in self._levels]
        self.scored = self._vector(
            "forecasts_scored", "Forecast steps whose target has come.", "horizon", steps
        )
        self.absolute_error = self._vector(
            "scaled_absolute_error",
            "Sum of absolute errors of the median, in units of the series' scale.",
            "horizon",
            steps,
        )
        self.last_value_absolute_error = self._vector(
            "last_value_scaled_absolute_error", "The same sum for the last-value forecast.", "horizon", steps
        )
        self.pinball_loss = self._vector(
            "pinball_loss", "Sum of pinball losses, in units of the series' scale.", "horizon", steps
        )
        self.last_value_pinball_loss = self._vector(
            "last_value_pinball_loss", "The same sum for the last-value forecast.", "horizon", steps
        )
        self.quantile_scored = self._vector(
            "quantile_scored", "Quantiles whose target has come.", "level", levels
        )
        self.quantile_covered = self._vector(
            "quantile_covered", "Quantiles at or above what came; a tie counts half.", "level", levels
        )
        self.drift_statistic = self._gauge(
            "drift_statistic_ratio", "Drift statistic over its threshold: 1 asks for a retrain."
        )
        self.drift_detections = self._counter("drift_detections", "Times that the live error drifted.")
        self.expert_weight = self._gauge(
            "expert_weight_ratio", "Mean weight of an expert over series and horizons.", "expert"
        )

    def _declare_training(self) -> None:
        self.retrain_requests = self._counters(
            "retrain_requests", "Retrains asked for.", "trigger", retrain.Trigger
        )
        self.retrain_requests_coalesced = self._counter(
            "retrain_requests_coalesced", "Requests answered by a retrain that was already due."
        )
        self.retrains = self._counters("retrains", "Retrains that ended.", "outcome", retrain.Outcome)
        self.retrain_duration = self._histogram("retrain_duration_seconds", "Duration of a retrain.", RUN_S)
        self.retrain_in_progress = self._gauge("retrain_in_progress", "1 while this worker's trainer runs.")
        self.retrain_deadline = self._gauge("retrain_deadline_seconds", "How long a retrain may take.")
        self.retrain_due = self._gauge(
            "retrain_due_ratio",
            "Part of the schedule's interval since the last request; 1 asks for a retrain.",
        )
        self.retrain_waiting = self._gauge(
            "retrain_waiting_seconds",
            "How long the oldest retrain that was asked for has been waiting or running.",
        )
        self.retrain_last_attempt = self._gauge(
            "retrain_last_attempt_timestamp_seconds", "When a retrain last began."
        )
        self.retrain_last_success = self._gauge(
            "retrain_last_success_timestamp_seconds", "When a retrain last ended with a decision."
        )
        self.retrain_holdout_loss = self._gauges(
            "retrain_holdout_loss_ratio",
            "Scaled loss on the hold-out of the last retrain.",
            "model",
            ("candidate", "serving", "last_value"),
        )
        self.trainer_memory = self._gauge(
            "trainer_resident_memory_bytes", "Memory of the trainer while it runs."
        )
        self.trials = self._counters(
            "trials", "Trials of promoted models that ended, by what came of them.", "outcome", Verdict
        )
        self.trial_in_progress = self._gauge("trial_in_progress", "1 while a promoted model is tried here.")
        self.trial_progress = self._gauge(
            "trial_progress_ratio", "How much of its length the trial has come through."
        )
        self.trial_worse = self._gauge(
            "trial_worse_ratio",
            "Share by which the loss of the model on trial is above that of the one before; below 0: it is better.",
        )
        self.model = Info("forecaster_model", "The serving model.", registry=self.registry)
        self.model_trained = self._gauge(
            "model_trained_timestamp_seconds", "When the serving model was made; 0 while there is none."
        )
        self.model_data_end = self._gauge(
            "model_data_end_timestamp_seconds", "Newest event time that the serving model was trained on."
        )
        self.model_swaps = self._counter("model_swaps", "Times that another model began to serve.")
        self.models_refused = self._counter(
            "models_refused",
            "Models on the models topic that were damaged, not understood, or of another horizon, other levels or"
            " covariates than are configured.",
        )

    def _declare_watched(self) -> None:
        self.series_value = self._gauge("series_last_value", "Last value of a listed series.", "series")
        self.series_forecast = Gauge(
            "forecaster_series_forecast_value",
            "Forecast of a listed series.",
            ["series", "horizon", "level"],
            registry=self.registry,
        )

    # --- what the loop calls -----------------------------------------------------------------------------

    @contextmanager
    def stage(self, stage: Stage) -> Generator[None]:
        """Time one batch in `stage`; a stage that raises is timed too."""
        started = perf_counter()
        try:
            yield
        finally:
            self.stage_duration[stage].observe(perf_counter() - started)

    def set_lag(self, lag: Mapping[int, int]) -> None:
        """Messages not yet consumed, by partition."""
        for partition, messages in lag.items():
            self.lag.labels(str(partition)).set(messages)

    def forget_partitions(self, partitions: Iterable[int]) -> None:
        """Drop the labels of partitions that are no longer ours: a stale lag would alarm for ever."""
        for partition in partitions:
            self.lag.remove_by_labels({"partition": str(partition)})

    def observe_scores(
        self,
        *,
        scored: ArrayLike,
        absolute_error: ArrayLike,
        last_value_absolute_error: ArrayLike,
        pinball_loss: ArrayLike,
        last_value_pinball_loss: ArrayLike,
        quantile_scored: ArrayLike,
        quantile_covered: ArrayLike,
    ) -> None:
        """Add a batch's sums: the first five by horizon, the last two by level; errors over the scale."""
        self.scored.add(scored)
        self.absolute_error.add(absolute_error)
        self.last_value_absolute_error.add(last_value_absolute_error)
        self.pinball_loss.add(pinball_loss)
        self.last_value_pinball_loss.add(last_value_pinball_loss)
        self.quantile_scored.add(quantile_scored)
        self.quantile_covered.add(quantile_covered)

    def set_expert_weights(self, experts: Iterable[str], weights: ArrayLike) -> None:
        """Mean weight of each expert, in the order of `experts`."""
        for expert, weight in zip(experts, np.asarray(weights, float), strict=True):
            self.expert_weight.labels(expert).set(weight)

    def observe_series(self, series: str, last: float, quantiles: NDArray[np.floating[Any]]) -> None:
        """Export a listed series (see `watched`): its last value, its next and its farthest forecast."""
        self.series_value.labels(series).set(last)
        for step in {0, len(quantiles) - 1}:
            for level, value in zip(self._levels, quantiles[step], strict=True):
                self.series_forecast.labels(series, str(step + 1), f"{level:g}").set(float(value))

    def watch(self, series: Iterable[str]) -> None:
        """List other series from now on; what no longer has a label leaves no stale value behind."""
        self.watched = frozenset(series)
        self.series_value.clear()
        self.series_forecast.clear()

    # --- training and models -----------------------------------------------------------------------------

    def retrain_began(self, now_s: float) -> None:
        """A trainer was started."""
        self.retrain_in_progress.set(1)
        self.retrain_last_attempt.set(now_s)

    def retrain_ended(
        self, outcome: str, duration_s: float, now_s: float, holdout: Mapping[str, float] | None = None
    ) -> None:
        """A trainer ended with `outcome`; `holdout` are the losses of candidate, serving and last_value."""
        self.retrains[outcome].inc()
        self.retrain_duration.observe(duration_s)
        self.retrain_in_progress.set(0)
        self.trainer_memory.set(0)
        if outcome in {"promoted", "rejected"}:
            self.retrain_last_success.set(now_s)
        for judged, gauge in self.retrain_holdout_loss.items():
            if holdout and judged in holdout:
                gauge.set(holdout[judged])

    def trial_began(self) -> None:
        """A promoted model is tried from now on."""
        self.trial_in_progress.set(1)
        self.trial_went_on(0.0, 0.0)

    def trial_went_on(self, progress: float, worse: float) -> None:
        """How much of the trial is over, and how the losses compare."""
        self.trial_progress.set(progress)
        self.trial_worse.set(worse)

    def trial_ended(self, outcome: str) -> None:
        """The trial is over."""
        self.trials[outcome].inc()
        self.trial_in_progress.set(0)

    def set_serving(self, version: str, cell: str, made_s: float, data_end_s: float) -> None:
        """Another model serves from now on."""
        self.model.info({"version": version, "cell": cell})
        self.model_trained.set(made_s)
        self.model_data_end.set(data_end_s)

    def count_compile(self, duration_s: float) -> None:
        """One program was compiled, in the phase of the caller's thread (see `compiling`) or the process."""
        phase = _thread_phase.get() or self.phase
        self.compiles[phase].inc()
        self.compile_seconds[phase].inc(duration_s)

    # --- how metrics are made ----------------------------------------------------------------------------

    def _counter(self, name: str, doc: str) -> Counter:
        return Counter(f"forecaster_{name}", doc, registry=self.registry)

    def _gauge(self, name: str, doc: str, *labels: str) -> Gauge:
        return Gauge(f"forecaster_{name}", doc, labels, registry=self.registry)

    def _histogram(self, name: str, doc: str, buckets: Sequence[float]) -> Histogram:
        return Histogram(f"forecaster_{name}", doc, buckets=buckets, registry=self.registry)

    def _counters(self, name: str, doc: str, label: str, values: Iterable[str]) -> Mapping[str, Counter]:
        return self._labelled(Counter(f"forecaster_{name}", doc, [label], registry=self.registry), values)

    def _gauges(self, name: str, doc: str, label: str, values: Iterable[str]) -> Mapping[str, Gauge]:
        return self._labelled(self._gauge(name, doc, label), values)

    @staticmethod
    def _labelled(metric: _M, values: Iterable[str]) -> Mapping[str, _M]:
        return {str(value): metric.labels(str(value)) for value in values}

    def _vector(self, name: str, doc: str, label: str, values: Sequence[str]) -> VectorCounter:
        vector = VectorCounter(f"forecaster_{name}", doc, label, values)
        self.registry.register(vector)
        return vector

    def _batched(self, name: str, doc: str, buckets: Sequence[float]) -> BatchHistogram:
        histogram = BatchHistogram(f"forecaster_{name}", doc, buckets)
        self.registry.register(histogram)
        return histogram


_thread_phase: ContextVar[Phase | None] = ContextVar("compile_phase", default=None)


@contextmanager
def compiling(phase: Phase) -> Generator[None]:
    """Programs compiled by this thread inside the block count under `phase`, whatever the process does."""
    token = _thread_phase.set(phase)
    try:
        yield
    finally:
        _thread_phase.reset(token)


def count_compiles(metrics: Metrics) -> Callable[[], None]:
    """Count every program that XLA compiles from now on; returns what ends the counting."""

    def listen(event: str, duration_secs: float, **_: str | int) -> None:
        if event == JAX_COMPILE_EVENT:
            metrics.count_compile(duration_secs)

    monitoring.register_event_duration_secs_listener(listen)
    return lambda: monitoring.unregister_event_duration_listener(listen)


def _versions() -> dict[str, str]:
    packages = ("forecaster", "jax", "flax", "kafka-python")
    found = {name.replace("-", "_"): _version(name) for name in packages}
    return {"version": found.pop("forecaster"), "python": python_version(), **found}


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:  # a checkout that was never installed
        return "unknown"
