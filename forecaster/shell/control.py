"""The control topic: requests (retrain, roll back, annotate, withdraw) and what came of them, as records.

Comes in: requests from signals, HTTP and the command line; outcomes from whoever carried them out. Goes
out: the same to everybody who follows the topic. A request and its outcome share an id, so that `--wait`
can find its answer, and a request that was answered is never carried out twice.
"""

import time
import uuid
from collections import OrderedDict
from enum import StrEnum
from math import isfinite
from typing import Any

import msgspec
import structlog

from forecaster.core.history import Span
from forecaster.core.tick import MAX_SERIES_CHARS, YEAR_1_S
from forecaster.errors import BrokerError
from forecaster.shell.kafka.log import Follower, Start, read_whole
from forecaster.shell.kafka.record import Record
from forecaster.shell.kafka.sink import Sink
from forecaster.shell.kafka.spec import KafkaSpec
from forecaster.shell.schema import schema_of

SCHEMA = 1
_WRITE_TIMEOUT_S = 10.0
_READ_TIMEOUT_S = 60.0
_MOST_REMEMBERED = 1_000
YEAR_9999_S = 253_402_300_799.0  # its last second
_MOST_SPANS = 5_000  # a trainer is told all of them


class Command(StrEnum):
    """What may be asked for."""

    RETRAIN = "retrain"
    """Train a candidate now, and let it serve if it is better. Of drift, `event_s` in `arguments` says when."""
    ROLL_BACK = "roll_back"
    """Let the version serve that did before, or the `version` in `arguments`; there may be a `reason`, and the version
    that it is to serve `instead_of`.
    """
    ANNOTATE = "annotate"
    """Leave a span of event time out of training: `series` ("": all), `start_s`, `end_s` in `arguments`."""
    WITHDRAW = "withdraw"
    """Train on an annotated span again: the `id` of its request in `arguments`."""


class Request(msgspec.Struct, frozen=True, tag_field="kind", tag="request", kw_only=True):
    """Somebody wants something."""

    command: Command
    trigger: str
    """schedule, signal, http, cli, drift or startup; trial for a rollback."""
    sender: str
    """Who asks: host and process, or a user."""
    id: str = msgspec.field(default_factory=lambda: uuid.uuid4().hex)
    at_s: float = msgspec.field(default_factory=time.time)
    arguments: dict[str, Any] = {}
    schema: int = SCHEMA


class Answer(msgspec.Struct, frozen=True, tag_field="kind", tag="answer", kw_only=True):
    """What came of the request with this id."""

    id: str
    outcome: str
    """The word that is also the metric label: promoted, rejected, no_data, ..."""
    sender: str
    message: str = ""
    details: dict[str, Any] = {}
    at_s: float = msgspec.field(default_factory=time.time)
    schema: int = SCHEMA


Message = Request | Answer


_decode = msgspec.json.Decoder(Request | Answer).decode
_log = structlog.get_logger(__name__)


def why_no_span(series: str, start_s: float, end_s: float) -> str:
    """Why a span cannot be left out of training; empty where it can."""
    for time_s in (start_s, end_s):
        if not YEAR_1_S <= time_s <= YEAR_9999_S:  # nor is NaN
            return f"{time_s:.16g} is not within the years 1 to 9999, as epoch seconds"
    if start_s >= end_s:
        return "it ends before it begins"
    if len(series) > MAX_SERIES_CHARS:
        return f"the name of the series has {len(series)} characters, expected at most {MAX_SERIES_CHARS}"
    return ""


def span_of(request: Request) -> Span | None:
    """The span of an annotation; None where it is none."""
    start_s, end_s = number(request, "start_s"), number(request, "end_s")
    series = request.arguments.get("series", "")
    if start_s is None or end_s is None or not isinstance(series, str | int):
        return None
    span = Span(str(series), start_s, end_s)
    return None if why_no_span(*span) else span


def number(request: Request, name: str) -> float | None:
    """A finite number of the arguments; None where there is none of this name."""
    try:
        value = float(request.arguments[name])
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
    return value if isfinite(value) else None


def encode(message: Message) -> tuple[bytes, bytes]:
    """Key and value of the record of a message."""
    return message.id.encode(), msgspec.json.encode(message)


def decode(record: Record) -> Message | None:
    """The message of a record; None if it is not one, or from a newer release."""
    try:
        message = _decode(record.value or b"")
    except (msgspec.DecodeError, RecursionError):
        return None
    return message if message.schema <= SCHEMA else None


