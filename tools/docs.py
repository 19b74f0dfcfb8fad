"""Write what of docs/ is made from the code: `make docs`. A test fails when any of it is not
current.

    configuration.md         every key of the configuration
    prediction.schema.json   JSON Schema of a prediction
    asyncapi.yaml            the topics that others read or write, as AsyncAPI 3.0
"""

import json
from pathlib import Path
from typing import Any

import msgspec
import yaml

from forecaster.config import Config, Key, describe, every_key, sections, toml_value
from forecaster.core.tick import MAX_SERIES_CHARS, Reason, TickSpec
from forecaster.shell.control import Answer, Request
from forecaster.shell.prediction import SCHEMA, Prediction

DOCS = Path(__file__).resolve().parent.parent / "docs"
DIALECT = "https://json-schema.org/draft/2020-12/schema"


def main() -> None:
    """Write all of them."""
    for name, text in documents().items():
        (DOCS / name).write_text(text, encoding="utf-8")


def documents() -> dict[str, str]:
    """File name -> text."""
    return {
        "configuration.md": configuration(),
        "prediction.schema.json": json.dumps(prediction_schema(), indent=2, ensure_ascii=False) + "\n",
        "asyncapi.yaml": "# Made from the code by tools/docs.py.\n"
        + yaml.safe_dump(asyncapi(), sort_keys=False, allow_unicode=True, width=110),
    }


# --- configuration ---

HEAD = """# Configuration

One TOML file, named by `--config` or `FORECASTER_CONFIG`; what it leaves out has the default below.
`forecaster config` prints the default file with all of this as comments, `forecaster check` tells everything
that is wrong with one.

* Every key can be set from the environment, which goes over the file: `FORECASTER_<SECTION>__<KEY>`, for example
  `FORECASTER_KAFKA__BOOTSTRAP_SERVERS=broker:9092`. Lists are written as in TOML, or as words between commas.
* Secrets belong into files that `*_file` keys name, or into the environment. They are never shown.
* Unknown keys are errors, and so are numbers that are not finite. All problems are listed at once, and the process ends
  with exit code 2.
* Keys marked **live** are taken over while running, on SIGHUP; a change of any other is named in the log and waits for
  a restart, and a broken file changes nothing.

This file is made from the code (`make docs`).
"""


def configuration() -> str:
    """The reference of every key, as Markdown."""
    parts = [HEAD]
    for section, spec in sections().items():
        first_line = (spec.__doc__ or "").strip().splitlines()[0]
        rows = [_row(key) for key in every_key() if key.section == section]
        parts.append(
            f"## [{section}]\n\n{first_line}\n\n| key | default | meaning |\n|---|---|---|\n"
            + "\n".join(rows)
            + "\n"
        )
    return "\n".join(parts)


def _row(key: Key) -> str:
    default = getattr(getattr(Config(), key.section), key.name)
    shown = f"`{toml_value(default)}`" if default is not None else "not set"
    meaning = describe(key).replace("|", "\\|") + (" **live**" if key.live else "")
    return f"| `{key.name}` | {shown} | {meaning} |"


# --- messages ---


def prediction_schema() -> dict[str, Any]:
    """JSON Schema of a prediction, self-contained."""
    (schema,), components = msgspec.json.schema_components([Prediction], ref_template="#/$defs/{name}")
    return {"$schema": DIALECT, **components.pop(_name(schema)), "$defs": components}


def tick_schema() -> dict[str, Any]:
    """JSON Schema of a tick with the default field names."""
    names = TickSpec()
    number = {"type": "number", "description": "The value; finite."}
    return {
        "title": "Tick",
        "description": "One observation. The field names are configuration ([tick]); these are the"
        " defaults. Other fields are ignored, but for a sequence number and covariates where they are configured:"
        " numbers, each of which may be null or absent.",
        "type": "object",
        "properties": {
            names.series: {
                "description": "Series id; should also be the record's key, so that a series stays in order.",
                "type": ["string", "integer"],
                "minLength": 1,
                "maxLength": MAX_SERIES_CHARS,
            },
            names.time: {
                "description": "Event time: epoch s, ms, us or ns (told apart by size), or ISO 8601.",
                "type": ["number", "string"],
            },
            names.value: number,
        },
        "required": [names.series, names.time, names.value],
        "examples": [{names.series: "sensor-1", names.time: 1_700_000_000.5, names.value: 21.5}],
    }


