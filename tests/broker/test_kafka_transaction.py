"""Exactly once on Apache Kafka: what readers of committed records see over aborts, ghosts and restarts."""

import time

import pytest
from kafka import KafkaProducer, TopicPartition
from kafka.errors import KafkaTimeoutError
from kafka.structs import ConsumerGroupMetadata

from forecaster.errors import ConfigError, FencedError
from forecaster.shell.kafka import KafkaSpec, Lost, Record, Revoked
from forecaster.shell.kafka.log import Log
from forecaster.shell.kafka.source import Source
from forecaster.shell.kafka.transaction import ExactlyOnce, is_member
from tests.apache_kafka import Cluster
from tests.broker.workers import Worker, answers, fresh_topics, produce, spec_for, until

EVERY_TICK = {(p, offset): 1 for p in range(4) for offset in range(100)}


def exactly_once(kafka: str, **changes: object) -> KafkaSpec:
    spec = spec_for(kafka, delivery="exactly_once", transactional_id="one", **changes)
    return spec.model_copy(update={"transactional_id": f"{spec.group_id}-{spec.transactional_id}"})


def settle_down(kafka: str, spec: KafkaSpec, topic: str) -> None:
    """No transaction is left open: the last stable offset reaches the end of each partition."""
    log = Log(spec)
    try:
        partitions = log.partitions(topic)
        ends = _high_watermarks(kafka, topic, partitions)
        until(lambda: log.end_offsets(topic, partitions) == ends, lambda: time.sleep(0.05))
    finally:
        log.close()


def _high_watermarks(kafka: str, topic: str, partitions: list[int]) -> dict[int, int]:
    from kafka import KafkaConsumer

    consumer = KafkaConsumer(bootstrap_servers=kafka)
    ends = consumer.end_offsets([TopicPartition(topic, p) for p in partitions])
    consumer.close()
    return {partition.partition: end for partition, end in ends.items()}


def test_every_tick_is_answered_once_and_no_transaction_stays_open(kafka: str) -> None:
    topics, spec = fresh_topics(kafka), exactly_once(kafka)
    produce(kafka, topics.ticks, range(4), 100)
    worker = Worker(spec, topics, ExactlyOnce)
    assert not worker.delivery.able
    until(lambda: worker.settled == 400, worker.turn)
    assert worker.committed() == 400
    assert worker.delivery.able
    worker.stop()
    assert answers(spec, topics.predictions) == EVERY_TICK
    settle_down(kafka, spec, topics.predictions)


def test_a_transaction_timeout_that_the_broker_refuses_ends_it_with_the_key(kafka: str) -> None:
    topics, spec = fresh_topics(kafka), exactly_once(kafka, transaction_timeout_s=901)
    delivery = ExactlyOnce(Source(spec, topics.ticks))
    with pytest.raises(ConfigError, match=r"kafka\.transaction_timeout_s .* transaction\.max\.timeout\.ms"):
        until(lambda: False, delivery.room)
    assert not delivery.able
    delivery.close(1.0)


class Faulty(Worker):
    """Stops being careful at some batches: the transaction is given up in the middle of it."""

    def __init__(self, spec: KafkaSpec, topics: object, faults: list[int]) -> None:
        super().__init__(spec, topics, ExactlyOnce)  # type: ignore[arg-type]
        self.faults = faults
        self.batches = 0

    def answer(self, records: list[Record]) -> None:
        super().answer(records)
        self.batches += 1
        if self.batches in self.faults:
            assert isinstance(self.delivery, ExactlyOnce)
            self.delivery._sink._fail(KafkaTimeoutError("injected"), "predictions", 0, 0, None)  # type: ignore[union-attr]


def test_after_any_doubt_the_work_is_done_again_and_seen_once(kafka: str) -> None:
    topics, spec = fresh_topics(kafka), exactly_once(kafka)
    produce(kafka, topics.ticks, range(4), 100)
    worker = Faulty(spec, topics, faults=[1, 3, 4])
    until(lambda: worker.committed() == 400, worker.turn)
    worker.stop()
    assert worker.delivery.resets == 3
    assert sum(isinstance(change, Lost) for change in worker.changes) == 3
    assert answers(spec, topics.predictions) == EVERY_TICK
    settle_down(kafka, spec, topics.predictions)


