"""What comes out of a topic, and what happens to partitions: plain values that need no client library.

Everything that reads or fakes a topic (source, log, replay) speaks in these.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple


class Record(NamedTuple):
    """One record of a topic. `timestamp_ms` is the record's own, -1 when it has none."""

    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes]] = ()


class MoveReason(StrEnum):
    """Why a position is not the committed one."""

    START = "start"
    """Nothing was committed yet: the start policy decided."""
    OUT_OF_RANGE = "out_of_range"
    """Retention has removed the position: records between were lost."""
    UNREADABLE = "unreadable"
    """What is on the log there cannot be decoded by any client: it was passed over."""
    TRUNCATED = "truncated"
    """The log was cut behind the position by an unclean leader election."""


@dataclass(frozen=True)
class Assigned:
    """Partitions that are ours from now on, paused until their rows are rebuilt and `resume` is called.

    None: the group has decided, and there is nothing for us.
    """

    partitions: frozenset[int]


@dataclass(frozen=True)
class Revoked:
    """Partitions handed over in order: nothing may be committed for them any more."""

    partitions: frozenset[int]


@dataclass(frozen=True)
class Lost:
    """Partitions that somebody else may own already: their work in flight is void."""

    partitions: frozenset[int]


@dataclass(frozen=True)
class Moved:
    """A position was set by policy: reading goes on at `to_offset`.

    `from_offset` is the position that could not be had; None when nothing was committed.
    """

    partition: int
    from_offset: int | None
    to_offset: int
    reason: MoveReason


Change = Assigned | Revoked | Lost | Moved
