"""The rig of a fault test: a broker behind a proxy, topics of its own, workers, load, and the oracle's verdict.

    with make_rig("exactly_once") as rig:
        worker = rig.start()
        rig.load()
        rig.progress()
        ...                     # a fault, through `rig.proxy`, `rig.cluster` or the worker's process
        rig.heal()
        rig.verify()

Workers are behind the proxy; load, readers and oracle are not.
"""

import random
import signal
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from kafka import KafkaProducer

from tests.apache_kafka import Cluster
from tests.broker.workers import fresh_topics
from tests.daemons import Settings, Worker, small
from tests.faults import oracle
from tests.faults.load import Load, Ticks
from tests.faults.proxy import Proxy
from tests.faults.watch import Reader, Scales, await_that, is_alive

PARTITIONS = 2
TICKS_PER_S = 100.0
STEPS = 40  # predictions that show that work goes on
CATCH_UP_S = 90.0
MOST_GROWTH_MB = 150  # of a worker, from when it is ready

QUICK = {
    "session_timeout_s": 4,
    "max_poll_interval_s": 10,
    "max_poll_records": 25,
    "commit_interval_s": 0.2,
    "request_timeout_s": 3,
    "delivery_timeout_s": 6,
    "transaction_timeout_s": 8,
    "metadata_max_age_s": 3,
    "connect_timeout_s": 5,
    "stall_s": 20,
}
BROKER = {"transaction.abort.timed.out.transaction.cleanup.interval.ms": "500"}


@dataclass(frozen=True)
class Stage:
    """What tests share: brokers, each behind a proxy of its own."""

    cluster: Cluster
    proxies: Sequence[Proxy]

    @staticmethod
    def enter(stack: ExitStack, nodes: int = 1) -> "Stage":
        """Start them; they end with the stack."""
        cluster = stack.enter_context(Cluster(nodes, settings=BROKER, proxied=True))
        pairs = [broker.proxied for broker in cluster.brokers]
        return Stage(cluster, [stack.enter_context(Proxy(*pair)) for pair in pairs if pair is not None])

    def heal(self) -> None:
        """Everything passes, every broker runs."""
        for proxy in self.proxies:
            proxy.heal()
        for broker in self.cluster.brokers:
            broker.resume()
            if broker.pid is None:
                broker.start()


