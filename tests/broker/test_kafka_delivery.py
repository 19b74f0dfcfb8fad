"""Ticks in, messages out, commits: on Apache Kafka, with workers that come and go."""

import threading
import time

import pytest
from kafka.record.default_records import DefaultRecordBatch

from forecaster.errors import BrokerError, ConfigError, DataError, FencedError
from forecaster.shell.kafka import Assigned, Lost, Moved, MoveReason, Record, Revoked
from forecaster.shell.kafka.delivery import AtLeastOnce
from forecaster.shell.kafka.sink import Sink
from forecaster.shell.kafka.source import Source
from forecaster.shell.kafka.transaction import ExactlyOnce
from tests.apache_kafka import Cluster
from tests.broker.workers import (
    Worker,
    answers,
    fresh_topics,
    made_by_hand,
    produce,
    read_all,
    spec_for,
    until,
)


def test_a_worker_answers_every_tick_once_and_commits_it(kafka: str) -> None:
    topics, spec = fresh_topics(kafka), spec_for(kafka)
    produce(kafka, topics.ticks, range(4), 100)
    worker = Worker(spec, topics)
    until(lambda: worker.settled == 400, worker.turn)
    worker.stop()

    assert answers(spec, topics.predictions) == {(p, offset): 1 for p in range(4) for offset in range(100)}
    again = Worker(spec, topics)
    until(lambda: len(again.source.positions()) == 4, again.turn)
    assert again.source.positions() == dict.fromkeys(range(4), 100)
    assert not [change for change in again.changes if isinstance(change, Moved)]
    again.stop()


def test_each_partition_keeps_its_order(kafka: str) -> None:
    topics, spec = fresh_topics(kafka), spec_for(kafka)
    produce(kafka, topics.ticks, range(4), 100)
    worker = Worker(spec, topics)
    until(lambda: worker.settled == 400, worker.turn)
    worker.stop()

    for partition in range(4):
        assert [offset for p, offset in worker.read if p == partition] == list(range(100))


def test_a_new_partition_gives_nothing_until_it_is_resumed(kafka: str) -> None:
    topics, spec = fresh_topics(kafka), spec_for(kafka)
    produce(kafka, topics.ticks, range(4), 10)
    source = Source(spec, topics.ticks)
    given: list[int] = []
    until(lambda: len(source.positions()) == 4, lambda: given.extend(r.partition for r in source.poll(0.05)))
    for _ in range(10):
        given.extend(r.partition for r in source.poll(0.05))
    assert given == []

    source.resume({2})
    until(lambda: len(given) == 10, lambda: given.extend(r.partition for r in source.poll(0.05)))
    assert set(given) == {2}
    source.close()


def test_joining_and_leaving_repeats_at_most_one_batch(kafka: str) -> None:
    topics, spec = fresh_topics(kafka), spec_for(kafka, commit_interval_s=30)
    batch = spec.max_poll_records
    first, second = Worker(spec, topics), Worker(spec, topics)
    until(lambda: len(first.source.assigned) == 4, first.turn)
    produce(kafka, topics.ticks, range(4), 200)
    until(lambda: len(first.read) >= 200, first.turn)

    until(lambda: len(second.source.assigned) == 2, first.turn, second.turn)
    assert len(first.source.assigned) == 2
    assert not first.source.assigned & second.source.assigned
    assert [c for c in first.changes if isinstance(c, Revoked)] == [Revoked(second.source.assigned)]
    assert not any(isinstance(change, Lost) for change in first.changes)
    until(lambda: len(set(first.read) | set(second.read)) == 800, first.turn, second.turn)
    joined = answers(spec, topics.predictions)
    assert len(joined) == 800
    assert sum(joined.values()) <= 800 + batch

    produce(kafka, topics.ticks, range(4), 100)
    until(lambda: second.turn() > 0, first.turn)
    second.stop()
    until(lambda: len(set(first.read) | set(second.read)) == 1200, first.turn)
    first.stop()
    left = answers(spec, topics.predictions)
    assert len(left) == 1200
    assert sum(left.values()) <= sum(joined.values()) + 400 + batch


def test_joins_that_end_between_two_polls_are_used_not_begun_again(kafka: str) -> None:
    source = Source(spec_for(kafka), fresh_topics(kafka).ticks)

    def busy_turn() -> None:
        source.poll(0.001)
        coordinator = source._consumer._coordinator if source._consumer is not None else None
        join = coordinator._join_task if coordinator is not None else None
        until(lambda: join is None or join.is_done, lambda: time.sleep(0.001))

    until(lambda: len(source.assigned) == 4, busy_turn)
    for _ in range(20):
        busy_turn()
    member = source.group_metadata()
    assert member is not None
    assert member.state == "<stable>"
    assert member.generation_id <= 3
    source.close()