def asyncapi() -> dict[str, Any]:
    """The topics that others read or write."""
    (prediction, request, answer), components = msgspec.json.schema_components(
        [Prediction, Request, Answer], ref_template="#/components/schemas/{name}"
    )
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "forecaster",
            "version": str(SCHEMA),
            "description": "Ticks in, a prediction for each of them out, over Apache Kafka. Topic names"
            " are configuration ([topics]); these are the defaults. The models and state topics are"
            " forecaster's own.",
            "license": {"name": "Apache-2.0"},
        },
        "defaultContentType": "application/json",
        "channels": {
            "ticks": _channel("ticks", "Tick", "What is observed, keyed by series."),
            "predictions": _channel(
                "predictions", "Prediction", "A prediction for each tick, keyed by series."
            ),
            "deadLetters": _channel(
                "dead_letters",
                "DeadLetter",
                "Records that cannot be used: original key and value. Behind a letter that was sent back to the"
                " ticks stands a receipt: an empty value, and only the headers replayed.partition and"
                " replayed.offset, which name the letter.",
            ),
            "control": _channel(
                "control", "Control", "Requests, and what came of them, keyed by the request's id."
            ),
        },
        "operations": {
            "readTicks": _operation(
                "receive", "ticks", "Read with read_committed; every record has one outcome."
            ),
            "publishPrediction": _operation(
                "send", "predictions", "Publish the forecast that a tick leads to."
            ),
            "setAside": _operation("send", "deadLetters", "Publish what cannot be used, with the reason."),
            "readControl": _operation("receive", "control", "Take requests."),
            "answerRequest": _operation("send", "control", "Say what came of a request."),
        },
        "components": {
            "messages": {
                "Tick": {"payload": {"$ref": "#/components/schemas/Tick"}},
                "Prediction": {"payload": prediction, "bindings": _key("The series id.")},
                "DeadLetter": {
                    "contentType": "application/octet-stream",
                    "payload": {"description": "The original bytes, cut above 64 KB."},
                    "headers": _dead_letter_headers(),
                    "bindings": _key("The original key."),
                },
                "Control": {
                    "payload": {"oneOf": [request, answer]},
                    "bindings": _key("The id of the request."),
                },
            },
            "schemas": {"Tick": tick_schema(), **components},
        },
    }


def _channel(role: str, message: str, description: str) -> dict[str, Any]:
    return {
        "address": getattr(Config().topics, role),
        "description": description,
        "messages": {message: {"$ref": f"#/components/messages/{message}"}},
    }


def _operation(action: str, channel: str, summary: str) -> dict[str, Any]:
    return {"action": action, "channel": {"$ref": f"#/channels/{channel}"}, "summary": summary}


def _key(description: str) -> dict[str, Any]:
    return {"kafka": {"key": {"type": "string", "description": description}}}


def _dead_letter_headers() -> dict[str, Any]:
    text = {"type": "string"}
    return {
        "type": "object",
        "properties": {
            "schema": {**text, "pattern": "^[0-9]+$", "description": "Version of this format; absent: 1."},
            "reason": {"enum": [reason.value for reason in Reason]},
            "message": {**text, "description": "The field, its value and what was expected."},
            "source.topic": text,
            "source.partition": {**text, "pattern": "^[0-9]+$"},
            "source.offset": {**text, "pattern": "^[0-9]+$"},
            "source.timestamp_ms": {**text, "pattern": "^-?[0-9]+$"},
            "replay.topic": {
                **text,
                "description": "Where it had been sent back: what letter it was before.",
            },
            "replay.partition": {**text, "pattern": "^[0-9]+$"},
            "replay.offset": {**text, "pattern": "^[0-9]+$"},
            "cut.from_bytes": {
                **text,
                "pattern": "^[0-9]+$",
                "description": "Original size, where it was cut.",
            },
        },
        "required": ["reason", "message", "source.topic", "source.partition", "source.offset"],
    }


def _name(reference: dict[str, Any]) -> str:
    return str(reference["$ref"]).rsplit("/", 1)[-1]


if __name__ == "__main__":
    main()
