"""Subscribers and the command line on a real broker."""

import json
import sys
import uuid
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from forecaster import cli
from forecaster.config import Config
from forecaster.errors import ConfigError, DataError
from forecaster.shell.control import Answer, Command, ControlFollower, Controls, Message
from forecaster.shell.kafka import KafkaSpec, TopicsSpec
from forecaster.shell.kafka.admin import Admin
from forecaster.shell.kafka.sink import Sink
from forecaster.shell.models import Models
from forecaster.shell.models.codec import Stored, store
from forecaster.shell.prediction import Encoder, Prediction
from forecaster.shell.subscribe import predictions
from tests.shell.test_prediction import LEVELS, forecasts


@pytest.fixture
def topics(kafka: str) -> TopicsSpec:
    """Topics of this test alone, created."""
    name = f"t{uuid.uuid4().hex[:8]}"
    names = {role: f"{name}.{role}" for role in TopicsSpec.model_fields if not role.startswith("create")}
    spec = TopicsSpec.model_validate({**names, "create": True, "create_partitions": 2})
    admin = Admin(KafkaSpec(bootstrap_servers=kafka))
    admin.create_missing(spec)
    admin.close()
    return spec


def publish(kafka: str, topic: str, *values: bytes | None) -> None:
    sink = Sink(KafkaSpec(bootstrap_servers=kafka))
    for value in values:
        sink.send(topic, value, b"a", partition=0)
    assert sink.flush(30.0)
    sink.close(5.0)


def messages(*names: str) -> list[bytes]:
    encoder = Encoder("ticks", LEVELS)
    return [encoder.encode(forecasts(series=[name, name]), "m-1")[0] for name in names]


def series(found: Iterator[Prediction], count: int) -> list[str]:
    return [prediction.series for prediction in islice(found, count)]


def test_a_reader_alone_sees_everything_and_leaves_junk_out(kafka: str, topics: TopicsSpec) -> None:
    a, b, c = messages("a", "b", "c")
    publish(kafka, topics.predictions, a, b"junk", None, b, c)
    found = predictions(kafka, topics.predictions, start="earliest")
    assert series(found, 3) == ["a", "b", "c"]


def test_readers_of_a_group_go_on_where_they_had_stopped(kafka: str, topics: TopicsSpec) -> None:
    publish(kafka, topics.predictions, *messages("a", "b", "c", "d"))
    group = f"g{uuid.uuid4().hex[:8]}"
    found = predictions(kafka, topics.predictions, group_id=group, start="earliest", session_timeout_s=6.0)
    assert series(found, 3) == ["a", "b", "c"]
    del found  # "c" was never finished: nobody asked for the next one
    found = predictions(kafka, topics.predictions, group_id=group, start="earliest", session_timeout_s=6.0)
    assert series(found, 2) == ["c", "d"]


def test_a_newer_format_and_wrong_keys_are_refused(kafka: str, topics: TopicsSpec) -> None:
    newer = {**json.loads(messages("a")[0]), "schema": 2}
    publish(kafka, topics.predictions, json.dumps(newer).encode())
    with pytest.raises(DataError, match="upgrade"):
        next(predictions(kafka, topics.predictions, start="earliest"))
    with pytest.raises(ConfigError, match="sasl_plain_pasword") as refused:
        predictions(kafka, topics.predictions, sasl_plain_pasword="hunter2")
    assert "hunter2" not in str(refused.value)


@pytest.fixture
def at_broker(monkeypatch: pytest.MonkeyPatch, kafka: str, topics: TopicsSpec) -> Config:
    """The environment as `forecaster` is called in; its configuration."""
    monkeypatch.setenv("FORECASTER_KAFKA__BOOTSTRAP_SERVERS", kafka)
    monkeypatch.setenv("FORECASTER_HTTP__PORT", "0")
    for role in TopicsSpec.model_fields:
        if not role.startswith("create"):
            monkeypatch.setenv(f"FORECASTER_TOPICS__{role.upper()}", getattr(topics, role))
    return Config(kafka=KafkaSpec(bootstrap_servers=kafka), topics=topics)


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["forecaster", *arguments])
    try:
        return cli.main()
    except SystemExit as end:
        return int(end.code or 0)


def test_check_is_content_or_names_what_is_missing(
    at_broker: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "check") == 0
    monkeypatch.setenv("FORECASTER_TOPICS__TICKS", "no-such-ticks")
    monkeypatch.setenv("FORECASTER_TOPICS__STATE", "no-such-state")
    assert call(monkeypatch, "check") == 2
    shown = capsys.readouterr().out
    assert "topics.ticks = 'no-such-ticks'" in shown
    assert "topics.state = 'no-such-state'" in shown


