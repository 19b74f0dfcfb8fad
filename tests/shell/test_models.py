"""Models on their topic, without a broker: what comes back, what is refused, and what keeps serving meanwhile."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from forecaster.core import features
from forecaster.core.model import Card, ModelSpec, untrained
from forecaster.shell.kafka import Record
from forecaster.shell.models import Arrived, NowServing, Refusal, Refused, Registry, Serving, Stored
from forecaster.shell.models.codec import (
    CHUNK_BYTES,
    SCHEMA,
    Assembler,
    Forgotten,
    Message,
    encode,
    encode_serving,
    parse,
    store,
    tombstones,
)
from forecaster.shell.models.convert import from_stored, to_stored
from forecaster.shell.models.registry import to_keep

SMALL = {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "periods": np.array([24, 0], np.int32)}
LARGE = {"w": np.linspace(0, 1, 300_000, dtype=np.float32)}  # 1.2 MB: three chunks


def model(version: str, tensors: dict[str, np.ndarray] = SMALL, parent: str = "") -> Stored:
    return store(version, tensors, {"cell": "gru"}, {"version": version, "parent": parent})


def records(*messages: Message) -> list[Record]:
    return [
        Record("models", 0, i, 0, key, value, headers) for i, (key, value, headers) in enumerate(messages)
    ]


def serving(version: str, previous: str = "") -> Message:
    return encode_serving(Serving(version, previous, "promoted", 1.0))


@pytest.mark.parametrize(("tensors", "chunks"), [(SMALL, 1), (LARGE, 3)])
def test_a_model_comes_back_as_it_was_stored(tensors: dict[str, np.ndarray], chunks: int) -> None:
    stored = model("v1", tensors)
    messages = encode(stored)
    assert len(messages) == chunks
    assert all(len(value or b"") <= CHUNK_BYTES for _, value, _ in messages)

    assembler = Assembler()
    arrivals = [arrival for record in records(*messages) for arrival in assembler.feed(record)]
    assert arrivals == [stored]
    for name, tensor in stored.tensors().items():
        np.testing.assert_array_equal(tensor, tensors[name])


def test_the_same_model_is_stored_as_the_same_bytes() -> None:
    assert (
        model("v1").data
        == store("v1", dict(reversed(SMALL.items())), {"cell": "gru"}, {"version": "v1", "parent": ""}).data
    )


def test_a_file_describes_itself() -> None:
    stored = model("v1", parent="v0")
    assert parse(stored.data) == stored
    assert stored.card["parent"] == "v0"


def test_a_model_tells_when_it_was_made_and_one_of_an_earlier_release_what_it_learned_from_last() -> None:
    told = [
        store("v1", SMALL, {}, card).made_s
        for card in ({"created_s": 5.0, "made_s": 7.0}, {"created_s": 5.0}, {})
    ]
    assert told == [7.0, 5.0, 0.0]


@pytest.mark.parametrize("version", ["", "a/b", "-x", "x" * 101, "a b"])
def test_a_version_has_to_fit_into_a_key(version: str) -> None:
    with pytest.raises(ValueError, match="model version"):
        model(version)


@given(at=st.integers(0, 10**9), bit=st.integers(0, 7), which=st.integers(0, 2))
def test_no_flipped_bit_goes_unnoticed(at: int, bit: int, which: int) -> None:
    messages = encode(model("v1", LARGE))
    key, value, headers = messages[which]
    damaged = bytearray(value or b"")
    damaged[at % len(damaged)] ^= 1 << bit
    messages[which] = (key, bytes(damaged), headers)
    events = Registry().feed(records(*messages, serving("v1")))
    assert [event.reason for event in events if isinstance(event, Refused)] == [
        Refusal.CHECKSUM,
        Refusal.INCOMPLETE,
    ]
    assert not any(isinstance(event, Arrived | NowServing) for event in events)


@given(value=st.binary(max_size=300), key=st.binary(max_size=40), chunk=st.binary(max_size=8))
def test_any_record_is_used_or_refused_but_never_raises(value: bytes, key: bytes, chunk: bytes) -> None:
    junk = [
        (key, value, []),
        (b"model/v1", value, []),
        (b"model/v1", value, [("sha256", value), ("chunk", chunk)]),
        (b"serving", value, []),
        (b"model/v1", value, [("sha256", b"0"), ("chunk", b"0/1")]),
    ]
    registry = Registry()
    assert not any(isinstance(event, Arrived | NowServing) for event in registry.feed(records(*junk)))
    assert registry.serving is None


@given(value=st.binary(max_size=300))
def test_any_file_is_parsed_or_refused(value: bytes) -> None:
    assert isinstance(parse(value), Refused)


@pytest.mark.parametrize("missing", [0, 1, 2])
def test_a_model_with_a_missing_chunk_never_serves(missing: int) -> None:
    old, messages = model("v1"), encode(model("v2", LARGE))
    del messages[missing]
    registry = Registry()
    registry.feed(records(*encode(old), serving("v1")))
    events = registry.feed(records(*messages, serving("v2", "v1")))
    assert [event.reason for event in events if isinstance(event, Refused)] == [Refusal.INCOMPLETE]
    assert registry.serving is not None
    assert registry.serving.version == "v1"
    assert [refused.version for refused in registry.unfinished()] == ["v2"]


def test_a_model_whose_chunks_come_after_the_order_serves_then() -> None:
    registry = Registry()
    events = registry.feed(records(serving("v1"), *encode(model("v1"))))
    assert isinstance(events[0], Refused)
    assert isinstance(events[-1], NowServing)


def test_a_version_that_is_published_again_is_the_newer_one() -> None:
    first, second = encode(model("v1", LARGE)), encode(model("v1", {"w": LARGE["w"] + 1}))
    registry = Registry()
    events = registry.feed(records(*first[:2], *second))
    (arrived,) = [event.stored for event in events if isinstance(event, Arrived)]
    np.testing.assert_array_equal(arrived.tensors()["w"], LARGE["w"] + 1)


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_refused(poison: float) -> None:
    stored = model("v1", {"w": np.array([1.0, poison], np.float32)})
    refused = parse(stored.data)
    assert isinstance(refused, Refused)
    assert refused.reason is Refusal.UNUSABLE


def test_a_newer_format_is_refused_and_not_removed() -> None:
    header = {"__metadata__": {"forecaster": json.dumps({"schema": SCHEMA + 1})}}
    text = json.dumps(header).encode()
    stored = Stored("v9", {}, {}, len(text).to_bytes(8, "little") + text)
    registry = Registry()
    (refused,) = registry.feed(records(*encode(stored)))
    assert isinstance(refused, Refused)
    assert refused.reason is Refusal.NEWER
    assert registry.newer == {"v9"}


def test_a_key_that_lies_about_its_version_is_refused() -> None:
    stored = model("v1")
    (refused,) = Registry().feed(records(*encode(stored._replace(version="v2"))))
    assert isinstance(refused, Refused)
    assert refused.reason is Refusal.MALFORMED


def test_promotion_and_rollback_change_what_serves() -> None:
    registry = Registry()
    registry.feed(records(*encode(model("v1")), *encode(model("v2")), serving("v1")))
    (event,) = registry.feed(records(serving("v2", "v1")))
    assert isinstance(event, NowServing)
    assert event.stored.version == "v2"
    (event,) = registry.feed(records(serving("v1", "v2")))
    assert isinstance(event, NowServing)
    assert event.stored.version == "v1"


def test_only_some_files_are_held_and_a_rollback_to_another_says_so() -> None:
    registry = Registry()
    for i in range(10):
        registry.feed(records(*encode(model(f"v{i}"))))
    assert list(registry.cards) == [f"v{i}" for i in range(10)]
    assert [v for v in registry.cards if registry.file(v) is not None] == ["v6", "v7", "v8", "v9"]
    assert registry.feed(records(serving("v0"))) == []
    assert registry.missing == "v0"

    pinned = Registry(pinned={"v0"})
    for i in range(10):
        pinned.feed(records(*encode(model(f"v{i}"))))
    (event,) = pinned.feed(records(serving("v0")))
    assert isinstance(event, NowServing)
    assert pinned.missing == ""


def test_a_tombstone_removes_a_version() -> None:
    registry = Registry()
    registry.feed(records(*encode(model("v1", LARGE))))
    assert registry.chunks == {"v1": 3}
    assert registry.feed(records(*tombstones("v1", 3))) == []
    assert (registry.cards, registry.chunks, registry.file("v1")) == ({}, {}, None)
    assert Assembler().feed(records(*tombstones("v1", 1))[0]) == [Forgotten("v1")]


def test_the_last_and_their_ancestors_are_kept() -> None:
    registry = Registry()
    parents = {"a": "", "b": "a", "c": "b", "x": "", "d": "c", "y": "x", "e": "d"}
    for version, parent in parents.items():
        registry.feed(records(*encode(model(version, parent=parent))))
    assert to_keep(registry, 1) == {"e", "d", "c", "b", "a"}
    registry.feed(records(serving("x", "y")))
    assert to_keep(registry, 0) == {"x", "y"}


def test_a_network_comes_back_as_it_was() -> None:
    spec = ModelSpec(hidden=4, horizon=3)
    net = untrained(spec)._replace(card=Card(version="v1", seed=7, offsets={"0": (1, 2)}))
    for whole in (net, net._replace(judged={name: p + 2 for name, p in net.params.items()})):
        again = from_stored(to_stored(whole))
        assert not isinstance(again, Refused)
        assert (again.spec, again.card) == (net.spec, net.card)
        jax.tree.map(np.testing.assert_array_equal, again.params, whole.params)
        jax.tree.map(np.testing.assert_array_equal, again.judged, whole.judged)


def test_inputs_that_an_earlier_release_saw_no_change_in_are_not_heard() -> None:
    """It gave them a rate of 1; what they turn out to be would pass through weights that nobody trained."""
    net = untrained(ModelSpec(hidden=4, horizon=3))._replace(card=Card(version="v1"))
    rate = np.linspace(0.5, 1.5, features.RECURRENT, dtype=np.float32)
    again = from_stored(to_stored(net._replace(params=net.params | {"norm.input_rate": jnp.asarray(rate)})))
    assert not isinstance(again, Refused)
    middle = features.RECURRENT // 2
    assert rate[middle] == 1
    rate[middle] = 0
    np.testing.assert_array_equal(again.params["norm.input_rate"], rate)
    assert (again.params["norm.out"] == net.params["norm.out"]).all()


def test_networks_of_an_earlier_release_have_no_widths_and_draw_as_they_did() -> None:
    net = untrained(ModelSpec(hidden=4, horizon=3))._replace(card=Card(version="v1"))
    params = {name: p + 2 for name, p in net.params.items() if not name.startswith("width.")}
    for judged in (None, params):
        again = from_stored(to_stored(net._replace(params=params, judged=judged)))
        assert not isinstance(again, Refused)
        for read in filter(None, (again.params, again.judged)):
            assert {name for name in read if not read[name].any()} == net.params.keys() - params.keys()
            assert all((read[name] == p).all() for name, p in params.items())


def test_weights_of_other_shapes_are_refused() -> None:
    stored = to_stored(untrained(ModelSpec(hidden=4))._replace(card=Card(version="v1")))
    lying = stored._replace(spec=stored.spec | {"hidden": 8})
    refused = from_stored(lying)
    assert isinstance(refused, Refused)
    assert refused.reason is Refusal.UNUSABLE


def test_a_spec_of_another_release_is_refused_with_its_key() -> None:
    stored = to_stored(untrained(ModelSpec(hidden=4))._replace(card=Card(version="v1")))
    refused = from_stored(stored._replace(spec=stored.spec | {"attention": True}))
    assert isinstance(refused, Refused)
    assert "attention" in refused.message


def test_what_a_later_release_adds_to_a_card_is_passed_over() -> None:
    known = Card(version="v1", seed=7)
    stored = to_stored(untrained(ModelSpec(hidden=4))._replace(card=known))
    again = from_stored(stored._replace(card=stored.card | {"energy_j": 3.5}))
    assert not isinstance(again, Refused)
    assert again.card == known
    with pytest.raises(ValidationError):
        Card.model_validate({"version": "v1", "energy_j": 3.5})


def test_nothing_that_runs_is_read(tmp_path: Path) -> None:
    """A pickle is not a model file."""
    import pickle

    mark = tmp_path / "ran"
    assert isinstance(parse(pickle.dumps({"__reduce__": str(mark)})), Refused)
    assert not mark.exists()


def test_a_serving_record_of_a_later_release_may_have_more_fields() -> None:
    value = msgspec.json.encode({"version": "v1", "previous": "", "reason": "x", "at_s": 1.0, "by": "me"})
    registry = Registry()
    registry.feed(records(*encode(model("v1")), (b"serving", value, [])))
    assert registry.serving is not None
