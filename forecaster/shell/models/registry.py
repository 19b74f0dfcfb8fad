"""Records of the models topic in offset order -> what is there and what serves; pure, nothing is read or
written.

The files of a few versions are held in memory: the one that serves, the newest, and those that are pinned.
Of all others the card is kept.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from forecaster.shell.kafka.record import Record
from forecaster.shell.models.codec import Assembler, Forgotten, Refusal, Refused, Serving, Stored

_MOST_FILES = 4


@dataclass(frozen=True)
class Arrived:
    """A model came, whole and checked; it does not serve yet."""

    stored: Stored


@dataclass(frozen=True)
class NowServing:
    """The model that serves from now on."""

    stored: Stored
    serving: Serving


Event = Arrived | NowServing | Refused


class Registry:
    """The topic as far as it was read. An order to serve what is not usable changes nothing."""

    def __init__(self, pinned: Collection[str] = ()) -> None:
        self.serving: Serving | None = None
        """What serves: the last `serving` record that names a usable version."""
        self.cards: dict[str, Stored] = {}
        """All usable versions, oldest first, without their files."""
        self.chunks: dict[str, int] = {}
        """How many chunks each version has on the topic, usable or not."""
        self.newer: set[str] = set()
        """Versions that only a newer release can read."""
        self._pinned = frozenset(pinned)
        self._ordered: Serving | None = None
        self._files: dict[str, Stored] = {}
        self._assembler = Assembler()

    def feed(self, records: Iterable[Record]) -> list[Event]:
        """What these records, in offset order, change."""
        events: list[Event] = []
        for record in records:
            self._count(record)
            for arrival in self._assembler.feed(record):
                match arrival:
                    case Stored():
                        events += self._arrive(arrival)
                    case Serving():
                        events += self._order(arrival)
                    case Forgotten(version):
                        self._forget(version)
                    case Refused(version, reason):
                        self.newer |= {version} if reason is Refusal.NEWER else set()
                        events.append(arrival)
        return events

    def unfinished(self) -> list[Refused]:
        """Versions of which chunks are missing."""
        return self._assembler.unfinished()

    def file(self, version: str) -> Stored | None:
        """A version with its file, if that is held."""
        return self._files.get(version)

    @property
    def missing(self) -> str:
        """The version that serves while its file is not held: read again with it pinned. Else empty."""
        version = self.serving.version if self.serving is not None else ""
        return version if version in self.cards and version not in self._files else ""

    def _arrive(self, stored: Stored) -> list[Event]:
        self.cards.pop(stored.version, None)
        self.cards[stored.version] = stored._replace(data=b"")
        self._files.pop(stored.version, None)
        self._files[stored.version] = stored
        events: list[Event] = [Arrived(stored)]
        if self._ordered is not None and self._ordered.version == stored.version:
            events += self._order(self._ordered)
        self._drop_files()
        return events

    def _order(self, serving: Serving) -> list[Event]:
        if serving.version not in self.cards:
            self._ordered = serving
            return [
                Refused(serving.version, Refusal.INCOMPLETE, "ordered to serve, but not usable or not there")
            ]
        self._ordered, self.serving = None, serving
        stored = self._files.get(serving.version)
        return [NowServing(stored, serving)] if stored is not None else []

    def _forget(self, version: str) -> None:
        self.cards.pop(version, None)
        self._files.pop(version, None)
        self.chunks.pop(version, None)
        self.newer.discard(version)

    def _drop_files(self) -> None:
        held = self._pinned | ({self.serving.version} if self.serving is not None else set())
        for version in [version for version in self._files if version not in held][:-_MOST_FILES]:
            del self._files[version]

    def _count(self, record: Record) -> None:
        key = (record.key or b"").decode(errors="replace").split("/")
        if record.value is not None and key[0] == "model" and len(key) in {2, 3}:
            index = int(key[2]) if len(key) == 3 and key[2].isdecimal() else 0
            self.chunks[key[1]] = max(self.chunks.get(key[1], 0), index + 1)


def to_keep(registry: Registry, last: int) -> set[str]:
    """The newest `last` versions, what serves and served before, and every ancestor of these."""
    keep = set(list(registry.cards)[-last:] if last else ())
    if registry.serving is not None:
        keep |= {registry.serving.version, registry.serving.previous}
    frontier = list(keep)
    while frontier:
        stored = registry.cards.get(frontier.pop())
        parent = str(stored.card.get("parent") or "") if stored is not None else ""
        if parent and parent not in keep:
            keep.add(parent)
            frontier.append(parent)
    return keep
