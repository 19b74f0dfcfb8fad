"""The daemon as its users run it: a process, on Apache Kafka, told by signals and by nothing else."""

import json
import os
import signal
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from kafka import KafkaConsumer, KafkaProducer, TopicPartition

from forecaster.demo.broker import free_port
from forecaster.demo.processes import Child
from forecaster.shell.kafka import Record, TopicsSpec
from forecaster.shell.prediction import decode
from tests.broker.workers import fresh_topics, read_all, spec_for
from tests.folds import START_S

pytestmark = [pytest.mark.process, pytest.mark.broker, pytest.mark.slow, pytest.mark.timeout(300)]

DEADLINE_S = 120.0
PARTITIONS = 2

CONFIG = """
[kafka]
bootstrap_servers = "{kafka}"
group_id = "{group}"
start = "earliest"
session_timeout_s = 6
commit_interval_s = 0.2

[topics]
{topics}

[series]
max_series = 64

[model]
hidden = 8
horizon = 3
levels = [0.1, 0.5, 0.9]
context_length = 16
warm_up = 4

[training]
on_start = false
every_ticks = 0
every_ratio = 0.0

[http]
port = {port}

[log]
format = "json"
"""


@pytest.fixture(scope="module", autouse=True)
def _compiled_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Workers of these tests have the same programs: what one compiles, the next one reads."""
    with pytest.MonkeyPatch.context() as patch:
        if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
            patch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path_factory.mktemp("jax")))
        patch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
        patch.setenv("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
        yield


class Worker:
    """One `forecaster run`, and what it wrote."""

    def __init__(self, path: Path, config: str) -> None:
        self.port = free_port()
        self.config = path.with_suffix(".toml")
        self.config.write_text(config.replace("{port}", str(self.port)))
        command = [sys.executable, "-m", "forecaster", "run", "--config", str(self.config)]
        self.child = Child(command, path.with_suffix(".log"))

    def events(self, name: str) -> list[dict[str, Any]]:
        """What it logged under this name."""
        lines = [
            line
            for line in self.child.output.read_text(errors="replace").splitlines()
            if line.startswith("{")
        ]
        found = []
        for line in lines:
            try:
                event = json.loads(line)
            except json.JSONDecodeError:  # still being written
                continue
            if event.get("event") == name:
                found.append(event)
        return found

    def ready(self) -> bool:
        """Whether /readyz says so."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/readyz", timeout=5) as answer:
                return answer.status == 200
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            return False

    def await_that(self, holds: Callable[[], object]) -> None:
        """Wait for something that the worker is to bring about."""
        deadline = time.monotonic() + DEADLINE_S
        while not holds():
            assert self.child.exit_code is None, f"it ended:\n{self.child.tail(30)}"
            assert time.monotonic() < deadline, f"it did not happen:\n{self.child.tail(30)}"
            time.sleep(0.05)

    def end(self) -> int:
        """Ask it to stop; its exit code."""
        self.child.signal(signal.SIGTERM)
        deadline = time.monotonic() + 30
        while self.child.exit_code is None:
            assert time.monotonic() < deadline, f"it did not stop:\n{self.child.tail(30)}"
            time.sleep(0.02)
        return self.child.exit_code


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
        roles = ("ticks", "predictions", "dead_letters", "control", "models", "state")
        topics = "\n".join(f'{role} = "{getattr(self.topics, role)}"' for role in roles)
        config = CONFIG.format(kafka=self.kafka, group=self.spec.group_id, topics=topics, port="{port}")
        worker = Worker(self.path / f"worker{len(self.workers)}", config)
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
