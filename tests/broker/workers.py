"""A small worker for the tests of delivery: answers each tick with its place on the log, one turn at a time.

Turns are driven by the test, so several workers can live in one process and be stopped between any two steps.
"""

import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from kafka import KafkaAdminClient, KafkaProducer

from forecaster.shell.kafka import Assigned, Change, KafkaSpec, Record, TopicsSpec
from forecaster.shell.kafka.admin import Admin
from forecaster.shell.kafka.delivery import AtLeastOnce, Delivery
from forecaster.shell.kafka.log import Log
from forecaster.shell.kafka.source import Source

DEADLINE_S = 60.0
ROLES = ("ticks", "predictions", "dead_letters", "control", "models", "state")
Place = tuple[int, int]
"""Partition and offset of a tick."""


def fresh_topics(kafka: str, partitions: int = 4) -> TopicsSpec:
    """Topics that nobody else uses, created."""
    tag = uuid.uuid4().hex[:8]
    topics = TopicsSpec(**{role: f"{role}-{tag}" for role in ROLES}, create_partitions=partitions)
    admin = Admin(KafkaSpec(bootstrap_servers=kafka))
    try:
        admin.create_missing(topics)
    finally:
        admin.close()
    return topics


def made_by_hand(kafka: str, settings: Mapping[str, Mapping[str, str]]) -> TopicsSpec:
    """Topics with these settings, by role."""
    tag = uuid.uuid4().hex[:8]
    names = {role: f"{role}-{tag}" for role in ROLES}
    wanted = {name: {"num_partitions": 1, "configs": settings.get(role, {})} for role, name in names.items()}
    admin = KafkaAdminClient(bootstrap_servers=kafka)
    admin.create_topics(wanted, wait_for_metadata=True)
    admin.close()
    return TopicsSpec(**names)


def spec_for(kafka: str, **changes: Any) -> KafkaSpec:
    """Settings with quick timeouts, and a group of its own unless one is given."""
    quick = {
        "group_id": uuid.uuid4().hex[:8],
        "session_timeout_s": 6,
        "request_timeout_s": 3,
        "commit_interval_s": 0.1,
    }
    return KafkaSpec(bootstrap_servers=kafka, **(quick | {"max_poll_records": 50} | changes))


def produce(kafka: str, topic: str, partitions: Iterable[int], count: int) -> None:
    """`count` ticks to each partition."""
    producer = KafkaProducer(bootstrap_servers=kafka, linger_ms=5)
    for number in range(count):
        for partition in partitions:
            producer.send(topic, b"%d" % number, b"s%d" % partition, partition=partition)
    producer.flush(30)
    producer.close()


def read_all(spec: KafkaSpec, topic: str) -> list[Record]:
    """Everything that a committed read gives now."""
    log = Log(spec)
    try:
        return [r for batch in log.read(topic, log.spans(topic, log.partitions(topic)), 30.0) for r in batch]
    finally:
        log.close()


def answers(spec: KafkaSpec, topic: str) -> Counter[Place]:
    """How often each tick was answered, as its readers see it."""
    places = [(record.value or b"").split(b":") for record in read_all(spec, topic)]
    return Counter((int(partition), int(offset)) for partition, offset in places)


def until(done: Callable[[], bool], *steps: Callable[[], object], deadline_s: float = DEADLINE_S) -> None:
    """Take turns until it is so."""
    end_s = time.monotonic() + deadline_s
    while not done():
        assert time.monotonic() < end_s, "it did not happen in time"
        for step in steps:
            step()


class Worker:
    """Source, delivery, and a loop whose turns the test takes."""

    def __init__(
        self, spec: KafkaSpec, topics: TopicsSpec, make_delivery: Callable[[Source], Delivery] = AtLeastOnce
    ) -> None:
        self.topics = topics
        self.source = Source(spec, topics.ticks)
        self.delivery = make_delivery(self.source)
        self.changes: list[Change] = []
        self.read: list[Place] = []
        self.settled = 0

    def poll(self) -> list[Record]:
        """The first half of a turn."""
        records = self.source.poll(0.05 if self.delivery.room() else 0.0)
        for change in self.source.changes():
            self.changes.append(change)
            if isinstance(change, Assigned):
                self.source.resume(change.partitions)
        return records

    def turn(self) -> int:
        """Poll, answer each tick, let what is acknowledged be committed."""
        records = self.poll()
        if records:
            batch = self.delivery.begin()
            self.answer(records)
            self.delivery.finish(batch, {r.partition: r.offset + 1 for r in records})
            self.read += [(r.partition, r.offset) for r in records]
        self.settled += sum(settled.messages for settled in self.delivery.poll())
        return len(records)

    def answer(self, records: list[Record]) -> None:
        """A message for each tick, in the partition that has the tick's number."""
        for r in records:
            self.delivery.send(
                self.topics.predictions, b"%d:%d" % (r.partition, r.offset), r.key, partition=r.partition
            )

    def committed(self) -> int:
        """The sum of the committed offsets of the partitions that are ours."""
        committed = self.source.committed(self.source.assigned)
        return sum(offset for offset, _ in (committed or {}).values())

    def stop(self) -> None:
        """Leave in order."""
        assert self.delivery.flush(10.0)
        self.kill()

    def kill(self) -> None:
        """Leave without committing what is in flight."""
        self.delivery.close(1.0)
        self.source.close()
