"""The daemon: start in stages, turn the loop, stop in stages. Each stage and each part of a turn is one call.

start   metrics and HTTP · compile · topics · serving model · join
turn    poll · assignment · answer · settle · models · retrain · signals · housekeeping
stop    finish the batch · publish · commit · stop the trainer · leave the group · close
"""

import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import structlog

from forecaster.config import Config, change, load, shown
from forecaster.core.advance import STATUSES
from forecaster.core.fold import Fold
from forecaster.core.tick import Outcome
from forecaster.errors import BrokerError, ConfigError
from forecaster.shell import log
from forecaster.shell.assignment import Assignment
from forecaster.shell.dead_letters import letter
from forecaster.shell.figures import Figures
from forecaster.shell.http import Hooks, HttpServer
from forecaster.shell.kafka import Record
from forecaster.shell.kafka.admin import Admin
from forecaster.shell.kafka.delivery import AtLeastOnce, Delivery
from forecaster.shell.kafka.source import Source
from forecaster.shell.lifecycle import Lifecycle
from forecaster.shell.metrics import Metrics, Phase, Stage, State, count_compiles
from forecaster.shell.pipeline import Answers, Pipeline
from forecaster.shell.signals import Signals
from forecaster.shell.systemd import Systemd

IDLE_POLL_S = 0.05  # how long a turn waits for ticks: bounds the answer to a signal
HOUSEKEEPING_S = 1.0
STALLED_S = 30.0  # a loop that has not turned for so long is not healthy
STOP_S = 8.0  # for what is in flight, at the end; Docker kills after 10
_log = structlog.get_logger(__name__)


class _ToldToStopError(Exception):
    """A signal came while compiling."""


@dataclass(frozen=True)
class InFlight:
    """What is remembered of a batch until its predictions are acknowledged."""

    polled_s: float  # monotonic
    times_s: np.ndarray  # event times of its predictions
    statuses: Counter[str]
    sent_bytes: int


