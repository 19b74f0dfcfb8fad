"""Records that kill the daemon, on Apache Kafka: found and set aside; kills from outside set nothing aside."""

import json
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import msgspec
import pytest
from kafka import KafkaProducer
from kafka.record import default_records

from forecaster.config import Config
from forecaster.core.tick import TickSpec, make_decoder
from forecaster.errors import DataError
from forecaster.shell.daemon import Daemon, make_delivery
from forecaster.shell.dead_letters import Kept, read
from forecaster.shell.kafka.log import Log
from forecaster.shell.kafka.notes import Note, decode
from forecaster.shell.kafka.source import Source
from forecaster.shell.lifecycle import Lifecycle
from forecaster.shell.metrics import Metrics
from forecaster.shell.prediction import decode as decode_prediction
from forecaster.shell.signals import Signals
from forecaster.shell.stores import OnTopics, Topics
from forecaster.shell.trainer import Job, job_for
from forecaster.shell.training import Training
from tests.broker.workers import fresh_topics, read_all, spec_for, until
from tests.folds import SPEC, START_S, make_fold

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

DEADLY = b"of this they die"
BOMB = b"of this they die while it is decoded"
BROKEN = b"nobody dies of this, and nobody can decode it"
Decoder = Callable[..., Any]


class Died(BaseException):
    """The process is no more: nothing in the daemon may catch it."""


class Fleet:
    """Two partitions, of which one stays empty, and one worker after the other."""

    def __init__(self, kafka: str, delivery: str, **changes: Any) -> None:
        identity = {"instance_id": "w"} if delivery == "exactly_once" else {}
        spec = spec_for(kafka, delivery=delivery, **identity, **changes)
        quiet = {"on_start": False, "every_ticks": 0, "every_ratio": 0.0, "drift": False}
        self.config = Config(
            kafka=spec.model_copy(update={"session_timeout_s": 6}),
            topics=fresh_topics(kafka, partitions=2),
            model=SPEC,
            training=Config().training.model_copy(update=quiet),
        )
        self.deaths = 0
        self._sent = 0

    def send(self, *values: bytes | None) -> None:
        """Ticks (None) and what is given, in one compressed batch."""
        servers = self.config.kafka.bootstrap_servers
        producer = KafkaProducer(bootstrap_servers=servers, linger_ms=1000, compression_type="gzip")
        for value in values:
            tick = {"series": f"s{self._sent % 3}", "ts": START_S + self._sent, "value": self._sent}
            producer.send(self.config.topics.ticks, value or json.dumps(tick).encode(), partition=0)
            self._sent += 1
        producer.flush(30)
        producer.close()

    def worker(self) -> Daemon:
        """A daemon that dies of what is deadly wherever it meets it."""
        BURIED.clear()
        config, signals = self.config, Signals()
        metrics = Metrics(horizon=SPEC.horizon, levels=SPEC.levels)
        fold, source = make_fold(), Source(config.kafka, config.topics.ticks)
        lifecycle = Lifecycle(config, fold, metrics, Training(config, metrics, signals))
        daemon = Daemon(
            config, None, signals, metrics, fold, source, make_delivery(config, source), lifecycle
        )
        decoder = make_decoder(TickSpec())

        def deadly(key: bytes | None, value: bytes | None, timestamp_ms: int) -> object:
            if value == DEADLY:
                raise Died
            return decoder(key, value, timestamp_ms)

        daemon.pipeline._decode = deadly
        return daemon

    def kill(self, daemon: Daemon) -> None:
        """What the kernel does to the rest of it."""
        BOMBED.clear()
        BURIED.set()
        daemon.assignment.close()
        daemon.delivery.close(0.0)
        daemon.source.close(0.5)
        with suppress(Died):
            daemon.lifecycle.stop()
        self.deaths += 1

    def committed(self) -> tuple[int, Note]:
        source = Source(self.config.kafka, self.config.topics.ticks)
        until(lambda: bool(source.assigned), lambda: source.poll(0.05))
        offset, metadata = (source.committed([0]) or {})[0]
        source.close()
        return offset, decode(metadata)

    def letters(self) -> list[Kept]:
        found = map(read, read_all(self.config.kafka, self.config.topics.dead_letters))
        return [kept for kept in found if isinstance(kept, Kept)]

    def answered(self) -> set[int]:
        found = read_all(self.config.kafka, self.config.topics.predictions)
        return {decode_prediction(record.value or b"").source.offset for record in found}

    def read_to_train(self) -> set[int]:
        """The offsets that a trainer reads."""
        job = msgspec.json.decode(job_for(self.config, 1.0), type=Job)
        assert isinstance(job.source, OnTopics)
        return {record.offset for records in Topics(job.source).read(TickSpec()) for record in records}

    def run_to_the_end(self, most: int = 12) -> Daemon:
        """Start workers until one has answered everything, and leaves in order."""
        for _ in range(most):
            daemon = self.worker()

            try:
                until(
                    lambda d=daemon: d.source.last_committed.get(0) == self._sent, daemon.turn, die_of_bombs
                )
            except Died:
                self.kill(daemon)
                continue
            daemon.signals.stopping = True
            daemon.drain()
            return daemon
        raise AssertionError(f"{self.deaths} died, and it is not over")


