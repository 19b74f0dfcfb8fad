"""Workers that are killed and followed by others, on Apache Kafka, beside one that never was: the same state.

Both answer one log, each in a group and with a state topic of its own. Ticks come in stretches; between two of them
another model begins to serve, so that both swap at the same offsets. All batches run in one program: programs of
other sizes differ in last bits, which half precision makes larger (decision 31).
"""

import json
import random
from collections.abc import Iterator

import numpy as np
import pytest
from kafka import KafkaProducer

from forecaster.config import Config
from forecaster.core.calls import Shape
from forecaster.core.table import Rows
from forecaster.shell.daemon import Daemon, make_delivery
from forecaster.shell.kafka import TopicsSpec
from forecaster.shell.kafka.source import Source
from forecaster.shell.lifecycle import Lifecycle
from forecaster.shell.metrics import Metrics
from forecaster.shell.models import Models
from forecaster.shell.models.convert import to_stored
from forecaster.shell.signals import Signals
from forecaster.shell.training import Training
from tests.broker.workers import fresh_topics, spec_for, until
from tests.folds import ROWS, SPEC, START_S, make_fold, make_model, same_column

pytestmark = [pytest.mark.slow, pytest.mark.timeout(200)]

ONE = [Shape(ROWS, 8, 1, 1)]
PARTITIONS, SERIES, STRETCH = (0, 1), 3, 80  # series and ticks of a partition


class Line:
    """Workers of one group, one after the other."""

    def __init__(self, kafka: str, delivery: str, ticks: TopicsSpec) -> None:
        own = fresh_topics(kafka, partitions=len(PARTITIONS))
        quiet = {"on_start": False, "every_ticks": 0, "every_ratio": 0.0, "drift": False}
        spec = spec_for(kafka, delivery=delivery, instance_id="w" if delivery == "exactly_once" else None)
        self.config = Config(
            kafka=spec.model_copy(update={"max_poll_records": 23, "commit_interval_s": 0.3}),
            topics=own.model_copy(update={"ticks": ticks.ticks, "models": ticks.models}),
            model=SPEC,
            state=Config().state.model_copy(update={"interval_s": 1.0}),
            training=Config().training.model_copy(update=quiet),
        )
        self.daemon = self._worker()

    def _worker(self) -> Daemon:
        config, signals = self.config, Signals()
        self.metrics = metrics = Metrics(horizon=SPEC.horizon, levels=SPEC.levels)
        fold, source = make_fold(shapes=ONE), Source(config.kafka, config.topics.ticks)
        lifecycle = Lifecycle(config, fold, metrics, Training(config, metrics, signals))
        delivery = make_delivery(config, source)
        return Daemon(config, None, signals, metrics, fold, source, delivery, lifecycle)

    def counted(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, labels) or 0.0

    def answer(self, upto: int) -> None:
        """Go on until so many ticks of each partition are answered, and that is committed."""
        until(lambda: self.daemon.source.last_committed == dict.fromkeys(PARTITIONS, upto), self.daemon.turn)

    def serve(self, version: str) -> None:
        until(lambda: all(self.daemon.fold.version(p) == version for p in PARTITIONS), self.daemon.turn)

    def turn_until_it_reads(self) -> None:
        before = self.daemon.source.positions()
        until(lambda: self.daemon.source.positions() != before, self.daemon.turn)

    def succeed(self) -> None:
        """The worker is killed, with what it has in flight, and another one begins."""
        self.end()
        self.daemon = self._worker()

    def end(self) -> None:
        self.daemon.delivery.close(0.0)
        self.daemon.source.close(0.5)
        self.daemon.lifecycle.stop()
        self.daemon.assignment.close()


@pytest.fixture(params=["at_least_once", "exactly_once"])
def lines(kafka: str, request: pytest.FixtureRequest) -> Iterator[tuple[Line, Line]]:
    shared = fresh_topics(kafka, partitions=len(PARTITIONS))
    made = Line(kafka, request.param, shared), Line(kafka, request.param, shared)
    yield made
    for line in made:
        line.end()


def send(line: Line, first: int, count: int, rng: random.Random) -> None:
    """So many ticks to each partition, from tick number `first` on."""
    producer = KafkaProducer(bootstrap_servers=line.config.kafka.bootstrap_servers, linger_ms=5)
    for number in range(first, first + count):
        for partition in PARTITIONS:
            which = rng.randrange(SERIES)
            value = 100.0 * (1 + which) + rng.gauss(0, 1)
            tick = {"series": f"p{partition}s{which}", "ts": START_S + 5 * number, "value": value}
            producer.send(line.config.topics.ticks, json.dumps(tick).encode(), partition=partition)
    producer.flush(30)
    producer.close()


def same(steady: Line, killed: Line) -> None:
    """The same series; windows bit for bit, numbers closely."""
    one, other = steady.daemon.fold, killed.daemon.fold
    for partition in PARTITIONS:
        mine, theirs = one.index.partitions[partition], other.index.partitions[partition]
        assert list(mine) == list(theirs)
        rows = [np.array([s.row for s in its.values()], np.int32) for its in (mine, theirs)]
        assert one.carries(rows[0]) == other.carries(rows[1])
        for name, a, b in zip(Rows._fields, one.read(rows[0]), other.read(rows[1]), strict=True):
            same_column(name, a, b)


def test_workers_that_are_killed_come_to_the_state_of_one_that_never_was(lines: tuple[Line, Line]) -> None:
    steady, killed = lines
    rng, sent = random.Random(3), 0
    models = Models(steady.config.kafka, steady.config.topics.models)
    for version, turns in (("", 3), ("v1", 7), ("v2", 5)):
        if version:
            models.publish(to_stored(make_model(version, seed=int(version[1:]))))
            models.serve(version, "a test")
            for line in lines:
                line.serve(version)
        send(steady, sent, STRETCH, rng)
        sent += STRETCH
        killed.turn_until_it_reads()
        for _ in range(turns):
            killed.daemon.turn()
        killed.succeed()
        for line in lines:
            line.answer(sent)
    assert killed.counted("forecaster_state_pages_total", event="read") > 0
    assert steady.counted("forecaster_state_pages_total", event="read") == 0
    same(steady, killed)
