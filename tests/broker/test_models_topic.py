"""The models and control topics on Apache Kafka: publish, serve, follow, roll back, prune; ask and answer."""

from pathlib import Path

import numpy as np
import pytest

from forecaster.errors import BrokerError, DataError
from forecaster.shell.control import Answer, Command, ControlFollower, Controls, Request
from forecaster.shell.kafka import KafkaSpec, TopicsSpec
from forecaster.shell.kafka.sink import Sink
from forecaster.shell.models import Arrived, Models, ModelsFollower, NowServing, Refusal, Refused, Stored
from forecaster.shell.models.codec import encode, store
from forecaster.shell.models.registry import Event
from tests.broker.workers import fresh_topics, spec_for, until


def model(version: str, size: int = 8, parent: str = "") -> Stored:
    tensors = {"w": np.linspace(0, 1, size, dtype=np.float32)}
    return store(version, tensors, {"cell": "gru"}, {"version": version, "parent": parent})


@pytest.fixture
def topics(kafka: str) -> TopicsSpec:
    return fresh_topics(kafka, partitions=1)


@pytest.fixture
def spec(kafka: str) -> KafkaSpec:
    return spec_for(kafka)


@pytest.fixture
def models(spec: KafkaSpec, topics: TopicsSpec) -> Models:
    return Models(spec, topics.models)


def follow(follower: ModelsFollower, enough: int) -> list[Event]:
    events: list[Event] = []
    until(lambda: follower.caught_up and len(events) >= enough, lambda: events.extend(follower.poll(0.05)))
    return events


def test_a_large_model_goes_out_and_comes_back(models: Models) -> None:
    stored = model("v1", size=500_000)
    models.publish(stored)
    assert models.fetch() is None, "it does not serve by being there"
    assert models.fetch("v1") == stored
    models.serve("v1", "promoted")
    assert models.fetch() == stored


def test_versions_are_listed_with_the_one_that_serves(models: Models) -> None:
    for version in ("v1", "v2", "v3"):
        models.publish(model(version))
    models.serve("v2", "promoted")
    assert [(entry.stored.version, entry.serving) for entry in models.versions()] == [
        ("v1", False),
        ("v2", True),
        ("v3", False),
    ]


def test_rolling_back_serves_what_did_before(models: Models) -> None:
    for version in ("v1", "v2"):
        models.publish(model(version))
        models.serve(version, "promoted")
    rolled = models.roll_back()
    assert (rolled.version, rolled.previous, rolled.reason) == ("v1", "v2", "rollback")
    assert models.roll_back(version="v2").version == "v2"


def test_what_serves_already_is_not_what_served_before(models: Models) -> None:
    for version in ("v1", "v2", "v2"):
        models.publish(model(version))
        models.serve(version, "promoted")
    again = models.serve("v2", "once more")
    assert (again.version, again.previous, again.reason) == ("v2", "v1", "promoted")
    assert models.roll_back().version == "v1"


def test_what_is_not_there_cannot_serve(models: Models) -> None:
    with pytest.raises(DataError, match="no version served before"):
        models.roll_back()
    models.publish(model("v1"))
    with pytest.raises(DataError, match=r"'v9' is not on topic .* there are v1"):
        models.serve("v9", "promoted")


def test_a_topic_that_is_missing_is_named(spec: KafkaSpec) -> None:
    with pytest.raises(BrokerError, match="no topic 'nowhere'"):
        Models(spec, "nowhere").versions()


def test_pruning_leaves_the_last_what_serves_and_their_ancestors(
    models: Models, spec: KafkaSpec, topics: TopicsSpec
) -> None:
    for version, parent in {"a": "", "b": "a", "x": "", "c": "b", "d": "c"}.items():
        models.publish(model(version, size=200_000 if version == "x" else 8, parent=parent))
    models.serve("d", "promoted")
    sink = Sink(spec)
    key, value, headers = encode(model("half", size=500_000))[0]
    sink.send(topics.models, value, key, headers=headers)
    assert sink.flush(10.0)
    sink.close(5.0)
    models.publish(model("e", size=500_000, parent="d"))

    assert models.prune(1) == ["x"], "half a model may still be arriving"
    assert [entry.stored.version for entry in models.versions()] == ["a", "b", "c", "d", "e"]
    assert models.prune(1) == []


