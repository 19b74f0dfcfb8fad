"""The daemon as its users run it: a process, on Apache Kafka, told by signals and by nothing else."""

import json
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from kafka import KafkaConsumer, KafkaProducer, TopicPartition

from forecaster.core.programs import BESIDE
from forecaster.shell.kafka import Record, TopicsSpec
from forecaster.shell.prediction import decode
from tests.broker.workers import fresh_topics, read_all, spec_for
from tests.daemons import Worker, small
from tests.folds import START_S

pytestmark = [
    pytest.mark.process,
    pytest.mark.broker,
    pytest.mark.slow,
    pytest.mark.timeout(300),
]

PARTITIONS = 2


class World:
    """Topics of one test, its workers, and its ticks."""

    def __init__(self, kafka: str, path: Path) -> None:
        self.kafka, self.path = kafka, path
        self.topics: TopicsSpec = fresh_topics(kafka, PARTITIONS)
        self.spec = spec_for(kafka)
        self.workers: list[Worker] = []
        self.sent: Counter[int] = Counter()
        self.producer = KafkaProducer(bootstrap_servers=kafka, linger_ms=5)

    def start(self) -> Worker:
        """One more worker of the same group."""
        settings = small(self.kafka, self.spec.group_id, self.topics)
        worker = Worker(self.path / f"worker{len(self.workers)}", settings)
        self.workers.append(worker)
        return worker

    def tick(self, count: int) -> None:
        """So many ticks to each partition, of two series each."""
        for _ in range(count):
            for partition in range(PARTITIONS):
                n = self.sent[partition]
                body = {"series": f"s{partition}{n % 2}", "ts": START_S + n, "value": 100 + n % 7}
                self.producer.send(self.topics.ticks, json.dumps(body).encode(), partition=partition)
                self.sent[partition] += 1
        self.producer.flush(30)

    def predictions(self) -> list[Record]:
        """All that were published."""
        return read_all(self.spec, self.topics.predictions)

    def answered(self) -> Counter[tuple[int, int]]:
        """How often each tick was answered."""
        sources = [decode(record.value or b"").source for record in self.predictions()]
        return Counter((source.partition, source.offset) for source in sources)

    def all_answered(self) -> bool:
        """Whether every tick was."""
        return self.answered().keys() == {(p, n) for p in self.sent for n in range(self.sent[p])}

    def committed(self) -> dict[int, int]:
        """The group's offsets."""
        consumer = KafkaConsumer(
            bootstrap_servers=self.kafka, group_id=self.spec.group_id, enable_auto_commit=False
        )
        found = {p: consumer.committed(TopicPartition(self.topics.ticks, p)) for p in range(PARTITIONS)}
        consumer.close()
        return found

    def close(self) -> None:
        """End everything."""
        self.producer.close()
        for worker in self.workers:
            worker.child.stop()


@pytest.fixture
def world(kafka: str, tmp_path: Path) -> Iterator[World]:
    made = World(kafka, tmp_path)
    yield made
    made.close()


def test_it_answers_every_tick_takes_its_signals_and_leaves_in_order(world: World) -> None:
    world.tick(20)
    worker = world.start()
    worker.await_that(worker.ready)
    world.tick(30)
    worker.await_that(world.all_answered)
    assert set(world.answered().values()) == {1}

    worker.child.signal(signal.SIGUSR2)
    worker.await_that(lambda: worker.events("status"))
    (status,) = worker.events("status")
    assert (status["ready"], status["series"], status["partitions"]["serving"]) == (True, 4, [0, 1])
    pid = worker.events("starting")[0]["pid"]
    threads = [comm.read_text().strip() for comm in Path("/proc").glob(f"{pid}/task/*/comm")]
    assert threads.count("tf_XLAEigen") == 1

    kept = worker.config.read_text()
    worker.config.write_text("[kafka\nthis is not TOML")
    worker.child.signal(signal.SIGHUP)
    worker.await_that(lambda: worker.events("configuration_refused"))
    worker.config.write_text(
        kept.replace("on_start = false", "on_start = false\nseed = 7").replace("hidden = 8", "hidden = 9")
    )
    worker.child.signal(signal.SIGHUP)
    worker.await_that(lambda: worker.events("configuration_reloaded"))
    (reloaded,) = worker.events("configuration_reloaded")
    assert "training.seed" in str(reloaded["taken"])
    assert "model.hidden" in str(reloaded["need_a_restart"])

    world.tick(10)  # nothing of this has harmed it
    worker.await_that(world.all_answered)
    assert worker.end() == 0
    assert world.committed() == dict.fromkeys(range(PARTITIONS), 60)
    assert set(world.answered().values()) == {1}


def test_killed_it_loses_nothing_and_repeats_with_the_same_sources(world: World) -> None:
    first = world.start()
    first.await_that(first.ready)
    world.tick(50)
    first.await_that(lambda: world.answered().total() > 20)
    first.child.signal(signal.SIGKILL)
    world.tick(50)
    second = world.start()
    second.await_that(world.all_answered)
    assert second.compiles("startup") < len(BESIDE), "it reads the programs that the first one compiled"
    assert second.end() == 0
    assert world.committed() == dict.fromkeys(range(PARTITIONS), 100)
    told: dict[tuple[int, int], set[tuple[str, float, float]]] = {}
    for record in world.predictions():
        one = decode(record.value or b"")
        told.setdefault((one.source.partition, one.source.offset), set()).add(
            (one.series, one.issued_at, one.last)
        )
    assert all(len(same) == 1 for same in told.values())


def test_a_thousand_requests_lead_to_at_most_two_retrains_and_a_stop_ends_the_trainer(world: World) -> None:
    worker = world.start()
    worker.await_that(worker.ready)
    world.tick(20)
    worker.await_that(world.all_answered)
    for _ in range(1000):
        worker.child.signal(signal.SIGUSR1)

    def quiet() -> bool:
        began, ended = worker.events("retrain_began"), worker.events("retrain_ended")
        worker.child.signal(signal.SIGUSR2)
        time.sleep(0.2)
        reports = worker.events("status")
        return bool(began) and len(began) == len(ended) and bool(reports) and not reports[-1]["retraining"]

    worker.await_that(quiet)
    assert 1 <= len(worker.events("retrain_began")) <= 2

    before = len(worker.events("retrain_began"))
    worker.child.signal(signal.SIGUSR1)
    worker.await_that(lambda: len(worker.events("retrain_began")) > before)
    trainer = worker.events("retrain_began")[-1]["pid"]
    assert psutil.pid_exists(trainer)
    assert worker.end() == 0
    assert not psutil.pid_exists(trainer)
    assert worker.events("retrain_ended")[-1]["outcome"] == "cancelled"
    assert world.committed() == dict.fromkeys(range(PARTITIONS), 20)


def test_a_second_worker_joins_and_leaves_and_every_tick_is_answered(world: World) -> None:
    first = world.start()
    first.await_that(first.ready)
    world.tick(20)
    first.await_that(world.all_answered)
    second = world.start()

    def shared() -> bool:
        world.tick(2)
        return bool(second.events("partitions_rebuilt"))

    second.await_that(shared)
    assert len(second.events("partitions_rebuilt")[0]["partitions"]) == 1
    world.tick(20)
    second.await_that(world.all_answered)
    assert second.end() == 0
    world.tick(20)
    first.await_that(world.all_answered)
    assert first.end() == 0
    assert world.committed() == dict(world.sent)
    repeats = sum(n - 1 for n in world.answered().values())
    assert repeats <= 2 * 50  # a batch at each change at most; usually none
