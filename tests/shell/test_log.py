"""The log is one line an event, shows no secret, and does not drown in repetition."""

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from forecaster.shell.log import MAX_CHARS, LogSpec, configure


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    root, kafka = logging.getLogger(), logging.getLogger("kafka")
    before = root.handlers, root.level, kafka.level
    yield io.StringIO()
    root.handlers = before[0]
    root.setLevel(before[1])
    kafka.setLevel(before[2])
    structlog.reset_defaults()


def events(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_one_json_line_an_event_whatever_is_in_it(stream: io.StringIO) -> None:
    configure(LogSpec(), stream)
    structlog.get_logger("forecaster.test").warning(
        "tick refused", series="a\nb\x1b[31m", offset=5, odd={1: object}
    )
    (event,) = events(stream)
    assert (event["event"], event["series"], event["offset"]) == ("tick refused", "a\nb\x1b[31m", 5)
    assert (event["level"], event["logger"]) == ("warning", "forecaster.test")
    assert event["timestamp"].endswith("Z")


def test_libraries_come_out_the_same_way_and_the_client_is_kept_quiet(stream: io.StringIO) -> None:
    configure(LogSpec(level="debug"), stream)
    logging.getLogger("some.library").info("hello %s", "you")
    logging.getLogger("kafka.net.connection").info("SaslAuthenticate(password=hunter2)")
    (event,) = events(stream)
    assert (event["event"], event["logger"], event["level"]) == ("hello you", "some.library", "info")


def test_secrets_are_masked_by_name_and_in_text(stream: io.StringIO) -> None:
    configure(LogSpec(), stream)
    log = structlog.get_logger()
    log.info("configured", series="a", sasl_plain_password="hunter2", token="hunter2")
    log.info("sasl_plain_password='hunter2', x=1 and token: hunter2")
    log.error("failed", exc_info=ValueError("{'ssl_password': 'hunter2'}"))
    assert "hunter2" not in stream.getvalue()
    first, second, third = events(stream)
    assert first["series"] == "a"
    assert "x=1" in second["event"]
    assert "ValueError" in third["exception"]


def test_the_name_of_a_file_that_holds_a_secret_is_shown(stream: io.StringIO) -> None:
    configure(LogSpec(), stream)
    problem = "http.token_file = '/run/token': No such file"
    structlog.get_logger().error("failed", error=problem, ssl_password_file="/run/key", token_filed="hunter2")
    structlog.get_logger().error(
        "{'password_file': '/run/p', 'password': 'hunter2', 'token_file_': 'hunter2'}"
    )
    assert "hunter2" not in stream.getvalue()
    first, second = events(stream)
    assert (first["error"], first["ssl_password_file"]) == (problem, "/run/key")
    assert second["event"] == "{'password_file': '/run/p', 'password': ***, 'token_file_': ***}"


def test_long_fields_are_cut(stream: io.StringIO) -> None:
    configure(LogSpec(), stream)
    structlog.get_logger().info("odd", what="x" * 10_000)
    assert len(events(stream)[0]["what"]) == MAX_CHARS + 3


def test_a_flood_is_cut_for_each_reason_and_counted(stream: io.StringIO) -> None:
    clock = Clock()
    configure(LogSpec(burst=2, interval_s=10), stream, clock)
    log = structlog.get_logger()
    for _ in range(5):
        log.warning("tick refused", reason="not_json")
    log.warning("tick refused", reason="null")
    assert [event["reason"] for event in events(stream)] == ["not_json", "not_json", "null"]
    clock.now_s = 10.0
    log.warning("tick refused", reason="not_json")
    assert events(stream)[-1]["suppressed"] == 3
    log.warning("tick refused", reason="not_json")
    assert "suppressed" not in events(stream)[-1]


def test_a_library_in_a_loop_is_cut_by_the_place_it_logs_from(stream: io.StringIO) -> None:
    clock = Clock()
    configure(LogSpec(burst=2, interval_s=10), stream, clock)
    for attempt in range(10):
        clock.now_s = 10.0 if attempt == 9 else 0.0
        logging.getLogger("kafka.client").error("attempt %d failed", attempt)
    assert [event["event"] for event in events(stream)] == ["attempt 0 failed", "attempt 9 failed"]
    assert events(stream)[-1]["suppressed"] == 8


def test_our_errors_are_never_held_back(stream: io.StringIO) -> None:
    configure(LogSpec(burst=1), stream, Clock())
    for _ in range(5):
        structlog.get_logger().error("broken", reason="x")
        logging.getLogger("forecaster.shell.kafka").error("broken, too")
    assert len(events(stream)) == 10


def test_levels_below_are_not_shown_and_console_is_readable(stream: io.StringIO) -> None:
    configure(LogSpec(level="warning", format="console"), stream)
    structlog.get_logger().info("quiet")
    structlog.get_logger().warning("loud", partition=3)
    assert "quiet" not in stream.getvalue()
    assert "loud" in stream.getvalue()
    assert "partition=3" in stream.getvalue()
