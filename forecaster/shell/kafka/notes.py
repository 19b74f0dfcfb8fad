"""What a worker notes beside a committed offset, for the one that comes after: who was at work there, and what killed.

The note travels in the metadata of the offset's commit (4,096 bytes at most), so it is as durable as the offset and
needs no topic of its own. A worker that leaves in order takes its name off; where a name stands, its bearer died there.
"""

from typing import NamedTuple

import msgspec

MOST_ASIDE = 100  # offsets remembered: the newest
MOST_PASSED = 20  # batches remembered: the newest

Span = tuple[int, int]
"""The first offset of a batch, and the one behind its last."""


class Note(msgspec.Struct, frozen=True, omit_defaults=True):
    """Beside a committed offset: that of the next record to be answered."""

    worker: str = ""
    """Who works on what comes behind this offset; "": nobody, the last one left in order."""
    deaths: int = 0
    """How many have died at this offset."""
    tries: int = 0
    """How many have begun with the record at this offset alone, and have not come to the next one."""
    fetches: int = 0
    """How many have begun to decode the batch at this offset, and had nothing of it."""
    behind: int = 0
    """Where that batch ends: the offset behind its last."""
    aside: tuple[int, ...] = ()
    """Offsets before this one whose records killed: a replay passes over them, too."""
    passed: tuple[Span, ...] = ()
    """Batches before this offset that killed who decoded them: likewise."""
    rebuilds: int = 0
    """How many have begun to read the log back up to this offset, after deaths here, and have not come to its end."""


class Deadly(NamedTuple):
    """What of a partition kills who decodes it."""

    offsets: frozenset[int]  # of records
    batches: tuple[Span, ...]


def deadly(note: Note, offset: int) -> Deadly:
    """What the note beside this offset warns of: what has killed, and what is just being tried.

    >>> deadly(Note(fetches=1, behind=9, aside=(2,), passed=((3, 5),)), 7)
    Deadly(offsets=frozenset({2}), batches=((3, 5), (7, 9)))
    """
    offsets, batches = set(note.aside), list(note.passed)
    if note.tries:
        offsets.add(offset)
    if note.fetches:
        batches.append((offset, note.behind))
    return Deadly(frozenset(offsets), tuple(batches))


_decode = msgspec.json.Decoder(Note).decode


def encode(note: Note) -> str:
    """As the metadata of a commit."""
    kept = msgspec.structs.replace(note, aside=note.aside[-MOST_ASIDE:], passed=note.passed[-MOST_PASSED:])
    return msgspec.json.encode(kept).decode()


def decode(metadata: str) -> Note:
    """What stands in the metadata; nothing where it is not ours."""
    try:
        return _decode(metadata or "{}")
    except (msgspec.DecodeError, RecursionError):
        return Note()


def fresh(note: Note, worker: str = "") -> Note:
    """That of a worker who has not yet begun with anything: what killed before is all that stays."""
    return Note(worker=worker, aside=note.aside, passed=note.passed)


def inherited(note: Note, worker: str) -> Note:
    """What a new owner begins with: a name that is not its own is that of somebody who died.

    >>> inherited(Note(worker="a", deaths=1), "b") == Note(worker="b", deaths=2)
    True
    >>> inherited(Note(deaths=1, aside=(7,)), "b") == Note(worker="b", aside=(7,))
    True
    """
    if note.worker in {"", worker}:
        return fresh(note, worker)
    return msgspec.structs.replace(note, worker=worker, deaths=note.deaths + 1)
