"""Workers that are killed and followed by others, on Apache Kafka, beside one that never was: the same state.

Both answer one log, each in a group and with a state topic of its own. Ticks come in stretches; between two of them
another model begins to serve, so that both swap at the same offsets. All batches run in one program: programs of
other sizes differ in last bits, from which what waits is rounded to 24 bits (decisions 31 and 47).
"""

import json
import random
import time
from collections.abc import Iterator

import numpy as np
import pytest
from kafka import KafkaProducer

from forecaster.config import Config
from forecaster.core import pages
from forecaster.core.calls import Shape
from forecaster.core.fold import Fold
from forecaster.core.model import ModelSpec
from forecaster.core.pages import Page, Refusal, Skip, Swap
from forecaster.core.table import Rows
from forecaster.shell.daemon import Daemon, make_delivery
from forecaster.shell.kafka import TopicsSpec
from forecaster.shell.kafka.source import Source
from forecaster.shell.lifecycle import Lifecycle
from forecaster.shell.metrics import Metrics
from forecaster.shell.models import Models
from forecaster.shell.models.convert import to_stored
from forecaster.shell.prediction import decode
from forecaster.shell.signals import Signals
from forecaster.shell.training import Training
from tests.broker.workers import fresh_topics, read_all, spec_for, until
from tests.folds import ROWS, SPEC, START_S, WINDOW, make_fold, make_model, same_column, share_programs

pytestmark = [pytest.mark.slow, pytest.mark.timeout(200)]

ONE = [Shape(ROWS, 8, 1, 1)]
PARTITIONS, SERIES, STRETCH = (0, 1), 3, 80  # series and ticks of a partition


