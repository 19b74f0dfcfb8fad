"""The worker that answers ticks: start in stages, turn the loop, stop in stages. Each part of a turn is one call.

start   metrics and HTTP · compile · topics · serving model · join
turn    poll · assignment · answer · settle · models · retrain · signals · housekeeping
stop    finish the batch · publish · commit · stop the trainer · leave the group · close
"""

import gc
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import structlog

from forecaster.config import Config, shown
from forecaster.core import shadow
from forecaster.core.advance import STATUSES
from forecaster.core.batch import Issued
from forecaster.core.fold import Fold
from forecaster.core.pages import Skip
from forecaster.core.programs import Key, Recipe
from forecaster.shell import limits, log
from forecaster.shell.assignment import Assignment
from forecaster.shell.care import Care
from forecaster.shell.crash import Point, passing
from forecaster.shell.dead_letters import letter
from forecaster.shell.figures import Figures
from forecaster.shell.kafka import Change, Lost, Moved, Record, Revoked
from forecaster.shell.kafka.delivery import AtLeastOnce, Delivery
from forecaster.shell.kafka.source import Source
from forecaster.shell.kept import from_disk, take_over
from forecaster.shell.lifecycle import Lifecycle
from forecaster.shell.metrics import Metrics, Phase, Stage, State, count_compiles
from forecaster.shell.pipeline import Answers, DeadLetter, Pipeline
from forecaster.shell.signals import Signals
from forecaster.shell.skips import Skips
from forecaster.shell.state import Sent, StateTopic
from forecaster.shell.tally import Counts, Tally
from forecaster.shell.training import Training
from forecaster.shell.watchdog import PartitionWatch
from forecaster.shell.worker import STALLED_S, Worker

IDLE_POLL_S = 0.05  # how long a turn waits for ticks: bounds the answer to a signal
CAREFUL_S = 1.0  # of a turn for records that are taken one by one
NOTHING: Mapping[int, Skip] = MappingProxyType({})
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