def test_a_worker_that_dies_in_a_transaction_is_followed_by_one_that_repeats_it_unseen(kafka: str) -> None:
    topics, spec = fresh_topics(kafka), exactly_once(kafka)
    produce(kafka, topics.ticks, range(4), 100)
    doomed = Worker(spec, topics, ExactlyOnce)
    until(lambda: doomed.settled > 0, doomed.turn)
    records: list[Record] = []
    until(lambda: bool(records), lambda: records.extend(doomed.poll()))
    doomed.delivery.begin()
    doomed.answer(records)
    assert isinstance(doomed.delivery, ExactlyOnce)
    assert doomed.delivery._sink is not None
    assert doomed.delivery._sink.flush(5.0)  # on the log, but not committed
    doomed.kill()

    heir = Worker(spec, topics, ExactlyOnce)
    until(lambda: heir.committed() == 400, heir.turn)
    heir.stop()
    assert answers(spec, topics.predictions) == EVERY_TICK
    settle_down(kafka, spec, topics.predictions)


def test_of_two_workers_with_one_identity_the_older_stops(kafka: str) -> None:
    topics, spec = fresh_topics(kafka), exactly_once(kafka)
    produce(kafka, topics.ticks, range(4), 100)
    older = Worker(spec, topics, ExactlyOnce)
    until(lambda: older.settled > 0, older.turn)
    newer = Worker(spec, topics, ExactlyOnce)
    until(newer.delivery.room)

    with pytest.raises(FencedError, match="transactional id") as fenced:
        until(lambda: False, older.turn)
    assert fenced.value.exit_code == 5
    assert older.delivery.poll() == []  # on its way out it takes nothing back
    older.kill()
    until(lambda: newer.committed() == 400, newer.turn)
    newer.stop()
    assert answers(spec, topics.predictions) == EVERY_TICK


def test_a_ghost_cannot_commit_what_was_taken_from_it(kafka: str) -> None:
    """A worker sleeps in the middle of a batch until another one has its partitions; then it wakes up."""
    topics, spec = fresh_topics(kafka), exactly_once(kafka, max_poll_interval_s=7)
    produce(kafka, topics.ticks, range(4), 100)
    ghost = Worker(spec, topics, ExactlyOnce)
    records: list[Record] = []
    until(lambda: bool(records), lambda: records.extend(ghost.poll()))
    batch = ghost.delivery.begin()

    heir = Worker(spec.model_copy(update={"transactional_id": f"{spec.group_id}-two"}), topics, ExactlyOnce)
    until(lambda: heir.committed() == 400, heir.turn)
    ghost.answer(records)
    ghost.delivery.finish(batch, {r.partition: r.offset + 1 for r in records})
    assert ghost.delivery.poll() == []
    assert ghost.delivery.resets == 1
    until(lambda: len(ghost.source.assigned) == 2, ghost.turn, heir.turn)
    ghost.stop()
    heir.stop()
    assert answers(spec, topics.predictions) == EVERY_TICK


def test_nobody_may_not_commit() -> None:
    stable = ConsumerGroupMetadata("g", 3, "me", None, "<stable>")
    assert is_member(stable)
    assert not is_member(None)
    assert not is_member(stable._replace(generation_id=-1))
    assert not is_member(stable._replace(member_id=""))
    assert not is_member(stable._replace(state="<rebalancing>"))


