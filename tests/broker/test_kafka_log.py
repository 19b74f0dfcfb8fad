"""Slices of topics, followers, topics made and checked: on Apache Kafka."""

import time
import uuid
from collections.abc import Iterator

import pytest
from kafka import KafkaAdminClient, KafkaProducer, TopicPartition

from forecaster.errors import BrokerError
from forecaster.shell.kafka import KafkaSpec, Record, TopicsSpec
from forecaster.shell.kafka.admin import Admin
from forecaster.shell.kafka.log import Follower, Log, Start
from forecaster.shell.kafka.sink import Sink
from tests.broker.workers import fresh_topics, made_by_hand, produce, spec_for, until


@pytest.fixture
def topics(kafka: str) -> TopicsSpec:
    return fresh_topics(kafka)


@pytest.fixture
def spec(kafka: str) -> KafkaSpec:
    return spec_for(kafka)


@pytest.fixture
def log(spec: KafkaSpec) -> Iterator[Log]:
    log = Log(spec)
    yield log
    log.close()


def places(batches: Iterator[list[Record]]) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for batch in batches:
        for record in batch:
            found.setdefault(record.partition, []).append(record.offset)
    return found


def test_a_slice_has_exactly_its_records(kafka: str, topics: TopicsSpec, log: Log) -> None:
    produce(kafka, topics.ticks, range(4), 200)
    ranges = {0: (10, 20), 1: (0, 200), 2: (199, 200), 3: (5, 5)}
    found = places(log.read(topics.ticks, ranges, 30.0))
    assert found == {0: list(range(10, 20)), 1: list(range(200)), 2: [199]}


def test_records_carry_what_was_written(topics: TopicsSpec, spec: KafkaSpec, log: Log) -> None:
    sink = Sink(spec)
    sink.send(
        topics.ticks, b"value", b"key", headers=[("a", b"1")], partition=2, timestamp_ms=1_700_000_000_123
    )
    sink.send(topics.ticks, None, b"gone", partition=2, timestamp_ms=5)
    assert sink.flush(10.0)
    sink.close(5.0)
    (first, second) = [r for batch in log.read(topics.ticks, {2: (0, 2)}, 30.0) for r in batch]
    assert first._replace(headers=()) == Record(topics.ticks, 2, 0, 1_700_000_000_123, b"key", b"value")
    assert list(first.headers) == [("a", b"1")]
    assert (second.key, second.value) == (b"gone", None)


def test_a_partition_that_the_topic_lacks_is_left_to_the_key(
    topics: TopicsSpec, spec: KafkaSpec, log: Log
) -> None:
    sink = Sink(spec)
    sink.send(topics.models, b"value", b"key", partition=7)
    assert sink.flush(10.0)
    sink.close(5.0)
    assert log.end_offsets(topics.models, [0]) == {0: 1}


def test_offsets_by_time_end_at_the_end(topics: TopicsSpec, spec: KafkaSpec, log: Log) -> None:
    sink = Sink(spec)
    for second in range(10):
        sink.send(topics.ticks, b"value", b"key", partition=0, timestamp_ms=(1_700_000_000 + second) * 1000)
    assert sink.flush(10.0)
    sink.close(5.0)
    assert log.offsets_for_times(topics.ticks, {0: 1_700_000_003.5, 1: 0.0}) == {0: 4, 1: 0}
    assert log.offsets_for_times(topics.ticks, {0: 1_800_000_000.0}) == {0: 10}


def test_aborted_records_are_skipped_and_the_end_is_reached(kafka: str, topics: TopicsSpec, log: Log) -> None:
    producer = KafkaProducer(bootstrap_servers=kafka, transactional_id=topics.ticks)
    producer.init_transactions()
    for number in range(6):
        producer.begin_transaction()
        producer.send(topics.ticks, b"%d" % number, b"k", partition=0)
        producer.flush()
        _ = producer.commit_transaction() if number % 2 == 0 else producer.abort_transaction()
    producer.close()
    end = log.end_offsets(topics.ticks, [0])[0]
    assert end == 12  # each transaction has a record and a marker
    values = [r.value for batch in log.read(topics.ticks, {0: (0, end)}, 30.0) for r in batch]
    assert values == [b"0", b"2", b"4"]


def test_what_retention_has_removed_is_skipped(kafka: str, topics: TopicsSpec, log: Log) -> None:
    produce(kafka, topics.ticks, [0], 40)
    admin = KafkaAdminClient(bootstrap_servers=kafka)
    admin.delete_records({TopicPartition(topics.ticks, 0): 30})
    admin.close()
    assert log.beginning_offsets(topics.ticks, [0]) == {0: 30}
    assert places(log.read(topics.ticks, {0: (10, 40)}, 30.0)) == {0: list(range(30, 40))}


def test_a_read_that_does_not_get_on_says_where_it_is(topics: TopicsSpec, log: Log) -> None:
    with pytest.raises(
        BrokerError, match=rf"could not be read any further in 1 s: {topics.ticks}/0 at 0 of 5"
    ):
        list(log.read(topics.ticks, {0: (0, 5)}, 1.0))


