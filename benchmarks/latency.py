"""How long a tick waits for its answer at a steady rate: in peace, and while a trainer takes all that is left.

Twice: as the daemon counts it (from the poll that returned the tick to the acknowledged prediction, read from its
histogram) and as a subscriber sees it (from just before the tick was sent to when its prediction was received).
"""

import signal
import threading
import time
from collections.abc import Iterator

import msgspec
import numpy as np
from kafka import KafkaConsumer

from benchmarks import load
from benchmarks.report import Row
from benchmarks.stage import LEVELS, NO_TRAINING, ROWS, Daemon, Sections, Stage, check, until
from forecaster.core.model import ModelSpec
from forecaster.demo.figures import Scrape, bucket_quantile
from forecaster.demo.processes import Child
from forecaster.shell.kafka.client import reader_settings
from forecaster.shell.kafka.spec import KafkaSpec, TopicsSpec

RATE, SERIES, HORIZON = 1_000, 1_000, 12
FULL = 60.0, 25.0, 150_000  # seconds of a window, seconds of a fit, ticks to train on
QUICK = 30.0, 12.0, 20_000
SETTLE_S = 8.0  # of the steady rate, before anything is timed
CATCH_UP_S = 90.0
NEVER = 1_000_000
RETRAIN_BEGINS_S = 20.0
HISTOGRAM = "forecaster_prediction_latency_seconds_bucket"


class Answer(msgspec.Struct):
    """What is looked at of a prediction."""

    issued_at: float  # the time of its tick: when that was sent


class Subscriber:
    """Reads the predictions on a thread, and notes when each came and how old its tick was by then."""

    def __init__(self, kafka: KafkaSpec, topic: str) -> None:
        self._seen: list[tuple[float, float]] = []
        self._stop = threading.Event()
        self._consumer = KafkaConsumer(
            topic, **reader_settings(kafka), group_id=None, auto_offset_reset="latest"
        )
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def ages_s(self, since_s: float, until_s: float) -> np.ndarray:
        """Of what came between two times."""
        return np.array([age for at, age in list(self._seen) if since_s <= at < until_s])

    def close(self) -> None:
        """End the thread and the client."""
        self._stop.set()
        self._thread.join(10.0)
        self._consumer.close()

    def _read(self) -> None:
        decode = msgspec.json.Decoder(Answer).decode
        while not self._stop.is_set():
            polled = self._consumer.poll(timeout_ms=100)
            now_s = time.time()
            self._seen += [
                (now_s, now_s - decode(record.value).issued_at)
                for records in polled.values()
                for record in records
            ]


class Window:
    """A stretch of time: begun when it is made, ended by `end`."""

    def __init__(self, daemon: Daemon) -> None:
        self.since_s = time.time()
        self._before = daemon.scrape()

    def end(self, daemon: Daemon) -> None:
        """The stretch is over."""
        self.until_s = time.time()
        self._after = daemon.scrape()

    @property
    def seconds(self) -> float:
        """How long it was."""
        return self.until_s - self.since_s

    def counted_ms(self, share: float) -> float:
        """A quantile of the daemon's own histogram, interpolated inside its bucket."""
        counts = _rise(self._before, self._after)
        return 1e3 * (bucket_quantile(share, counts) or float("nan"))

    def seen_ms(self, subscriber: Subscriber, share: float) -> float:
        """The same as a subscriber saw it."""
        ages_s = subscriber.ages_s(self.since_s, self.until_s)
        if not len(ages_s):
            raise RuntimeError("no prediction came in time to be timed")
        return 1e3 * float(np.quantile(ages_s, share))


def run(quick: bool) -> Iterator[Row]:
    """p50 and p99 in the minute before a retrain, and during it."""
    window_s, fit_s, history = QUICK if quick else FULL
    sections: Sections = {
        "model": {"horizon": HORIZON, "levels": LEVELS},
        # A fit that only time ends: its length is what the measurement needs.
        "training": NO_TRAINING
        | {"fit_s": fit_s, "patience": NEVER, "steps": NEVER, "warm_start_steps": NEVER},
    }
    with Stage() as stage:
        topics = stage.topics("latency")
        stage.publish_network(topics, ModelSpec(horizon=HORIZON, levels=LEVELS))
        load.backlog(stage.kafka, topics.ticks, load.uniform(history, SERIES))
        with stage.daemon("latency", topics, sections) as daemon:
            daemon.await_ready()
            until(lambda: _answered(daemon) >= history, CATCH_UP_S, "the history to be answered")
            source = steady(stage, topics)
            subscriber = Subscriber(stage.kafka, topics.predictions)
            try:
                time.sleep(SETTLE_S)
                before = Window(daemon)
                time.sleep(window_s)
                before.end(daemon)
                during = _retrain(daemon, window_s)
                check(source)
            finally:
                subscriber.close()
                source.stop()
            memory_mb = daemon.resident_bytes() / 2**20
    for name, window in (("before", before), ("during", during)):
        rate = len(subscriber.ages_s(window.since_s, window.until_s)) / window.seconds
        note = f"{window.seconds:.0f} s, {rate:,.0f} predictions/s"
        for share in (0.5, 0.99):
            yield Row(f"tick to acknowledged, p{100 * share:g}, {name}", window.counted_ms(share), "ms", note)
            yield Row(
                f"tick to subscriber, p{100 * share:g}, {name}", window.seen_ms(subscriber, share), "ms", note
            )
    yield Row(
        "p99 during a retrain / before, acknowledged",
        during.counted_ms(0.99) / before.counted_ms(0.99),
        "",
        "",
    )
    yield Row(
        "p99 during a retrain / before, subscriber",
        during.seen_ms(subscriber, 0.99) / before.seen_ms(subscriber, 0.99),
        "",
        "",
    )
    yield Row("daemon's resident memory", memory_mb, "MiB", f"{SERIES:,} series, room for {ROWS:,}")


def steady(stage: Stage, topics: TopicsSpec) -> Child:
    """A process that writes RATE ticks a second."""
    return stage.child(
        "source", "benchmarks.load", stage.kafka.bootstrap_servers, topics.ticks, str(RATE), str(SERIES)
    )


def _retrain(daemon: Daemon, most_s: float) -> Window:
    """The stretch in which a trainer runs, at most so long."""
    daemon.child.signal(signal.SIGUSR1)
    until(lambda: _retraining(daemon), RETRAIN_BEGINS_S, "the retrain to begin")
    window = Window(daemon)
    deadline_s = time.monotonic() + most_s
    while _retraining(daemon) and time.monotonic() < deadline_s:
        time.sleep(0.5)
    window.end(daemon)
    return window


def _retraining(daemon: Daemon) -> bool:
    return daemon.scrape().total("forecaster_retrain_in_progress") > 0


def _answered(daemon: Daemon) -> float:
    return daemon.scrape().total("forecaster_predictions_total")


def _rise(before: Scrape, after: Scrape) -> dict[float, float]:
    """Cumulative counts by upper edge of a bucket."""
    return {
        float(edge): count - before.total(HISTOGRAM, le=edge)
        for edge, count in after.by_label(HISTOGRAM, "le").items()
    }