class Rig:
    """One test's world. `settings` go over those of every worker: section -> key -> value."""

    def __init__(
        self,
        stage: Stage,
        path: Path,
        seed: int,
        delivery: str,
        settings: Settings | None = None,
        partitions: int = PARTITIONS,
        ticks: Ticks | None = None,
    ) -> None:
        self.cluster, self.proxies, self.proxy = stage.cluster, stage.proxies, stage.proxies[0]
        self.random = random.Random(seed)
        self.tried = 0
        """Faults done to the workers so far."""
        self.most_growth_mb = MOST_GROWTH_MB
        self.servers = stage.cluster.bootstrap_servers
        self.topics = fresh_topics(self.servers, partitions)
        self.unreadable: set[oracle.Place] = set()
        """Ticks that workers cannot read, and have to pass over."""
        self.group = self.topics.ticks.replace("ticks", "group")
        self.workers: list[Worker] = []
        self.ticks = ticks or Ticks(seed, partitions)
        self._stage, self._path, self._delivery, self._partitions = stage, path, delivery, partitions
        self._settings = settings or {}
        self._temporary: dict[Worker, Path] = {}
        self._ready: list[Worker] = []
        self._load = ExitStack()
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self.reader = self._stack.enter_context(
            Reader(self.servers, self.topics.predictions, self._partitions)
        )
        self._scales = self._stack.enter_context(Scales(lambda: [w.child.pid for w in self._ready]))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.heal()
        self._load.close()
        for worker in self.workers:
            worker.child.stop()
        self._stack.close()

    # -- workers

    @property
    def alive(self) -> list[Worker]:
        """Workers whose process has not ended."""
        return [worker for worker in self.workers if worker.child.exit_code is None]

    def start(
        self,
        identity: str = "a",
        *,
        fault_at: str = "",
        ready: bool = True,
        prefix: Sequence[str] = (),
        settings: Settings | None = None,
    ) -> Worker:
        """One more worker; `identity` tells those apart that run at the same time. `settings` are its own."""
        number = len(self.workers)
        temporary = self._path / f"tmp{number}"
        temporary.mkdir()
        environment = [
            "env",
            f"TMPDIR={temporary}",
            *([f"FORECASTER_FAULT_AT={fault_at}"] if fault_at else []),
        ]
        path = self._path / f"worker{number}"
        worker = Worker(path, self._configured(identity, settings or {}), [*prefix, *environment])
        self._temporary[worker] = temporary
        self.workers.append(worker)
        if ready:
            worker.await_that(worker.ready)
            self._ready.append(worker)
        return worker

    def kill(self, worker: Worker) -> None:
        """As a power cut would."""
        worker.child.signal(signal.SIGKILL)
        assert worker.await_end() == -signal.SIGKILL
        self.tried += 1

    def _configured(self, identity: str, more: Settings) -> Settings:
        settings = small(self.cluster.proxied_servers, self.group, self.topics)
        promise: dict[str, Any] = {"delivery": self._delivery}
        if self._delivery == "exactly_once":
            promise["transactional_id"] = f"{self.group}-{identity}"
        settings["kafka"] |= QUICK | promise
        for section, keys in [*self._settings.items(), *more.items()]:
            settings[section] = settings.get(section, {}) | keys
        return settings

    # -- load and what comes of it

    def load(self, ticks_per_s: float = TICKS_PER_S) -> None:
        """Send ticks from now on, at another rate if there was one."""
        self._load.close()
        self._load.enter_context(Load(self.servers, self.topics.ticks, self.ticks.next, ticks_per_s))

    def send(self, *values: bytes | None, partition: int = 0) -> list[int]:
        """Send just these, each in a batch of its own; their offsets."""
        producer = KafkaProducer(bootstrap_servers=self.servers.split(","), max_request_size=1 << 20)
        try:
            return [
                producer.send(self.topics.ticks, value, b"key", partition=partition).get(30).offset
                for value in values
            ]
        finally:
            producer.close()

    def burst(self, count: int) -> None:
        """So many ticks at once."""
        producer = KafkaProducer(bootstrap_servers=self.servers.split(","), linger_ms=50)
        for _ in range(count):
            partition, value = self.ticks.next()
            producer.send(self.topics.ticks, value, partition=partition)
        producer.flush(30)
        producer.close()

    def calm(self) -> None:
        """Send no more."""
        self._load.close()

    def progress(self, count: int = STEPS, within_s: float = CATCH_UP_S) -> None:
        """I6: so many more predictions reach the readers."""
        goal = self.reader.count + count
        await_that(lambda: self.reader.count >= goal, f"{count} more predictions{self._tails()}", within_s)

    def caught_up(self) -> bool:
        """Whether nothing that can be read is left behind the committed offsets."""
        left = oracle.consume(self.servers, self.topics.ticks, starts=self.committed())
        return next(left, None) is None

    def committed(self) -> dict[int, int]:
        """The group's offsets."""
        return oracle.committed(self.servers, self.group, self.topics.ticks)

    # -- the verdict

    def heal(self) -> None:
        """The fault is over."""
        self._stage.heal()
        for worker in self.alive:
            worker.child.signal(signal.SIGCONT)

    def check(self) -> None:
        """What holds at every moment: I1, I2, I3, I5, as far as the committed offsets."""
        servers, topics = self.servers, self.topics
        upto = self.committed()
        expected = oracle.expect(servers, topics.ticks, upto, self.unreadable)
        predictions = [oracle.told(record) for record in oracle.consume(servers, topics.predictions)]
        dead = [oracle.dead_place(record) for record in oracle.consume(servers, topics.dead_letters)]
        once = self._delivery == "exactly_once"
        findings = [
            *oracle.coverage(expected, predictions, dead),
            *oracle.uniqueness(predictions, dead, expected.scales, once=once),
            *oracle.order(predictions),
            *oracle.sanity(predictions, self._models()),
        ]
        assert not findings, "\n".join(findings) + self._tails()

    def verify(self) -> None:
        """All is answered (I6), as it should be (`check`), nothing is left behind (I7, I9), no transaction is open."""
        self.calm()
        await_that(self.caught_up, f"everything answered and committed{self._tails()}", CATCH_UP_S)
        for worker in self.alive:
            assert worker.end() == 0, worker.child.tail(30)
            assert not list(self._temporary[worker].iterdir())
        assert not [child for child in self._scales.children if is_alive(child)]
        for topic in (self.topics.predictions, self.topics.dead_letters, self.topics.state):
            await_that(lambda t=topic: self._closed(t), f"no open transaction on {topic}", 20.0)
        self.check()
        assert self.reader.count > 0
        self._same_for_its_readers()
        assert self._scales.growth_bytes() < self.most_growth_mb << 20

    def _closed(self, topic: str) -> bool:
        every, stable = (oracle.ends(self.servers, topic, i) for i in ("read_uncommitted", "read_committed"))
        return every == stable

    def _same_for_its_readers(self) -> None:
        """Who read during the faults saw what is there now, in this order."""
        now: dict[int, list[oracle.Told]] = {}
        for record in oracle.consume(self.servers, self.topics.predictions):
            now.setdefault(record.partition, []).append(oracle.told(record))
        total = sum(map(len, now.values()))
        await_that(lambda: self.reader.count >= total, "the reader at the end", 20.0)
        assert self.reader.seen == now

    def _models(self) -> set[str]:
        keys = [
            record.key.decode() for record in oracle.consume(self.servers, self.topics.models) if record.key
        ]
        return {""} | {key.split("/")[1] for key in keys if key.startswith("model/")}

    def _tails(self) -> str:
        return "".join(f"\n--- {worker.child.name}\n{worker.child.tail(15)}" for worker in self.workers[-2:])
