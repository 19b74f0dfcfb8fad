"""What the Grafana dashboards show: each panel with its unit, how healthy looks, and its queries.

build.py makes the JSON that Grafana reads out of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Panel:
    """One panel. `queries` maps a legend to its PromQL; `healthy` ends up in the panel's description."""

    title: str
    unit: str
    shows: str
    healthy: str
    queries: dict[str, str]
    kind: str = "timeseries"
    width: int = 8
    height: int = 7
    stacked: bool = False
    limit: float | None = None  # a red line, or the value from which a single figure turns red
    good_above: float | None = None  # the value from which a single figure turns green
    maximum: float | None = None
    minimum: float | None = 0
    extra: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """A headed row of panels, laid out from left to right."""

    title: str
    panels: Sequence[Panel]


# SCOPE selects the workers in view; recording rules have only the job left.
SCOPE = 'job="$job", instance=~"$instance"'


def rate(metric: str, by: str = "", match: str = "") -> str:
    """The rate of a counter over the workers in view, summed by the labels in `by`."""
    inner = f"rate({metric}{{{', '.join(filter(None, [SCOPE, match]))}}}[$__rate_interval])"
    return f"sum by ({by}) ({inner})" if by else f"sum({inner})"


def increase(metric: str, span: str, by: str = "", match: str = "") -> str:
    """What a counter gained in `span` over the workers in view, summed by the labels in `by`."""
    inner = f"increase({metric}{{{', '.join(filter(None, [SCOPE, match]))}}}[{span}])"
    return f"sum by ({by}) ({inner})" if by else f"sum({inner})"


def quantile(q: float, metric: str, span: str = "$__rate_interval") -> str:
    """A quantile of a histogram over the workers in view."""
    return f"histogram_quantile({q}, sum by (le) (rate({metric}_bucket{{{SCOPE}}}[{span}])))"


def age(metric: str, by: str = "") -> str:
    """Time since the newest of the timestamps in view; nothing while there is none."""
    newest = f"max by ({by}) ({gauge(metric)} > 0)" if by else f"max({gauge(metric)} > 0)"
    return f"time() - {newest}"


def gauge(metric: str, match: str = "") -> str:
    """A gauge of the workers in view."""
    return f"{metric}{{{', '.join(filter(None, [SCOPE, match]))}}}"


