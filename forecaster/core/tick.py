"""The bytes of a record -> a Tick, or a Reject that says why not. Only here is the tick's wire format known.

A tick is a JSON object: series id, event time, value, and as configured covariates and a sequence number.
Decoding is one typed pass (msgspec, specialised to the field names). What that pass refuses is read again,
slowly, by `_examine`, which finds the first thing wrong and names it, or accepts what only strict JSON minds
(`NaN` in a field that nobody reads). Whatever the bytes, the answer is a Tick or a Reject, never an
exception. No ordering, no state and no clock live here: late, duplicate and skipped are decided further on.
"""

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime
from enum import StrEnum
from math import inf, isfinite, isnan, nan
from typing import Any, Literal, NamedTuple, Self

import msgspec
from pydantic import Field, model_validator

from forecaster.core.spec import Spec

MAX_SERIES_CHARS = 256  # longer ids are never meant as ids, and each one is kept in memory
MAX_MESSAGE_CHARS = 200  # of a Reject: it goes into headers and logs
MAX_NUMBER = 1e18  # the default bounds of a value: its square still fits float32
LARGEST = 1e30  # to which bounds may be set: values, their differences and the sums of a bar become float32
MAX_SEQUENCE = 2**63 - 1
MAX_COVARIATES = 32  # each takes 800 bytes of a row
YEAR_1_S = -62_135_596_800.0  # 0001-01-01T00:00:00Z, the first instant that ISO 8601 reads

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)  # no inf, no nan, no 1_000


class TickSpec(Spec):
    """The field names of a tick and what is accepted in them."""

    series: str = Field(
        "series", description='Field with the series id (text or integer); "" = the record key is the id.'
    )
    time: str = Field("ts", description='Field with the event time; "" = the timestamp of the record.')
    value: str = Field("value", min_length=1, description="Field with the value, a finite number.")
    sequence: str = Field("", description='Field with an integer that rises within a series; "" = none.')
    covariates: tuple[str, ...] = Field(
        (),
        max_length=MAX_COVARIATES,
        description="Fields with further numbers, known from the tick's time on, that the network learns from;"
        " one that is absent, null or NaN is missing, and the tick is used all the same. Others take their place"
        " only with a network that was trained with them, and rows rebuilt from the log.",
    )
    time_unit: Literal["auto", "s", "ms", "us", "ns", "iso"] = Field(
        "auto",
        description="Unit of a numeric time, or iso. auto: text is ISO 8601 (UTC unless it says otherwise), a"
        " number is s below 1e11, ms below 1e14, us below 1e17, else ns.",
    )
    same_time: Literal["drop_equal", "keep", "sequence"] = Field(
        "drop_equal",
        description="Ticks of one series with the same time: drop_equal (same value too: a duplicate), keep,"
        " or order them by the sequence number.",
    )
    numeric_strings: bool = Field(False, description='Accept numbers written as text ("1.5").')
    minimum: float = Field(-MAX_NUMBER, description="Values below are dead-lettered; at least -1e30.")
    maximum: float = Field(MAX_NUMBER, description="Values above are dead-lettered; at most 1e30.")
    future_s: float = Field(
        300.0,
        ge=0,
        description="Event times further than this past their record's timestamp are dead-lettered.",
    )
    max_bytes: int = Field(65_536, ge=64, description="Larger messages are dead-lettered unread.")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names = [
            name for name in (self.series, self.time, self.value, self.sequence, *self.covariates) if name
        ]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"the field {twice[0]!r} is named twice; give each role a field of its own")
        if "" in self.covariates:
            raise ValueError('covariates: "" is not a field name; remove it')
        if self.same_time == "sequence" and not self.sequence:
            raise ValueError('same_time = "sequence" needs the name of a sequence field; set sequence')
        if max(-self.minimum, self.maximum) > LARGEST:
            raise ValueError(
                f"minimum {self.minimum} and maximum {self.maximum} have to lie from {-LARGEST:g} to {LARGEST:g}"
            )
        if not self.minimum < self.maximum:
            raise ValueError(
                f"minimum {self.minimum} is not below maximum {self.maximum}; swap or widen them"
            )
        return self


class Reason(StrEnum):
    """Why a record goes to the dead letters; also the metric label and the word in the log."""

    NOT_JSON = "not_json"
    NOT_OBJECT = "not_object"
    NULL = "null"
    MISSING_FIELD = "missing_field"
    WRONG_TYPE = "wrong_type"
    NOT_FINITE = "not_finite"
    OUT_OF_BOUNDS = "out_of_bounds"
    FUTURE = "future"
    TOO_LARGE = "too_large"
    POISON = "poison"


