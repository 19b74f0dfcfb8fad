"""What comes on the ticks topic: nonsense, extremes, damage, holes, and the work of others."""

import json

import pytest
from kafka import KafkaAdminClient, KafkaProducer, TopicPartition
from kafka.admin import NewPartitions, NewTopic

from tests.faults import oracle
from tests.faults.conftest import BOTH, MakeRig
from tests.faults.watch import await_that
from tests.folds import START_S


def tick(series: object = "p", ts: object = START_S, value: object = 1.0, **more: object) -> bytes:
    return json.dumps({"series": series, "ts": ts, "value": value, **more}).encode()


POISON = [
    None,
    b"",
    b"null",
    b"[]",
    b'"text"',
    b"\xff\xfe\x00",
    b'{"series": "p"}',
    b'{"series": "p", "ts": 1, "value": 1e400}',
    b'{"series": "p", "ts": NaN, "value": 1}',
    b'{"series": "p", "ts": 1, "value": ' + b"9" * 5000 + b"}",
    b"[" * 30_000,
    b'{"series": "' + b"x" * 900_000 + b'"}',
    tick(value=True),
    tick(value=None),
    tick(value="1.5"),
    tick(value=[1]),
    tick(series=""),
    tick(series=None),
    tick(ts="soon"),
    tick(ts=START_S + 10 * 366 * 86_400),
    b'{"series": "p", "time": 1, "wert": 1}',
]
EXTREMES = [0.0, -0.0, 5e-324, 1e-300, -1e17, 9e17, 1.0, 1.0 + 2**-52, *[7.0] * 30, 1e-9, 1e9]


@pytest.mark.fault("T25", "T28", "T29", "T31")
@BOTH
def test_poison_is_set_aside_and_extremes_are_answered(make_rig: MakeRig, delivery: str) -> None:
    with make_rig(delivery) as rig:
        rig.load()
        rig.start()
        poison = rig.random.sample(POISON, len(POISON))
        rig.send(*poison)
        extremes = [tick("extreme", START_S + 10 * n, value) for n, value in enumerate(EXTREMES)]
        unknown = tick("more", START_S, 2.0, more={"unit": "degrees"}, previous=[1, 2])
        ancient = tick("extreme", START_S - 10 * 366 * 86_400, 1.0)
        rig.send(*extremes, ancient, unknown, partition=1)
        rig.tried += len(poison) + len(extremes) + 2
        rig.progress()
        rig.verify()
        assert len(list(oracle.consume(rig.servers, rig.topics.dead_letters))) >= len(poison)


@pytest.mark.fault("T26")
def test_a_batch_that_arrives_damaged_each_time_is_passed_over_alone(make_rig: MakeRig) -> None:
    with make_rig("exactly_once") as rig:
        rig.proxy.damage(b"damaged-in-transit")
        worker = rig.start()
        rig.load(20.0)
        rig.progress(10)
        rig.unreadable = {(1, offset) for offset in rig.send(tick("damaged-in-transit"), partition=1)}
        worker.await_that(lambda: worker.events("position_moved"))
        rig.progress()
        rig.verify()
        moved = [event for event in worker.events("position_moved") if event["reason"] == "unreadable"]
        skipped = {(e["partition"], o) for e in moved for o in range(e["from_offset"], e["to_offset"])}
        assert skipped == rig.unreadable


@pytest.mark.fault("T22")
@BOTH
def test_retention_has_removed_what_was_to_be_read_next(make_rig: MakeRig, delivery: str) -> None:
    with make_rig(delivery) as rig:
        rig.load(300.0)
        worker = rig.start()
        rig.progress()
        assert worker.end() == 0
        behind = rig.committed()
        rig.send(*[tick("s00", START_S + 1e6 + n) for n in range(20)])
        first = oracle.ends(rig.servers, rig.topics.ticks)[0] - 5
        admin = KafkaAdminClient(bootstrap_servers=rig.servers)
        admin.delete_records({TopicPartition(rig.topics.ticks, 0): first})
        admin.close()
        worker = rig.start()
        worker.await_that(lambda: worker.events("position_moved"))
        (moved,) = worker.events("position_moved")
        assert moved["reason"] == "out_of_range"
        assert (moved["partition"], moved["from_offset"], moved["to_offset"]) == (0, behind[0], first)
        rig.progress()
        rig.verify()