def test_of_more_workers_than_partitions_one_is_told_that_there_is_nothing_and_takes_over(kafka: str) -> None:
    topics, spec = fresh_topics(kafka, partitions=1), spec_for(kafka, session_timeout_s=3)
    first, second = Worker(spec, topics), Worker(spec, topics)
    until(lambda: bool(first.source.assigned), first.turn)
    until(lambda: bool(second.changes), first.turn, second.turn)
    assert second.changes == [Assigned(frozenset())]
    assert first.source.assigned == {0}
    first.stop()
    until(lambda: bool(second.source.assigned), second.turn)
    second.stop()


def test_a_session_timeout_that_the_broker_refuses_ends_it_with_the_key(kafka: str) -> None:
    topics = fresh_topics(kafka, partitions=1)
    too_long = Source(spec_for(kafka, session_timeout_s=1801), topics.ticks)
    with pytest.raises(ConfigError, match=r"kafka\.session_timeout_s .* group\.max\.session\.timeout\.ms"):
        until(lambda: False, lambda: too_long.poll(0.05))
    too_long.close()


def test_a_worker_that_dies_loses_nothing(kafka: str) -> None:
    topics, spec = fresh_topics(kafka), spec_for(kafka, commit_interval_s=30)
    produce(kafka, topics.ticks, range(4), 100)
    doomed = Worker(spec, topics)
    until(lambda: len(doomed.read) > 0, doomed.turn)
    doomed.kill()

    heir = Worker(spec, topics)
    until(lambda: heir.settled == 400, heir.turn)
    heir.stop()
    assert set(answers(spec, topics.predictions)) == {(p, offset) for p in range(4) for offset in range(100)}


@pytest.mark.parametrize(
    ("start", "expected"), [("earliest", 0), ("latest", 40), ("time", 20)], ids=["earliest", "latest", "time"]
)
def test_where_to_start_without_a_commit(kafka: str, start: str, expected: int) -> None:
    topics = fresh_topics(kafka, partitions=1)
    produce(kafka, topics.ticks, [0], 20)
    between_s = time.time() + 0.002
    until(lambda: time.time() > between_s + 0.002)
    produce(kafka, topics.ticks, [0], 20)
    settings = {"start": start} | ({"start_time": f"{between_s:.3f}"} if start == "time" else {})
    spec = spec_for(kafka, **settings)

    source = Source(spec, topics.ticks)
    until(lambda: source.position(0) is not None, lambda: source.poll(0.05))
    assert source.position(0) == expected
    assert [c for c in source.changes() if isinstance(c, Moved)] == [
        Moved(0, None, expected, MoveReason.START)
    ]
    source.close()

    produce(kafka, topics.ticks, [0], 5)  # "latest" is decided once: these may not be skipped by a restart
    again = Source(spec, topics.ticks)
    until(lambda: again.position(0) is not None, lambda: again.poll(0.05))
    assert again.position(0) == expected
    again.close()


@pytest.mark.parametrize(("policy", "expected"), [("earliest", 30), ("latest", 40)])
def test_an_offset_that_retention_has_removed(kafka: str, policy: str, expected: int) -> None:
    topics, spec = fresh_topics(kafka, partitions=1), spec_for(kafka, out_of_range=policy)
    _read_then_truncate(kafka, topics.ticks, spec)
    source = Source(spec, topics.ticks)
    moves: list[Moved] = []

    def step() -> None:
        source.poll(0.05)
        for change in source.changes():
            if isinstance(change, Assigned):
                source.resume(change.partitions)
            if isinstance(change, Moved):
                moves.append(change)

    until(lambda: bool(moves), step)
    assert moves == [Moved(0, 10, expected, MoveReason.OUT_OF_RANGE)]
    assert source.position(0) == expected
    source.close()


def test_a_worker_may_stop_when_its_offset_is_gone(kafka: str) -> None:
    topics, spec = fresh_topics(kafka, partitions=1), spec_for(kafka, out_of_range="stop")
    _read_then_truncate(kafka, topics.ticks, spec)
    source = Source(spec, topics.ticks)

    def step() -> None:
        source.poll(0.05)
        source.resume(source.assigned)

    with pytest.raises(BrokerError, match=r"10, first is 30.*out_of_range"):
        until(lambda: False, step)
    source.close()