@pytest.fixture(params=["at_least_once", "exactly_once"])
def fleet(kafka: str, request: pytest.FixtureRequest) -> Iterator[Fleet]:
    return Fleet(kafka, request.param)


def test_a_record_that_kills_is_set_aside_and_everything_else_is_answered(fleet: Fleet) -> None:
    fleet.send(*[None] * 7, DEADLY, *[None] * 12)
    fleet.run_to_the_end()
    assert 3 <= fleet.deaths <= 6
    (kept,) = fleet.letters()
    assert (kept.reason, kept.offset, kept.value) == ("poison", 7, DEADLY)
    assert fleet.answered() == set(range(20)) - {7}
    assert fleet.committed() == (20, Note(aside=(7,)))
    assert fleet.read_to_train() == set(range(20)) - {7}

    died = fleet.deaths  # who comes next reads all of it back, and passes over what kills
    fleet.send(None)
    fleet.run_to_the_end()
    assert fleet.deaths == died


def test_the_very_first_record_of_a_new_group_is_set_aside_just_the_same(fleet: Fleet) -> None:
    """Nobody has committed anything: where the group begins is committed, and noted, before a record is looked at."""
    fleet.send(DEADLY, *[None] * 4)
    fleet.run_to_the_end()
    assert 3 <= fleet.deaths <= 6
    (kept,) = fleet.letters()
    assert (kept.reason, kept.offset, kept.value) == ("poison", 0, DEADLY)
    assert fleet.answered() == {1, 2, 3, 4}
    assert fleet.committed() == (5, Note(aside=(0,)))
    assert fleet.read_to_train() == {1, 2, 3, 4}


BOMBED = threading.Event()
BURIED = threading.Event()  # until then a thread of the dead does nothing more, not even end


def die_of_bombs() -> None:
    """Those that went off while the log was read back, on a thread of its own."""
    if BOMBED.is_set():
        raise Died