def test_check_looks_for_the_covariates_in_the_newest_ticks(
    at_broker: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORECASTER_TICK__COVARIATES", "load,wind")
    assert call(monkeypatch, "check") == 0, "where no tick is, there is nothing to say"
    ticks = [{"series": "a", "ts": 1.7e9, "value": 1.0, "load": load} for load in (None, 3.0, None)]
    values = [b"no tick", *(json.dumps(tick).encode() for tick in ticks)]
    publish(at_broker.kafka.bootstrap_servers, at_broker.topics.ticks, *values)
    assert call(monkeypatch, "check") == 2
    shown = capsys.readouterr().out
    assert "tick.covariates: 'wind' is a number in none of the newest 3 ticks" in " ".join(shown.split())
    assert "'load'" not in shown


def test_check_quotes_what_the_newest_messages_lack_when_none_is_a_tick(
    at_broker: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    message = json.dumps({"sensor": "a", "ts": 1.7e9, "value": 1.0}).encode()
    publish(at_broker.kafka.bootstrap_servers, at_broker.topics.ticks, message, message)
    assert call(monkeypatch, "check") == 2
    shown = " ".join(capsys.readouterr().out.split())
    assert "none of the newest 2 messages is a tick" in shown
    assert "'series' is missing" in shown
    monkeypatch.setenv("FORECASTER_TICK__SERIES", "sensor")
    assert call(monkeypatch, "check") == 0


def test_tail_shows_lines_or_json(
    at_broker: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    publish(at_broker.kafka.bootstrap_servers, at_broker.topics.predictions, *messages("a", "b", "a"))
    assert call(monkeypatch, "tail", "--earliest", "-n", "2", "--series", "a") == 0
    assert [line.split()[2] for line in capsys.readouterr().out.splitlines()] == ["a", "a"]
    assert call(monkeypatch, "tail", "--earliest", "-n", "1", "--json") == 0
    assert json.loads(capsys.readouterr().out)["source"] == {"topic": "ticks", "partition": 3, "offset": 12}


def test_retrain_waits_for_the_decision(
    at_broker: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answering = Controls(at_broker.kafka, at_broker.topics.control)
    real_poll = ControlFollower.poll

    def answer(follower: ControlFollower, timeout_s: float = 0.0) -> list[Message]:
        """Stands in for a daemon: answers each request as soon as it is seen."""
        messages = real_poll(follower, timeout_s)
        for request in follower.inbox.take():
            assert (request.command, request.trigger) == (Command.RETRAIN, "cli")
            details = {"losses": {"candidate": 0.51234, "last_value": 0.6}}
            answering.write(
                Answer(id=request.id, outcome="rejected", sender="x", message="not better", details=details)
            )
        return messages

    monkeypatch.setattr(ControlFollower, "poll", answer)
    try:
        assert call(monkeypatch, "retrain", "--wait", "--timeout", "60") == 0
    finally:
        answering.close()
    shown = capsys.readouterr().out
    assert "requested retrain" in shown
    assert "rejected not better" in shown
    assert "candidate 0.5123" in shown


def model(version: str, parent: str = "") -> Stored:
    losses = {name: {"pinball_loss": loss} for name, loss in (("candidate", 0.5), ("last_value", 0.75))}
    card = {"version": version, "parent": parent, "created_s": 1.6e9, "made_s": 1.7e9, "steps_taken": 25}
    return store(version, {"w": np.zeros(3, np.float32)}, {"hidden": 8}, card | {"scores": losses})


def test_models_are_listed_shown_rolled_back_and_imported(
    at_broker: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert call(monkeypatch, "models", "list") == 0
    assert capsys.readouterr().out == "no model yet\n"
    assert call(monkeypatch, "models", "show") == 3
    topic = Models(at_broker.kafka, at_broker.topics.models)
    for stored in (model("m-1"), model("m-2", parent="m-1")):
        topic.publish(stored)
        topic.serve(stored.version, "better")

    monkeypatch.setenv("COLUMNS", "160")
    assert call(monkeypatch, "models", "list") == 0
    first, second = (line for line in capsys.readouterr().out.splitlines() if " m-" in line)
    assert "serving" not in first
    for word in ("m-2", "serving", "2023-11-14 22:13:20Z", "m-1", "25", "0.5000, -, 0.7500"):
        assert word in second

    assert call(monkeypatch, "models", "rollback", "--reason", "worse in the field") == 0
    assert capsys.readouterr().out == "m-1 serves in place of m-2\n"
    assert call(monkeypatch, "models", "show") == 0
    assert json.loads(capsys.readouterr().out)["card"]["version"] == "m-1"
    assert call(monkeypatch, "models", "rollback", "m-9") == 3
    assert "m-9" in capsys.readouterr().err

    path = tmp_path / "model"
    path.write_bytes(model("m-3").data)
    assert call(monkeypatch, "models", "import", str(path), "--serve") == 0
    assert call(monkeypatch, "models", "show") == 0
    assert '"m-3"' in capsys.readouterr().out
    path.write_bytes(b"no model")
    assert call(monkeypatch, "models", "import", str(path)) == 3