@pytest.mark.catalogue
@pytest.mark.fault("T21")
@BOTH
def test_the_topic_gets_more_partitions(make_rig: MakeRig, delivery: str) -> None:
    with make_rig(delivery) as rig:
        rig.load()
        worker = rig.start()
        rig.progress()
        admin = KafkaAdminClient(bootstrap_servers=rig.servers)
        admin.create_partitions({rig.topics.ticks: NewPartitions(3)})
        admin.close()
        rig.send(*[tick("new", START_S + n, float(n)) for n in range(20)], partition=2)
        worker.await_that(lambda: any(2 in e["partitions"] for e in worker.events("partitions_rebuilt")))
        rig.progress()
        rig.verify()


@pytest.mark.catalogue
@pytest.mark.fault("T33")
@BOTH
def test_one_series_has_nearly_all_ticks(make_rig: MakeRig, delivery: str) -> None:
    with make_rig(delivery, settings={"kafka": {"max_poll_records": 500}}) as rig:
        rig.load()
        rig.start()
        producer = KafkaProducer(bootstrap_servers=rig.servers, linger_ms=50)
        for n in range(5000):
            producer.send(rig.topics.ticks, tick("hot", START_S + n, float(n % 7)), partition=0)
        producer.close()
        rig.tried += 1
        rig.progress(6000)
        rig.verify()


@pytest.mark.catalogue
@pytest.mark.fault("T20")
@BOTH
def test_the_topic_is_deleted_and_made_again(make_rig: MakeRig, delivery: str) -> None:
    """Answers to both topics name the same offsets, so no oracle: what comes in the new one is answered."""
    with make_rig(delivery) as rig:
        rig.load()
        worker = rig.start()
        rig.progress()
        rig.calm()
        admin = KafkaAdminClient(bootstrap_servers=rig.servers)
        admin.delete_topics([rig.topics.ticks])
        await_that(lambda: rig.topics.ticks not in admin.list_topics(), "no topic", 30.0)
        admin.create_topics([NewTopic(rig.topics.ticks, 2, 1)])
        admin.close()
        rig.tried += 1
        rig.load()
        rig.progress()
        assert worker.end() == 0


@pytest.mark.fault("T24")
def test_ticks_come_in_transactions_of_which_some_are_aborted(make_rig: MakeRig) -> None:
    with make_rig("exactly_once") as rig:
        rig.start()
        producer = KafkaProducer(bootstrap_servers=rig.servers, transactional_id=f"{rig.group}-upstream")
        producer.init_transactions()
        for number in range(20):
            producer.begin_transaction()
            for n in range(10):
                at_s = START_S + 100 * number + n
                producer.send(rig.topics.ticks, tick(f"s{n % 3}", at_s, float(n)), partition=n % 2)
            producer.flush(30)
            if rig.random.random() < 0.5:
                producer.abort_transaction()
                rig.tried += 1
            else:
                producer.commit_transaction()
        producer.close()
        rig.verify()


@pytest.mark.fault("T44")
def test_nothing_is_compiled_once_it_serves_whatever_the_size_of_batches(make_rig: MakeRig) -> None:
    with make_rig("at_least_once", settings={"kafka": {"max_poll_records": 2000}}) as rig:
        worker = rig.start()
        for size in [1, 2, 3, 30, 500, 1, 2500, 7]:
            rig.burst(size)
            worker.await_that(rig.caught_up)
            rig.tried += 1
        compiled = worker.compiles("serving")
        rig.verify()
        assert compiled == 0