def _read_then_truncate(kafka: str, topic: str, spec: object) -> None:
    """Forty ticks of which ten are committed and thirty are deleted."""
    from kafka import KafkaAdminClient, TopicPartition

    produce(kafka, topic, [0], 40)
    source = Source(spec, topic)  # type: ignore[arg-type]
    until(lambda: source.position(0) is not None, lambda: source.poll(0.05))
    assert source.commit({0: 10})
    source.close()
    admin = KafkaAdminClient(bootstrap_servers=kafka)
    admin.delete_records({TopicPartition(topic, 0): 30})
    admin.close()


def test_a_batch_that_cannot_be_decoded_leads_to_a_new_client_not_to_a_hang(
    kafka: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    topics, spec = fresh_topics(kafka, partitions=1), spec_for(kafka)
    worker = Worker(spec, topics)
    until(lambda: len(worker.source.assigned) == 1, worker.turn)
    honest, lies = DefaultRecordBatch.validate_crc, [1]

    def validate_crc(batch: DefaultRecordBatch) -> bool:
        return honest(batch) and not (lies and lies.pop())

    monkeypatch.setattr(DefaultRecordBatch, "validate_crc", validate_crc)
    produce(kafka, topics.ticks, [0], 100)
    until(lambda: worker.settled >= 100, worker.turn)
    worker.stop()
    assert worker.source.rebuilds == {"error": 1}
    assert set(answers(spec, topics.predictions)) == {(0, offset) for offset in range(100)}


def damage(monkeypatch: pytest.MonkeyPatch, offset: int) -> None:
    """Every client finds the batch with this offset damaged, however often it is read."""
    honest = DefaultRecordBatch.validate_crc

    def validate_crc(batch: DefaultRecordBatch) -> bool:
        return honest(batch) and not batch.base_offset <= offset <= batch.last_offset

    monkeypatch.setattr(DefaultRecordBatch, "validate_crc", validate_crc)


def test_a_batch_that_stays_unreadable_is_passed_over_and_all_others_are_answered(
    kafka: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    topics, spec = fresh_topics(kafka, partitions=2), spec_for(kafka)
    for _ in range(3):
        produce(kafka, topics.ticks, [0], 30)
    produce(kafka, topics.ticks, [1], 30)
    damage(monkeypatch, offset=45)
    worker = Worker(spec, topics)
    until(lambda: {(0, 89), (1, 29)} <= set(worker.read), worker.turn)
    worker.stop()
    again = read_all(spec, topics.ticks)
    monkeypatch.undo()

    (moved,) = [c for c in worker.changes if isinstance(c, Moved) and c.reason is MoveReason.UNREADABLE]
    assert moved.from_offset is not None
    assert 30 <= moved.from_offset <= 45 < moved.to_offset <= 60
    lost = {(0, offset) for offset in range(moved.from_offset, moved.to_offset)}
    assert {(r.partition, r.offset) for r in again} == set(worker.read), (
        "whoever reads again passes over the same"
    )
    assert set(answers(spec, topics.predictions)) == {(0, o) for o in range(90)} - lost | {
        (1, o) for o in range(30)
    }


def test_a_worker_may_stop_at_what_it_cannot_read(kafka: str, monkeypatch: pytest.MonkeyPatch) -> None:
    topics, spec = fresh_topics(kafka, partitions=1), spec_for(kafka, unreadable="stop")
    produce(kafka, topics.ticks, [0], 30)
    damage(monkeypatch, offset=0)
    worker = Worker(spec, topics)
    with pytest.raises(DataError, match=r"offset 0 cannot be decoded; reading could go on at \d+"):
        until(lambda: False, worker.turn)
    worker.kill()


def test_taking_work_back_reads_it_again(kafka: str) -> None:
    topics, spec = fresh_topics(kafka), spec_for(kafka, commit_interval_s=30)
    produce(kafka, topics.ticks, range(4), 50)
    worker = Worker(spec, topics)
    until(lambda: worker.settled == 200, worker.turn)
    committed = worker.source.committed(range(4)) or {}
    worker.source.rewind("test")
    assert worker.source.changes() == [Lost(frozenset(range(4))), Assigned(frozenset(range(4)))]
    assert worker.source.positions() == {p: offset for p, (offset, _) in committed.items()}

    worker.source.resume(range(4))
    again = 200 - sum(worker.source.positions().values())
    assert again > 0
    until(lambda: worker.settled == 200 + again, worker.turn)
    worker.stop()
    found = answers(spec, topics.predictions)
    assert set(found) == {(p, offset) for p in range(4) for offset in range(50)}
    assert sum(found.values()) == 200 + again


class Verbose(Worker):
    """Answers with a thousand bytes."""

    def answer(self, records: list[Record]) -> None:
        for r in records:
            self.delivery.send(self.topics.predictions, bytes(1000), r.key, partition=r.partition)


@pytest.mark.parametrize("delivery", ["at_least_once", "exactly_once"])
def test_a_message_that_its_topic_does_not_take_ends_it_with_the_mend(kafka: str, delivery: str) -> None:
    topics = made_by_hand(kafka, {"predictions": {"max.message.bytes": "500"}})
    produce(kafka, topics.ticks, [0], 1)
    spec = spec_for(kafka, delivery=delivery, transactional_id=topics.ticks)
    worker = Verbose(spec, topics, ExactlyOnce if delivery == "exactly_once" else AtLeastOnce)
    about = (
        rf"MessageSizeTooLargeError; a message of 1002 bytes to {topics.predictions}/0, key b's0'; "
        rf"raise max\.message\.bytes of topic '{topics.predictions}', .* or have fewer model\.levels"
    )
    with pytest.raises(BrokerError, match=about):
        until(lambda: False, worker.turn)
    worker.kill()


def test_a_letter_without_a_key_that_a_compacted_topic_refuses_is_told_with_the_mend(kafka: str) -> None:
    topic = made_by_hand(kafka, {"dead_letters": {"cleanup.policy": "compact"}}).dead_letters
    sink = Sink(spec_for(kafka))
    sink.send(topic, b"not json", None)
    assert not sink.flush(10.0)
    assert f"a message of 8 bytes to {topic}/0, key None; a compacted topic" in sink.trouble
    assert f"set cleanup.policy of topic {topic!r} to delete" in sink.trouble
    sink.close(1.0)


def test_of_two_workers_with_one_static_identity_the_older_stops(kafka: str) -> None:
    topics, spec = fresh_topics(kafka), spec_for(kafka, instance_id="worker-1")
    older, newer = Worker(spec, topics), Worker(spec, topics)
    until(lambda: len(older.source.assigned) == 4, older.turn)
    until(lambda: len(newer.source.assigned) == 4, newer.turn)
    with pytest.raises(FencedError, match="instance_id"):
        until(lambda: False, older.turn)
    older.kill()
    newer.stop()


def test_a_static_member_that_comes_back_moves_no_partition(kafka: str) -> None:
    topics, spec = fresh_topics(kafka), spec_for(kafka, session_timeout_s=20)
    mine = spec.model_copy(update={"instance_id": "worker-1"})
    stays = Worker(spec.model_copy(update={"instance_id": "worker-2"}), topics)
    leaves = Worker(mine, topics)
    until(lambda: len(stays.source.assigned) == len(leaves.source.assigned) == 2, stays.turn, leaves.turn)
    before, owned = len(stays.changes), leaves.source.assigned
    leaves.stop()
    back = Worker(mine, topics)
    until(lambda: len(back.source.assigned) == 2, back.turn, stays.turn)
    assert back.source.assigned == owned
    assert stays.changes[before:] == []
    back.stop()
    stays.stop()


def test_no_broker_at_start_is_waited_for_and_no_thread_stays(kafka_jars: None) -> None:
    del kafka_jars
    before = set(threading.enumerate())
    with Cluster() as cluster:
        topics = fresh_topics(cluster.bootstrap_servers, partitions=1)
        cluster.stop()
        worker = Worker(spec_for(cluster.bootstrap_servers), topics)
        for _ in range(3):
            worker.turn()
        assert not worker.source.connected
        cluster.start()
        produce(cluster.bootstrap_servers, topics.ticks, [0], 10)
        until(lambda: worker.settled == 10, worker.turn)
        assert worker.source.connected
        worker.stop()
    assert set(threading.enumerate()) == before


@pytest.mark.slow
def test_a_broker_that_is_away_for_20_s_costs_neither_ticks_nor_memory(kafka_jars: None) -> None:
    del kafka_jars
    with Cluster() as cluster:
        servers = cluster.bootstrap_servers
        topics, spec = fresh_topics(servers), spec_for(servers, outstanding_messages=100)
        produce(servers, topics.ticks, range(4), 500)
        worker = Worker(spec, topics)
        until(lambda: worker.settled >= 200, worker.turn)
        cluster.stop()
        back_at_s, most = time.monotonic() + 20.0, 0
        while time.monotonic() < back_at_s:
            worker.turn()
            most = max(most, worker.delivery.outstanding)
        cluster.start()
        until(lambda: len(set(worker.read)) == 2000 and worker.delivery.flush(5.0), worker.turn)
        worker.stop()
        assert most <= spec.outstanding_messages + spec.max_poll_records
        assert set(answers(spec, topics.predictions)) == {(p, o) for p in range(4) for o in range(500)}
