"""Requests and answers on the control topic, without a broker."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forecaster.core.history import Span
from forecaster.shell.control import SCHEMA, Answer, Command, Inbox, Message, Request, decode, encode, span_of
from forecaster.shell.kafka import Record


def record(message: Message) -> Record:
    key, value = encode(message)
    return Record("control", 0, 0, 0, key, value)


def request(**changes: object) -> Request:
    return Request(**({"command": Command.RETRAIN, "trigger": "http", "sender": "me"} | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize("command", list(Command))
def test_a_request_comes_back_as_it_was_written(command: Command) -> None:
    asked = request(command=command, arguments={"version": "v1", "n": 3})
    assert decode(record(asked)) == asked


def test_an_answer_carries_the_id_of_its_request() -> None:
    asked = request()
    answer = Answer(id=asked.id, outcome="promoted", sender="me", details={"skill": 0.2})
    assert decode(record(answer)) == answer
    assert encode(answer)[0] == encode(asked)[0]


def test_an_open_request_is_given_once_and_stays_open_until_it_is_answered() -> None:
    inbox, asked = Inbox(), request()
    assert inbox.feed([record(asked)]) == [asked]
    assert inbox.take() == [asked]
    assert inbox.feed([record(asked)]) == []
    assert inbox.take() == []
    assert list(inbox.open.values()) == [asked]
    answer = Answer(id=asked.id, outcome="promoted", sender="me")
    assert inbox.feed([record(answer)]) == [answer]
    assert not inbox.open


def test_who_takes_requests_up_later_finds_those_that_nobody_answered() -> None:
    inbox, asked, other = Inbox(), request(), request()
    inbox.feed([record(asked), record(other)])
    inbox.feed([record(Answer(id=asked.id, outcome="rejected", sender="another"))])
    assert inbox.take() == [other]


def test_annotations_are_facts_for_everybody_and_are_never_taken() -> None:
    inbox, span = Inbox(), request(command=Command.ANNOTATE)
    inbox.feed([record(span), record(span)])
    assert inbox.take() == []
    assert inbox.spans == [span]


def test_an_annotation_holds_until_it_is_withdrawn_and_others_go_on() -> None:
    inbox = Inbox()
    first, second, third = (request(command=Command.ANNOTATE) for _ in range(3))
    back = request(command=Command.WITHDRAW, arguments={"id": second.id})
    inbox.feed([record(message) for message in (first, second, back, third)])
    assert inbox.spans == [first, third]
    inbox.feed([record(request(command=Command.WITHDRAW, arguments=of)) for of in ({}, {"id": "?"})])
    assert inbox.spans == [first, third]
    assert inbox.take() == [], "nobody has to carry it out"


def test_a_request_that_was_answered_is_not_carried_out_again() -> None:
    inbox, asked, other = Inbox(), request(), request()
    inbox.feed([record(asked), record(other), record(Answer(id=asked.id, outcome="promoted", sender="me"))])
    assert inbox.take() == [other]
    assert inbox.answers[asked.id].outcome == "promoted"


@given(st.binary(max_size=200))
def test_junk_is_passed_over(value: bytes) -> None:
    inbox, asked = Inbox(), request()
    inbox.feed([Record("control", 0, 0, 0, b"", value), record(asked)])
    assert inbox.take() == [asked]


def test_what_a_newer_release_wrote_is_passed_over() -> None:
    assert decode(record(msgspec.structs.replace(request(), schema=SCHEMA + 1))) is None


def test_memory_is_bounded() -> None:
    inbox = Inbox()
    inbox.feed([record(Answer(id=str(i), outcome="promoted", sender="me")) for i in range(3_000)])
    inbox.feed([record(request()) for _ in range(3_000)])
    assert len(inbox.answers) <= 1_000
    assert len(inbox.take()) <= 1_000
    inbox.feed([record(request(command=Command.ANNOTATE)) for _ in range(6_000)])
    assert len(inbox.spans) == 5_000


@pytest.mark.parametrize(
    ("arguments", "span"),
    [
        ({"start_s": 1, "end_s": "2.5"}, Span("", 1.0, 2.5)),
        ({"series": 7, "start_s": 1, "end_s": 2}, Span("7", 1.0, 2.0)),
        (
            {"series": "é" * 256, "start_s": -1e9, "end_s": 253_402_300_799},
            Span("é" * 256, -1e9, 253_402_300_799.0),
        ),
        ({"series": "é" * 257, "start_s": 1, "end_s": 2}, None),
        ({"series": None, "start_s": 1, "end_s": 2}, None),
        ({"start_s": 2, "end_s": 2}, None),
        ({"start_s": 1, "end_s": "inf"}, None),
        ({"start_s": "-inf", "end_s": 2}, None),
        ({"start_s": "nan", "end_s": 2}, None),
        ({"start_s": 1, "end_s": 1_767_225_600_000}, None),
        ({"start_s": 1, "end_s": 10**400}, None),
        ({"start_s": 1}, None),
    ],
)
def test_an_annotation_that_is_no_span_is_none_for_the_trainer_either(
    arguments: dict[str, object], span: Span | None
) -> None:
    request = Request(command=Command.ANNOTATE, trigger="cli", sender="me", arguments=arguments)
    assert span_of(request) == span