class Outcome(StrEnum):
    """What became of a consumed tick: exactly one of these; also the metric label."""

    ACCEPTED = "accepted"
    LATE = "late"
    DUPLICATE = "duplicate"
    SKIPPED = "skipped"
    OVER_CAP = "over_cap"
    DEAD_LETTERED = "dead_lettered"


class Tick(msgspec.Struct, frozen=True, gc=False):
    """One observation of one series. Numbers are finite; `time_s` is epoch seconds, UTC; a missing covariate is NaN."""

    series: str
    time_s: float
    value: float
    sequence: int | None = None
    covariates: tuple[float, ...] = ()


class Reject(msgspec.Struct, frozen=True, gc=False):
    """Why a record is not a tick. `message` is at most 200 characters, printable, and quotes the culprit."""

    reason: Reason
    message: str


_TYPE_NAMES: dict[type, str] = {
    str: "text",
    bool: "a boolean",
    int: "an integer",
    float: "a number",
    list: "an array",
    dict: "an object",
}

Decoder = Callable[[bytes | None, bytes | None, int], Tick | Reject]


def make_decoder(spec: TickSpec) -> Decoder:
    """The function (key, value, timestamp_ms) -> Tick | Reject for these field names.

    `timestamp_ms` is the record's own time, epoch ms, negative where the broker knows none (then no event
    time is too far in the future). Of a key that comes twice in an object, the last one counts.

    >>> decode = make_decoder(TickSpec())
    >>> decode(None, b'{"series": "a", "ts": 1700000000500, "value": 3}', 1700000000600)
    Tick(series='a', time_s=1700000000.5, value=3.0, sequence=None, covariates=())
    >>> decode(None, b'{"series": "a", "ts": 1700000000500, "value": "3"}', 1700000000600).message
    "'value' is '3' (text), expected a finite number; numeric_strings would accept it"
    """
    parse = msgspec.json.Decoder(_wire_type(spec)).decode
    seconds = _UNITS[spec.time_unit]
    has_series, has_time, has_sequence = bool(spec.series), bool(spec.time), bool(spec.sequence)
    covariates = len(spec.covariates)
    minimum, maximum, max_bytes, future_s = spec.minimum, spec.maximum, spec.max_bytes, spec.future_s

    def decode(key: bytes | None, value: bytes | None, timestamp_ms: int) -> Tick | Reject:
        if value is None or len(value) > max_bytes or timestamp_ms < 0:
            return _examine(spec, key, value, timestamp_ms)
        try:
            wire = parse(value)
            series = wire.series if has_series else _text(key)
            time_s = seconds(wire.time) if has_time else timestamp_ms / 1e3
        except (ValueError, RecursionError, OverflowError):  # msgspec's own errors are ValueErrors
            return _examine(spec, key, value, timestamp_ms)
        sequence = wire.sequence if has_sequence else None
        if (
            series
            and len(series) <= MAX_SERIES_CHARS
            and minimum <= wire.value <= maximum
            and YEAR_1_S <= time_s <= timestamp_ms / 1e3 + future_s
            and (sequence is None or -MAX_SEQUENCE <= sequence <= MAX_SEQUENCE)
        ):
            return Tick(series, time_s, wire.value, sequence, _known(wire, covariates))
        return _examine(spec, key, value, timestamp_ms)

    return decode


def _wire_type(spec: TickSpec) -> type[Any]:
    """The msgspec struct of the plain case: every number a number, or a covariate null or absent."""
    roles: list[tuple[str, str, Any]] = [
        ("series", spec.series, str),
        ("time", spec.time, {"auto": float | str, "iso": str}.get(spec.time_unit, float)),
        ("value", spec.value, float),
        ("sequence", spec.sequence, int),
    ]
    used = [role for role in roles if role[1]]
    more = {f"covariate{i}": name for i, name in enumerate(spec.covariates)}
    optional: Any = float | None
    return msgspec.defstruct(
        "WireTick",
        [*((role, kind) for role, _, kind in used), *((role, optional, None) for role in more)],
        rename={role: name for role, name, _ in used} | more,
        gc=False,
    )


def _known(wire: Any, covariates: int) -> tuple[float, ...]:
    if not covariates:
        return ()
    return tuple(nan if c is None else c for c in msgspec.structs.astuple(wire)[-covariates:])


# --- times ---


def _iso_s(text: str) -> float:
    when = datetime.fromisoformat(text)
    return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()


def _auto_s(time: float | str) -> float:
    if isinstance(time, str):
        return _iso_s(time)
    size = abs(time)
    if size < 1e11:  # as seconds: until the year 5138; as milliseconds: from 1973 on
        return time
    return time / (1e3 if size < 1e14 else 1e6 if size < 1e17 else 1e9)


