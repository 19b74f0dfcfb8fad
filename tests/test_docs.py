"""What of docs/ is made from the code is current, and says what really goes out."""

import importlib.util
import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import jsonschema
import numpy as np
import pytest
import yaml

import forecaster.shell.kafka
from forecaster.core.tick import Reject, TickSpec, make_decoder
from forecaster.shell.control import Answer, Command, Request, encode
from forecaster.shell.dead_letters import letter
from forecaster.shell.kafka.record import Record
from forecaster.shell.prediction import Encoder
from tests.shell.test_prediction import LEVELS, forecasts

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def docs() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs", ROOT / "tools" / "docs.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["configuration.md", "prediction.schema.json", "asyncapi.yaml"])
def test_made_documents_are_current(docs: ModuleType, name: str) -> None:
    written = (ROOT / "docs" / name).read_text(encoding="utf-8")
    assert written == docs.documents()[name], "run: make docs"


def validate(instance: Any, schema: dict[str, Any]) -> None:
    jsonschema.validators.validator_for(schema, jsonschema.Draft202012Validator)(schema).validate(instance)


def asyncapi() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "docs" / "asyncapi.yaml").read_text(encoding="utf-8"))


def payload_schema(message: str) -> dict[str, Any]:
    document = asyncapi()
    return {**document["components"]["messages"][message]["payload"], "components": document["components"]}


def test_real_predictions_validate_and_broken_ones_do_not() -> None:
    schema = json.loads((ROOT / "docs" / "prediction.schema.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    bars = forecasts(target_times=np.array([[60.0, 120.0], [65.0, 125.0]]), anomaly=np.array([np.nan, 0.5]))
    texts = Encoder("ticks", LEVELS).encode(forecasts(), "") + Encoder("ticks", LEVELS, 60.0).encode(
        bars, "m"
    )
    assert len(texts) == 4
    for text in texts:
        message = json.loads(text)
        validate(message, schema)
        validate(message, payload_schema("Prediction"))
        assert set(message) == set(schema["required"])
        for name in schema["required"]:
            with pytest.raises(jsonschema.ValidationError):
                validate({k: v for k, v in message.items() if k != name}, schema)
        with pytest.raises(jsonschema.ValidationError):
            validate({**message, "status": "splendid"}, schema)


def test_the_documented_tick_is_a_tick() -> None:
    schema = payload_schema("Tick")
    (example,) = asyncapi()["components"]["schemas"]["Tick"]["examples"]
    validate(example, schema)
    answer = make_decoder(TickSpec())(b"k", json.dumps(example).encode(), 1_700_000_001_000)
    assert not isinstance(answer, Reject)
    with pytest.raises(jsonschema.ValidationError):
        validate({**example, "value": "1"}, schema)


def test_real_control_messages_and_dead_letters_validate() -> None:
    request = Request(command=Command.RETRAIN, trigger="cli", sender="me")
    answer = Answer(
        id=request.id, outcome="promoted", sender="worker", details={"losses": {"candidate": 0.5}}
    )
    for message in (request, answer):
        validate(json.loads(encode(message)[1]), payload_schema("Control"))

    record = Record("ticks", 1, 2, 3, b"k", b"x" * 100_000)
    reject = make_decoder(TickSpec())(record.key, record.value, record.timestamp_ms)
    assert isinstance(reject, Reject)
    headers = {name: value.decode() for name, value in letter(record, reject).headers}
    validate(headers, asyncapi()["components"]["messages"]["DeadLetter"]["headers"])
    assert headers["cut.from_bytes"] == "100001"


def references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        for value in node.values():
            yield from references(value)
    elif isinstance(node, list):
        for value in node:
            yield from references(value)


def test_every_reference_of_the_asyncapi_document_leads_somewhere() -> None:
    document = asyncapi()
    assert document["asyncapi"] == "3.0.0"
    found = set(references(document))
    assert len(found) > 8
    for reference in found:
        node = document
        for part in reference.removeprefix("#/").split("/"):
            node = node[part]


@pytest.mark.parametrize("layer", ["core", "shell"])
def test_the_readme_lists_every_module(layer: str) -> None:
    """In the core in an order in which each imports only those above it."""
    there = {p.stem for p in (ROOT / "forecaster" / layer).iterdir() if not p.name.startswith("__")}
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    begin = readme.index(f"\n`forecaster/{layer}/`")
    listed = re.findall(r"`(\w+)(?:\.py|/)`", readme[begin : readme.index("\n\n`", begin + 1)])
    assert sorted(listed) == sorted(there)
    if layer == "core":
        for place, name in enumerate(listed):
            text = (ROOT / "forecaster" / layer / f"{name}.py").read_text(encoding="utf-8")
            used = {n for n in listed if re.search(rf"forecaster\.core(\.{n}\b| import .*\b{n}\b)", text)}
            assert used <= set(listed[: place + 1]), name


def test_the_package_around_the_client_lists_every_module() -> None:
    listed = re.findall(r"^ {4}(\w+) {2,}", forecaster.shell.kafka.__doc__ or "", re.MULTILINE)
    there = {p.stem for p in Path(forecaster.shell.kafka.__file__).parent.glob("[!_]*.py")}
    assert sorted(listed) == sorted(there)