OVERVIEW = [
    Row(
        "Status",
        [
            Panel(
                "Workers ready",
                "none",
                "Workers that are compiled, assigned and rebuilt.",
                "as many as are deployed. If not: /readyz of the worker says what is missing.",
                {"ready": f"sum({gauge('forecaster_ready')})"},
                kind="stat",
                width=3,
                height=4,
                good_above=1,
            ),
            Panel(
                "Alerts firing",
                "none",
                "Alerts of the forecaster that fire now.",
                "0.",
                {"firing": 'count(ALERTS{alertstate="firing", alertname=~"Forecaster.*"}) or vector(0)'},
                kind="stat",
                width=3,
                height=4,
                limit=1,
            ),
            Panel(
                "Latency, 5 m",
                "s",
                "p50 and p99 of the time from poll to acknowledgement.",
                "p50 below 10 ms, p99 below 50 ms.",
                {
                    "p50": 'job:forecaster_prediction_latency_seconds:p50_rate5m{job="$job"}',
                    "p99": 'job:forecaster_prediction_latency_seconds:p99_rate5m{job="$job"}',
                },
                kind="stat",
                width=4,
                height=4,
                limit=0.05,
            ),
            Panel(
                "Serving model",
                "none",
                "Versions of the models that serve.",
                "one version; two for the seconds of a swap.",
                {"{{version}}": f"count by (version) ({gauge('forecaster_model_info')})"},
                kind="stat",
                width=5,
                height=4,
                extra={"textMode": "name", "colorMode": "none"},
            ),
            Panel(
                "Model age",
                "s",
                "Time since the serving model was made.",
                "a few retrain intervals at most, unless candidates are no better (see Training).",
                {"age": age("forecaster_model_trained_timestamp_seconds")},
                kind="stat",
                width=3,
                height=4,
            ),
            Panel(
                "Skill, 1 h",
                "percentunit",
                "How much smaller the loss is than that of the last-value forecast.",
                "above 0. Below: the runbook of ForecasterSkillNegative.",
                {"skill": 'job:forecaster_skill:ratio_rate1h{job="$job"}'},
                kind="stat",
                width=3,
                height=4,
                good_above=0,
                minimum=None,
            ),
            Panel(
                "80 % interval, 1 h",
                "percentunit",
                "Share of what came that lay inside the 80 % interval.",
                "between 77 % and 83 %.",
                {"coverage": 'job:forecaster_interval80_coverage:ratio_rate1h{job="$job"}'},
                kind="stat",
                width=3,
                height=4,
                maximum=1,
            ),
            Panel(
                "State of the workers",
                "none",
                "Where each process is in its life.",
                "running; compiling and rebuilding for seconds after a start.",
                {"{{instance}} {{forecaster_state}}": f"{gauge('forecaster_state')} == 1"},
                kind="state-timeline",
                width=24,
                height=5,
            ),
        ],
    ),
    Row(
        "Users",
        [
            Panel(
                "Predictions",
                "cps",
                "Acknowledged predictions a second, by status.",
                "nearly all ok; cold before the first model, warming while series are new; fallback 0.",
                {"{{status}}": rate("forecaster_predictions_total", "status")},
                stacked=True,
            ),
            Panel(
                "Latency",
                "s",
                "From the poll that returned a tick to its prediction's acknowledgement.",
                "p50 below 10 ms, p99 below the red line at 50 ms, a retrain running or not.",
                {
                    f"p{100 * q:g}": quantile(q, "forecaster_prediction_latency_seconds")
                    for q in (0.5, 0.95, 0.99)
                },
                limit=0.05,
            ),
            Panel(
                "Late predictions",
                "percentunit",
                "Share of the predictions that took longer than 50 ms.",
                "below 1 %, the objective.",
                {
                    span: f'job:forecaster_prediction_slow_per_prediction:ratio_rate{span}{{job="$job"}}'
                    for span in ("5m", "1h", "6h")
                },
                limit=0.01,
            ),
            Panel(
                "From event to prediction",
                "s",
                "From a tick's event time to its prediction's acknowledgement.",
                "steady; what exceeds the latency above was spent before the ticks topic.",
                {f"p{100 * q:g}": quantile(q, "forecaster_event_to_prediction_seconds") for q in (0.5, 0.99)},
            ),
            Panel(
                "Silence",
                "s",
                "Time since the last prediction, and age of the newest tick.",
                "both as short as the pause between ticks.",
                {
                    "since the last prediction": age("forecaster_last_prediction_timestamp_seconds"),
                    "age of the newest tick": age("forecaster_last_tick_timestamp_seconds"),
                },
            ),
            Panel(
                "A listed series",
                "none",
                "Last value and next forecast of a series that metrics.series lists.",
                "the value inside the band nine times in ten; empty when no series is listed.",
                {
                    "value": gauge("forecaster_series_last_value", 'series="$series"'),
                    "level {{level}}": gauge(
                        "forecaster_series_forecast_value", 'series="$series", horizon="1"'
                    ),
                },
                minimum=None,
            ),
        ],
    ),
    Row(
        "Quality",
        [
            Panel(
                "Skill by horizon",
                "percentunit",
                "1 - pinball loss / that of the last value, last hour, by step ahead.",
                "above 0 at every step, and steady.",
                {"{{horizon}}": 'job_horizon:forecaster_skill:ratio_rate1h{job="$job"}'},
                minimum=None,
            ),
            Panel(
                "Scaled absolute error by horizon",
                "none",
                "Mean absolute error of the median in units of each series' scale, last hour.",
                "rising gently with the step ahead, and steady in time.",
                {
                    "{{horizon}}": "job_horizon:forecaster_scaled_absolute_error_per_forecast:ratio_rate1h"
                    '{job="$job"}'
                },
            ),
            Panel(
                "Coverage by level",
                "percentunit",
                "Share of what came at or below each quantile, last hour.",
                "each line at its own level: 0.9 at 90 %.",
                {"{{level}}": 'job_level:forecaster_quantile_coverage:ratio_rate1h{job="$job"}'},
                maximum=1,
            ),
        ],
    ),
    Row(
        "Flow",
        [
            Panel(
                "Ticks",
                "cps",
                "Ticks a second whose offsets were committed, by outcome.",
                "nearly all accepted. Each tick has exactly one outcome.",
                {"{{outcome}}": rate("forecaster_ticks_total", "outcome")},
                stacked=True,
            ),
            Panel(
                "Lag",
                "none",
                "Messages not yet consumed, by worker.",
                "close to 0, and never growing for long.",
                {"{{instance}}": gauge("instance:forecaster_consumer_lag_messages:sum")},
            ),
            Panel(
                "Dead letters",
                "cps",
                "Ticks a second that cannot be used, by reason.",
                "0.",
                {"{{reason}}": rate("forecaster_dead_letters_total", "reason")},
                stacked=True,
            ),
            Panel(
                "Series",
                "none",
                "Series held, by state, and the room there is.",
                "young ones turn active after their warm-up; the sum below the capacity.",
                {
                    "{{state}}": f"sum by (state) ({gauge('forecaster_series')})",
                    "capacity": f"sum({gauge('forecaster_series_capacity')})",
                },
            ),
            Panel(
                "Series allotted and evicted",
                "cps",
                "Rows given to new series and taken back, by reason.",
                "a trickle: idle ones go, new ones come; revoked when partitions move.",
                {
                    "allotted": rate("forecaster_series_allotted_total"),
                    "evicted: {{reason}}": rate("forecaster_series_evicted_total", "reason"),
                },
            ),
            Panel(
                "Strays",
                "none",
                "Series held in two partitions: their ticks are not keyed by series.",
                "0. If not: the runbook of ForecasterSeriesInTwoPartitions.",
                {"{{instance}}": gauge("forecaster_series_in_two_partitions")},
            ),
        ],
    ),
]

