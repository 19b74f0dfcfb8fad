"""Dead letters that are sent back to the ticks on Apache Kafka: which, where to, and how often."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from forecaster import cli
from forecaster.config import Config
from forecaster.core.tick import Reason, Reject, TickSpec, make_decoder
from forecaster.errors import BrokerError, FencedError
from forecaster.shell.dead_letters import MOST_BYTES, letter
from forecaster.shell.kafka import Record, TopicsSpec
from forecaster.shell.kafka.sink import Sink
from forecaster.shell.kafka.together import Message, Together
from forecaster.shell.redelivery import DeadLetters, Fate, Query
from tests.broker.workers import fresh_topics, read_all, spec_for

BAD = [b"{", b"null", b"[1]", b"\x00\xff", b"x" * (MOST_BYTES + 1)]


@pytest.fixture
def config(kafka: str) -> Config:
    topics = fresh_topics(kafka, partitions=3)
    return Config(kafka=spec_for(kafka), topics=topics)


def set_aside(config: Config, values: list[bytes], topic: str | None = None) -> None:
    """Letters of ticks that a worker could not use, from partition 2."""
    sink, decode = Sink(config.kafka), make_decoder(TickSpec())
    for offset, value in enumerate(values):
        record = Record(topic or config.topics.ticks, 2, offset, 1_700_000_000_000, b"key", value)
        reject = decode(record.key, record.value, record.timestamp_ms)
        assert isinstance(reject, Reject)
        value_, key, headers = letter(record, reject)
        sink.send(config.topics.dead_letters, value_, key, headers=headers)
    assert sink.flush(10.0)
    sink.close(1.0)


def ticks(config: Config) -> list[Record]:
    return read_all(config.kafka, config.topics.ticks)


def send_back(
    config: Config, query: Query | None = None, most: int | None = None, *, again: bool = False
) -> list[int]:
    letters = DeadLetters(config)
    try:
        return list(letters.send_back(query or Query(), most, again=again))
    finally:
        letters.close()


def test_letters_go_back_to_where_they_came_from_each_once(config: Config) -> None:
    set_aside(config, BAD)
    assert send_back(config) == [4]
    back = ticks(config)
    assert [(r.partition, r.key, r.value) for r in back] == [(2, b"key", value) for value in BAD[:4]]
    assert dict(back[1].headers) == {
        "replay.topic": config.topics.dead_letters.encode(),
        "replay.partition": b"0",
        "replay.offset": b"1",
    }
    assert send_back(config) == []
    assert len(ticks(config)) == 4
    assert send_back(config, most=1, again=True) == [1]
    assert ticks(config)[4].value == BAD[0]


def test_a_filter_a_limit_and_what_is_left(config: Config) -> None:
    set_aside(config, BAD)
    assert send_back(config, Query(reasons=frozenset({"null", "not_object"})), most=1) == [1]
    assert [r.value for r in ticks(config)] == [b"null"]
    letters = DeadLetters(config)
    fates = letters.find(Query()).fates
    letters.close()
    assert fates == {Fate.OPEN: 3, Fate.REPLAYED: 1, Fate.CUT: 1}


def test_where_ticks_have_no_time_of_their_own_that_of_the_record_goes_with_them(config: Config) -> None:
    untimed = config.model_copy(update={"tick": TickSpec(time="")})
    set_aside(config, [b"{"])
    send_back(untimed)
    send_back(config, again=True)
    first, second = (record.timestamp_ms for record in ticks(config))
    assert first == 1_700_000_000_000
    assert second > first


def test_a_second_writer_shuts_the_first_one_out_and_nothing_of_it_is_seen(config: Config) -> None:
    set_aside(config, [b"{"])
    first = Together(config.kafka, f"{config.kafka.group_id}.dead-letters")
    assert send_back(config) == [1]
    with pytest.raises(FencedError, match="has begun"):
        first.write([Message(config.topics.ticks, b"from the first", None, [], 0)])
    first.close()
    assert [record.value for record in ticks(config)] == [b"{"]


def test_a_record_with_neither_key_nor_value_becomes_a_letter(config: Config) -> None:
    nothing = Record(config.topics.ticks, 2, 0, 1_700_000_000_000, None, None)
    value, key, headers = letter(nothing, Reject(Reason.NULL, "null"))
    sink = Sink(config.kafka)
    sink.send(config.topics.dead_letters, value, key, headers=headers)
    assert sink.flush(10.0)
    sink.close(1.0)
    assert send_back(config) == [1]
    assert ticks(config)[0].value == b""


def test_without_the_topic_it_says_so(config: Config) -> None:
    away = config.model_copy(update={"topics": TopicsSpec(dead_letters="nowhere")})
    letters = DeadLetters(away)
    with pytest.raises(BrokerError, match="'nowhere'"):
        letters.find(Query())
    letters.close()


def test_the_commands_show_and_send(config: Config, tmp_path: Path) -> None:
    path = tmp_path / "forecaster.toml"
    path.write_text(
        f"""
        [kafka]
        bootstrap_servers = "{config.kafka.bootstrap_servers}"
        group_id = "{config.kafka.group_id}"
        [topics]
        ticks = "{config.topics.ticks}"
        dead_letters = "{config.topics.dead_letters}"
        """
    )
    set_aside(config, BAD)

    def call(*arguments: str) -> str:
        ended = CliRunner().invoke(cli.app, ["dead-letters", *arguments, "--config", str(path)])
        assert ended.exit_code == 0, ended.output
        return ended.output

    listed = call("list")
    assert f"{config.topics.ticks}/2@3" in listed
    lines = [json.loads(line) for line in call("list", "--json", "--limit", "2").splitlines()]
    assert [(line["source"]["offset"], line["fate"]) for line in lines] == [(3, "open"), (4, "cut")]
    assert "4 would be sent" in call("replay", "--dry-run")
    assert ticks(config) == []
    sent = call("replay", "--since", "1h")
    assert "4 sent" in sent
    assert "1 not sent: they were too large" in sent
    assert "nothing to send" in call("replay")
    assert len(ticks(config)) == 4
