"""A model <-> records of the models topic; bytes only, nothing here reads or writes a topic.

A model is one safetensors file (no pickle, nothing that runs when it is read). Its header carries what
describes it, so the file on the topic and a file on disk are the same bytes. Each chunk repeats the
SHA-256 of the whole file.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple

import msgspec
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from forecaster.shell.kafka.record import Record

SCHEMA = 1
CHUNK_BYTES = 512 * 1024  # a broker takes a megabyte by default, batch overhead included
MOST_BYTES = 256 << 20  # hidden 1,024 with 4 layers is 120 MB
_MOST_PENDING = 4  # versions that may be in the middle of arriving

_SERVING_KEY = b"serving"
_PREFIX = "model/"
_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_METADATA = "forecaster"

Message = tuple[bytes, bytes | None, list[tuple[str, bytes]]]
"""Key, value and headers of a record to be written."""


class Refusal(StrEnum):
    """Why something on the models topic is not used."""

    MALFORMED = "malformed"
    """Not what a writer of ours would write."""
    INCOMPLETE = "incomplete"
    """Chunks are missing."""
    CHECKSUM = "checksum"
    """The bytes are not those that were published."""
    NEWER = "newer"
    """Written by a newer release."""
    TOO_LARGE = "too_large"
    """Above the limit for a model."""
    UNUSABLE = "unusable"
    """The weights are not finite, or not of the shapes that its spec asks for."""


@dataclass(frozen=True)
class Refused:
    """A model or a record that cannot be used, with the reason in words."""

    version: str
    reason: Refusal
    message: str


class Stored(NamedTuple):
    """A model as it is kept: the file, and what its header says (`spec` and `card`, JSON objects)."""

    version: str
    spec: dict[str, Any]
    card: dict[str, Any]
    data: bytes

    def tensors(self) -> dict[str, np.ndarray]:
        """The weights by name."""
        return load(self.data)

    @property
    def made_s(self) -> float:
        """When it was made; of models of earlier releases the newest event time that they saw; 0: not known."""
        return float(self.card.get("made_s") or self.card.get("created_s") or 0.0)


class Serving(msgspec.Struct, frozen=True, forbid_unknown_fields=False):
    """Which version serves, which one did before, and why it was changed."""

    version: str
    previous: str = ""
    reason: str = ""
    at_s: float = 0.0


class Forgotten(NamedTuple):
    """A version that was removed from the topic."""

    version: str


Arrival = Stored | Refused | Serving | Forgotten

_decode_serving = msgspec.json.Decoder(Serving).decode


def store(
    version: str, tensors: Mapping[str, np.ndarray], spec: Mapping[str, Any], card: Mapping[str, Any]
) -> Stored:
    """A model as it is kept. Raises ValueError for a version that cannot be part of a key."""
    if not _VERSION.fullmatch(version):
        raise ValueError(f"model version {version!r}: letters, digits, '.', '_' and '-' only, at most 100")
    about: dict[str, Any] = {"schema": SCHEMA, "version": version, "spec": dict(spec), "card": dict(card)}
    contiguous = {name: np.ascontiguousarray(tensor) for name, tensor in sorted(tensors.items())}
    data = save(contiguous, metadata={_METADATA: json.dumps(about, sort_keys=True)})
    return Stored(version, about["spec"], about["card"], data)


def parse(data: bytes, version: str = "") -> Stored | Refused:
    """A safetensors file -> what it holds, or why it is refused. `version`: what its key says."""
    try:
        length = int.from_bytes(data[:8], "little")
        about = json.loads(json.loads(data[8 : 8 + length])["__metadata__"][_METADATA])
        if about["schema"] > SCHEMA:
            return Refused(
                version, Refusal.NEWER, f"schema {about['schema']}, this release reads up to {SCHEMA}"
            )
        stored = Stored(str(about["version"]), dict(about["spec"]), dict(about["card"]), data)
        tensors = stored.tensors()
    except (ValueError, KeyError, TypeError, RecursionError, SafetensorError) as error:
        return Refused(version, Refusal.MALFORMED, f"not a model file: {type(error).__name__}: {error}"[:200])
    if version and stored.version != version:
        return Refused(
            version, Refusal.MALFORMED, f"the file says that it is version {stored.version!r}"[:200]
        )
    for name, tensor in tensors.items():
        if not np.all(np.isfinite(tensor)):
            return Refused(
                stored.version, Refusal.UNUSABLE, f"tensor {name!r} has values that are not finite"
            )
    return stored


def encode(stored: Stored) -> list[Message]:
    """The records of a model, to be written in this order."""
    chunks = [stored.data[at : at + CHUNK_BYTES] for at in range(0, len(stored.data), CHUNK_BYTES)]
    digest = hashlib.sha256(stored.data).hexdigest().encode()
    return [
        (_key(stored.version, i), chunk, [("sha256", digest), ("chunk", f"{i}/{len(chunks)}".encode())])
        for i, chunk in enumerate(chunks)
    ]


def encode_serving(serving: Serving) -> Message:
    """The record that makes a version serve."""
    return _SERVING_KEY, msgspec.json.encode(serving), []


def tombstones(version: str, chunks: int) -> list[Message]:
    """The records that remove a version; the first chunk goes first, so that a reader forgets it at once."""
    return [(_key(version, i), None, []) for i in range(chunks)]


class Assembler:
    """Records in offset order -> models, whole and checked. Holds the chunks of a few unfinished versions."""

    def __init__(self) -> None:
        self._pending: dict[str, _Pending] = {}

    def feed(self, record: Record) -> list[Arrival]:
        """What this record completes, removes or makes void; usually one thing or nothing."""
        if record.key == _SERVING_KEY:
            return _serving(record.value)
        version, index = _parse_key(record.key)
        if not version:
            return [Refused("", Refusal.MALFORMED, f"unknown key {record.key!r}"[:200])]
        if record.value is None:
            self._pending.pop(version, None)
            return [Forgotten(version)] if index == 0 else []
        return self._chunk(version, index, record)

    def unfinished(self) -> list[Refused]:
        """The versions of which chunks are still missing."""
        return [
            Refused(version, Refusal.INCOMPLETE, f"{len(pending.chunks)} of {pending.of} chunks are there")
            for version, pending in self._pending.items()
        ]

    def _chunk(self, version: str, index: int, record: Record) -> list[Arrival]:
        try:
            headers = dict(record.headers)
            digest = headers["sha256"]
            position, count = (int(number) for number in headers["chunk"].split(b"/"))
        except (KeyError, ValueError):
            return [Refused(version, Refusal.MALFORMED, "a chunk without its headers")]
        if position != index or not 0 <= index < count:
            return [
                Refused(version, Refusal.MALFORMED, f"chunk {position} of {count} under the key of {index}")
            ]
        if count > MOST_BYTES // CHUNK_BYTES:
            return [Refused(version, Refusal.TOO_LARGE, f"{count} chunks, the limit is {MOST_BYTES:,} bytes")]
        pending = self._pending.get(version)
        if pending is None or (pending.digest, pending.of) != (digest, count):
            pending = _Pending(digest, count, {})
        pending.chunks[index] = record.value or b""
        self._pending.pop(version, None)
        self._pending[version] = pending  # the one that was touched last is dropped last
        dropped = self._drop_oldest()
        return [*dropped, self._complete(version, pending)] if len(pending.chunks) == count else dropped

    def _complete(self, version: str, pending: "_Pending") -> Arrival:
        del self._pending[version]
        data = b"".join(pending.chunks[i] for i in range(pending.of))
        if hashlib.sha256(data).hexdigest().encode() != pending.digest:
            return Refused(version, Refusal.CHECKSUM, "the bytes are not those that were published")
        return parse(data, version)

    def _drop_oldest(self) -> list[Arrival]:
        if len(self._pending) <= _MOST_PENDING:
            return []
        oldest = next(iter(self._pending))
        pending = self._pending.pop(oldest)
        message = f"{len(pending.chunks)} of {pending.of} chunks came, then other models"
        return [Refused(oldest, Refusal.INCOMPLETE, message)]


class _Pending(NamedTuple):
    digest: bytes
    of: int
    chunks: dict[int, bytes]


def _serving(value: bytes | None) -> list[Arrival]:
    if value is None:
        return [Serving("")]
    try:
        return [_decode_serving(value)]
    except (msgspec.DecodeError, RecursionError) as error:
        return [Refused("", Refusal.MALFORMED, f"serving record: {error}"[:200])]


def _key(version: str, index: int) -> bytes:
    return f"{_PREFIX}{version}/{index}".encode() if index else f"{_PREFIX}{version}".encode()


def _parse_key(key: bytes | None) -> tuple[str, int]:
    """Version and number of the chunk; no version when it is not a key of ours."""
    match = re.fullmatch(rb"model/([A-Za-z0-9][A-Za-z0-9._-]{0,99})(?:/([1-9][0-9]{0,4}))?", key or b"")
    return (match[1].decode(), int(match[2] or 0)) if match else ("", 0)