def _identity_s(time: float) -> float:
    return time


_UNITS: dict[str, Callable[[Any], float]] = {
    "auto": _auto_s,
    "s": _identity_s,
    "ms": lambda time: time / 1e3,
    "us": lambda time: time / 1e6,
    "ns": lambda time: time / 1e9,
    "iso": _iso_s,
}


# --- the slow way: the same answer, or the reason why not ---


class _Refused(Exception):  # noqa: N818 - an early return from nested readers, caught in `_examine` alone
    def __init__(self, reason: Reason, message: str) -> None:
        self.reject = Reject(reason, message[:MAX_MESSAGE_CHARS])


class _Record(NamedTuple):
    key: bytes | None
    value: bytes | None
    timestamp_ms: int


def _examine(spec: TickSpec, key: bytes | None, value: bytes | None, timestamp_ms: int) -> Tick | Reject:
    record = _Record(key, value, timestamp_ms)
    try:
        fields = _object(spec, value)
        return Tick(
            series=_series(spec, record, fields),
            time_s=_time(spec, record, fields),
            value=_bounded(spec, _number(spec, fields, spec.value)),
            sequence=_sequence(spec, fields) if spec.sequence else None,
            covariates=tuple(_covariate(spec, fields, name) for name in spec.covariates),
        )
    except _Refused as refused:
        return refused.reject


def _object(spec: TickSpec, value: bytes | None) -> dict[str, Any]:
    if value is None:
        raise _Refused(Reason.NULL, "the record has no value (a tombstone), expected a JSON object")
    if len(value) > spec.max_bytes:
        raise _Refused(Reason.TOO_LARGE, f"{len(value)} bytes, expected at most max_bytes = {spec.max_bytes}")
    try:
        parsed: Any = json.loads(value.decode())
    except RecursionError:
        raise _Refused(Reason.NOT_JSON, f"nested too deeply: {_quote(value)}") from None
    except ValueError as error:  # bad UTF-8, bad JSON, an integer of more than 4300 digits
        raise _Refused(Reason.NOT_JSON, f"{_quote(value)} is not JSON: {str(error)[:80]}") from None
    if parsed is None:
        raise _Refused(Reason.NULL, "the value is null, expected a JSON object")
    if not isinstance(parsed, dict):
        raise _Refused(Reason.NOT_OBJECT, f"the value is {_quote(parsed)}, expected a JSON object")
    return parsed  # pyright: ignore[reportUnknownVariableType]


def _field(fields: dict[str, Any], name: str, expected: str) -> Any:
    if name not in fields:
        present = ", ".join(repr(field[:32]) for field in list(fields)[:5]) or "none"
        raise _Refused(
            Reason.MISSING_FIELD, f"{name!r} is missing, expected {expected}; fields present: {present}"
        )
    if fields[name] is None:
        raise _Refused(Reason.NULL, f"{name!r} is null, expected {expected}")
    return fields[name]


def _series(spec: TickSpec, record: _Record, fields: dict[str, Any]) -> str:
    if spec.series:
        raw = _field(fields, spec.series, "text or an integer")
    elif record.key is None:
        raise _Refused(Reason.MISSING_FIELD, "the record has no key, expected the series id there")
    else:
        try:
            raw = record.key.decode()
        except UnicodeDecodeError:
            raise _Refused(
                Reason.WRONG_TYPE, f"the key is {_quote(record.key)}, expected UTF-8 text"
            ) from None
    where = repr(spec.series) if spec.series else "the key"
    if type(raw) is int and abs(raw) <= MAX_SEQUENCE:
        return str(raw)
    if not isinstance(raw, str) or not raw:
        raise _wrong_type(where, raw, "text that is not empty, or an integer")
    if len(raw) > MAX_SERIES_CHARS:
        raise _Refused(
            Reason.TOO_LARGE,
            f"{where} is {_quote(raw)}, {len(raw)} characters, expected at most {MAX_SERIES_CHARS}",
        )
    if not _is_unicode(raw):
        raise _wrong_type(where, raw, "valid Unicode (no lone surrogates)")
    return raw