def test_partitions_move_between_workers_and_each_tick_is_answered_once(kafka: str) -> None:
    topics, spec = fresh_topics(kafka), exactly_once(kafka)
    other = spec.model_copy(update={"transactional_id": f"{spec.group_id}-two"})
    first, second = Worker(spec, topics, ExactlyOnce), Worker(other, topics, ExactlyOnce)
    until(lambda: len(first.source.assigned) == 4, first.turn)
    produce(kafka, topics.ticks, range(4), 50)
    until(lambda: first.settled >= 100, first.turn)
    until(lambda: len(second.source.assigned) == 2, first.turn, second.turn)
    assert any(isinstance(change, Revoked) for change in first.changes)
    until(lambda: first.committed() + second.committed() == 200, first.turn, second.turn)
    second.stop()
    produce(kafka, topics.ticks, range(4), 50)
    until(lambda: first.committed() == 400, first.turn)
    first.stop()
    assert answers(spec, topics.predictions) == EVERY_TICK


def test_an_offset_without_messages_is_committed_too(kafka: str) -> None:
    topics, spec = fresh_topics(kafka, partitions=1), exactly_once(kafka)
    produce(kafka, topics.ticks, [0], 10)
    source = Source(spec, topics.ticks)
    delivery = ExactlyOnce(source)
    until(lambda: source.position(0) is not None and delivery.room(), lambda: source.poll(0.05))
    delivery.finish(delivery.begin(), {0: 7})
    assert len(delivery.poll()) == 1
    assert source.committed([0]) == {0: (7, "")}
    delivery.close(1.0)
    source.close()


@pytest.mark.slow
def test_a_transaction_that_the_broker_ended_for_being_too_old_is_done_again(kafka: str) -> None:
    topics, spec = fresh_topics(kafka), exactly_once(kafka, request_timeout_s=1, transaction_timeout_s=1.5)
    produce(kafka, topics.ticks, range(4), 100)
    worker = Worker(spec, topics, ExactlyOnce)
    records: list[Record] = []
    until(lambda: bool(records), lambda: records.extend(worker.poll()))
    batch = worker.delivery.begin()
    worker.answer(records)
    log = Log(spec)
    partitions = log.partitions(topics.predictions)
    until(lambda: any(log.end_offsets(topics.predictions, partitions).values()), lambda: time.sleep(0.1))
    log.close()
    worker.delivery.finish(batch, {r.partition: r.offset + 1 for r in records})
    assert worker.delivery.resets == 1

    until(lambda: worker.committed() == 400, worker.turn)
    worker.stop()
    assert answers(spec, topics.predictions) == EVERY_TICK


@pytest.mark.slow
def test_a_broker_that_is_bounced_leaves_every_tick_answered_once(kafka_jars: None) -> None:
    del kafka_jars
    with Cluster() as cluster:
        servers = cluster.bootstrap_servers
        topics, spec = fresh_topics(servers), exactly_once(servers)
        produce(servers, topics.ticks, range(4), 500)
        worker = Worker(spec, topics, ExactlyOnce)
        until(lambda: worker.settled >= 200, worker.turn)
        cluster.brokers[0].kill()
        until(lambda: not worker.delivery.room() or not worker.source.connected, worker.turn)
        cluster.brokers[0].start()
        until(lambda: worker.committed() == 2000, worker.turn)
        worker.stop()
        assert answers(spec, topics.predictions) == {(p, o): 1 for p in range(4) for o in range(500)}
        settle_down(servers, spec, topics.predictions)


def test_a_transaction_that_a_producer_leaves_open_is_no_reason_to_give_up(kafka: str) -> None:
    topics = fresh_topics(kafka, partitions=1)
    source = Source(spec_for(kafka, stall_s=4), topics.ticks)
    producer = KafkaProducer(bootstrap_servers=kafka, transactional_id=topics.ticks)
    producer.init_transactions()
    producer.begin_transaction()
    for _ in range(7):
        producer.send(topics.ticks, b"a tick", partition=0)
    producer.flush(10)
    until(lambda: bool(source.assigned), lambda: source.poll(0.05))
    source.resume({0})
    until(lambda: source.lag() == {0: 7} and source.readable_lag() == {0: 0}, lambda: source.poll(0.05))
    assert source.rebuilds == {}

    producer.commit_transaction()
    came: list[Record] = []
    until(lambda: len(came) == 7, lambda: came.extend(source.poll(0.05)))
    until(lambda: source.readable_lag() == source.lag(), lambda: source.poll(0.05))
    producer.close()
    source.close()
