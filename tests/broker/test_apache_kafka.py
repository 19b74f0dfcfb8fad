"""The broker that other tests stand on: it keeps its log over restarts, and what is missing is said."""

import threading
from pathlib import Path

import pytest
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import KafkaAdminClient, NewTopic

from tests import apache_kafka


def create_topic(bootstrap_servers: str, name: str, copies: int) -> None:
    admin = KafkaAdminClient(bootstrap_servers=bootstrap_servers)
    admin.create_topics([NewTopic(name, 1, copies)])
    admin.close()


def send(bootstrap_servers: str, topic: str, value: bytes) -> int:
    producer = KafkaProducer(bootstrap_servers=bootstrap_servers, acks="all")
    offset = producer.send(topic, value, partition=0).get(30).offset
    producer.close()
    return offset


def test_restart_and_kill_keep_what_was_acknowledged(kafka_jars: None) -> None:
    with apache_kafka.Cluster() as cluster:
        broker = cluster.brokers[0]
        create_topic(broker.address, "kept", 1)
        assert send(broker.address, "kept", b"first") == 0
        broker.restart()
        assert send(broker.address, "kept", b"second") == 1
        broker.kill()
        assert broker.pid is None
        broker.start()
        consumer = KafkaConsumer(bootstrap_servers=broker.address, group_id=None)
        consumer.assign([partition := TopicPartition("kept", 0)])
        consumer.seek(partition, 0)
        assert [next(consumer).value for _ in range(2)] == [b"first", b"second"]
        consumer.close()
        directory = cluster._directory
    assert not directory.exists()


def test_three_nodes_serve_on_without_one(kafka_jars: None) -> None:
    with apache_kafka.Cluster(nodes=3) as cluster:
        create_topic(cluster.bootstrap_servers, "copied", 3)
        cluster.brokers[0].kill()
        assert send(cluster.bootstrap_servers, "copied", b"still here") == 0


def test_racing_runs_fetch_the_jars_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: list[Path] = []

    def fetch(jars: Path) -> None:
        fetched.append(jars)
        jars.mkdir()

    monkeypatch.setattr(apache_kafka, "CACHE", tmp_path)
    monkeypatch.setattr(apache_kafka, "_fetch", fetch)
    monkeypatch.setattr(apache_kafka.shutil, "which", lambda program: f"/bin/{program}")
    runs = [threading.Thread(target=apache_kafka.find_classpath) for _ in range(4)]
    for run in runs:
        run.start()
    for run in runs:
        run.join()
    assert len(fetched) == 1


@pytest.mark.parametrize("program", ["java", "mvn"])
def test_says_which_program_is_missing(program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apache_kafka, "CACHE", tmp_path)
    monkeypatch.setattr(
        apache_kafka.shutil, "which", lambda name: None if name == program else f"/bin/{name}"
    )
    with pytest.raises(apache_kafka.KafkaMissingError, match=program):
        apache_kafka.find_classpath()