def _time(spec: TickSpec, record: _Record, fields: dict[str, Any]) -> float:
    if not spec.time:
        if record.timestamp_ms < 0:
            raise _Refused(Reason.MISSING_FIELD, "the record has no timestamp, expected the event time there")
        return record.timestamp_ms / 1e3
    raw = _field(fields, spec.time, _EXPECTED_TIME[spec.time_unit])
    time_s = _time_s(spec, raw)
    if not isfinite(time_s):
        raise _Refused(Reason.NOT_FINITE, f"{spec.time!r} is {_quote(raw)}, expected a finite time")
    if time_s < YEAR_1_S:
        raise _Refused(
            Reason.OUT_OF_BOUNDS, f"{spec.time!r} is {_quote(raw)}, before the year 1 with {spec.time_unit=}"
        )
    record_s = record.timestamp_ms / 1e3
    if record.timestamp_ms >= 0 and time_s > record_s + spec.future_s:
        raise _Refused(
            Reason.FUTURE,
            f"{spec.time!r} is {_quote(raw)}, {time_s - record_s:.6g} s after the record's timestamp,"
            f" expected at most future_s = {spec.future_s:g}; is tick.time_unit = {spec.time_unit} right?",
        )
    return time_s


def _time_s(spec: TickSpec, raw: Any) -> float:
    """Epoch seconds of a time as it came; may be infinite."""
    wants_text, wants_number = spec.time_unit in {"iso", "auto"}, spec.time_unit != "iso"
    try:
        if isinstance(raw, str):
            if wants_number and spec.numeric_strings and _NUMBER.fullmatch(raw):
                return _UNITS[spec.time_unit](float(raw))
            if wants_text:
                return _iso_s(raw)
        elif wants_number and type(raw) in {int, float}:
            return _UNITS[spec.time_unit](_float(raw))
    except (ValueError, OverflowError):
        pass  # not ISO 8601
    raise _wrong_type(repr(spec.time), raw, _EXPECTED_TIME[spec.time_unit])


_EXPECTED_TIME = {
    "auto": "epoch time as a number, or ISO 8601 text",
    "s": "epoch seconds as a number",
    "ms": "epoch milliseconds as a number",
    "us": "epoch microseconds as a number",
    "ns": "epoch nanoseconds as a number",
    "iso": "ISO 8601 text",
}


def _number(spec: TickSpec, fields: dict[str, Any], name: str) -> float:
    raw = _field(fields, name, "a finite number")
    if isinstance(raw, str):
        if not _NUMBER.fullmatch(raw):
            raise _wrong_type(repr(name), raw, "a finite number")
        if not spec.numeric_strings:
            raise _wrong_type(repr(name), raw, "a finite number; numeric_strings would accept it")
        number = float(raw)
    elif type(raw) in {int, float}:
        number = _float(raw)
    else:
        raise _wrong_type(repr(name), raw, "a finite number")
    if not isfinite(number):
        raise _Refused(Reason.NOT_FINITE, f"{name!r} is {_quote(raw)}, expected a finite number")
    return number


def _covariate(spec: TickSpec, fields: dict[str, Any], name: str) -> float:
    raw = fields.get(name)
    missing = raw is None or (isinstance(raw, float) and isnan(raw))
    return nan if missing else _number(spec, fields, name)


def _bounded(spec: TickSpec, number: float) -> float:
    if not spec.minimum <= number <= spec.maximum:
        raise _Refused(
            Reason.OUT_OF_BOUNDS,
            f"{spec.value!r} is {number!r}, expected from minimum = {spec.minimum:g}"
            f" to maximum = {spec.maximum:g}",
        )
    return number


def _sequence(spec: TickSpec, fields: dict[str, Any]) -> int:
    raw = _field(fields, spec.sequence, "an integer")
    if type(raw) is not int:
        raise _wrong_type(repr(spec.sequence), raw, "an integer")
    if abs(raw) > MAX_SEQUENCE:
        raise _Refused(
            Reason.OUT_OF_BOUNDS, f"{spec.sequence!r} is {_quote(raw)}, expected an integer of 64 bits"
        )
    return raw


def _float(number: float) -> float:
    """As float64; what is too large for it is infinite."""
    try:
        return float(number)
    except OverflowError:
        return inf


def _text(key: bytes | None) -> str | None:
    return None if key is None else key.decode()


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _quote(raw: object) -> str:
    """A short printable quotation of untrusted input; never walks into what is nested or huge."""
    if isinstance(raw, str | bytes):
        text = ascii(raw[:48])
        return text if len(raw) <= 48 and len(text) <= 64 else text[:60] + "..."
    if isinstance(raw, list | dict):
        return f"{_TYPE_NAMES[type(raw)]} of {len(raw)} items"  # pyright: ignore
    if isinstance(raw, int) and raw.bit_length() > 128:
        return f"an integer of {raw.bit_length()} bits"
    return ascii(raw)


def _wrong_type(where: str, raw: object, expected: str) -> _Refused:
    kind = f" ({_TYPE_NAMES[type(raw)]})" if isinstance(raw, str | float | int) else ""
    return _Refused(Reason.WRONG_TYPE, f"{where} is {_quote(raw)}{kind}, expected {expected}")
