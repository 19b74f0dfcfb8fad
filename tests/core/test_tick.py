"""Every record is a Tick or a Reject with the right reason, and the quick way agrees with the slow one."""

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from forecaster.core import tick as tick_module
from forecaster.core.tick import Reason, Reject, Tick, TickSpec, make_decoder

NOW_MS = 1_700_000_000_500
GOOD = {"series": "a", "ts": 1_700_000_000, "value": 2.5}


def decode(body: Any, key: bytes | None = None, timestamp_ms: int = NOW_MS, **spec: Any) -> Tick | Reject:
    value = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    return make_decoder(TickSpec(**spec))(key, value, timestamp_ms)


def accepted(body: Any, **more: Any) -> Tick:
    answer = decode(body, **more)
    assert isinstance(answer, Tick), answer
    return answer


def refused(body: Any, **more: Any) -> Reject:
    answer = decode(body, **more)
    assert isinstance(answer, Reject), answer
    return answer


def test_plain_tick() -> None:
    assert accepted(GOOD) == Tick("a", 1_700_000_000.0, 2.5, None, ())


def test_configured_names_covariates_and_sequence() -> None:
    body = {"id": "x", "at": 5, "v": 1, "n": 7, "temp": 20.5, "load": 3}
    spec = {"series": "id", "time": "at", "value": "v", "sequence": "n", "covariates": ("load", "temp")}
    assert accepted(body, **spec) == Tick("x", 5.0, 1.0, 7, (3.0, 20.5))


@pytest.mark.parametrize("more", [{}, {"temp": None}, {"temp": math.nan}])
def test_a_covariate_may_be_missing(more: dict[str, Any]) -> None:
    tick = accepted({**GOOD, "load": 3, **more}, covariates=("load", "temp"))
    np.testing.assert_array_equal(tick.covariates, [3.0, math.nan])


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        ("1", Reason.WRONG_TYPE),
        (True, Reason.WRONG_TYPE),
        ([1], Reason.WRONG_TYPE),
        (-math.inf, Reason.NOT_FINITE),
    ],
)
def test_a_covariate_that_is_no_number_is_a_mistake(raw: object, reason: Reason) -> None:
    assert refused({**GOOD, "load": raw}, covariates=("load",)).reason is reason


def test_series_from_the_key_and_time_from_the_record() -> None:
    assert accepted({"value": 1}, key="größe".encode(), series="", time="") == Tick(
        "größe", NOW_MS / 1e3, 1.0
    )
    assert refused({"value": 1}, series="").reason is Reason.MISSING_FIELD
    assert refused({"value": 1, "ts": 1}, key=b"\xff", series="").reason is Reason.WRONG_TYPE
    assert refused({"value": 1, "ts": 1}, key=b"", series="").reason is Reason.WRONG_TYPE
    assert refused({"value": 1}, key=b"k", series="", time="", timestamp_ms=-1).reason is Reason.MISSING_FIELD


def test_integer_series_ids_become_text() -> None:
    assert accepted({**GOOD, "series": 17}).series == "17"
    assert refused({**GOOD, "series": 17.0}).reason is Reason.WRONG_TYPE


@pytest.mark.parametrize(
    ("time", "unit", "seconds"),
    [
        (0, "auto", 0.0),
        (-86_400, "auto", -86_400.0),
        (1_699_999_999.125, "auto", 1_699_999_999.125),
        (1_699_999_999_125, "auto", 1_699_999_999.125),
        (1_699_999_999_125_000, "auto", 1_699_999_999.125),
        (1_699_999_999_125_000_000, "auto", 1_699_999_999.125),
        ("2023-11-14T22:13:19.125Z", "auto", 1_699_999_999.125),
        ("2023-11-14T23:13:19.125+01:00", "iso", 1_699_999_999.125),
        ("2023-11-14 22:13:19.125", "iso", 1_699_999_999.125),
        ("2023-11-14", "auto", 1_699_920_000.0),
        (12_000, "ms", 12.0),
        (12_000, "us", 0.012),
        (12_000, "ns", 0.000012),
        (12_000.5, "s", 12_000.5),
    ],
)
def test_time_units(time: float | str, unit: str, seconds: float) -> None:
    assert accepted({**GOOD, "ts": time}, time_unit=unit).time_s == pytest.approx(seconds, abs=1e-6)


