"""Formats as they were once written: what every release from then on has to read, and what it says of a newer one.

`recorded/<format>-<schema>.json` was written by the first release that had it and is never changed; one that raises a
schema adds a file. Records of the state topic are in core/test_pages.py.
"""

import base64
import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import structlog

from forecaster.core.model import Card, Model, ModelSpec
from forecaster.errors import DataError
from forecaster.shell import control, dead_letters
from forecaster.shell.dead_letters import Kept, Receipt
from forecaster.shell.kafka import Record
from forecaster.shell.kafka.notes import Note
from forecaster.shell.kafka.notes import decode as decode_note
from forecaster.shell.models import NowServing, Refusal, Refused, Registry, Serving, codec
from forecaster.shell.models.convert import from_stored
from forecaster.shell.prediction import Prediction, TickSource
from forecaster.shell.prediction import decode as decode_prediction

RECORDED = Path(__file__).parent / "recorded"


def recorded(name: str) -> list[Any]:
    return json.loads((RECORDED / f"{name}.json").read_text(encoding="utf-8"))


def records(name: str) -> list[Record]:
    """As they lie on their topic, an offset each."""

    def raw(text: str | None) -> bytes | None:
        return None if text is None else base64.b64decode(text)

    return [
        Record(
            name,
            0,
            offset,
            1_700_000_000_000,
            raw(one["key"]),
            raw(one["value"]),
            [(header, base64.b64decode(value)) for header, value in one["headers"]],
        )
        for offset, one in enumerate(recorded(name))
    ]


def test_a_model_in_chunks_and_the_record_that_makes_it_serve() -> None:
    registry, written = Registry(), records("models-1")
    assert [record.key for record in written] == [
        b"model/20231123-051320-abc",
        b"model/20231123-051320-abc/1",
        b"serving",
    ]
    (served,) = [event for event in registry.feed(written) if isinstance(event, NowServing)]
    assert served.serving == Serving("20231123-051320-abc", "20231122-000000-def", "better", 1_700_000_005.0)
    model = from_stored(served.stored)
    assert isinstance(model, Model)
    assert model.spec == ModelSpec(hidden=1, horizon=2, levels=(0.1, 0.5, 0.9), context_length=8, warm_up=2)
    assert model.card == Card(
        version="20231123-051320-abc",
        parent="20231122-000000-def",
        created_s=1.7e9,
        seed=7,
        steps_taken=50,
        offsets={"0": (10, 1000), "1": (0, 990)},
        scores={"candidate": {"loss": 0.5}, "last_value": {"loss": 0.75}},
        notes={"why": "recorded"},
    )
    assert jnp.asarray(model.periods)[0] == 24
    widths = {"width.kernel", "width.bias"}  # which it does not know: 0 leaves quantiles where they are
    for name, p in model.params.items():
        np.testing.assert_array_equal(p, 0.0 if name in widths else 0.25)


def test_a_model_of_a_newer_release_is_refused_with_both_schemas() -> None:
    *chunks, _ = records("models-1")
    data = b"".join(record.value or b"" for record in chunks)
    refused = codec.parse(data.replace(b'\\"schema\\": 1', b'\\"schema\\": 2'))
    assert isinstance(refused, Refused)
    assert refused.reason is Refusal.NEWER
    assert refused.message == "schema 2, this release reads up to 1"


def test_predictions() -> None:
    first, second = (decode_prediction(text.encode()) for text in recorded("predictions-1"))
    assert first == Prediction(
        schema=1,
        series="a",
        issued_at=1_700_000_000.125,
        last=100.0,
        step_s=60.0,
        target_times=(60.0, 120.0),
        horizon=2,
        levels=(0.1, 0.5, 0.9),
        quantiles=((99.0, 100.0, 101.0), (98.0, 100.0, 102.0)),
        mean=(100.0, 100.25),
        status="ok",
        anomaly=None,
        model="m-1",
        source=TickSource("ticks", 3, 12),
    )
    assert (second.series, second.status, second.anomaly) == ('b"é\n', "cold", 0.5)
    newer = recorded("predictions-1")[0].replace('"schema":1', '"schema":2')
    with pytest.raises(DataError, match="schema 2, this reader knows up to 1: upgrade forecaster"):
        decode_prediction(newer.encode())


def test_dead_letters_and_receipts() -> None:
    written = records("dead-letters-1")
    letter, again, cut, receipt, bare = map(dead_letters.read, written)
    whole = Kept(
        place=(0, 0),
        written_s=1.7e9,
        reason="not_json",
        message="it is not JSON",
        topic="ticks",
        partition=3,
        offset=7,
        timestamp_ms=1_700_000_000_000,
        key=b"boiler-7",
        value=b'{"series": "boiler-7"',
        size=29,
        cut=False,
        came_back=False,
    )
    assert letter == whole
    assert again == whole._replace(place=(0, 1), offset=12, came_back=True)
    assert cut == whole._replace(
        place=(0, 2), offset=13, key=None, value=b"x" * 8, size=dead_letters.MOST_BYTES + 1, cut=True
    )
    assert receipt == Receipt((0, 4))
    assert bare == whole._replace(place=(0, 4)), "written before letters carried a schema"
    newer = written[0]._replace(headers=[("schema", b"2"), *written[0].headers[1:]])
    with pytest.raises(DataError, match="letter at offset 0 is of schema 2, this release knows up to 1"):
        dead_letters.read(newer)


def test_requests_and_answers() -> None:
    written = records("control-1")
    assert [control.decode(record) for record in written] == [
        control.Request(
            command=control.Command.ROLL_BACK,
            trigger="cli",
            sender="me@host",
            id="r1",
            at_s=1.7e9,
            arguments={"version": "v1"},
        ),
        control.Answer(
            id="r1",
            outcome="rolled_back",
            sender="host:12",
            message="v1",
            details={"losses": {"candidate": 0.5}},
            at_s=1.7e9 + 1,
        ),
    ]
    newer = written[0]._replace(value=(written[0].value or b"").replace(b'"schema":1', b'"schema":2'))
    with structlog.testing.capture_logs() as logged:
        assert control.Inbox().feed([newer]) == []
    (said,) = logged
    assert said["reason"] == "schema 2, this release knows up to 1: upgrade forecaster"


def test_notes_beside_committed_offsets() -> None:
    """They have no schema: what is not known is left out, and what is no note says nothing."""
    full, plain, nothing, before = map(decode_note, recorded("offsets-1"))
    assert full == Note(
        worker="0123456789ab",
        deaths=2,
        tries=1,
        fetches=1,
        behind=4711,
        aside=(7, 4700),
        passed=((10, 20),),
    )
    assert plain == Note(worker="0123456789ab", aside=(7,))
    assert nothing == Note()
    assert before == Note(worker="0123456789ab", deaths=2, tries=1, aside=(7,)), (
        "of before batches were noted"
    )
    later = recorded("offsets-1")[0].replace('"deaths"', '"later":1,"deaths"')
    assert decode_note(later) == full
