"""Dead letters, found by what they say and sent back to the ticks: the original bytes, each letter once.

In come the dead-letter topic and what is looked for; out go findings, and letters on the ticks topic. A letter and the
receipt that says it was sent are one transaction, so that it is never sent twice unless that is asked for, whoever is
stopped where. It goes back to the partition that it came from; what comes late that way is counted late, and learned
from at the next retrain.
"""

from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from forecaster.config import Config
from forecaster.core.tick import Reason
from forecaster.shell.dead_letters import Kept, Place, Receipt, read, receipt, replay
from forecaster.shell.kafka import Record
from forecaster.shell.kafka.log import Log
from forecaster.shell.kafka.together import Message, Together

READ_S = 600.0  # for the whole topic
CHUNK = 500  # letters in a transaction


class Fate(StrEnum):
    """What has become of a letter, or can."""

    OPEN = "open"
    """It can be sent back."""
    REPLAYED = "replayed"
    """It was sent back."""
    CAME_BACK = "came_back"
    """It was a letter before: what it was sent back as was of no use either."""
    CUT = "cut"
    """It cannot be sent back: it was too large to be kept whole."""
    POISON = "poison"
    """It killed the workers that handled it: it is sent back only when its reason is asked for."""
    FOREIGN = "foreign"
    """It cannot be sent back: it came from another topic than the configured one."""


DONE = frozenset({Fate.REPLAYED, Fate.CAME_BACK})
WHY_NOT = {
    Fate.REPLAYED: "they were sent before; --again sends them once more",
    Fate.CAME_BACK: "they were sent before and could not be used then either; --again sends them once more",
    Fate.CUT: "they were too large to be kept whole, so that their original bytes are gone",
    Fate.POISON: "they killed the workers that handled them; --reason poison sends them all the same",
    Fate.FOREIGN: "they came from another topic than topics.ticks",
}


@dataclass(frozen=True)
class Query:
    """Which letters are meant; without anything all of them."""

    reasons: frozenset[str] = frozenset()
    since_s: float = 0.0  # when the letter was written, epoch s
    partition: int | None = None  # of the ticks topic

    def matches(self, kept: Kept) -> bool:
        """Whether a letter is meant."""
        return (
            (not self.reasons or kept.reason in self.reasons)
            and kept.written_s >= self.since_s
            and self.partition in {None, kept.partition}
        )


class Found(NamedTuple):
    """A letter and its fate; `kept` is without its value."""

    kept: Kept
    fate: Fate

    @property
    def key(self) -> str:
        """The key as text."""
        return (self.kept.key or b"").decode("utf-8", "backslashreplace")

    def told(self) -> dict[str, object]:
        """For programs."""
        kept = self.kept
        return {
            "letter": {"partition": kept.place[0], "offset": kept.place[1]},
            "written_s": kept.written_s,
            "reason": kept.reason,
            "message": kept.message,
            "source": {"topic": kept.topic, "partition": kept.partition, "offset": kept.offset},
            "key": self.key,
            "bytes": kept.size,
            "fate": self.fate.value,
        }


class Findings:
    """Letters as they are read from their topic, in its order; of more than `most` the newest."""

    def __init__(self, query: Query, ticks: str, most: int | None = None) -> None:
        self.fates: Counter[Fate] = Counter()
        """Of all that were meant."""
        self._query, self._ticks = query, ticks
        self._found: deque[Kept] = deque(maxlen=most)
        self._fate: dict[Place, Fate] = {}

    def feed(self, records: Iterable[Record]) -> None:
        """Take in records of the dead-letter topic; a receipt always comes behind its letter."""
        for record in records:
            match read(record):
                case Kept() as kept if self._query.matches(kept):
                    self._found.append(kept._replace(value=None))
                    self._note(kept.place, self._first_fate(kept))
                case Receipt(place) if place in self._fate:
                    self._note(place, Fate.REPLAYED)
                case _:
                    pass

    def all(self) -> list[Found]:
        """What was found, in the order of the topic."""
        return [Found(kept, self._fate[kept.place]) for kept in self._found]

    def to_send(self, most: int | None, *, again: bool) -> list[Kept]:
        """The oldest `most` of them that can be sent and were not sent before; with `again`, those too."""
        wanted = _sendable(again)
        return [kept for kept, fate in self.all() if fate in wanted][:most]

    def staying(self, *, again: bool) -> list[str]:
        """What cannot or will not be sent, a sentence for each fate."""
        fates = [fate for fate in WHY_NOT if self.fates[fate] and fate not in _sendable(again)]
        return [f"{self.fates[fate]:,} not sent: {WHY_NOT[fate]}" for fate in fates]

    def _note(self, place: Place, fate: Fate) -> None:
        if before := self._fate.get(place):
            self.fates[before] -= 1
        self.fates[fate] += 1
        self._fate[place] = fate

    def _first_fate(self, kept: Kept) -> Fate:
        if kept.topic != self._ticks:
            return Fate.FOREIGN
        if kept.cut:
            return Fate.CUT
        if kept.reason == Reason.POISON and kept.reason not in self._query.reasons:
            return Fate.POISON
        return Fate.CAME_BACK if kept.came_back else Fate.OPEN


def _sendable(again: bool) -> set[Fate]:
    return {Fate.OPEN} | (DONE if again else set())


class DeadLetters:
    """The dead-letter topic. Raises BrokerError when nobody answers or the topic is not there."""

    def __init__(self, config: Config) -> None:
        self._spec, self._topics = config.kafka, config.topics
        self._timed_by_record = not config.tick.time
        self._log = Log(config.kafka)

    def find(self, query: Query, most: int | None = None) -> Findings:
        """The letters that are meant: one pass over the topic."""
        findings = Findings(query, self._topics.ticks, most)
        for records in self._read(query.since_s):
            findings.feed(records)
        return findings

    def send_back(self, query: Query, most: int | None, *, again: bool) -> Iterator[int]:
        """Send what is `to_send`; after each transaction, how many have gone."""
        identity = f"{self._spec.group_id}.dead-letters"
        with Together(self._spec, identity) as together:  # first: nobody else sends from here on
            chosen = {kept.place for kept in self.find(query).to_send(most, again=again)}
            gone = 0
            for records in self._read(query.since_s):
                letters = [
                    kept for kept in map(read, records) if isinstance(kept, Kept) and kept.place in chosen
                ]
                for start in range(0, len(letters), CHUNK):
                    some = letters[start : start + CHUNK]
                    together.write(message for kept in some for message in self._messages(kept))
                    gone += len(some)
                    yield gone

    def close(self) -> None:
        """End the client. Never raises."""
        self._log.close()

    def _read(self, since_s: float) -> Iterator[list[Record]]:
        topic = self._topics.dead_letters
        partitions = self._log.required(topic)
        starts = self._log.offsets_for_times(topic, dict.fromkeys(partitions, since_s))
        ends = self._log.end_offsets(topic, partitions)
        yield from self._log.read(topic, {p: (starts[p], end) for p, end in ends.items()}, READ_S)

    def _messages(self, kept: Kept) -> Iterator[Message]:
        timed = self._timed_by_record and kept.timestamp_ms >= 0
        at_ms = kept.timestamp_ms if timed else None
        headers = replay(self._topics.dead_letters, kept.place)
        yield Message(self._topics.ticks, kept.value, kept.key, headers, kept.partition, at_ms)
        yield Message(self._topics.dead_letters, b"", None, receipt(kept.place), kept.place[0])
