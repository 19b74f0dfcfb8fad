"""The log: one event a line on stderr, as JSON or for the eye, secrets masked, floods cut.

Our own events come in through `structlog.get_logger()`, those of libraries through the standard library's
logging; both leave through one chain. An event is a short constant phrase, what varies is in its fields
(`log.warning("tick refused", reason=...)`), so a flood is recognised by event and reason. No decision is made
here, and no payload of a tick belongs here: that is what the dead-letter topic is for.
"""

import logging
import re
import sys
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from time import monotonic
from typing import Any, Literal, TextIO

import orjson
import structlog
from pydantic import Field

from forecaster.core.spec import Spec

MAX_CHARS = 1_000  # of one field; tracebacks are not cut
MAX_KEYS = 1_000  # of the flood gate; far more than there are places that log
MASK = "***"

# The name of a file that holds a secret is none.
_SECRET_NAME = re.compile(
    r"(?:passw|secret|token|credential|private_key|api_key|sasl_oauth)(?!.*_file$)", re.IGNORECASE
)
_VALUE = r"""(?:"[^"]*"|'[^']*'|[^\s,;)}\]]+)"""
_SECRET_TEXT = re.compile(
    rf"""(?P<file>(?:passw|secret|token)\w*_file["']?\s*[:=]\s*{_VALUE})"""
    rf"""|(?P<name>(?:passw|secret|token)\w*["']?\s*[:=]\s*){_VALUE}""",
    re.IGNORECASE,
)

Event = MutableMapping[str, Any]


class LogSpec(Spec):
    """How much is logged and what it looks like."""

    level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least severe events shown: debug, info, warning or error."
    )
    format: Literal["auto", "json", "console"] = Field(
        "auto", description="json, console, or auto: console on a terminal, else json."
    )
    burst: int = Field(
        10,
        ge=1,
        description="Events of one kind and reason shown in each interval; the rest are counted. Of a library: one.",
    )
    interval_s: float = Field(10.0, gt=0, description="That interval, in seconds.")


def configure(spec: LogSpec, stream: TextIO | None = None, clock: Callable[[], float] = monotonic) -> None:
    """Set up logging for the process; a later call replaces what an earlier one set."""
    out: TextIO = sys.stderr if stream is None else stream
    shared = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.PositionalArgumentsFormatter(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    handler = logging.StreamHandler(out)
    handler.addFilter(FloodGate(spec.burst, spec.interval_s, clock))
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                _say_suppressed,
                _in_order,
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *_rendering(spec, terminal=out.isatty()),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(spec.level.upper())
    # Below INFO the client prints what it authenticates with; jax tells of accelerators that are not there.
    for library in ("kafka", "jax"):
        logging.getLogger(library).setLevel(max(logging.WARNING, root.level))
    # Where a core is short, the client wonders at every step of its own that takes a tenth of a second.
    logging.getLogger("kafka.net.selector").setLevel(logging.ERROR)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )


def _rendering(spec: LogSpec, *, terminal: bool) -> list[Any]:
    if spec.format == "console" or (spec.format == "auto" and terminal):
        return [redact, structlog.dev.ConsoleRenderer(colors=terminal)]
    return [structlog.processors.format_exc_info, redact, structlog.processors.JSONRenderer(_to_json)]


def _to_json(event: Event, **_: object) -> str:
    return orjson.dumps(
        event, default=repr, option=orjson.OPT_NON_STR_KEYS | orjson.OPT_SERIALIZE_NUMPY
    ).decode()


def redact(_logger: object, _method: str, event: Event) -> Event:
    """Mask what is secret by its name or by what the text says, and cut what is long."""
    for name, value in event.items():
        if _SECRET_NAME.search(name) and value is not None:
            event[name] = MASK
        elif isinstance(value, str):
            cut = len(value) > MAX_CHARS and name != "exception"
            text = value[:MAX_CHARS] + "..." if cut else value
            event[name] = _SECRET_TEXT.sub(lambda found: found["file"] or found["name"] + MASK, text)
    return event


def _say_suppressed(_logger: object, _method: str, event: Event) -> Event:
    if held := getattr(event["_record"], "suppressed", 0):
        event["suppressed"] = held
    return event


def _in_order(_logger: object, _method: str, event: Event) -> Event:
    """What every event has comes first."""
    first = {name: event[name] for name in ("timestamp", "level", "logger", "event") if name in event}
    return {**first, **event}


@dataclass
class _Gate:
    opened_s: float
    passed: int = 0
    held: int = 0


class FloodGate(logging.Filter):
    """Lets `burst` events of one kind through in each interval, and says with the next how many it held back.

    One kind is an event together with its reason; of a library, whose messages vary, one place that logs, and that
    says the same again and again while a broker is away: one event of it in each interval. Our errors always pass.
    """

    def __init__(self, burst: int, interval_s: float, clock: Callable[[], float]) -> None:
        super().__init__()
        self._burst, self._interval_s, self._clock = burst, interval_s, clock
        self._gates: dict[tuple[object, object], _Gate] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the event is shown."""
        ours = isinstance(record.msg, dict) or record.name.startswith("forecaster.")
        if ours and record.levelno >= logging.ERROR:
            return True
        gate = self._gate(_kind(record))
        if self._clock() - gate.opened_s >= self._interval_s:
            record.suppressed = gate.held
            gate.opened_s, gate.passed, gate.held = self._clock(), 0, 0
        if gate.passed >= (self._burst if ours else 1):
            gate.held += 1
            return False
        gate.passed += 1
        return True

    def _gate(self, kind: tuple[object, object]) -> _Gate:
        if kind not in self._gates:
            if len(self._gates) >= MAX_KEYS:
                self._gates.clear()
            self._gates[kind] = _Gate(self._clock())
        return self._gates[kind]


def _kind(record: logging.LogRecord) -> tuple[object, object]:
    if isinstance(record.msg, dict):  # one of ours
        return record.msg.get("event"), record.msg.get("reason")
    return record.name, record.lineno
