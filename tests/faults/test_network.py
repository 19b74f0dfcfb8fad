"""What networks and brokers do: they are away, slow, silent, or lose just the one thing that matters."""

import json
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import pytest
from kafka import KafkaAdminClient
from kafka.admin import MemberToRemove, NewTopic
from kafka.errors import (
    BrokerResponseError,
    ConcurrentTransactionsError,
    CoordinatorLoadInProgressError,
    InvalidProducerEpochError,
    KafkaError,
    NotCoordinatorError,
    OutOfOrderSequenceNumberError,
    UnknownProducerIdError,
)

from forecaster.demo.figures import Scrape
from tests.daemons import Worker
from tests.faults import oracle
from tests.faults.conftest import BOTH, MakeRig
from tests.faults.proxy import ADD_OFFSETS, END_TXN, HEARTBEAT, OFFSET_COMMIT, PRODUCE
from tests.faults.rig import STEPS, Rig, Stage
from tests.faults.test_input import tick
from tests.faults.watch import await_that
from tests.folds import START_S

DELIVERY_S = 30.0
NAMES = Path(__file__).parent / "names"


def in_sync(servers: str) -> bool:
    """Whether every partition has all its replicas again."""
    admin = KafkaAdminClient(bootstrap_servers=servers.split(","))
    try:
        return all(
            len(partition["isr_nodes"]) == len(partition["replica_nodes"])
            for topic in admin.describe_topics()
            for partition in topic["partitions"]
        )
    finally:
        admin.close()


def throw_out(servers: str, group: str) -> None:
    """Have the coordinator forget all members of the group, which are not told."""
    admin = KafkaAdminClient(bootstrap_servers=servers.split(","))
    try:
        members = admin.describe_groups([group])[group]["members"]
        admin.remove_group_members(group, [MemberToRemove(member["member_id"]) for member in members])
    finally:
        admin.close()


def answered_with(rig: Rig, kind: int, error: type[BrokerResponseError]) -> None:
    """Once, of the worker's requests of this kind."""
    lost = rig.proxy.lost[kind]
    rig.proxy.answer_with(kind, error.errno)
    await_that(lambda: rig.proxy.lost[kind] > lost, f"an answer with {error.__name__}", DELIVERY_S)
    rig.tried += 1


def lag(worker: Worker) -> float:
    """Ticks that it knows of and has not read."""
    return Scrape(worker.get("/metrics") or "", 0.0).total("forecaster_consumer_lag_messages")


@pytest.mark.fault("T7")
def test_the_broker_is_killed_and_stopped(make_rig: MakeRig) -> None:
    with make_rig("exactly_once") as rig:
        rig.load()
        rig.start()
        rig.progress()
        rig.cluster.brokers[0].kill()
        rig.cluster.brokers[0].start()
        rig.progress()
        rig.cluster.brokers[0].restart()
        rig.progress()
        rig.tried += 2
        rig.verify()


@pytest.mark.catalogue
@pytest.mark.fault("T7", "T8")
@BOTH
def test_of_three_brokers_one_after_the_other_is_killed(
    make_rig: MakeRig, kafka_jars: None, delivery: str
) -> None:
    with ExitStack() as stack, make_rig(delivery, Stage.enter(stack, nodes=3)) as rig:
        rig.load()
        rig.start()
        for broker in rig.cluster.brokers:
            rig.progress()
            broker.kill()
            rig.progress()  # while it is away
            broker.start()
            await_that(lambda: in_sync(rig.servers), "all replicas in sync", 60.0)
            rig.tried += 1
        rig.verify()


def leader(rig: Rig) -> tuple[int, list[int]]:
    """Who leads the first partition of the ticks, and who is in sync with it; -1 while nobody says so."""
    try:
        admin = KafkaAdminClient(bootstrap_servers=rig.servers.split(","), request_timeout_ms=3_000)
    except KafkaError:
        return -1, []
    try:
        (topic,) = [found for found in admin.describe_topics() if found["name"] == rig.topics.ticks]
        (first,) = [found for found in topic["partitions"] if found["partition_index"] == 0]
        return first["leader_id"], first["isr_nodes"]
    except KafkaError:
        return -1, []
    finally:
        admin.close()