def test_a_fixed_unit_refuses_the_other_kind_of_time() -> None:
    assert refused({**GOOD, "ts": "2023-11-14"}, time_unit="s").reason is Reason.WRONG_TYPE
    assert refused({**GOOD, "ts": 5}, time_unit="iso").reason is Reason.WRONG_TYPE


def test_milliseconds_read_as_seconds_are_refused_as_future_with_a_hint() -> None:
    reject = refused({**GOOD, "ts": NOW_MS}, time_unit="s")
    assert reject.reason is Reason.FUTURE
    assert "is tick.time_unit = s right?" in reject.message


def test_future_is_measured_against_the_record() -> None:
    ahead = {**GOOD, "ts": NOW_MS / 1e3 + 60}
    assert isinstance(decode(ahead, future_s=60), Tick)
    assert refused(ahead, future_s=59).reason is Reason.FUTURE
    assert isinstance(decode(ahead, future_s=0, timestamp_ms=-1), Tick)  # nothing to measure against


def test_numeric_strings_only_where_allowed() -> None:
    body = {"series": "a", "ts": "1700000000", "value": "-1.5e2"}
    assert accepted(body, numeric_strings=True) == Tick("a", 1.7e9, -150.0)
    assert "numeric_strings" in refused({**GOOD, "value": "1.5"}).message
    for text in ("nan", "inf", "1_000", "", " ", "0x1", "\u0661", "1,5"):
        assert refused({**GOOD, "value": text}, numeric_strings=True).reason is Reason.WRONG_TYPE
    assert refused({**GOOD, "value": "1e999"}, numeric_strings=True).reason is Reason.NOT_FINITE


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, Reason.NULL),
        (b"null", Reason.NULL),
        (b"", Reason.NOT_JSON),
        (b"{", Reason.NOT_JSON),
        (b"\xff\xfe", Reason.NOT_JSON),
        (b'\xef\xbb\xbf{"series":"a","ts":1,"value":1}', Reason.NOT_JSON),
        (b"[" * 60_000, Reason.NOT_JSON),
        (b'{"a":' * 12_000, Reason.NOT_JSON),
        (b'{"series":"a","ts":1,"value":' + b"9" * 5_000 + b"}", Reason.NOT_JSON),
        (b"[1]", Reason.NOT_OBJECT),
        (b'"text"', Reason.NOT_OBJECT),
        (b"3", Reason.NOT_OBJECT),
        (b"{}", Reason.MISSING_FIELD),
        (b'{"series":"a","value":1}', Reason.MISSING_FIELD),
        (b'{"series":"a","ts":1}', Reason.MISSING_FIELD),
        (b'{"series":"a","ts":1,"value":null}', Reason.NULL),
        (b'{"series":"","ts":1,"value":1}', Reason.WRONG_TYPE),
        (b'{"series":["a"],"ts":1,"value":1}', Reason.WRONG_TYPE),
        (b'{"series":"\\ud800","ts":1,"value":1}', Reason.WRONG_TYPE),
        (b'{"series":"a","ts":"noon","value":1}', Reason.WRONG_TYPE),
        (b'{"series":"a","ts":"0001-01-01T00:00:00+23:59","value":1}', Reason.OUT_OF_BOUNDS),
        (b'{"series":"a","ts":true,"value":1}', Reason.WRONG_TYPE),
        (b'{"series":"a","ts":1,"value":true}', Reason.WRONG_TYPE),
        (b'{"series":"a","ts":1,"value":"1"}', Reason.WRONG_TYPE),
        (b'{"series":"a","ts":1,"value":{"x":1}}', Reason.WRONG_TYPE),
        (b'{"series":"a","ts":1,"value":NaN}', Reason.NOT_FINITE),
        (b'{"series":"a","ts":1,"value":-Infinity}', Reason.NOT_FINITE),
        (b'{"series":"a","ts":1,"value":1e400}', Reason.NOT_FINITE),
        (b'{"series":"a","ts":1,"value":' + b"9" * 400 + b"}", Reason.NOT_FINITE),
        (b'{"series":"a","ts":NaN,"value":1}', Reason.NOT_FINITE),
        (b'{"series":"a","ts":1e400,"value":1}', Reason.NOT_FINITE),
        (b'{"series":"a","ts":1,"value":1e19}', Reason.OUT_OF_BOUNDS),
        (b'{"series":"a","ts":-1e300,"value":1}', Reason.OUT_OF_BOUNDS),
        (b'{"series":"a","ts":1e30,"value":1}', Reason.FUTURE),
        (b'{"series":"' + b"x" * 300 + b'","ts":1,"value":1}', Reason.TOO_LARGE),
        (b" " * 70_000, Reason.TOO_LARGE),
    ],
)
def test_reasons(value: bytes | None, reason: Reason) -> None:
    reject = refused(value)
    assert reject.reason is reason
    assert 0 < len(reject.message) <= 200