def test_nobody_there_is_said() -> None:
    log = Log(KafkaSpec(bootstrap_servers="127.0.0.1:1", connect_timeout_s=1))
    with pytest.raises(BrokerError, match=r"no answer from 127\.0\.0\.1:1"):
        log.partitions("ticks")


@pytest.mark.parametrize(("start", "expected"), [("beginning", 20), ("end", 10), (4e9, 10)])
def test_a_follower_begins_where_it_is_told(
    kafka: str, topics: TopicsSpec, spec: KafkaSpec, start: Start, expected: int
) -> None:
    produce(kafka, topics.ticks, [1], 10)
    follower = Follower(spec, {topics.ticks: start}, interval_s=0.0)
    found: list[Record] = []
    until(lambda: follower.caught_up, lambda: found.extend(follower.poll()))
    produce(kafka, topics.ticks, [1], 10)
    until(lambda: len(found) >= expected, lambda: found.extend(follower.poll(0.1)))
    assert [record.offset for record in found] == list(range(20 - expected, 20))
    follower.close()


def test_a_follower_waits_for_a_topic_and_asks_only_now_and_then(kafka: str, spec: KafkaSpec) -> None:
    clock = [0.0]
    follower = Follower(spec, {"not-yet-there": "beginning"}, now=lambda: clock[0])
    assert follower.poll() == []
    assert not follower.caught_up
    begin_s = time.monotonic()
    for _ in range(1_000):
        assert follower.poll() == []
    assert time.monotonic() - begin_s < 1.0
    follower.close()


def test_missing_topics_are_created_once(kafka: str) -> None:
    topics = fresh_topics(kafka, partitions=3)
    admin = Admin(KafkaSpec(bootstrap_servers=kafka))
    assert admin.create_missing(topics) == []
    assert admin.describe([topics.ticks, topics.predictions, topics.state, topics.models, "other"]) == {
        topics.ticks: 3,
        topics.predictions: 3,
        topics.state: 3,
        topics.models: 1,
    }
    assert admin.check(topics) == []
    admin.close()


def test_what_cannot_work_is_listed_with_the_mend(kafka: str) -> None:
    topics = fresh_topics(kafka, partitions=2)
    wrong = topics.model_copy(
        update={"dead_letters": "nowhere", "state": topics.models, "models": topics.ticks}
    )
    admin = Admin(KafkaSpec(bootstrap_servers=kafka))
    assert admin.check(wrong) == [
        (
            "topics.dead_letters = 'nowhere': there is no such topic, or no right to Write; create it (topics.create"
            " = true does), or allow it"
        ),
        f"topics.state = {topics.models!r} has 1 partitions; the ticks topic has 2",
        f"topics.models = {topics.ticks!r} has several partitions; it has to have one",
    ]
    admin.close()


def test_settings_with_which_records_are_lost_or_refused_are_listed_with_the_mend(
    kafka: str,
) -> None:
    compacted = {"cleanup.policy": "compact"}
    both = {"cleanup.policy": "compact,delete"}
    topics = made_by_hand(
        kafka,
        {
            "ticks": compacted,
            "predictions": compacted | {"max.message.bytes": "700000"},
            "dead_letters": both,
            "control": compacted,
            "state": both,
        },
    )
    admin = Admin(KafkaSpec(bootstrap_servers=kafka, max_message_bytes=800_000))
    newest = "only the newest of each key is kept, and what has no key is refused; set it to delete"
    vanishes = "what is older than its retention vanishes; set it to compact alone"
    assert admin.unfit(topics) == [
        f"topics.ticks = {topics.ticks!r}: cleanup.policy = 'compact': {newest}",
        (
            f"topics.predictions = {topics.predictions!r}: max.message.bytes = 700000: less than"
            " kafka.max_message_bytes = 800000; raise the one, or lower the other"
        ),
        f"topics.dead_letters = {topics.dead_letters!r}: cleanup.policy = 'compact,delete': {newest}",
        f"topics.models = {topics.models!r}: cleanup.policy = 'delete': {vanishes}",
        f"topics.state = {topics.state!r}: cleanup.policy = 'compact,delete': {vanishes}",
    ]
    admin.close()


def test_topics_that_are_created_have_the_settings_that_they_need(kafka: str) -> None:
    """Also where messages may be larger than a broker takes by default."""
    spec = KafkaSpec(bootstrap_servers=kafka, max_message_bytes=4 << 20)
    topics = fresh_topics(kafka).model_copy(update={"models": f"models-{uuid.uuid4().hex[:8]}"})
    admin = Admin(spec)
    assert admin.create_missing(topics) == [topics.models]
    assert {problem.partition(" = ")[0] for problem in admin.unfit(topics)} == {
        f"topics.{role}" for role in ("predictions", "dead_letters", "control", "state")
    }
    admin.close()
    usual = Admin(KafkaSpec(bootstrap_servers=kafka))
    assert usual.unfit(topics) == []
    usual.close()


def test_an_admin_client_says_that_nobody_is_there() -> None:
    with pytest.raises(BrokerError, match="no answer"):
        Admin(KafkaSpec(bootstrap_servers="127.0.0.1:1", connect_timeout_s=1))