class Daemon(Worker):
    """Answers ticks. Everything that it talks to is handed in, so that a test can hand in lists."""

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
        *,
        trains: bool = True,
    ) -> None:
        """`trains`: it trains for the fleet, too, while ticks partition 0 is its own."""
        super().__init__(config, path, signals, metrics, lifecycle.training, now)
        self.fold, self.source, self.delivery, self.lifecycle = fold, source, delivery, lifecycle
        self.pipeline = Pipeline(fold, config.tick, config.grid, config.topics.ticks, metrics)
        topics, log_name = config.topics, f"{config.kafka.group_id}:{config.topics.ticks}"
        self.skips = Skips(config.kafka.max_staleness_s, log_name)
        self.state = StateTopic(
            config.state, topics.state, log_name, fold, delivery, metrics, self.skips, now
        )
        self.assignment = Assignment(
            source, fold, self.state, metrics, config.kafka, topics, config.series.rebuild_ticks, now
        )
        self.figures = Figures(metrics, fold, source, delivery)
        self.care = Care(source, config.kafka.max_poll_records)
        self.pipeline.aside, self.pipeline.skipped = self.care.aside, self.skips
        self.tally = Tally()
        self.compiled = False
        self._trains = trains
        self._partition_watch = PartitionWatch(config.kafka.give_up_s, now)

    # ------------------------------------------------------------------ the start

    def start(self) -> None:
        """Everything that has to be there before the group is joined. Raises BrokerError."""
        self.prepare_topics()
        if self.signals.stopping:
            return
        self.lifecycle.begin()
        self.compile()
        limits.give_back()
        gc.collect()
        gc.freeze()  # what the start leaves stays: a collection that looks through it makes ticks wait
        self.metrics.state.state(State.JOINING)
        self.metrics.phase = Phase.SERVING

    def compile(self) -> None:
        """Compile everything before the group is joined: afterwards nothing compiles."""
        self.metrics.state.state(State.COMPILING)
        self.systemd.extend_timeout(STALLED_S * 10)
        began_s = self._now()
        pool = ThreadPoolExecutor(2, "compile")

        def each(recipe: Recipe, keys: Iterable[Key]) -> Iterator[Any]:
            program = from_disk(recipe)
            for future in [pool.submit(program, key) for key in keys]:
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
        self.assignment.hold(self.state.holds or not self.delivery.room())
        with self.metrics.stage(Stage.POLL):
            records = self.source.poll(0.0 if self.assignment.rebuilding else IDLE_POLL_S)
        polled_s = self._now()
        self.assignment.apply(self._heard(self.source.changes()))
        for counts in self.tally.take(self.care.begin()):
            self._count(counts)
        self.restore()
        skips, resets = self.skips.decide(records), self.delivery.resets
        for part in self.state.parts(records):
            if self.delivery.resets > resets:
                break  # what comes before this part was taken back: all will be read again
            self.answer(part, polled_s, skips)
            skips = {}
        self.answer_carefully()
        self.settle()
        owner, ours = 0 in self.assignment.serving, self.assignment.serving | self.assignment.waiting
        self.lifecycle.poll(
            decides=owner,
            leads=owner and self._trains,
            # A training that runs need not end while the partition that makes us lead is read back.
            remains=0 in ours and self._trains,
            idle=not records,
        )
        self.lifecycle.follow(self.state)
        self.state.turn()
        self.turned()

    def _heard(self, changes: list[Change]) -> list[Change]:
        for change in changes:
            match change:
                case Moved():
                    self._partition_watch.forget(change.partition)
                case Revoked(partitions) | Lost(partitions):
                    self.care.forget(partitions)
                case _:
                    pass
        return changes

    def restore(self) -> None:
        """Fold records that were answered before: for as long as a turn may take, if no ticks wait for an answer."""
        until_s = self._now() + (0.0 if self.assignment.serving else IDLE_POLL_S)
        while True:
            records = self.assignment.rebuild()
            for part in self.state.parts(records):
                folded = self.pipeline.handle(part, live=False, published=self.assignment.whole)
                self.state.folded(folded.next_offsets)
            self.metrics.rebuilt_ticks.inc(len(records))
            if not self.assignment.rebuilding or self._now() >= until_s:
                return

    def answer_carefully(self) -> None:
        """Records of partitions on which workers died: each is noted before it is handled, and committed after it."""
        until_s = self._now() + CAREFUL_S
        while self._now() < until_s and not self.state.holds and self.delivery.room():
            record = self.care.next(self.assignment.serving)
            if record is None:
                return
            epoch = self.source.epochs.get(record.partition)
            if self.care.guilty(record):
                self.care.sets_aside(record)
            elif not self.care.begins(record):
                return  # nobody answers: at the next turn
            for part in self.state.parts([record]):
                self.answer(part, self._now())
            if not self.delivery.flush(STOP_S):
                self.source.rewind("a record that is taken carefully could not be committed")
            if epoch != self.source.epochs.get(record.partition):
                return  # it was taken back, and will be read again
            self.care.done(record)

    def answer(self, records: Sequence[Record], polled_s: float, skips: Mapping[int, Skip] = NOTHING) -> None:
        """Fold records, send what they come to, and hand their offsets in to be committed.

        `skips` are stretches that are newly passed over.
        """
        passing(Point.POLLED)
        batch = self.delivery.begin()
        answers = self.pipeline.handle(records, send=self._send)
        self._set_aside(answers.dead)
        issued = answers.issued
        statuses = Counter(STATUSES[s] for s in issued.status.tolist())
        batch.token = InFlight(polled_s, issued.time_s, statuses, sum(map(len, answers.messages)))
        self.state.folded(answers.next_offsets)
        self.state.skip(skips, batch.token)
        self.state.attach(answers.next_offsets)
        self.delivery.finish(batch, answers.next_offsets)
        self.tally.add(batch.epochs, answers.next_offsets, answers.counts)
        self._note(answers, records)

    def _send(self, issued: Issued, messages: Sequence[bytes]) -> None:
        passing(Point.FOLDED)
        topic, send = self.config.topics.predictions, self.delivery.send
        for series, partition, message in zip(
            issued.series, issued.partition.tolist(), messages, strict=True
        ):
            send(topic, message, series.encode(), partition=partition)

    def _set_aside(self, letters: Sequence[DeadLetter]) -> None:
        for dead in letters:
            value, key, headers = letter(dead.record, dead.reject)
            self.delivery.send(self.config.topics.dead_letters, value, key, headers=headers)
            _log.warning(
                "dead_letter",
                reason=dead.reject.reason.value,
                message=dead.reject.message,
                partition=dead.record.partition,
                offset=dead.record.offset,
            )

    def _note(self, answers: Answers, records: Sequence[Record]) -> None:
        """What is so whatever becomes of the batch."""
        m = self.metrics
        m.batch_size.observe(len(records))
        m.consumed_bytes.inc(sum(len(r.key or b"") + len(r.value or b"") for r in records))
        if m.watched:
            for i, series in enumerate(answers.issued.series):
                if series in m.watched:
                    last = answers.issued.last[i]
                    m.observe_series(series, last, last + answers.issued.offset[i])

    def _count(self, counts: Counts) -> None:
        """What will not be taken back."""
        m, scores = self.metrics, counts.scores
        for outcome, n in counts.outcomes.items():
            m.ticks[outcome].inc(n)
        for reason, n in counts.reasons.items():
            m.dead_letters[reason].inc(n)
        m.missing_covariates.inc(counts.missing)
        if scores is not None:
            m.observe_scores(
                scored=scores.count,
                absolute_error=scores.error,
                last_value_absolute_error=scores.last_error,
                pinball_loss=scores.pinball,
                last_value_pinball_loss=scores.last_error / 2,
                quantile_scored=np.full(len(self.fold.spec.levels), scores.count.sum()),
                quantile_covered=scores.below.sum(0),
            )
        self.lifecycle.observe(counts)

    def settle(self) -> None:
        """Count what the broker has acknowledged, and what is committed."""
        with self.metrics.stage(Stage.COMMIT):
            settled = self.delivery.poll()
        wall_s = time.time()
        for done in settled:
            self.state.settled(done.token)
            match done.token:
                case Sent() as sent if self.state.acknowledged(sent):
                    self.lifecycle.swapped()
                case InFlight() as flight if len(flight.times_s):
                    self._acknowledged(flight, done.at_s, wall_s)
                case _:
                    pass
        for counts in self.tally.take(self.delivery.committed):
            self._count(counts)

    def _acknowledged(self, flight: InFlight, at_s: float, wall_s: float) -> None:
        """The predictions of a batch are on the log."""
        m = self.metrics
        for status, count in flight.statuses.items():
            m.predictions[status].inc(count)
        m.prediction_latency.observe_same(at_s - flight.polled_s, len(flight.times_s))
        m.event_to_prediction.observe_many(wall_s - flight.times_s)
        m.produced_bytes.inc(flight.sent_bytes)
        m.last_prediction.set(wall_s)

    # ------------------------------------------------------------------ housekeeping, reports

    def housekeeping(self) -> None:
        """Once a second: figures that need not be fresher."""
        self.figures.tell()
        self.metrics.state_behind.set(self.state.behind())
        positions = self.source.positions()
        self._partition_watch.look(
            {p: positions[p] for p in self.assignment.serving & positions.keys()}, self.source.readable_lag()
        )
        self.metrics.partition_stuck.set(self._partition_watch.stuck_s)
        if self.assignment.waiting:
            self.metrics.state.state(State.REBUILDING)

    @property
    def last_contact_s(self) -> float:
        """When a broker last answered (monotonic)."""
        return self.source.last_contact_s

    def missing(self) -> list[str]:
        """What readiness still waits for; empty when ticks are answered."""
        waits: list[str] = []
        if not self.compiled:
            return ["the programs to be compiled" if self.reached else "a broker to answer"]
        if not self.source.connected:
            waits.append("a broker to answer")
        elif not self.assignment.ever:
            waits.append("the group to assign partitions")
        if not self.delivery.able:
            waits.append("a transactional producer")
        if not self.lifecycle.known:
            waits.append("the models topic to say what serves")
        if self.assignment.waiting:
            waits.append(f"rows of partitions {sorted(self.assignment.waiting)} to be rebuilt")
        return waits

    def about(self) -> dict[str, object]:
        """For the report: partitions, lag, series, model, retrains."""
        return {
            "partitions": {
                "serving": sorted(self.assignment.serving),
                "waiting": sorted(self.assignment.waiting),
            },
            "lag": self.source.lag(),
            "series": len(self.fold.index),
            "outstanding_messages": self.delivery.outstanding,
            **self.lifecycle.status(),
        }

    # ------------------------------------------------------------------ the end

    def drain(self) -> bool:
        """Publish and commit what is in flight; leave the group; whether all was committed."""
        self.systemd.stopping()
        self.lifecycle.stop()
        self.assignment.close()
        done = self.delivery.flush(STOP_S)
        self.settle()
        if not done:
            _log.warning("stopped_with_work_in_flight", mend="it will be done again by whoever reads next")
        if self.signals.stopping:  # else something broke, and may break again on the same record
            self.source.take_leave()
        self.source.close(3.0)
        self.delivery.close(2.0)
        return done


