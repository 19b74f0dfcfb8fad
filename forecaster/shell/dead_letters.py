"""The format of the dead-letter topic: a record that cannot be used -> its letter, and a letter -> what it says.

A letter has the original bytes and key, and headers for reason, message, source topic, partition, offset and timestamp;
what was too large is cut, and a header says so. A letter that was sent back to the ticks has a receipt behind it on the
same topic; what was sent back names the letter that it was, also when it becomes a letter again.
"""

from collections.abc import Mapping
from typing import NamedTuple

from forecaster.core.tick import Reject
from forecaster.errors import DataError
from forecaster.shell.kafka import Record

SCHEMA = 1  # of letters and receipts; raised when a reader of the old ones would misread the new ones
MOST_BYTES = 64 * 1024  # of a value or a key that is kept

Place = tuple[int, int]
"""Partition and offset on the dead-letter topic."""
Headers = list[tuple[str, bytes]]


class Letter(NamedTuple):
    """A dead letter as it is sent."""

    value: bytes | None
    key: bytes | None
    headers: Headers


class Kept(NamedTuple):
    """A dead letter as it lies on its topic."""

    place: Place
    written_s: float
    reason: str
    message: str
    topic: str
    partition: int
    offset: int
    timestamp_ms: int  # of the record that could not be used; -1: not known
    key: bytes | None
    value: bytes | None
    size: int  # of the original key and value, bytes
    cut: bool
    came_back: bool  # it was a letter before, was sent again, and was of no use again


class Receipt(NamedTuple):
    """Says that the letter at this place was sent back."""

    place: Place


def letter(record: Record, reject: Reject) -> Letter:
    """The dead letter of a record."""
    headers = [
        ("schema", _number(SCHEMA)),
        ("reason", reject.reason.value.encode()),
        ("message", reject.message.encode("utf-8", "replace")),
        ("source.topic", record.topic.encode()),
        ("source.partition", _number(record.partition)),
        ("source.offset", _number(record.offset)),
        ("source.timestamp_ms", _number(record.timestamp_ms)),
        *((name, value) for name, value in record.headers if name.startswith("replay.")),
    ]
    size = len(record.value or b"") + len(record.key or b"")
    if size > MOST_BYTES:
        headers.append(("cut.from_bytes", _number(size)))
    nothing = record.value is None and record.key is None  # which the client refuses to send
    return Letter(b"" if nothing else _cut(record.value), _cut(record.key), headers)


def receipt(place: Place) -> Headers:
    """The headers of a receipt; its value is empty."""
    return [
        ("schema", _number(SCHEMA)),
        ("replayed.partition", _number(place[0])),
        ("replayed.offset", _number(place[1])),
    ]


def replay(topic: str, place: Place) -> Headers:
    """The headers of a tick that was the letter at this place."""
    return [
        ("replay.topic", topic.encode()),
        ("replay.partition", _number(place[0])),
        ("replay.offset", _number(place[1])),
    ]


def read(record: Record) -> Kept | Receipt | None:
    """What a record of the dead-letter topic says; None where it is neither. Raises DataError for a newer format."""
    headers = dict(record.headers)
    try:
        schema = int(headers.get("schema", b"1"))
        if schema > SCHEMA:
            raise DataError(
                f"{record.topic}/{record.partition}: the letter at offset {record.offset} is of schema {schema}, this "
                f"release knows up to {SCHEMA}: upgrade forecaster"
            )
        if "replayed.offset" in headers:
            return Receipt((int(headers["replayed.partition"]), int(headers["replayed.offset"])))
        return _kept(record, headers)
    except (KeyError, ValueError):
        return None


def _kept(record: Record, headers: Mapping[str, bytes]) -> Kept:
    here = len(record.key or b"") + len(record.value or b"")
    return Kept(
        place=(record.partition, record.offset),
        written_s=record.timestamp_ms / 1000,
        reason=headers["reason"].decode(),
        message=headers["message"].decode("utf-8", "replace"),
        topic=headers["source.topic"].decode(),
        partition=int(headers["source.partition"]),
        offset=int(headers["source.offset"]),
        timestamp_ms=int(headers.get("source.timestamp_ms", b"-1")),
        key=record.key,
        value=record.value,
        size=int(headers.get("cut.from_bytes", _number(here))),
        cut="cut.from_bytes" in headers,
        came_back="replay.offset" in headers,
    )


def _number(number: int) -> bytes:
    return str(number).encode()


def _cut(text: bytes | None) -> bytes | None:
    return text if text is None else text[:MOST_BYTES]