def test_a_model_file_is_imported(models: Models, tmp_path: Path) -> None:
    stored = model("v1")
    (tmp_path / "model.safetensors").write_bytes(stored.data)
    assert models.import_file(tmp_path / "model.safetensors") == stored
    assert models.fetch("v1") == stored
    (tmp_path / "junk").write_bytes(b"junk")
    with pytest.raises(DataError, match="not a model file"):
        models.import_file(tmp_path / "junk")
    with pytest.raises(DataError, match="No such file"):
        models.import_file(tmp_path / "missing")


def test_a_follower_sees_what_serves_then_each_change(
    models: Models, spec: KafkaSpec, topics: TopicsSpec
) -> None:
    for version in ("v1", "v2"):
        models.publish(model(version))
        models.serve(version, "promoted")
    follower = ModelsFollower(spec, topics.models)
    (first,) = follow(follower, 1)
    assert isinstance(first, NowServing)
    assert first.stored == model("v2")

    models.publish(model("v3"))
    models.serve("v3", "promoted")
    arrived, promoted = follow(follower, 2)
    assert arrived == Arrived(model("v3"))
    assert isinstance(promoted, NowServing)
    assert promoted.stored.version == "v3"
    models.roll_back()
    (back,) = follow(follower, 1)
    assert isinstance(back, NowServing)
    assert back.stored == model("v2")
    follower.close()


def test_a_follower_finds_an_old_version_again(models: Models, spec: KafkaSpec, topics: TopicsSpec) -> None:
    for number in range(8):
        models.publish(model(f"v{number}"))
    models.serve("v7", "promoted")
    follower = ModelsFollower(spec, topics.models)
    follow(follower, 1)
    models.serve("v0", "rollback")
    (back,) = follow(follower, 1)
    assert isinstance(back, NowServing)
    assert back.stored == model("v0")

    late = ModelsFollower(spec, topics.models)
    (found,) = follow(late, 1)
    assert isinstance(found, NowServing)
    assert found.stored == model("v0")
    follower.close()
    late.close()


def test_a_damaged_model_is_refused_and_the_one_before_keeps_serving(
    models: Models, spec: KafkaSpec, topics: TopicsSpec
) -> None:
    models.publish(model("v1"))
    models.serve("v1", "promoted")
    follower = ModelsFollower(spec, topics.models)
    follow(follower, 1)
    sink = Sink(spec)
    for key, value, headers in encode(model("v2")):
        sink.send(topics.models, (value or b"")[:-1] + b"\xff", key, headers=headers)
    assert sink.flush(10.0)
    sink.close(5.0)
    (refused,) = follow(follower, 1)
    assert isinstance(refused, Refused)
    assert refused.reason is Refusal.CHECKSUM
    assert follower.registry.serving is not None
    assert follower.registry.serving.version == "v1"
    with pytest.raises(DataError):
        models.serve("v2", "promoted")
    follower.close()


def test_what_nobody_answered_is_open_and_an_answer_is_found_by_its_id(
    spec: KafkaSpec, topics: TopicsSpec
) -> None:
    controls = Controls(spec, topics.control)
    answered, asked = (Request(command=Command.RETRAIN, trigger="http", sender="me") for _ in range(2))
    controls.write(answered)
    controls.write(Answer(id=answered.id, outcome="promoted", sender="worker"))
    controls.write(asked)
    follower = ControlFollower(spec, topics.control, start="beginning", interval_s=0.0)
    until(lambda: follower.caught_up, lambda: follower.poll(0.05))
    assert follower.inbox.take() == [asked]

    controls.write(Answer(id=asked.id, outcome="no_data", sender="worker"))
    until(lambda: asked.id in follower.inbox.answers, lambda: follower.poll(0.05))
    assert follower.inbox.answers[asked.id].outcome == "no_data"
    assert not follower.inbox.open
    controls.close()
    follower.close()


def test_a_request_that_cannot_be_written_is_said() -> None:
    controls = Controls(KafkaSpec(bootstrap_servers="127.0.0.1:1", connect_timeout_s=1), "control")
    with pytest.raises(BrokerError, match="could not be written"):
        controls.write(Request(command=Command.RETRAIN, trigger="http", sender="me"))