def anew(rig: Rig) -> dict[int, float]:
    """The answers to the series of this name: offset of the tick, and its value."""
    told = [json.loads(record.value) for record in oracle.consume(rig.servers, rig.topics.predictions)]
    return {body["source"]["offset"]: body["last"] for body in told if body["series"] == "anew"}


@pytest.mark.catalogue
@pytest.mark.fault("T23")
@BOTH
def test_a_replica_that_was_behind_becomes_the_leader(
    make_rig: MakeRig, kafka_jars: None, delivery: str
) -> None:
    """Ticks that were answered are lost; their offsets are those of other ticks later, and these are answered too."""
    with ExitStack() as stack, make_rig(delivery, Stage.enter(stack, nodes=3)) as rig:
        unclean = {"unclean.leader.election.enable": "true", "min.insync.replicas": "1"}
        admin = KafkaAdminClient(bootstrap_servers=rig.servers.split(","))
        admin.delete_topics([rig.topics.ticks])
        await_that(lambda: rig.topics.ticks not in admin.list_topics(), "no topic", 30.0)
        pair = {partition: [1, 2] for partition in range(2)}
        admin.create_topics([NewTopic(rig.topics.ticks, -1, -1, pair, unclean)])
        admin.close()
        first, second, _ = rig.cluster.brokers
        rig.load()
        worker = rig.start()
        rig.progress()
        second.kill()
        await_that(lambda: leader(rig) == (1, [1]), "one replica", 60.0)
        rig.progress()
        rig.calm()
        await_that(rig.caught_up, "everything answered", 60.0)
        answered = rig.committed()[0]
        first.kill()
        second.start()
        await_that(lambda: leader(rig)[0] == 2, "another leader", 60.0)
        end = oracle.ends(rig.servers, rig.topics.ticks)[0]
        assert end < answered
        rig.tried += 1
        worker.await_that(lambda: worker.events("position_moved"), 60.0)
        sent = rig.send(*[tick("anew", START_S + 1e6 + n, float(n)) for n in range(40)])
        assert sent[0] == end
        expected = {offset: float(n) for n, offset in enumerate(sent)}
        await_that(lambda: anew(rig) == expected, "what came anew is answered", 60.0)
        moved = [event for event in worker.events("position_moved") if event["partition"] == 0]
        assert moved[-1]["reason"] in {"truncated", "out_of_range"}
        assert moved[-1]["to_offset"] <= end
        twice = Counter(one.place for one in rig.reader.seen[0] if one.place[1] < end)
        assert max(twice.values()) == 1, "what is read again is late"
        assert worker.end() == 0


@pytest.mark.fault("T8")
@pytest.mark.parametrize(
    ("delivery", "call"),
    [
        pytest.param("at_least_once", OFFSET_COMMIT, id="commit", marks=pytest.mark.catalogue),
        pytest.param("exactly_once", END_TXN, id="end"),
    ],
)
def test_what_was_committed_is_not_said(make_rig: MakeRig, delivery: str, call: int) -> None:
    """The broker does it; the worker never hears so."""
    with make_rig(delivery) as rig:
        rig.load()
        rig.start()
        rig.progress()
        rig.proxy.lose_answers(call)
        await_that(lambda: rig.proxy.lost[call] >= 2, "two answers lost", DELIVERY_S)
        rig.tried += rig.proxy.lost[call]
        rig.heal()
        rig.progress()
        rig.verify()


@pytest.mark.catalogue
@pytest.mark.fault("T9")
@BOTH
def test_the_broker_is_silent(make_rig: MakeRig, delivery: str) -> None:
    with make_rig(delivery) as rig:
        rig.load()
        worker = rig.start()
        rig.progress()
        rig.proxy.black_hole()
        worker.await_that(lambda: not worker.ready())
        rig.heal()
        rig.progress()
        rig.verify()


@pytest.mark.catalogue
@pytest.mark.fault("T9")
@BOTH
def test_connections_are_cut_again_and_again(make_rig: MakeRig, delivery: str) -> None:
    with make_rig(delivery) as rig:
        rig.load()
        rig.start()
        for fault in [rig.proxy.reset, rig.proxy.half_close] * 5:
            rig.progress()
            fault()
            rig.tried += 1
        rig.progress()
        rig.verify()


