"""Passwords, TLS and rights on Apache Kafka: the right ones work, wrong ones end it with a sentence that names key and
mend, and no secret is ever shown.
"""

import json
import logging
import socket
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from kafka.admin import ACLOperation, ResourceType

from forecaster.config import Config
from forecaster.errors import BrokerError, ForecasterError, RefusedError
from forecaster.shell import check
from forecaster.shell.kafka import KafkaSpec, TopicsSpec
from forecaster.shell.kafka.admin import Admin
from forecaster.shell.kafka.log import Follower, Log
from forecaster.shell.kafka.sink import Sink
from forecaster.shell.kafka.source import Source
from forecaster.shell.kafka.transaction import ExactlyOnce
from tests import daemons
from tests.apache_kafka import LOOPBACK
from tests.broker.certificates import Authority
from tests.broker.guarded import KEY_PASSWORD, PASSWORD, SCRAM, Guarded, guarded_broker, login
from tests.broker.workers import Worker, answers, fresh_topics, produce, read_all, spec_for, until

WRONG = "b4ttery-stapl3"
SECRETS = (PASSWORD, KEY_PASSWORD, WRONG)

Brings = Callable[[Guarded, Authority], dict[str, Any]]
"""What a client says, from what the broker asks for and an authority that the broker does not know."""
Enter = Callable[..., KafkaSpec]


@pytest.fixture(scope="module")
def guarded(kafka_jars: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    with guarded_broker(tmp_path_factory.mktemp("guarded")) as broker:
        yield broker


@pytest.fixture
def topics(guarded: Guarded) -> TopicsSpec:
    return fresh_topics(guarded.open, partitions=1)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[daemons.Settings], daemons.Worker]]:
    """Starts daemons, none of which outlives its test."""
    started: list[daemons.Worker] = []

    def run(settings: daemons.Settings) -> daemons.Worker:
        started.append(daemons.Worker(tmp_path / "worker", settings))
        return started[-1]

    yield run
    for worker in started:
        worker.child.stop()


@pytest.fixture
def stranger(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "stranger")


@pytest.fixture
def enter(guarded: Guarded, stranger: Authority) -> Enter:
    """Configures a client for a door, with what it brings there."""

    def through(door: str, brings: Brings, **how: Any) -> KafkaSpec:
        return spec(guarded.doors[door], **how, **brings(guarded, stranger))

    return through


def spec(address: str, **how: Any) -> KafkaSpec:
    return spec_for(address, **({"connect_timeout_s": 5} | how))


def problems(kafka: KafkaSpec, topics: TopicsSpec) -> list[str]:
    """What `forecaster check` says; the port for HTTP is none of these tests' business."""
    config = Config.model_validate({"kafka": kafka, "topics": topics, "http": {"enabled": False}})
    return [str(problem) for problem in check.problems(config)]


# ------------------------------------------------------------------ what is right


def revoking(broker: Guarded, *certificates: Path) -> dict[str, str]:
    """A list of revoked certificates."""
    return {"ssl_crlfile": str(broker.authority.revoking(*certificates))}


