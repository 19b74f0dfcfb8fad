"""Poison that kills: which partitions are taken record by record, and which records are not tried again.

In come the notes that earlier owners left beside the committed offsets; out go records one at a time, each noted before
it is handled. After two deaths at one offset its partition is taken carefully for a while, and only a record that was
itself being handled in three deaths is set aside. A kill from outside meets the same record three times only by a
chance that is as good as none.
"""

import uuid
from collections import deque
from collections.abc import Iterable, Sequence

import msgspec
import structlog

from forecaster.shell.kafka import Record
from forecaster.shell.kafka.notes import Note, decode, encode, inherited
from forecaster.shell.kafka.source import Notes, Source

CAREFUL = 2  # deaths at one offset, or of one record, from which on it goes record by record
GUILTY = 3  # deaths of one record, after which it is set aside
_log = structlog.get_logger(__name__)


class Care:
    """The notes of this worker's partitions, and those that it takes carefully."""

    def __init__(self, source: Source, window: int, worker: str = "") -> None:
        """`window`: for how many offsets a partition is taken carefully."""
        self.aside: set[tuple[int, int]] = set()
        """Partition and offset of records that killed."""
        self._source, self._window = source, window
        self._worker = worker or uuid.uuid4().hex[:12]
        self._notes: dict[int, Note] = {}
        self._until: dict[int, int] = {}  # partitions taken carefully: up to before this offset
        self._queue: deque[Record] = deque()

    # -- partitions come and go

    def begin(self) -> None:
        """Read the notes of partitions that are new, count the deaths, and put our name in."""
        new = self._source.assigned - self._notes.keys()
        found = self._source.committed(new) if new else None
        for partition, (offset, metadata) in (found or {}).items():
            note = inherited(decode(metadata), self._worker)
            if not self._source.commit({partition: offset}, encode(note)):
                continue  # nobody answered: at the next turn
            self.aside |= {(partition, gone) for gone in note.aside}
            self._keep(partition, note)
            if note.deaths >= CAREFUL or note.tries >= CAREFUL:
                self._until[partition] = offset + self._window
                _log.warning("taken_carefully", partition=partition, offset=offset, deaths=note.deaths)

    def forget(self, partitions: Iterable[int]) -> None:
        """They are not ours any more."""
        gone = set(partitions)
        for partition in gone:
            self._notes.pop(partition, None)
            self._until.pop(partition, None)
            self._source.notes.pop(partition, None)
        self.aside -= {place for place in self.aside if place[0] in gone}
        self._queue = deque(record for record in self._queue if record.partition not in gone)

    # -- records

    def sort(self, records: Sequence[Record]) -> Sequence[Record]:
        """Those that may be taken all at once; the others wait in line, and their partitions give no more meanwhile."""
        if not self._until:
            return records
        careful = [record for record in records if record.partition in self._until]
        self._queue.extend(careful)
        self._source.pause({record.partition for record in careful})
        return [record for record in records if record.partition not in self._until]

    @property
    def next(self) -> Record | None:
        """The record whose turn it is, to be begun with, handled or set aside, and done."""
        return self._queue[0] if self._queue else None

    def guilty(self, record: Record) -> bool:
        """Whether it has killed often enough."""
        noted = self._source.last_committed.get(record.partition) == record.offset
        return noted and self._notes[record.partition].tries >= GUILTY

    def begins(self, record: Record) -> bool:
        """Note that this record is begun with; False where the note could not be written yet."""
        note = self._notes[record.partition]
        note = msgspec.structs.replace(note, tries=note.tries + 1)
        written = self._source.commit({record.partition: record.offset}, encode(note))
        if written:
            self._notes[record.partition] = note
        return written

    def sets_aside(self, record: Record) -> None:
        """Note that this record killed; the commit of the next offset carries it."""
        partition, offset, note = record.partition, record.offset, self._notes[record.partition]
        _log.error("record_kills", partition=partition, offset=offset, deaths=note.tries)
        self.aside.add((partition, offset))
        self._keep(partition, msgspec.structs.replace(note, aside=(*note.aside, offset)))

    def done(self, record: Record) -> None:
        """What answers it is on the log, and the next offset is committed."""
        partition = record.partition
        self._queue.popleft()
        self._notes[partition] = Note(worker=self._worker, aside=self._notes[partition].aside)
        if all(waiting.partition != partition for waiting in self._queue):
            if record.offset + 1 >= self._until[partition]:
                del self._until[partition]
            self._source.resume({partition})

    def _keep(self, partition: int, note: Note) -> None:
        self._notes[partition] = note
        working = Note(worker=self._worker, aside=note.aside)
        self._source.notes[partition] = Notes(encode(working), encode(Note(aside=note.aside)))