@pytest.mark.catalogue
@pytest.mark.fault("T18")
@BOTH
def test_names_are_resolved_slowly_wrongly_or_not_at_all(
    make_rig: MakeRig, tmp_path: Path, delivery: str
) -> None:
    """Every lookup of a worker; its connections are cut, so that it needs them."""
    told = tmp_path / "resolver"
    with make_rig(delivery) as rig:
        rig.load()
        worker = rig.start(prefix=["env", f"PYTHONPATH={NAMES}", f"RESOLVER={told}"])
        rig.progress()
        told.write_text("slowly")
        rig.proxy.reset()
        rig.tried += 1
        rig.progress()
        for how in ("wrongly", "never"):
            told.write_text(how)
            rig.proxy.reset()
            rig.tried += 1
            worker.await_that(lambda: not worker.ready())
            told.unlink()
            rig.progress()
        rig.verify()


THIN = {
    "request_timeout_s": 10,
    "delivery_timeout_s": 20,
    "transaction_timeout_s": 30,
    "max_poll_interval_s": 60,
    "session_timeout_s": 15,
    "stall_s": 60,
    "max_poll_records": 100,
    "fetch_bytes": 65_536,
    "partition_fetch_bytes": 32_768,
    "batch_bytes": 32_768,
}
"""What docs/operations.md asks for on such a line: each request is through well within its time."""


@pytest.mark.catalogue
@pytest.mark.fault("T10")
@BOTH
def test_the_way_to_the_broker_is_long_and_thin(make_rig: MakeRig, delivery: str) -> None:
    with make_rig(delivery, settings={"kafka": THIN}) as rig:
        rig.load()
        worker = rig.start()
        rig.progress()
        rig.proxy.delay_s, rig.proxy.bytes_per_s = 0.5, 50_000.0
        rig.progress(5 * STEPS)  # slowly, but on
        worker.await_that(lambda: lag(worker) > 0)
        rig.heal()
        rig.verify()


@pytest.mark.fault("T11")
def test_messages_of_a_transaction_get_lost_and_it_does_not_commit(make_rig: MakeRig) -> None:
    """Only what is produced is lost, until the delivery timeout; offsets and the commit itself would pass."""
    with make_rig("exactly_once") as rig:
        rig.load()
        worker = rig.start()
        rig.progress()
        rig.proxy.lose_requests(PRODUCE)
        worker.await_that(lambda: "transaction in doubt" in worker.child.output.read_text(), DELIVERY_S)
        rig.check()
        rig.heal()
        rig.progress()
        rig.verify()


@pytest.mark.fault("T13")
@BOTH
def test_the_group_forgets_a_worker_that_goes_on(make_rig: MakeRig, delivery: str) -> None:
    """It is thrown out with work in flight, and commits under a generation that is over."""
    with make_rig(delivery) as rig:
        rig.load()
        worker = rig.start()
        for _ in range(3):
            rig.progress()
            assigned = len(worker.events("partitions_assigned"))
            throw_out(rig.servers, rig.group)
            worker.await_that(lambda n=assigned: len(worker.events("partitions_assigned")) > n)
            rig.tried += 1
        rig.progress()
        rig.verify()


@pytest.mark.catalogue
@pytest.mark.fault("T12")
def test_the_broker_claims_to_have_lost_the_thread_of_a_producer(make_rig: MakeRig) -> None:
    """It begins anew; where its epoch is said to be over, another worker has its identity, so it ends."""
    with make_rig("exactly_once") as rig:
        rig.load()
        worker = rig.start()
        for error in (OutOfOrderSequenceNumberError, UnknownProducerIdError):
            rig.progress()
            answered_with(rig, PRODUCE, error)
        rig.progress()
        answered_with(rig, PRODUCE, InvalidProducerEpochError)
        assert worker.await_end() == 5
        rig.start()
        rig.progress()
        rig.verify()


@pytest.mark.catalogue
@pytest.mark.fault("T14")
@pytest.mark.parametrize("kind", [HEARTBEAT, ADD_OFFSETS, END_TXN])
def test_a_coordinator_is_loading_has_moved_or_is_busy(make_rig: MakeRig, kind: int) -> None:
    errors = [CoordinatorLoadInProgressError, NotCoordinatorError]
    with make_rig("exactly_once") as rig:
        rig.load()
        rig.start()
        for error in [*errors, *([ConcurrentTransactionsError] if kind != HEARTBEAT else [])]:
            rig.progress()
            answered_with(rig, kind, error)
        rig.progress()
        rig.verify()
