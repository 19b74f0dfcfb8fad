"""Poison that kills: which partitions are taken record by record, and what is not tried again.

In come the notes that earlier owners left beside the committed offsets; out go records one at a time, each noted before
it is handled, and its batch before that is decoded. After two deaths at one offset its partition is taken carefully for
a while, and only what was itself being handled in three deaths is not tried again: a record is set aside, a batch
passed over, a log not read back. A kill from outside meets the same one three times only by a chance that is as good as
none.
"""

import uuid
from collections.abc import Collection, Iterable

import msgspec
import structlog

from forecaster.shell.kafka import Record
from forecaster.shell.kafka.notes import Note, decode, encode, fresh, inherited
from forecaster.shell.kafka.source import Notes, Source

CAREFUL = 2  # deaths at one offset, or of one record or batch, from which on it goes record by record
GUILTY = 3  # deaths of one record or batch, after which it is not tried again
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
        self._waiting: Record | None = None  # was read, and could not be begun with yet
        source.before_decoding, source.before_rebuilding = self._decodes, self._rebuilds

    # -- partitions come and go

    def begin(self) -> dict[int, int]:
        """Read the notes of partitions that are new, count the deaths, and put our name in.

        Returns where those stand that have our name already: it was this worker that came so far, whatever it knew.
        """
        ours: dict[int, int] = {}
        new = self._source.assigned - self._notes.keys()
        found = self._source.committed(new) if new else None
        if found is None:
            return ours
        for partition in new - found.keys():  # nobody has been here
            self._source.passed[partition] = ()
        for partition, (offset, metadata) in found.items():
            left = decode(metadata)
            if left.worker == self._worker:
                ours[partition] = offset
            note = inherited(left, self._worker)
            if note.fetches >= GUILTY:
                self._pass_over(partition, offset, note)
            elif self._source.commit({partition: offset}, encode(note)):
                careful = max(note.deaths, note.tries, note.fetches) >= CAREFUL
                self._begin(partition, offset, note, careful=careful)
        return ours

    def _begin(self, partition: int, offset: int, note: Note, *, careful: bool) -> None:
        self.aside |= {(partition, gone) for gone in note.aside}
        self._source.passed[partition] = note.passed
        if note.rebuilds >= GUILTY:
            _log.error("log_kills", partition=partition, offset=offset, deaths=note.rebuilds)
            self._source.passed[partition] = ((0, offset),)
        self._keep(partition, note)
        if careful:
            self._until[partition] = offset + self._window
            self._source.apart.add(partition)
            _log.warning("taken_carefully", partition=partition, offset=offset, deaths=note.deaths)

    def _pass_over(self, partition: int, offset: int, note: Note) -> None:
        """Go on behind the batch that killed; what comes next is taken as carefully."""
        _log.error("batch_kills", partition=partition, offset=offset, behind=note.behind, deaths=note.fetches)
        clean = msgspec.structs.replace(
            fresh(note, self._worker), passed=(*note.passed, (offset, note.behind))
        )
        if self._source.pass_over(partition, (offset, note.behind), encode(clean)):
            self._begin(partition, note.behind, clean, careful=True)

    def forget(self, partitions: Iterable[int]) -> None:
        """They are not ours any more."""
        gone = set(partitions)
        for partition in gone:
            self._notes.pop(partition, None)
            self._until.pop(partition, None)
            self._source.notes.pop(partition, None)
            self._source.passed.pop(partition, None)
        self._source.apart -= gone
        self.aside -= {place for place in self.aside if place[0] in gone}
        if self._waiting is not None and self._waiting.partition in gone:
            self._waiting = None

    # -- records

    def next(self, serving: Collection[int]) -> Record | None:
        """The record whose turn it is among these partitions, to be begun with, handled or set aside, and done."""
        for partition in self._until.keys() & serving:
            if self._waiting is None and self._rebuilt(partition):
                self._waiting = self._source.poll_alone(partition)
        return self._waiting

    def _rebuilds(self, partition: int) -> bool:
        """Note that the log before a partition is read back; False where the note could not be written."""
        note = self._notes[partition]
        note = msgspec.structs.replace(note, rebuilds=note.rebuilds + 1)
        return self._write(partition, self._source.last_committed[partition], note)

    def _rebuilt(self, partition: int) -> bool:
        """Note that the log was read back without harm; False where the note could not be written."""
        note, offset = self._notes[partition], self._source.last_committed.get(partition)
        if not note.rebuilds or offset is None:  # without one it has just been lost
            return True
        return self._write(partition, offset, msgspec.structs.replace(note, rebuilds=0))

    def _decodes(self, partition: int, behind: int) -> bool:
        """Note that the batch that comes next is decoded; False where the note could not be written."""
        note = self._notes[partition]
        note = msgspec.structs.replace(note, fetches=note.fetches + 1, behind=behind)
        return self._write(partition, self._source.last_committed[partition], note)

    def guilty(self, record: Record) -> bool:
        """Whether it has killed often enough."""
        noted = self._source.last_committed.get(record.partition) == record.offset
        return noted and self._notes[record.partition].tries >= GUILTY

    def begins(self, record: Record) -> bool:
        """Note that this record is begun with; False where the note could not be written yet."""
        note = self._notes[record.partition]
        note = msgspec.structs.replace(note, tries=note.tries + 1, fetches=0)
        return self._write(record.partition, record.offset, note)

    def sets_aside(self, record: Record) -> None:
        """Note that this record killed; the commit of the next offset carries it."""
        partition, offset, note = record.partition, record.offset, self._notes[record.partition]
        _log.error("record_kills", partition=partition, offset=offset, deaths=note.tries)
        self.aside.add((partition, offset))
        self._keep(partition, msgspec.structs.replace(note, aside=(*note.aside, offset)))

    def done(self, record: Record) -> None:
        """What answers it is on the log, and the next offset is committed."""
        partition, self._waiting = record.partition, None
        self._notes[partition] = fresh(self._notes[partition], self._worker)
        if record.offset + 1 >= self._until[partition]:
            del self._until[partition]
            self._source.apart.discard(partition)
            self._source.resume({partition})

    def _write(self, partition: int, offset: int, note: Note) -> bool:
        written = self._source.commit({partition: offset}, encode(note))
        if written:
            self._notes[partition] = note
        return written

    def _keep(self, partition: int, note: Note) -> None:
        self._notes[partition] = note
        working, leaving = fresh(note, self._worker), fresh(note)
        self._source.notes[partition] = Notes(encode(working), encode(leaving))