TRAINING = [
    Row(
        "Retrains",
        [
            Panel(
                "Retrains, 24 h",
                "none",
                "Retrains of the last day, by outcome.",
                "promoted and rejected; anything else has its runbook.",
                {"{{outcome}}": increase("forecaster_retrains_total", "24h", "outcome")},
                kind="bargauge",
                width=8,
            ),
            Panel(
                "Requests, 24 h",
                "none",
                "Retrains asked for in the last day, by trigger, and how many coalesced.",
                "as the schedule says, and some for drift.",
                {
                    "{{trigger}}": increase("forecaster_retrain_requests_total", "24h", "trigger"),
                    "coalesced": increase("forecaster_retrain_requests_coalesced_total", "24h"),
                },
                kind="bargauge",
                width=8,
            ),
            Panel(
                "Since the last",
                "s",
                "Time since a retrain last began, and since one last came to a decision.",
                "the two about equal: retrains that begin come to a decision.",
                {
                    "began": age("forecaster_retrain_last_attempt_timestamp_seconds"),
                    "decided": age("forecaster_retrain_last_success_timestamp_seconds"),
                },
                kind="stat",
                width=4,
            ),
            Panel(
                "Schedule",
                "percentunit",
                "How much of the interval to the next scheduled retrain has passed.",
                "below 100 %, where one begins.",
                {"passed": f"max({gauge('forecaster_retrain_due_ratio')})"},
                kind="stat",
                width=4,
                limit=2,
            ),
            Panel(
                "Waiting",
                "s",
                "How long the oldest retrain that was asked for has been waiting or running.",
                "0, or less than a retrain may take.",
                {"waiting": f"max({gauge('forecaster_retrain_waiting_seconds')})"},
                kind="stat",
                width=4,
            ),
            Panel(
                "Hold-out loss of the last retrain",
                "none",
                "Scaled loss on the hold-out: the candidate, the model that served, and the last value.",
                "the candidate below the others; then it is promoted.",
                {"{{model}}": gauge("forecaster_retrain_holdout_loss_ratio")},
                width=12,
            ),
            Panel(
                "Duration",
                "s",
                "How long retrains took, and how long they may.",
                "well below the deadline.",
                {
                    "p50, 1 h": quantile(0.5, "forecaster_retrain_duration_seconds", "1h"),
                    "p90, 1 h": quantile(0.9, "forecaster_retrain_duration_seconds", "1h"),
                    "deadline": f"max({gauge('forecaster_retrain_deadline_seconds')})",
                },
                width=12,
            ),
        ],
    ),
    Row(
        "While it runs",
        [
            Panel(
                "Running",
                "none",
                "1 while a worker's trainer runs.",
                "now and then, on one worker at a time.",
                {"{{instance}}": gauge("forecaster_retrain_in_progress")},
                maximum=1,
            ),
            Panel(
                "Latency during retrains",
                "s",
                "p99 of the prediction latency, to be compared with the panel beside it.",
                "at most doubled while a trainer runs, and below 50 ms.",
                {"p99": quantile(0.99, "forecaster_prediction_latency_seconds")},
                limit=0.05,
            ),
            Panel(
                "Memory of the trainer",
                "bytes",
                "Resident memory of the trainer, beside that of the daemon.",
                "the sum well below the limit of the process.",
                {
                    "trainer {{instance}}": gauge("forecaster_trainer_resident_memory_bytes"),
                    "daemon {{instance}}": gauge("process_resident_memory_bytes"),
                },
            ),
        ],
    ),
    Row(
        "Models",
        [
            Panel(
                "Age of the model and of its data",
                "s",
                "Time since the serving model was made, and since its newest tick.",
                "a saw-tooth with the period of the promotions.",
                {
                    "made": age("forecaster_model_trained_timestamp_seconds"),
                    "newest tick": age("forecaster_model_data_end_timestamp_seconds"),
                },
                width=12,
            ),
            Panel(
                "Swaps and refusals",
                "none",
                "Models that began to serve, and models refused as damaged, in the last hour.",
                "swaps after promotions; refusals 0.",
                {
                    "swaps": increase("forecaster_model_swaps_total", "1h"),
                    "refused": increase("forecaster_models_refused_total", "1h"),
                },
                width=12,
            ),
            Panel(
                "Trial",
                "percentunit",
                "Loss of a promoted model against the one before on the same ticks, and how much of its trial is over.",
                "the loss at 0 or below; above 2 % the model is rolled back.",
                {
                    "loss {{instance}}": gauge("forecaster_trial_worse_ratio"),
                    "progress {{instance}}": gauge("forecaster_trial_progress_ratio"),
                },
                width=12,
            ),
            Panel(
                "Drift",
                "none",
                "Drift statistic over its threshold; at 1 it asks for a retrain. Detections in an hour.",
                "below the red line at 1.",
                {
                    "statistic {{instance}}": gauge("forecaster_drift_statistic_ratio"),
                    "detections, 1 h": increase("forecaster_drift_detections_total", "1h"),
                },
                width=12,
                limit=1,
            ),
            Panel(
                "Weights of the experts",
                "percentunit",
                "Mean weight of each expert over series and horizons.",
                "the network leads where it has something to say; last value leads on random walks.",
                {"{{expert}}": f"avg by (expert) ({gauge('forecaster_expert_weight_ratio')})"},
                width=24,
                stacked=True,
                maximum=1,
            ),
        ],
    ),
]