def test_sequence_is_a_64_bit_integer() -> None:
    assert accepted({**GOOD, "n": -3}, sequence="n").sequence == -3
    assert refused({**GOOD, "n": 1.5}, sequence="n").reason is Reason.WRONG_TYPE
    assert refused({**GOOD, "n": True}, sequence="n").reason is Reason.WRONG_TYPE
    assert refused({**GOOD, "n": 2**63}, sequence="n").reason is Reason.OUT_OF_BOUNDS
    assert refused(GOOD, sequence="n").reason is Reason.MISSING_FIELD


def test_bounds_are_inclusive() -> None:
    for value in (-1, 0, 2):
        assert isinstance(decode({**GOOD, "value": value}, minimum=-1, maximum=2), Tick)
    reject = refused({**GOOD, "value": 2.01}, minimum=-1, maximum=2)
    assert reject.message == "'value' is 2.01, expected from minimum = -1 to maximum = 2"


def test_what_nobody_reads_does_not_matter() -> None:
    assert accepted(b'{"series":"a","ts":1,"value":3,"extra":NaN}') == Tick("a", 1.0, 3.0)
    assert accepted(b'{"series":"a","ts":1,"value":3,"extra":"\xff"}') == Tick("a", 1.0, 3.0)


def test_of_a_key_given_twice_the_last_counts() -> None:
    assert accepted(b'{"series":"a","ts":1,"value":3,"value":4}').value == 4.0


def test_messages_quote_the_culprit_without_control_characters() -> None:
    message = refused({**GOOD, "value": "\x1b[31m\n" + "é" * 500}).message
    assert message.isascii()
    assert message.isprintable()
    assert "\\x1b[31m\\n" in message


@pytest.mark.parametrize(
    "spec",
    [
        {"series": "x", "value": "x"},
        {"covariates": ("value",)},
        {"covariates": ("",)},
        {"covariates": tuple(map(str, range(33)))},
        {"same_time": "sequence"},
        {"minimum": 1.0, "maximum": 1.0},
        {"value": ""},
    ],
)
def test_specs_that_contradict_themselves_are_refused(spec: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        TickSpec(**spec)


SPECS = [
    TickSpec(),
    TickSpec(numeric_strings=True, covariates=("c",), sequence="n"),
    TickSpec(series="", time=""),
    TickSpec(time_unit="iso"),
    TickSpec(time_unit="ms", minimum=-10, maximum=10),
]
DECODERS = [make_decoder(spec) for spec in SPECS]


@given(st.one_of(st.none(), st.binary()), st.one_of(st.none(), st.binary()), st.integers(-1, 2**43))
def test_any_bytes_give_a_tick_or_a_reject(key: bytes | None, value: bytes | None, timestamp_ms: int) -> None:
    for decoder in DECODERS:
        check(decoder(key, value, timestamp_ms))


scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.integers(10**8, 10**19), st.floats(), st.text(max_size=8),
    st.datetimes().map(str), st.floats().map(str),
)  # fmt: skip
anything = st.recursive(scalars, lambda inner: st.lists(inner, max_size=2), max_leaves=3)
bodies = st.fixed_dictionaries({}, optional=dict.fromkeys(("series", "ts", "value", "c", "n", "x"), anything))


@given(st.one_of(st.none(), st.text().map(str.encode)), bodies, st.integers(-1, 2**43))
def test_the_quick_way_agrees_with_the_slow_one(
    key: bytes | None, body: dict[str, Any], timestamp_ms: int
) -> None:
    value = json.dumps(body).encode()
    for spec, decoder in zip(SPECS, DECODERS, strict=True):
        quick = decoder(key, value, timestamp_ms)
        check(quick)
        assert quick == tick_module._examine(spec, key, value, timestamp_ms)


def check(answer: Tick | Reject) -> None:
    if isinstance(answer, Reject):
        assert answer.reason in Reason
        assert 0 < len(answer.message) <= 200
        return
    assert 0 < len(answer.series) <= 256
    assert answer.series.encode()
    assert all(map(math.isfinite, (answer.time_s, answer.value)))
    assert not any(map(math.isinf, answer.covariates))