class Daemon:
    """One worker. Everything that it talks to is handed in, so that a test can hand in lists."""

    def __init__(
        self,
        config: Config,
        path: Path | None,
        signals: Signals,
        metrics: Metrics,
        fold: Fold,
        source: Source,
        delivery: Delivery,
        lifecycle: Lifecycle,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.config, self.path, self.signals, self.metrics = config, path, signals, metrics
        self.fold, self.source, self.delivery, self.lifecycle = fold, source, delivery, lifecycle
        self.pipeline = Pipeline(fold, config.tick, config.grid, config.topics.ticks, metrics)
        self.assignment = Assignment(
            source, fold, metrics, config.kafka, config.topics.ticks, config.series.rebuild_ticks, now
        )
        self.figures = Figures(metrics, fold, source, delivery)
        self.turned_s = now()
        self.compiled = False
        self._now = now
        self._started_s = now()
        self._housekeeping_s = float("-inf")
        self._systemd = Systemd()
        self._said_ready = False

    # ------------------------------------------------------------------ the start

    def start(self) -> None:
        """Everything that has to be there before the group is joined. Raises ConfigError."""
        self.prepare_topics()
        self.compile()
        self.metrics.state.state(State.JOINING)
        self.metrics.phase = Phase.SERVING

    def prepare_topics(self) -> None:
        """Create what is missing (where allowed); wait for a broker that is not there yet. Raises ConfigError."""
        config = self.config
        while not self.signals.stopping:
            self.turned_s = self._now()
            try:
                admin = Admin(config.kafka)
            except BrokerError as error:
                _log.warning("no_broker", error=str(error), mend="waiting for it")
                continue
            try:
                if config.topics.create and (created := admin.create_missing(config.topics)):
                    _log.info("topics_created", topics=created)
                if problems := admin.check(config.topics):
                    raise ConfigError("\n".join(problems))
            finally:
                admin.close()
            return

    def compile(self) -> None:
        """Compile everything before the group is joined: afterwards nothing compiles."""
        self.metrics.state.state(State.COMPILING)
        self._systemd.extend_timeout(STALLED_S * 10)
        began_s = self._now()
        pool = ThreadPoolExecutor(2, "compile")

        def each(compiled: Callable[[Any], Any], keys: Iterable[Any]) -> Iterator[Any]:
            for future in [pool.submit(compiled, key) for key in keys]:
                while not (future.done() or self.signals.stopping):
                    wait([future], 0.1)
                if self.signals.stopping:
                    raise _ToldToStopError
                yield future.result()

        with suppress(_ToldToStopError):
            self.fold.compile(each)
            self.compiled = True
            _log.info("compiled", seconds=round(self._now() - began_s, 1))
        pool.shutdown(wait=False, cancel_futures=True)

    # ------------------------------------------------------------------ a turn

    def turn(self) -> None:
        """One turn of the loop."""
        self.assignment.hold(not self.delivery.room())
        with self.metrics.stage(Stage.POLL):
            records = self.source.poll(0.0 if self.assignment.rebuilding else IDLE_POLL_S)
        polled_s = self._now()
        self.assignment.apply(self.source.changes())
        self.restore(self.assignment.rebuild())
        if records:
            self.answer(records, polled_s)
        self.settle()
        self.lifecycle.poll(leads=0 in self.assignment.serving)
        self.take_signals()
        if polled_s - self._housekeeping_s >= HOUSEKEEPING_S:
            self._housekeeping_s = polled_s
            self.housekeeping()
        self.turned_s = self._now()
        self.metrics.loop_iterations.inc()
        self.metrics.loop_last_iteration.set(time.time())
        self._systemd.alive()

    def restore(self, records: Sequence[Record]) -> None:
        """Fold records that were answered before."""
        if records:
            self.pipeline.handle(records, live=False)
            self.metrics.rebuilt_ticks.inc(len(records))

    def answer(self, records: Sequence[Record], polled_s: float) -> None:
        """Fold records, send what they come to, and hand their offsets in to be committed."""
        batch_answers = self.pipeline.handle(records)
        issued = batch_answers.issued
        names = [STATUSES[s] for s in issued.status.tolist()]
        statuses = Counter(names)
        sent_bytes = sum(map(len, batch_answers.messages))
        batch = self.delivery.begin(InFlight(polled_s, issued.time_s, statuses, sent_bytes))
        with self.metrics.stage(Stage.SEND):
            self._send(batch_answers)
        self.delivery.finish(batch, batch_answers.next_offsets)
        self._count(batch_answers, len(records), sum(len(r.value or b"") for r in records))

    def _send(self, answers: Answers) -> None:
        topics, send = self.config.topics, self.delivery.send
        issued = answers.issued
        for series, partition, message in zip(
            issued.series, issued.partition.tolist(), answers.messages, strict=True
        ):
            send(topics.predictions, message, series.encode(), partition=partition)
        for dead in answers.dead:
            value, key, headers = letter(dead.record, dead.reject)
            send(topics.dead_letters, value, key, headers=headers)
            _log.warning(
                "dead_letter",
                reason=dead.reject.reason.value,
                message=dead.reject.message,
                partition=dead.record.partition,
                offset=dead.record.offset,
            )

    def _count(self, answers: Answers, records: int, size: int) -> None:
        m, scores = self.metrics, answers.issued.scores
        m.batch_size.observe(records)
        m.consumed_bytes.inc(size)
        for outcome, n in answers.outcomes.items():
            m.ticks[outcome].inc(n)
        for reason, n in answers.reasons.items():
            m.dead_letters[reason].inc(n)
        if np.isfinite(answers.newest_s):
            m.last_tick.set(answers.newest_s)
        if scores.count.any():
            m.observe_scores(
                scored=scores.count,
                absolute_error=scores.error,
                last_value_absolute_error=scores.last_error,
                pinball_loss=scores.pinball,
                last_value_pinball_loss=scores.last_error / 2,
                quantile_scored=np.full(len(self.fold.spec.levels), scores.count.sum()),
                quantile_covered=scores.below.sum(0),
            )
        self.lifecycle.observe(answers.outcomes[Outcome.ACCEPTED], answers.newest_s, answers.issued)
        if m.watched:
            for i, series in enumerate(answers.issued.series):
                if series in m.watched:
                    last = answers.issued.last[i]
                    m.observe_series(series, last, last + answers.issued.offset[i])

    def settle(self) -> None:
        """Count what the broker has acknowledged."""
        with self.metrics.stage(Stage.COMMIT):
            settled = self.delivery.poll()
        wall_s = time.time()
        for done in settled:
            flight: InFlight = done.token
            n = len(flight.times_s)
            if not n:
                continue
            for status, count in flight.statuses.items():
                self.metrics.predictions[status].inc(count)
            self.metrics.prediction_latency.observe_same(done.at_s - flight.polled_s, n)
            self.metrics.event_to_prediction.observe_many(wall_s - flight.times_s)
            self.metrics.produced_bytes.inc(flight.sent_bytes)
            self.metrics.last_prediction.set(wall_s)

    # ------------------------------------------------------------------ signals, housekeeping

    def take_signals(self) -> None:
        """HUP: read the configuration again. USR2: write a report to the log."""
        if came := self.signals.take(signal.SIGHUP):
            self.metrics.signals["HUP"].inc(came)
            self.reload()
        if came := self.signals.take(signal.SIGUSR2):
            self.metrics.signals["USR2"].inc(came)
            _log.info("status", **self.status())

    def reload(self) -> None:
        """Take over what may change while running; name what may not. A broken file changes nothing."""
        self.metrics.config_reloads.inc()
        try:
            wanted = change(self.config, load(self.path, os.environ))
        except ConfigError as error:
            self.metrics.config_reload_failures.inc()
            self.metrics.config_last_reload_successful.set(0)
            _log.error("configuration_refused", error=str(error), mend="the running one stays")
            return
        self.config = wanted.config
        self.lifecycle.configure(wanted.config)
        log.configure(wanted.config.log)
        self.metrics.watch(wanted.config.metrics.series)
        self.metrics.config_last_reload_successful.set(1)
        _log.info("configuration_reloaded", taken=wanted.taken, need_a_restart=wanted.refused)

    def housekeeping(self) -> None:
        """Once a second: figures that need not be fresher, and whether we are ready."""
        self.figures.tell()
        m, ready = self.metrics, not self.missing()
        m.ready.set(ready)
        if ready:
            m.state.state(State.RUNNING)
        elif self.assignment.waiting:
            m.state.state(State.REBUILDING)
        if ready and not self._said_ready:
            self._said_ready = True
            self._systemd.ready()
            _log.info(
                "ready",
                seconds=round(self._now() - self._started_s, 1),
                partitions=sorted(self.assignment.serving),
            )

    def missing(self) -> list[str]:
        """What readiness still waits for; empty when ticks are answered."""
        waits: list[str] = []
        if not self.compiled:
            return ["the programs to be compiled"]
        if not self.source.connected:
            waits.append("a broker to answer")
        elif not self.assignment.ever:
            waits.append("the group to assign partitions")
        if not self.lifecycle.known:
            waits.append("the models topic to say what serves")
        if self.assignment.waiting:
            waits.append(f"rows of partitions {sorted(self.assignment.waiting)} to be rebuilt")
        return waits

    def health(self) -> dict[str, object]:
        """Whether the loop is turning."""
        idle_s = self._now() - self.turned_s
        return {"ok": idle_s < STALLED_S or not self.compiled, "last_turn_s": round(idle_s, 3)}

    def ready(self) -> dict[str, object]:
        """Whether ticks are answered, and what that still waits for."""
        missing = self.missing()
        return {"ready": not missing, "missing": missing}

    def status(self) -> dict[str, object]:
        """What an operator wants to see at a glance; also written to the log on USR2."""
        return {
            "ready": not self.missing(),
            "missing": self.missing(),
            "partitions": {
                "serving": sorted(self.assignment.serving),
                "waiting": sorted(self.assignment.waiting),
            },
            "lag": self.source.lag(),
            "series": len(self.fold.index),
            "outstanding_messages": self.delivery.outstanding,
            "swaps": self.fold.swaps,
            **self.lifecycle.status(),
        }

    # ------------------------------------------------------------------ the end

    def drain(self) -> None:
        """Publish and commit what is in flight; leave the group."""
        self.metrics.state.state(State.DRAINING)
        self._systemd.stopping()
        self.lifecycle.stop()
        self.assignment.close()
        done = self.delivery.flush(STOP_S)
        self.settle()
        if not done:
            _log.warning("stopped_with_work_in_flight", mend="it will be done again by whoever reads next")
        self.source.close(3.0)
        self.delivery.close(2.0)
        _log.info("stopped", clean=done)


# ---------------------------------------------------------------------- the start


def run(config: Config, signals: Signals, path: Path | None = None) -> int:
    """Serve until told to stop; the exit code. `path` is where the configuration is read again on HUP."""
    log.configure(config.log)
    _log.info("starting", pid=os.getpid(), configuration=shown(config))
    metrics = Metrics(config.metrics, horizon=config.model.horizon, levels=config.model.levels)
    with ExitStack() as stack:
        stack.callback(count_compiles(metrics))
        fold = Fold(config.model, config.series, config.grid, config.tick.same_time)
        source = Source(config.kafka, config.topics.ticks)
        lifecycle = Lifecycle(config, fold, metrics, signals)
        daemon = Daemon(
            config, path, signals, metrics, fold, source, make_delivery(config, source), lifecycle
        )
        stack.callback(daemon.drain)
        if config.http.enabled:
            hooks = Hooks(daemon.health, daemon.ready, daemon.status, lifecycle.request_retrain)
            server = HttpServer(config.http, metrics.registry, hooks)
            stack.callback(server.close)
            server.start()
        daemon.start()
        while not signals.stopping:
            daemon.turn()
    if not daemon.compiled:
        os._exit(0)  # a compiler that still runs would keep the process for a minute
    return 0


def make_delivery(config: Config, source: Source) -> Delivery:
    """The delivery promise that is configured."""
    if config.kafka.delivery == "exactly_once":
        from forecaster.shell.kafka.transaction import ExactlyOnce  # noqa: PLC0415

        return ExactlyOnce(source)
    return AtLeastOnce(source)
