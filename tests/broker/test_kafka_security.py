"""Credentials on Apache Kafka: the right ones work, wrong ones end it with a sentence, none are ever shown."""

import logging
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from forecaster.errors import BrokerError
from forecaster.shell.kafka import KafkaSpec, TopicsSpec
from forecaster.shell.kafka.admin import Admin
from forecaster.shell.kafka.log import Follower, Log
from forecaster.shell.kafka.sink import Sink
from tests.apache_kafka import LOOPBACK, Cluster
from tests.broker.workers import Worker, answers, fresh_topics, produce, spec_for, until

PASSWORD = "c0rrect-h0rse"
WRONG = "b4ttery-stapl3"
LOGIN = "org.apache.kafka.common.security.plain.PlainLoginModule"


@pytest.fixture(scope="module")
def guarded(kafka_jars: None) -> Iterator[tuple[str, str]]:
    """A broker with an open door, and one that asks for a password."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        door = f"{LOOPBACK}:{probe.getsockname()[1]}"
    cluster = Cluster()
    properties: Path = cluster._directory / "node-1.properties"
    lines = dict(line.split("=", 1) for line in properties.read_text().splitlines())
    lines["listeners"] += f",SASL_PLAINTEXT://{door}"
    lines["advertised.listeners"] += f",SASL_PLAINTEXT://{door}"
    lines["listener.security.protocol.map"] += ",SASL_PLAINTEXT:SASL_PLAINTEXT"
    lines["sasl.enabled.mechanisms"] = "PLAIN"
    lines["listener.name.sasl_plaintext.plain.sasl.jaas.config"] = (
        f'{LOGIN} required user_worker="{PASSWORD}";'
    )
    properties.write_text("".join(f"{name}={value}\n" for name, value in lines.items()))
    with cluster:
        yield cluster.bootstrap_servers, door


def login(door: str, password: str) -> KafkaSpec:
    return spec_for(
        door,
        security_protocol="SASL_PLAINTEXT",
        sasl_mechanism="PLAIN",
        sasl_plain_username="worker",
        sasl_plain_password=password,
        connect_timeout_s=5,
    )


@pytest.fixture
def topics(guarded: tuple[str, str]) -> TopicsSpec:
    return fresh_topics(guarded[0], partitions=1)


def test_the_right_password_opens_everything_and_is_in_no_log(
    guarded: tuple[str, str], topics: TopicsSpec, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    produce(guarded[0], topics.ticks, [0], 10)
    spec = login(guarded[1], PASSWORD)
    worker = Worker(spec, topics)
    until(lambda: worker.settled == 10, worker.turn)
    worker.stop()
    assert len(answers(spec, topics.predictions)) == 10
    assert PASSWORD not in caplog.text


def test_a_wrong_password_ends_it_with_a_sentence(
    guarded: tuple[str, str], topics: TopicsSpec, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    spec = login(guarded[1], WRONG)
    worker = Worker(spec, topics)
    with pytest.raises(BrokerError, match="refuses the credentials"):
        until(lambda: False, worker.turn)
    worker.kill()
    for attempt in (
        lambda: Admin(spec),
        lambda: Log(spec).partitions(topics.ticks),
        lambda: Follower(spec, {topics.control: "end"}).poll(0.1),
        lambda: Sink(spec).partitions(topics.ticks),
    ):
        with pytest.raises(BrokerError, match="refuses the credentials") as refused:
            attempt()
        assert WRONG not in str(refused.value)
    assert WRONG not in caplog.text