KAFKA = [
    Row(
        "In",
        [
            Panel(
                "Consumed",
                "Bps",
                "Bytes of ticks consumed a second, by worker.",
                "in step with what is produced.",
                {"{{instance}}": rate("forecaster_consumed_bytes_total", "instance")},
            ),
            Panel(
                "Lag by partition",
                "none",
                "Messages not yet consumed.",
                "close to 0. One partition alone: a hot key, or a partition that does not advance.",
                {"{{partition}}": f"max by (partition) ({gauge('forecaster_consumer_lag_messages')})"},
            ),
            Panel(
                "Late and duplicate",
                "percentunit",
                "Share of the ticks that were late or duplicates.",
                "what the sources are known for; a jump says that a source or its clock changed.",
                {
                    "{{outcome}}": "job_outcome:forecaster_ticks_per_ticks:ratio_rate5m"
                    '{job="$job", outcome=~"late|duplicate"}'
                },
            ),
        ],
    ),
    Row(
        "Group",
        [
            Panel(
                "Partitions",
                "none",
                "Partitions held by each worker, and those of them that are paused.",
                "shared out evenly; paused only while rows are rebuilt or the broker is slow.",
                {
                    "held {{instance}}": gauge("forecaster_assigned_partitions"),
                    "paused {{instance}}": gauge("forecaster_paused_partitions"),
                },
            ),
            Panel(
                "Rebalances",
                "none",
                "Changes of the assignment in ten minutes, by kind.",
                "0, apart from deployments; lost always 0.",
                {"{{event}}": increase("forecaster_rebalances_total", "10m", "event")},
            ),
            Panel(
                "Mishaps",
                "none",
                "Consumers built anew, work taken back, and positions chosen by policy, in the last hour.",
                "0, but for `start` in a new group. out_of_range and truncated mean that ticks were lost.",
                {
                    "built anew: {{reason}}": increase("forecaster_consumer_rebuilds_total", "1h", "reason"),
                    "taken back": increase("forecaster_delivery_resets_total", "1h"),
                    "position: {{reason}}": increase("forecaster_position_moves_total", "1h", "reason"),
                },
            ),
            Panel(
                "Standing still",
                "s",
                "Since a broker last answered, and how long the worst partition that has lag has not advanced.",
                "seconds; at kafka.give_up_s the process ends.",
                {
                    "no broker: {{instance}}": age(
                        "forecaster_broker_last_contact_timestamp_seconds", "instance"
                    ),
                    "partition: {{instance}}": gauge("forecaster_partition_stuck_seconds"),
                },
            ),
            Panel(
                "Behind an open transaction",
                "none",
                "Messages that nobody may read yet, because a producer's transaction before them is open.",
                "0.",
                {"{{instance}}": gauge("forecaster_consumer_lag_unreadable_messages")},
            ),
            Panel(
                "Skipped ticks",
                "none",
                "Ticks that were older than kafka.max_staleness_s, last hour.",
                "0; after an outage as many as were too old.",
                {"{{instance}}": increase("forecaster_ticks_total", "1h", "instance", 'outcome="skipped"')},
            ),
        ],
    ),
    Row(
        "State",
        [
            Panel(
                "Pages",
                "none",
                "Pages of series written to the state topic, and read from it, last hour.",
                "written in step with state.interval_s while ticks come; read after a restart or a rebalance.",
                {"{{event}}": increase("forecaster_state_pages_total", "1h", "event")},
            ),
            Panel(
                "Bytes of pages",
                "Bps",
                "Bytes of pages written a second, by worker.",
                "below state.bytes_per_s; at it, pages are written less often than state.interval_s asks for.",
                {"{{instance}}": rate("forecaster_state_written_bytes_total", "instance")},
            ),
            Panel(
                "Behind the pages",
                "none",
                "Messages that a restart would have to read back, on the partition with most.",
                "as many as come in state.interval_s.",
                {"{{instance}}": gauge("forecaster_state_behind_messages")},
            ),
            Panel(
                "Not used",
                "none",
                "Records of the state topic that were refused, series without room, models that are gone, last hour.",
                "0; layout after a change of [model] or [grid].",
                {
                    "{{reason}}": increase("forecaster_state_refused_total", "1h", "reason"),
                    "left out": increase("forecaster_state_series_left_out_total", "1h"),
                    "models": increase("forecaster_state_models_missing_total", "1h"),
                },
            ),
            Panel(
                "Rebuilding of rows",
                "s",
                "Time that a worker took to rebuild the rows of an assignment, last hour.",
                "seconds; longer with more ticks to read back.",
                {
                    "mean": f"{increase('forecaster_rebuild_duration_seconds_sum', '1h')}"
                    f" / {increase('forecaster_rebuild_duration_seconds_count', '1h')}"
                },
            ),
            Panel(
                "Rebuilt series and ticks",
                "none",
                "Rows rebuilt and ticks read back for them, last hour.",
                "as many rows as the partitions that moved hold.",
                {
                    "series": increase("forecaster_rebuilt_series_total", "1h"),
                    "ticks": increase("forecaster_rebuilt_ticks_total", "1h"),
                },
            ),
            Panel(
                "Rebuilds that fell short",
                "none",
                "Partitions not rebuilt as far back as wanted, last hour, by reason.",
                "0.",
                {"{{reason}}": increase("forecaster_rebuild_shortfalls_total", "1h", "reason")},
            ),
        ],
    ),
    Row(
        "Out",
        [
            Panel(
                "Produced",
                "Bps",
                "Bytes handed to the producer a second, by worker.",
                "in step with the predictions.",
                {"{{instance}}": rate("forecaster_produced_bytes_total", "instance")},
            ),
            Panel(
                "Outstanding",
                "none",
                "Messages sent and not yet acknowledged.",
                "a batch or two; at its bound the worker pauses its partitions.",
                {"{{instance}}": gauge("forecaster_outstanding_messages")},
            ),
            Panel(
                "Commits",
                "cps",
                "Commits of offsets a second, and those that failed.",
                "steady; failures 0.",
                {
                    "attempts": rate("forecaster_commits_total"),
                    "failures": rate("forecaster_commit_failures_total"),
                },
            ),
        ],
    ),
]

