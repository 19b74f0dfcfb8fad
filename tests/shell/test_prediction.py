"""Messages: what is written can be read, keeps its order and its ties, and is documented as it is."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forecaster.errors import BugError, DataError
from forecaster.shell.prediction import Encoder, Forecasts, decode, rounded

LEVELS = (0.1, 0.5, 0.9)


def forecasts(**changes: Any) -> Forecasts:
    batch = Forecasts(
        series=["a", 'b"é\n'],
        issued_at=np.array([1_700_000_000.125, 5.0]),
        last=np.array([100.0, -2.5]),
        quantiles=np.array(
            [[[99.0, 100.0, 101.0], [98.0, 100.0, 102.0]], [[-3.0, -2.5, -2.0], [-3.5, -2.5, -1.5]]]
        ),
        mean=np.array([[100.0, 100.25], [-2.5, -2.5]]),
        status=["ok", "cold"],
        partition=[3, 0],
        offset=[12, 2**40],
    )
    return batch._replace(**changes)


def messages(batch: Forecasts, *, model: str = "m-1", step_s: float | None = None) -> list[dict[str, Any]]:
    return [json.loads(text) for text in Encoder("ticks", LEVELS, step_s).encode(batch, model)]


def test_the_message_field_by_field() -> None:
    first, second = messages(forecasts())
    assert first == {
        "schema": 1,
        "series": "a",
        "issued_at": 1_700_000_000.125,
        "last": 100.0,
        "step_s": None,
        "target_times": None,
        "horizon": 2,
        "levels": [0.1, 0.5, 0.9],
        "quantiles": [[99.0, 100.0, 101.0], [98.0, 100.0, 102.0]],
        "mean": [100.0, 100.25],
        "status": "ok",
        "anomaly": None,
        "model": "m-1",
        "source": {"topic": "ticks", "partition": 3, "offset": 12},
    }
    assert second["series"] == 'b"é\n'
    assert second["status"] == "cold"
    assert second["source"] == {"topic": "ticks", "partition": 0, "offset": 2**40}


def test_bars_carry_their_length_and_the_times_of_their_targets() -> None:
    times = np.array([[60.0, 120.0], [65.0, 125.0]])
    first, second = messages(forecasts(target_times=times), step_s=60.0)
    assert (first["step_s"], first["target_times"], second["target_times"]) == (
        60.0,
        [60.0, 120.0],
        [65.0, 125.0],
    )


def test_anomaly_is_null_where_there_is_none() -> None:
    first, second = messages(forecasts(anomaly=np.array([np.nan, 1.5])))
    assert (first["anomaly"], second["anomaly"]) == (None, 1.5)


def test_a_name_with_a_percent_sign_survives() -> None:
    first, _ = messages(forecasts(), model="100%d %b")
    assert first["model"] == "100%d %b"


def test_no_rows_no_messages() -> None:
    empty = np.zeros((0, 2, 3))
    batch = Forecasts([], empty[:, 0, 0], empty[:, 0, 0], empty, empty[:, :, 0], [], [], [])
    assert Encoder("ticks", LEVELS).encode(batch, "m") == []


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_a_bug_that_names_the_series(bad: float) -> None:
    quantiles = forecasts().quantiles.copy()
    quantiles[1, 1, 2] = bad
    with pytest.raises(BugError, match="'b"):
        messages(forecasts(quantiles=quantiles))


def test_what_was_written_can_be_read() -> None:
    text = Encoder("ticks", LEVELS).encode(forecasts(), "m-1")[0]
    prediction = decode(text)
    assert prediction.series == "a"
    assert prediction.quantile(0.9) == (101.0, 102.0)
    assert prediction.source.offset == 12
    with pytest.raises(ValueError, match=r"0\.33 is none of the published levels: 0\.1, 0\.5, 0\.9"):
        prediction.quantile(0.33)


def test_a_reader_takes_additions_and_refuses_newer_versions() -> None:
    message = messages(forecasts())[0]
    assert decode(json.dumps({**message, "added_later": 1}).encode()).series == "a"
    for newer in ({**message, "schema": 2}, {"schema": 2, "shape": "new"}):
        with pytest.raises(DataError, match=r"schema 2.*up to 1.*upgrade"):
            decode(json.dumps(newer).encode())


@pytest.mark.parametrize("junk", [b"", b"{", b"\xff", b"[]", b"{}", b'{"schema":1}', b"null"])
def test_junk_is_a_data_error(junk: bytes) -> None:
    with pytest.raises(DataError, match="not a prediction"):
        decode(junk)


numbers = st.floats(-1e18, 1e18)
steps = st.lists(st.lists(numbers, min_size=3, max_size=3).map(sorted), min_size=1, max_size=4)


@given(numbers, steps, st.booleans())
def test_rounding_keeps_order_and_ties_and_is_close(last: float, rows: list[list[float]], tie: bool) -> None:
    if tie:
        rows = [sorted([row[0], last, row[2]]) for row in rows]
    exact = np.array([rows])
    mean = exact.mean(axis=-1)
    quantiles, means = rounded(np.array([last]), exact, mean)
    assert np.isfinite(quantiles).all()
    assert (np.diff(quantiles, axis=-1) >= 0).all()
    assert (quantiles[exact == last] == last).all()
    spread = np.abs(exact - last).max()
    allowed = 1e-6 * spread + 1e-14 * np.abs(exact).max() + 1e-22
    assert np.abs(quantiles - exact).max() <= allowed
    assert np.abs(means - mean).max() <= allowed


@given(st.integers(-10, 6), st.integers(0, 1000))
def test_rounding_keeps_messages_short_at_every_scale(exponent: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    scale = 10.0**exponent
    last = np.array([100 * scale])
    quantiles = np.sort(last[:, None, None] + scale * rng.normal(size=(1, 12, 3)), axis=-1)
    published, _ = rounded(last, quantiles, quantiles[:, :, 1])
    assert (
        max(len(repr(x).split("e")[0].replace(".", "").strip("-0")) for x in published.ravel().tolist()) <= 10
    )
