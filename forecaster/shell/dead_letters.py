"""Records that cannot be used -> messages of the dead-letter topic: the original bytes, and why.

Headers: reason, message, source topic, partition and offset; what was too large is cut, and a header says so.
"""

from typing import NamedTuple

from forecaster.core.tick import Reject
from forecaster.shell.kafka import Record

MOST_BYTES = 64 * 1024  # of a value or a key that is kept


class Letter(NamedTuple):
    """A dead letter as it is sent."""

    value: bytes | None
    key: bytes | None
    headers: list[tuple[str, bytes]]


def letter(record: Record, reject: Reject) -> Letter:
    """The dead letter of a record."""
    headers = [
        ("reason", reject.reason.value.encode()),
        ("message", reject.message.encode("utf-8", "replace")),
        ("source.topic", record.topic.encode()),
        ("source.partition", str(record.partition).encode()),
        ("source.offset", str(record.offset).encode()),
    ]
    size = len(record.value or b"") + len(record.key or b"")
    if size > MOST_BYTES:
        headers.append(("cut.from_bytes", str(size).encode()))
    return Letter(_cut(record.value), _cut(record.key), headers)


def _cut(text: bytes | None) -> bytes | None:
    return text if text is None else text[:MOST_BYTES]