PROCESS = [
    Row(
        "Where the time goes",
        [
            Panel(
                "Busy time by stage",
                "percentunit",
                "Share of a second that the loop spends in each stage.",
                "poll (waiting) has room left; the sum of the others below 70 %.",
                {"{{stage}}": rate("forecaster_stage_duration_seconds_sum", "stage")},
                stacked=True,
                width=12,
            ),
            Panel(
                "Slowest batches by stage",
                "s",
                "p99 of the time of a batch in each stage.",
                "milliseconds, and steady.",
                {
                    "{{stage}}": "histogram_quantile(0.99, "
                    f"{rate('forecaster_stage_duration_seconds_bucket', 'stage, le')})"
                },
                width=12,
            ),
            Panel(
                "Batch size",
                "none",
                "Ticks in a batch.",
                "small when there is little to do: latency comes first.",
                {f"p{100 * q:g}": quantile(q, "forecaster_batch_size") for q in (0.5, 0.99)},
            ),
            Panel(
                "Turns of the loop",
                "cps",
                "Turns of the main loop a second, by worker.",
                "never 0: idle turns count too.",
                {"{{instance}}": rate("forecaster_loop_iterations_total", "instance")},
            ),
            Panel(
                "Since the last turn",
                "s",
                "Time since the main loop finished a turn.",
                "below a second.",
                {"{{instance}}": age("forecaster_loop_last_iteration_timestamp_seconds", "instance")},
            ),
        ],
    ),
    Row(
        "Compiler",
        [
            Panel(
                "Programs compiled",
                "none",
                "Programs that XLA compiled since the start, by phase.",
                "startup only; background when a model of another shape arrives; serving always 0.",
                {"{{phase}}": f"sum by (phase) ({gauge('forecaster_compiles_total')})"},
                width=12,
            ),
            Panel(
                "Time spent compiling",
                "s",
                "Seconds spent compiling since the start, by phase.",
                "flat once the worker is ready.",
                {"{{phase}}": f"sum by (phase) ({gauge('forecaster_compile_seconds_total')})"},
                width=12,
            ),
        ],
    ),
    Row(
        "Process",
        [
            Panel(
                "CPU",
                "none",
                "Cores in use by the daemon, and those it may use.",
                "well below what it may use.",
                {
                    "{{instance}}": rate("process_cpu_seconds_total", "instance"),
                    "available {{instance}}": gauge("forecaster_cpu_cores_available"),
                },
            ),
            Panel(
                "Memory",
                "bytes",
                "Resident memory, the series table in it, and the limit.",
                "flat: everything that grows is bounded.",
                {
                    "{{instance}}": gauge("process_resident_memory_bytes"),
                    "table {{instance}}": gauge("forecaster_table_bytes"),
                    "limit {{instance}}": gauge("forecaster_memory_limit_bytes"),
                },
            ),
            Panel(
                "File descriptors",
                "none",
                "Open file descriptors.",
                "flat, far below the limit.",
                {"{{instance}}": gauge("process_open_fds")},
            ),
            Panel(
                "Garbage collections",
                "cps",
                "Collections of the oldest generation a second.",
                "close to 0.",
                {"{{instance}}": rate("python_gc_collections_total", "instance", 'generation="2"')},
            ),
            Panel(
                "Signals",
                "none",
                "HUP, USR1 and USR2 received in the last hour.",
                "those you sent.",
                {"{{signal}}": increase("forecaster_signals_total", "1h", "signal")},
            ),
            Panel(
                "Configuration reloads",
                "none",
                "Reloads and refused reloads in the last day.",
                "refused 0.",
                {
                    "reloads": increase("forecaster_config_reloads_total", "1d"),
                    "refused": increase("forecaster_config_reload_failures_total", "1d"),
                },
            ),
        ],
    ),
    Row(
        "Fleet",
        [
            Panel(
                "Workers",
                "none",
                "One line for each worker.",
                "all ready, lag shared out evenly, memory below its limit.",
                {
                    "ready": f"max by (instance) ({gauge('forecaster_ready')})",
                    "partitions": f"max by (instance) ({gauge('forecaster_assigned_partitions')})",
                    "series": f"sum by (instance) ({gauge('forecaster_series')})",
                    "lag": gauge("instance:forecaster_consumer_lag_messages:sum"),
                    "ticks/s": rate("forecaster_ticks_total", "instance"),
                    "p99 s": "histogram_quantile(0.99, "
                    f"{rate('forecaster_prediction_latency_seconds_bucket', 'instance, le')})",
                    "memory used": f"max by (instance) ({gauge('process_resident_memory_bytes')})"
                    f" / max by (instance) ({gauge('forecaster_memory_limit_bytes')})",
                    "up for s": age("process_start_time_seconds", "instance"),
                },
                kind="table",
                width=24,
            ),
            Panel(
                "Builds",
                "none",
                "What runs where.",
                "one version, apart from a deployment.",
                {"": gauge("forecaster_build_info")},
                kind="table",
                width=24,
            ),
        ],
    ),
]

DASHBOARDS = {
    "overview": ("Forecaster: overview", OVERVIEW),
    "training": ("Forecaster: training", TRAINING),
    "kafka": ("Forecaster: Kafka", KAFKA),
    "process": ("Forecaster: latency and process", PROCESS),
}