# ---------------------------------------------------------------------- the start


def run(config: Config, signals: Signals, path: Path | None = None, *, trains: bool = True) -> int:
    """Answer ticks until told to stop; the exit code."""
    limits.compute_on_one_core()
    take_over()
    log.configure(config.log)
    _log.info("starting", pid=os.getpid(), configuration=shown(config))
    metrics = Metrics(config.metrics, horizon=config.model.horizon, levels=config.model.levels)
    uncount = count_compiles(metrics)
    fold = Fold(config.network, config.series, config.grid, config.tick.same_time, spare=shadow.ROWS)
    source = Source(config.kafka, config.topics.ticks)
    lifecycle = Lifecycle(config, fold, metrics, Training(config, metrics, signals))
    delivery = make_delivery(config, source)
    daemon = Daemon(config, path, signals, metrics, fold, source, delivery, lifecycle, trains=trains)
    try:
        daemon.run()
    finally:
        uncount()
    if not daemon.compiled:
        os._exit(0)  # a compiler that still runs would keep the process for a minute
    return 0


def make_delivery(config: Config, source: Source) -> Delivery:
    """The delivery promise that is configured."""
    if config.kafka.delivery == "exactly_once":
        from forecaster.shell.kafka.transaction import ExactlyOnce  # noqa: PLC0415

        return ExactlyOnce(source)
    return AtLeastOnce(source)