class Line:
    """Workers of one group, one after the other."""

    def __init__(
        self,
        kafka: str,
        delivery: str,
        ticks: TopicsSpec,
        max_staleness_s: float = 0.0,
        interval_s: float = 0.01,
        commit_interval_s: float = 0.3,
    ) -> None:
        own = fresh_topics(kafka, partitions=len(PARTITIONS))
        quiet = {"on_start": False, "every_ticks": 0, "every_ratio": 0.0, "drift": False}
        spec = spec_for(kafka, delivery=delivery, instance_id="w" if delivery == "exactly_once" else None)
        read = {
            "max_poll_records": 23,
            "commit_interval_s": commit_interval_s,
            "max_staleness_s": max_staleness_s,
            "session_timeout_s": 20,  # programs are compiled in turns
        }
        self.config = Config(
            kafka=spec.model_copy(update=read),
            topics=own.model_copy(update={"ticks": ticks.ticks, "models": ticks.models}),
            model=SPEC,
            state=Config().state.model_copy(update={"interval_s": interval_s}),
            training=Config().training.model_copy(update=quiet),
        )
        self.daemon = self._worker()

    def _worker(self) -> Daemon:
        config, signals = self.config, Signals()
        self.metrics = metrics = Metrics(horizon=SPEC.horizon, levels=SPEC.levels)
        fold, source = make_fold(shapes=ONE), Source(config.kafka, config.topics.ticks)
        lifecycle = Lifecycle(config, fold, metrics, Training(config, metrics, signals))
        lifecycle.begin()
        share_programs(fold)
        delivery = make_delivery(config, source)
        return Daemon(config, None, signals, metrics, fold, source, delivery, lifecycle)

    def counted(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, labels) or 0.0

    def answer(self, upto: int) -> None:
        """Go on until so many ticks of each partition are answered, and that is committed."""
        until(lambda: self.daemon.source.last_committed == dict.fromkeys(PARTITIONS, upto), self.daemon.turn)

    def serve(self, version: str) -> None:
        until(lambda: all(self.daemon.fold.version(p) == version for p in PARTITIONS), self.daemon.turn)

    def stored(self) -> list[tuple[int, pages.Stored | Refusal]]:
        """What was written to the state topic, by partition."""
        found = read_all(self.config.kafka, self.config.topics.state)
        return [(r.partition, pages.decode(r.value)) for r in found if r.value]

    def past(self, offset: int) -> set[int]:
        """Partitions whose one page has come past this offset."""
        return {p for p, page in self.stored() if isinstance(page, Page) and page.offset > offset}

    def swaps(self) -> list[tuple[int, int, str]]:
        """Partition, offset and version of those that were written."""
        return [(p, swap.offset, swap.version) for p, swap in self.stored() if isinstance(swap, Swap)]

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
def delivery(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def lines(kafka: str, delivery: str) -> Iterator[tuple[Line, Line]]:
    shared = fresh_topics(kafka, partitions=len(PARTITIONS))
    made = Line(kafka, delivery, shared), Line(kafka, delivery, shared)
    yield made
    for line in made:
        line.end()


def send(line: Line, first: int, count: int, rng: random.Random, age_s: float = 0.0) -> None:
    """So many ticks to each partition, from tick number `first` on; their records say that they are so old."""
    producer = KafkaProducer(bootstrap_servers=line.config.kafka.bootstrap_servers, linger_ms=5)
    written_ms = round((time.time() - age_s) * 1000)
    for number in range(first, first + count):
        for partition in PARTITIONS:
            which = rng.randrange(SERIES)
            value = 100.0 * (1 + which) + rng.gauss(0, 1)
            tick = {"series": f"p{partition}s{which}", "ts": START_S + 5 * number, "value": value}
            message = json.dumps(tick).encode()
            producer.send(line.config.topics.ticks, message, partition=partition, timestamp_ms=written_ms)
    producer.flush(30)
    producer.close()


def same(one: Fold, other: Fold) -> None:
    """The same series; windows bit for bit, numbers closely."""
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
    same(steady.daemon.fold, killed.daemon.fold)


def test_partitions_that_are_taken_carefully_come_to_the_end_side_by_side(lines: tuple[Line, Line]) -> None:
    steady, killed = lines
    rng = random.Random(3)
    for number in range(2):
        send(steady, number * STRETCH, STRETCH, rng)
        for _ in range(2 * number):  # deaths at one offset, of each partition
            until(lambda: killed.daemon.source.notes.keys() == set(PARTITIONS), killed.daemon.turn)
            killed.succeed()
        for line in lines:
            line.answer((number + 1) * STRETCH)
    same(steady.daemon.fold, killed.daemon.fold)


def test_a_swap_to_another_network_is_followed_by_who_comes_next(lines: tuple[Line, Line]) -> None:
    """Killed when all pages are past the swap it is exact; killed before, each answer is of the model of its offset."""
    steady, killed = lines
    rng, models = random.Random(6), Models(steady.config.kafka, steady.config.topics.models)
    larger = SPEC.model_copy(update={"cell": "lstm", "hidden": 12})

    def swap_to(version: str, spec: ModelSpec) -> None:
        models.publish(to_stored(make_model(version, seed=int(version[1:]), spec=spec)))
        models.serve(version, "a test")
        for line in lines:
            line.serve(version)

    for number, (version, spec) in enumerate((("v1", SPEC), ("v2", larger))):
        swap_to(version, spec)
        send(steady, number * STRETCH, STRETCH, rng)
        for line in lines:
            line.answer((number + 1) * STRETCH)
    until(lambda: set(PARTITIONS) == killed.past(STRETCH), killed.daemon.turn)
    killed.succeed()
    send(steady, 2 * STRETCH, STRETCH, rng)
    for line in lines:
        line.answer(3 * STRETCH)
    assert killed.counted("forecaster_state_pages_total", event="read") > 0
    assert killed.counted("forecaster_state_models_missing_total") == 0
    same(steady.daemon.fold, killed.daemon.fold)

    swap_to("v3", SPEC)
    send(steady, 3 * STRETCH, STRETCH, rng)
    killed.turn_until_it_reads()
    killed.succeed()
    for line in lines:
        line.answer(4 * STRETCH)
    assert sorted(swap for swap in killed.swaps() if swap[2] == "v3") == [
        (p, 3 * STRETCH, "v3") for p in PARTITIONS
    ]
    for partition in PARTITIONS:
        assert killed.daemon.fold.version(partition) == "v3"
        rows = [
            np.array([s.row for s in line.daemon.fold.index.partitions[partition].values()]) for line in lines
        ]
        columns = [line.daemon.fold.read(its) for line, its in zip(lines, rows, strict=True)]
        for name, a, b in zip(Rows._fields, *columns, strict=True):
            if name in WINDOW:
                same_column(name, a, b)
    answers = [
        decode(r.value or b"") for r in read_all(killed.config.kafka, killed.config.topics.predictions)
    ]
    assert {(answer.source.offset // STRETCH, answer.model) for answer in answers} == {
        (0, "v1"),
        (1, "v2"),
        (2, "v2"),
        (3, "v3"),
    }


def test_stale_ticks_are_skipped_and_who_comes_next_skips_the_same(kafka: str, delivery: str) -> None:
    ticks = fresh_topics(kafka, partitions=len(PARTITIONS))
    line = Line(kafka, delivery, ticks, max_staleness_s=600.0, interval_s=0.01)
    try:
        rng = random.Random(4)
        send(line, 0, 40, rng)
        line.answer(40)
        send(line, 40, STRETCH, rng, age_s=3600)
        line.turn_until_it_reads()
        line.succeed()  # in the middle of the skip
        send(line, 40 + STRETCH, 30, rng)
        line.answer(70 + STRETCH)
        skipped_here = line.counted("forecaster_ticks_total", outcome="skipped")
        before = line.daemon.fold
        line.succeed()
        until(lambda: line.daemon.assignment.serving == set(PARTITIONS), line.daemon.turn)
        same(before, line.daemon.fold)
    finally:
        line.end()

    spec, topics = line.config.kafka, line.config.topics
    written = [(r.partition, pages.decode(r.value)) for r in read_all(spec, topics.state) if r.value]
    skips = [(partition, skip) for partition, skip in written if isinstance(skip, Skip)]
    skipped = {(partition, offset) for partition, skip in skips for offset in range(skip.offset, skip.until)}
    sources = [decode(r.value or b"").source for r in read_all(spec, topics.predictions)]
    answered = {(source.partition, source.offset) for source in sources}
    assert not skipped & answered
    assert skipped | answered == {(partition, o) for partition in PARTITIONS for o in range(70 + STRETCH)}
    assert skipped <= {(partition, o) for partition in PARTITIONS for o in range(40, 40 + STRETCH)}
    assert len(skipped) == sum(skip.ticks for _, skip in skips) >= skipped_here > 0