def why_refused(record: Record) -> str:
    """Why a record is not a message for this release."""
    schema = schema_of(record.value or b"")
    if schema > SCHEMA:
        return f"schema {schema}, this release knows up to {SCHEMA}: upgrade forecaster"
    return "neither a request nor an answer"


class Controls:
    """Writes to the control topic. One client for its lifetime, made at the first message."""

    def __init__(self, spec: KafkaSpec, topic: str) -> None:
        self._spec = spec
        self._topic = topic
        self._sink: Sink | None = None

    def write(self, message: Message, timeout_s: float = _WRITE_TIMEOUT_S) -> None:
        """Write and wait until it is acknowledged. Raises BrokerError."""
        self._sink = self._sink or Sink(self._spec)
        key, value = encode(message)
        self._sink.send(self._topic, value, key)
        if not self._sink.flush(timeout_s):
            trouble = self._sink.trouble
            self.close()
            raise BrokerError(f"topic {self._topic!r} could not be written: {trouble}")

    def close(self) -> None:
        """End the client. Never raises."""
        if self._sink is not None:
            self._sink.close(timeout_s=1.0)
            self._sink = None


def read(spec: KafkaSpec, topic: str) -> "Inbox":
    """The topic as it is now. Raises BrokerError."""
    inbox = Inbox()
    for records in read_whole(spec, topic, _READ_TIMEOUT_S):
        inbox.feed(records)
    return inbox


class ControlFollower:
    """What is written to the control topic, for a loop that may not wait; and what of it is open or answered.

    Begins a while back in time, so that a request that was written while nobody listened is found.
    """

    def __init__(self, spec: KafkaSpec, topic: str, *, start: Start = "end", interval_s: float = 0.2) -> None:
        self.inbox = Inbox()
        self._follower = Follower(spec, {topic: start}, interval_s=interval_s)

    @property
    def caught_up(self) -> bool:
        """Whether all that was there at the start is read: before it, what seems open may have been answered."""
        return self._follower.caught_up

    def poll(self, timeout_s: float = 0.0) -> list[Message]:
        """New messages, in order."""
        return self.inbox.feed(self._follower.poll(timeout_s))

    def close(self) -> None:
        """End the client. Never raises."""
        self._follower.close()


class Inbox:
    """Records in offset order -> messages, open requests and known answers; bounded. What is refused is logged."""

    def __init__(self) -> None:
        self.answers: OrderedDict[str, Answer] = OrderedDict()
        """The latest, by the id of their request."""
        self.open: OrderedDict[str, Request] = OrderedDict()
        """Requests to be carried out that nobody has answered, oldest first."""
        self.spans: list[Request] = []
        """Annotations that were not withdrawn, oldest first: facts, which nobody answers."""
        self._seen: OrderedDict[str, None] = OrderedDict()
        self._taken: OrderedDict[str, None] = OrderedDict()

    def feed(self, records: list[Record]) -> list[Message]:
        """Take note of requests and answers; those that are new."""
        fresh: list[Message] = []
        for record in records:
            match decode(record):
                case Request() as request if request.id not in self._seen:
                    self._note(request)
                    fresh.append(request)
                case Answer() as answer:
                    _remember(self.answers, answer.id, answer)
                    self.open.pop(answer.id, None)
                    fresh.append(answer)
                case None:
                    _log.warning("control_record_refused", offset=record.offset, reason=why_refused(record))
                case _:
                    pass
        return fresh

    def take(self) -> list[Request]:
        """The open requests, oldest first, for the one who carries them out; they are given once."""
        taken = [request for request in self.open.values() if request.id not in self._taken]
        for request in taken:
            _remember(self._taken, request.id, None)
        return taken

    def _note(self, request: Request) -> None:
        _remember(self._seen, request.id, None)
        if request.command is Command.ANNOTATE:
            self.spans = [*self.spans, request][-_MOST_SPANS:]
        elif request.command is Command.WITHDRAW:
            self.spans = [span for span in self.spans if span.id != request.arguments.get("id")]
        elif request.id not in self.answers:
            _remember(self.open, request.id, request)


def _remember(store: OrderedDict[str, Any], key: str, value: Any) -> None:
    store[key] = value
    while len(store) > _MOST_REMEMBERED:
        store.popitem(last=False)