@pytest.mark.parametrize(
    ("door", "brings", "delivery"),
    [
        ("LOGIN", lambda *_: login("worker", PASSWORD), "at_least_once"),
        ("SECRET", lambda broker, _: broker.tls, "exactly_once"),
        ("ELSEWHERE", lambda broker, _: broker.tls | {"ssl_check_hostname": False}, "at_least_once"),
        ("MUTUAL", lambda broker, _: broker.mutual | revoking(broker), "at_least_once"),
        ("BOTH", lambda broker, _: broker.both("worker"), "exactly_once"),
        ("BOTH", lambda broker, _: broker.both("scrammer", SCRAM), "at_least_once"),
    ],
)
def test_what_the_door_asks_for_opens_everything_and_is_in_no_log(
    guarded: Guarded,
    topics: TopicsSpec,
    enter: Enter,
    door: str,
    brings: Brings,
    delivery: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    kafka = enter(door, brings, delivery=delivery, instance_id="one")
    produce(guarded.open, topics.ticks, [0], 10)
    worker = Worker(kafka, topics, ExactlyOnce) if delivery == "exactly_once" else Worker(kafka, topics)
    until(lambda: worker.settled == 10, worker.turn)
    worker.stop()
    assert len(answers(kafka, topics.predictions)) == 10
    follower = Follower(kafka, {topics.ticks: "beginning"})
    until(lambda: follower.caught_up, lambda: follower.poll(0.1))
    follower.close()
    assert not [secret for secret in SECRETS if secret in caplog.text]


@pytest.mark.process
def test_a_daemon_lives_behind_a_certificate(
    guarded: Guarded, topics: TopicsSpec, start: Callable[[daemons.Settings], daemons.Worker]
) -> None:
    settings = daemons.small(guarded.doors["MUTUAL"], topics.ticks, topics)
    settings["kafka"] |= guarded.mutual | {"delivery": "exactly_once", "instance_id": "one"}
    assert problems(KafkaSpec.model_validate(settings["kafka"]), topics) == []
    worker = start(settings)
    worker.await_that(worker.ready)
    kafka = spec(guarded.open)
    sink = Sink(kafka)
    for i in range(10):
        sink.send(
            topics.ticks, json.dumps({"series": "a", "ts": 1.7e9 + i, "value": float(i)}).encode(), b"a"
        )
    sink.close(10.0)
    until(lambda: len(read_all(kafka, topics.predictions)) == 10)
    assert worker.end() == 0
    assert KEY_PASSWORD not in worker.child.output.read_text()


# ------------------------------------------------------------------ what is wrong


def keys(authority: Authority, name: str) -> dict[str, str]:
    """A certificate and its key."""
    certificate, key = authority.of_client(name)
    return {"ssl_certfile": str(certificate), "ssl_keyfile": str(key)}


def without(settings: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key != name}


@pytest.mark.parametrize(
    ("door", "brings", "said"),
    [
        ("LOGIN", lambda *_: login("worker", WRONG), r"refuses the credentials, .* Invalid username"),
        (
            "BOTH",
            lambda broker, _: broker.both("scrammer", SCRAM) | {"sasl_plain_password": WRONG},
            r"refuses the credentials, .* SCRAM-SHA-512",
        ),
        (
            "SECRET",
            lambda broker, _: broker.both("worker"),
            r"refuses the credentials, see kafka\.sasl_\* and security_protocol",
        ),
        (
            "SECRET",
            lambda broker, stranger: broker.tls | {"ssl_cafile": str(stranger.cafile)},
            r"is not trusted: .* issuer .*; kafka\.ssl_cafile = '.*/stranger/ca.pem' has to hold",
        ),
        (
            "SECRET",
            lambda *_: {"security_protocol": "SSL"},
            r"is not trusted: .*; kafka\.ssl_cafile has to hold",
        ),
        (
            "ELSEWHERE",
            lambda broker, _: broker.tls,
            r"is not trusted: .* not valid for '127\.0\.0\.1'; mend the name in kafka\.bootstrap_servers",
        ),
        (
            "MUTUAL",
            lambda broker, _: broker.tls,
            r"refuses us .*certificate.*; .* set kafka\.ssl_certfile and kafka\.ssl_keyfile",
        ),
        (
            "MUTUAL",
            lambda broker, stranger: broker.tls | keys(stranger, "worker"),
            r"refuses us .*certificate.*; kafka\.ssl_certfile = '.*/worker.pem' has to be signed by",
        ),
        (
            "SECRET",
            lambda broker, _: broker.tls | revoking(broker, broker.own),
            r"is not trusted: certificate revoked; see kafka\.ssl_crlfile",
        ),
        (
            "SECRET",
            lambda broker, _: broker.tls | {"ssl_ciphers": "NONE-SUCH"},
            r"kafka\.ssl_ciphers = 'NONE-SUCH' cannot be used",
        ),
        ("SECRET", lambda *_: {}, r"speaks TLS; mend kafka\.security_protocol = 'PLAINTEXT'"),
        (
            "BOTH",
            lambda *_: login("worker", PASSWORD),
            r"speaks TLS; mend kafka\.security_protocol = 'SASL_PLAINTEXT'",
        ),
        (
            "MUTUAL",
            lambda broker, _: without(broker.mutual, "ssl_password_file") | {"ssl_password": WRONG},
            r"kafka\.ssl_keyfile = .* encrypted; kafka\.ssl_password_file does not hold its password",
        ),
        (
            "MUTUAL",
            lambda broker, _: without(broker.mutual, "ssl_password_file"),
            r"kafka\.ssl_keyfile = .* encrypted; kafka\.ssl_password_file has to name",
        ),
        (
            "MUTUAL",
            lambda broker, stranger: broker.mutual | {"ssl_keyfile": keys(stranger, "other")["ssl_keyfile"]},
            r"kafka\.ssl_keyfile = .*\(key values mismatch\)",
        ),
    ],
)
def test_what_cannot_work_ends_every_client_with_key_and_mend(
    enter: Enter, topics: TopicsSpec, door: str, brings: Brings, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    kafka = enter(door, brings, instance_id="one")
    worker = Worker(kafka, topics)
    transaction = ExactlyOnce(Source(kafka, topics.ticks))
    for attempt in (
        lambda: until(lambda: False, worker.turn),
        lambda: until(lambda: False, transaction.poll),
        lambda: Admin(kafka),
        lambda: Log(kafka).partitions(topics.ticks),
        lambda: Follower(kafka, {topics.control: "end"}).poll(0.1),
        lambda: Sink(kafka).partitions(topics.ticks),
    ):
        with pytest.raises(ForecasterError, match=said) as refused:
            attempt()
        assert not [secret for secret in SECRETS if secret in str(refused.value)]
    worker.kill()
    assert not [secret for secret in SECRETS if secret in caplog.text]
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize(
    ("door", "brings", "said"),
    [
        (
            "OPEN",
            lambda broker, _: broker.tls,
            r"in the middle of TLS; .* mend kafka\.security_protocol = 'SSL'",
        ),
        ("LOGIN", lambda *_: {}, r"if it wants a login, mend kafka\.security_protocol = 'PLAINTEXT'"),
        ("BOTH", lambda broker, _: broker.tls, r"if it wants a login, mend kafka\.security_protocol = 'SSL'"),
    ],
)
def test_what_may_be_a_broker_on_its_way_is_waited_for_and_told(
    enter: Enter, topics: TopicsSpec, door: str, brings: Brings, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    kafka = enter(door, brings, connect_timeout_s=1)
    with pytest.raises(ForecasterError, match=said):
        Admin(kafka)
    source = Source(kafka, topics.ticks)
    assert source.poll(0.1) == []
    source.close()
    assert [record for record in caplog.records if record.name.startswith("forecaster")][
        -1
    ].levelname == "WARNING"
    assert "Traceback" not in caplog.text


def test_a_port_that_is_silent_is_given_up(guarded: Guarded) -> None:
    with socket.create_server((LOOPBACK, 0)) as silent:
        address = f"{LOOPBACK}:{silent.getsockname()[1]}"
        with pytest.raises(BrokerError, match=f"no answer from {address}"):
            Admin(spec(address, connect_timeout_s=1, **guarded.tls))


@pytest.mark.parametrize("read", [False, True])
def test_what_ended_a_connection_is_told_rather_than_that_time_ran_out(read: bool) -> None:
    """The first one is closed without a word, with what was said there read or not, the next one is never answered."""
    held: list[socket.socket] = []
    with socket.create_server((LOOPBACK, 0)) as server:

        def serve() -> None:
            first = server.accept()[0]
            first.recv(1 << 16, 0 if read else socket.MSG_PEEK)
            first.close()
            held.append(server.accept()[0])

        threading.Thread(target=serve, daemon=True).start()
        address = f"{LOOPBACK}:{server.getsockname()[1]}"
        with pytest.raises(
            BrokerError, match=r"if it wants a login, mend kafka\.security_protocol = 'PLAINTEXT'"
        ):
            Admin(spec(address, connect_timeout_s=2))
        assert held
        held[0].close()


@pytest.mark.process
def test_check_and_run_end_at_once_with_the_mend(
    guarded: Guarded,
    topics: TopicsSpec,
    stranger: Authority,
    start: Callable[[daemons.Settings], daemons.Worker],
) -> None:
    settings = daemons.small(guarded.doors["SECRET"], topics.ticks, topics)
    settings["kafka"] |= guarded.tls | {"ssl_cafile": str(stranger.cafile)}
    [problem] = problems(KafkaSpec.model_validate(settings["kafka"]), topics)
    worker = start(settings)
    assert worker.await_end(daemons.DEADLINE_S) == RefusedError.exit_code
    [failed] = worker.events("failed")
    assert failed["error"] == problem
    assert f"kafka.ssl_cafile = {str(stranger.cafile)!r} has to hold" in problem
    assert "Traceback" not in worker.child.output.read_text()


# ------------------------------------------------------------------ what goes wrong under a worker that runs


def send(guarded: Guarded, topic: str, first: int, count: int) -> None:
    """So many ticks of one series."""
    sink = Sink(spec(guarded.open))
    for i in range(first, first + count):
        sink.send(topic, json.dumps({"series": "a", "ts": 1.7e9 + i, "value": float(i)}).encode(), b"a")
    sink.close(10.0)


def answered(guarded: Guarded, topics: TopicsSpec) -> int:
    return len(read_all(spec(guarded.open), topics.predictions))


@pytest.mark.process
@pytest.mark.timeout(600)
def test_a_certificate_of_the_broker_that_ran_out_ends_a_worker_with_the_mend_and_no_tick_is_lost(
    guarded: Guarded, topics: TopicsSpec, start: Callable[[daemons.Settings], daemons.Worker]
) -> None:
    settings = daemons.small(guarded.doors["SECRET"], topics.ticks, topics)
    settings["kafka"] |= guarded.tls
    worker = start(settings)
    worker.await_that(worker.ready)
    send(guarded, topics.ticks, 0, 10)
    worker.await_that(lambda: answered(guarded, topics) == 10)
    yesterday = datetime.now(UTC) - timedelta(days=1)
    with guarded.showing(guarded.authority.shown_by_broker(LOOPBACK, "localhost", until=yesterday)):
        assert worker.await_end(60.0) == RefusedError.exit_code
        [failed] = worker.events("failed")
        assert "is not trusted: certificate has expired; mend the broker's certificate" in failed["error"]
        assert "Traceback" not in worker.child.output.read_text()
        send(guarded, topics.ticks, 10, 10)
        again = start(settings)
        assert again.await_end(daemons.DEADLINE_S) == RefusedError.exit_code, "until it is mended"
    heir = start(settings)
    heir.await_that(lambda: answered(guarded, topics) == 20)
    assert heir.end() == 0


@pytest.mark.process
@pytest.mark.timeout(600)
def test_certificates_are_renewed_under_a_worker_that_runs(
    guarded: Guarded,
    topics: TopicsSpec,
    stranger: Authority,
    tmp_path: Path,
    start: Callable[[daemons.Settings], daemons.Worker],
) -> None:
    """The broker's comes from another authority, and so does, half at a time, the client's."""
    files = {name: tmp_path / f"{name}.pem" for name in ("ssl_cafile", "ssl_certfile", "ssl_keyfile")}
    certificate, key = guarded.authority.of_client("worker", folder=tmp_path)
    for name, path in (
        ("ssl_cafile", guarded.authority.cafile),
        ("ssl_certfile", certificate),
        ("ssl_keyfile", key),
    ):
        files[name].write_bytes(path.read_bytes())
    settings = daemons.small(guarded.doors["MUTUAL"], topics.ticks, topics)
    settings["kafka"] |= {"security_protocol": "SSL"} | {name: str(path) for name, path in files.items()}
    worker = start(settings)
    worker.await_that(worker.ready)
    with files["ssl_cafile"].open("ab") as both:
        both.write(stranger.cafile.read_bytes())
    certificate, key = guarded.authority.of_client("worker", folder=tmp_path)
    files["ssl_certfile"].write_bytes(certificate.read_bytes())
    with guarded.showing(stranger.shown_by_broker(LOOPBACK, "localhost")):
        send(guarded, topics.ticks, 0, 10)
        worker.await_that(lambda: answered(guarded, topics) == 10)
        assert (
            "key values mismatch): it has to hold the key of kafka.ssl_certfile"
            in worker.child.output.read_text()
        )
        files["ssl_keyfile"].write_bytes(key.read_bytes())
    send(guarded, topics.ticks, 10, 10)
    worker.await_that(lambda: answered(guarded, topics) == 20)
    assert worker.end() == 0


# ------------------------------------------------------------------ rights

READ, WRITE = ACLOperation.READ, ACLOperation.WRITE


def allow_all(guarded: Guarded, kafka: KafkaSpec, topics: TopicsSpec) -> None:
    """Everything that a worker needs, but for writing predictions."""
    for name in (topics.ticks, topics.control, topics.models, topics.state):
        guarded.allow("guest", ResourceType.TOPIC, name, READ)
    for name in (topics.dead_letters, topics.control, topics.models, topics.state):
        guarded.allow("guest", ResourceType.TOPIC, name, WRITE)
    guarded.allow("guest", ResourceType.GROUP, kafka.group_id, READ)


@pytest.fixture
def guest(guarded: Guarded) -> KafkaSpec:
    """A user whose rights are those that a test gives him; the group is his alone."""
    return spec(guarded.doors["LOGIN"], **login("guest", PASSWORD))


def test_check_names_each_right_that_is_missing(
    guarded: Guarded, topics: TopicsSpec, guest: KafkaSpec
) -> None:
    exactly_once = guest.model_copy(update={"delivery": "exactly_once", "transactional_id": guest.group_id})
    for name in (topics.ticks, topics.predictions, topics.models, topics.state):
        guarded.allow("guest", ResourceType.TOPIC, name, ACLOperation.DESCRIBE)
    guarded.allow("guest", ResourceType.TOPIC, topics.control, READ)
    until(lambda: not any(topics.control in p and "no such" in p for p in problems(exactly_once, topics)))
    assert problems(exactly_once, topics) == [
        (
            f"topics.dead_letters = {topics.dead_letters!r}: there is no such topic, or no right to Write; create it"
            " (topics.create = true does), or allow it"
        ),
        f"topics.ticks = {topics.ticks!r}: no right to Read; allow it on the topic",
        f"topics.predictions = {topics.predictions!r}: no right to Write; allow it on the topic",
        f"topics.control = {topics.control!r}: no right to Write; allow it on the topic",
        f"topics.models = {topics.models!r}: no right to Read and Write; allow it on the topic",
        f"topics.state = {topics.state!r}: no right to Read and Write; allow it on the topic",
        f"kafka.group_id = {guest.group_id!r}: no right to Read; allow it on the group",
        (
            f'kafka.delivery = "exactly_once": no right to Write as {guest.group_id!r} (kafka.transactional_id);'
            " allow it on the transactional id"
        ),
    ]
    allow_all(guarded, guest, topics)
    guarded.allow("guest", ResourceType.TOPIC, topics.predictions, WRITE)
    guarded.allow("guest", ResourceType.TRANSACTIONAL_ID, guest.group_id, WRITE)
    until(lambda: not problems(exactly_once, topics))


@pytest.mark.parametrize("delivery", ["at_least_once", "exactly_once"])
def test_who_may_not_write_predictions_ends_and_no_tick_is_lost(
    guarded: Guarded, topics: TopicsSpec, guest: KafkaSpec, delivery: str
) -> None:
    kafka = guest.model_copy(update={"delivery": delivery, "transactional_id": guest.group_id})
    make_delivery = {"make_delivery": ExactlyOnce} if delivery == "exactly_once" else {}
    allow_all(guarded, kafka, topics)
    guarded.allow("guest", ResourceType.TRANSACTIONAL_ID, guest.group_id, WRITE)
    guarded.allow("guest", ResourceType.TOPIC, topics.predictions, ACLOperation.DESCRIBE)
    until(lambda: len(problems(kafka, topics)) == 1)
    produce(guarded.open, topics.ticks, [0], 10)
    worker = Worker(kafka, topics, **make_delivery)
    with pytest.raises(RefusedError, match=f"denies a right .* `forecaster check`: .*{topics.predictions}"):
        until(lambda: worker.settled > 0, worker.turn)
    worker.kill()
    guarded.allow("guest", ResourceType.TOPIC, topics.predictions, WRITE)
    until(lambda: not any("no right" in problem for problem in problems(kafka, topics)))
    worker = Worker(kafka, topics, **make_delivery)
    until(lambda: worker.settled == 10, worker.turn)
    worker.stop()
    assert set(answers(spec(guarded.open), topics.predictions).values()) == {1}


@pytest.mark.parametrize("what", ["the ticks", "the group"])
def test_who_may_not_read_ends_and_is_told_what(
    guarded: Guarded, topics: TopicsSpec, guest: KafkaSpec, what: str
) -> None:
    if what == "the ticks":
        guarded.allow("guest", ResourceType.TOPIC, topics.ticks, ACLOperation.DESCRIBE)
        guarded.allow("guest", ResourceType.GROUP, guest.group_id, READ)
    else:
        guarded.allow("guest", ResourceType.TOPIC, topics.ticks, READ)
    produce(guarded.open, topics.ticks, [0], 10)
    until(lambda: not any(topics.ticks in p and "no such" in p for p in problems(guest, topics)))
    worker = Worker(guest, topics)
    name = topics.ticks if what == "the ticks" else guest.group_id
    with pytest.raises(RefusedError, match=f"denies a right .*: .*{name}"):
        until(lambda: bool(worker.read), worker.turn)
    worker.kill()