@pytest.fixture
def bombs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever inflates a batch with a bomb in it dies, whichever client it is, as one that runs out of memory does."""
    inflate = default_records.gzip_decode

    def deadly(data: Any) -> bytes:
        inflated = inflate(data)
        if BOMB in inflated:
            BOMBED.set()
            if threading.current_thread() is threading.main_thread():
                raise Died
            BURIED.wait(60)
            raise SystemExit
        return inflated

    monkeypatch.setattr(default_records, "gzip_decode", deadly)


def test_a_batch_that_kills_who_decodes_it_is_passed_over(fleet: Fleet, bombs: None) -> None:
    for values in ([None] * 7, [None, BOMB, None], [None] * 6):
        fleet.send(*values)
    survivor = fleet.run_to_the_end()
    assert 3 <= fleet.deaths <= 6
    (lost,) = [n for reason, n in survivor.metrics.offsets_lost.items() if reason == "unreadable"]
    assert lost._value.get() == 3
    assert fleet.letters() == []
    assert fleet.answered() == set(range(16)) - {7, 8, 9}
    assert fleet.committed() == (16, Note(passed=((7, 10),)))
    assert fleet.read_to_train() == set(range(16)) - {7, 8, 9}

    died = fleet.deaths  # who comes next reads the log back, and decodes nothing of it
    fleet.send(None)
    heir = fleet.run_to_the_end()
    assert fleet.deaths == died
    assert fleet.answered() == set(range(17)) - {7, 8, 9}
    assert len(heir.fold.index) == 3


def test_the_very_first_batch_of_a_new_group_is_passed_over_just_the_same(fleet: Fleet, bombs: None) -> None:
    fleet.send(BOMB, *[None] * 4)
    fleet.send(*[None] * 3)
    fleet.run_to_the_end()
    assert 3 <= fleet.deaths <= 6
    assert fleet.answered() == {5, 6, 7}
    assert fleet.committed() == (8, Note(passed=((0, 5),)))
    assert fleet.read_to_train() == {5, 6, 7}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_what_kills_who_reads_the_log_back_is_not_read_back_for_good(kafka: str, bombs: None) -> None:
    fleet = Fleet(kafka, "at_least_once", start="latest")
    fleet.send(None, None, *[BOMB] * 3)
    worker = fleet.worker()  # begins behind it; so no earlier worker has found out
    with pytest.raises(Died):
        until(lambda: False, worker.turn, die_of_bombs)
    fleet.kill(worker)
    fleet.send(*[None] * 5)
    survivor = fleet.run_to_the_end()
    assert 4 <= fleet.deaths <= 6
    assert survivor.metrics.rebuild_shortfalls["deadly"]._value.get() == 1
    assert fleet.answered() == set(range(5, 10))


def test_what_cannot_be_decoded_is_found_to_its_end_without_what_kills_behind_it(
    kafka: str, bombs: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet = Fleet(kafka, "at_least_once")
    for values in ([None] * 2, [BROKEN] * 3, [BOMB] * 2, [None] * 2):
        fleet.send(*values)
    inflate = default_records.gzip_decode

    def broken(data: Any) -> bytes:
        inflated = inflate(data)
        if BROKEN in inflated:
            raise ValueError("no client can decode this")
        return inflated

    monkeypatch.setattr(default_records, "gzip_decode", broken)
    log, topic = Log(fleet.config.kafka), fleet.config.topics.ticks
    read = [r.offset for some in log.read(topic, {0: (0, 9)}, 60.0, {0: [(5, 7)]}) for r in some]
    log.close()
    assert read == [0, 1, 7, 8]
    assert not BOMBED.is_set()


def test_who_is_to_stop_at_what_is_unreadable_stops_at_a_batch_that_kills(kafka: str, bombs: None) -> None:
    fleet = Fleet(kafka, "at_least_once", unreadable="stop")
    fleet.send(None)
    fleet.send(BOMB * 9)
    with pytest.raises(DataError, match=r"offset 1 kills whoever decodes it; reading could go on at 2"):
        fleet.run_to_the_end()


def test_kills_at_random_set_nothing_aside(fleet: Fleet) -> None:
    rng = random.Random(5)
    for _ in range(12):
        fleet.send(*[None] * rng.randrange(1, 40))
        daemon = fleet.worker()
        for _ in range(rng.randrange(1, 60)):
            daemon.turn()
        fleet.kill(daemon)
    fleet.run_to_the_end()
    assert fleet.letters() == []
    assert fleet.answered() == set(range(fleet._sent))
