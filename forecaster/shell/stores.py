"""Where training gets its ticks and the model that serves, and where a better one goes: topics, or files.

In comes what a job says of them; a store reads, and writes in the end. Nothing is trained here.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from forecaster.core.model import Model
from forecaster.core.tick import TickSpec
from forecaster.errors import DataError, ForecasterError
from forecaster.shell.crash import Point, passing
from forecaster.shell.kafka import KafkaSpec, Record
from forecaster.shell.kafka.hazards import hazards
from forecaster.shell.kafka.log import Log
from forecaster.shell.models import Models, Refused
from forecaster.shell.models.codec import MOST_BYTES, parse
from forecaster.shell.models.convert import from_stored, to_stored
from forecaster.shell.outputs import prepare_file, written_to
from forecaster.shell.replay import read_ticks


class OnTopics(msgspec.Struct, frozen=True, tag="topics"):
    """Ticks from a topic, models from and to another."""

    kafka: dict[str, Any]
    ticks: str
    models: str
    history_ticks: int
    read_s: float
    keep: int
    offsets: dict[int, tuple[int, int]] = {}
    """Partition -> (start, end); empty: up to the ends that are found now, all partitions together at most
    `history_ticks`."""


class OnFiles(msgspec.Struct, frozen=True, tag="files"):
    """Ticks from a file, models from and to files."""

    ticks: str
    candidate: str
    serving: str = ""


class Topics:
    """The log and the models topic."""

    def __init__(self, job: OnTopics) -> None:
        self._job, self._spec = job, KafkaSpec.model_validate(job.kafka)
        self._models = Models(self._spec, job.models)
        self.offsets: dict[int, tuple[int, int]] = dict(job.offsets)

    def read(self, tick: TickSpec) -> Iterator[list[Record]]:
        """The slices, up to the ends that are noted first, without what killed those who serve."""
        del tick
        log, ticks = Log(self._spec), self._job.ticks
        try:
            if not self.offsets:
                self.offsets = newest(log.spans(ticks, log.partitions(ticks)), self._job.history_ticks)
            deadly = hazards(self._spec, ticks, self.offsets)
            aside = {(partition, offset) for partition, known in deadly.items() for offset in known.offsets}
            passed = {partition: known.batches for partition, known in deadly.items()}
            for records in log.read(ticks, self.offsets, self._job.read_s, passed):
                yield [r for r in records if (r.partition, r.offset) not in aside]
        finally:
            log.close()

    def serving(self) -> Model | None:
        """What serves now; None where nothing does, or nothing that this release can use."""
        stored = self._models.fetch()
        model = from_stored(stored) if stored is not None else None
        return None if isinstance(model, Refused) else model

    def publish(self, model: Model, reason: str) -> None:
        """Write the model, then that it serves; then remove the oldest."""
        self._models.publish(to_stored(model))
        passing(Point.MODEL_PUBLISHED)
        self._models.serve(model.version, reason)
        with suppress(ForecasterError):  # it serves already; the next one prunes too
            self._models.prune(self._job.keep)


class Files:
    """A file of ticks, and files of models."""

    def __init__(self, job: OnFiles) -> None:
        """Raises DataError where the candidate could not be written."""
        prepare_file(Path(job.candidate))
        self._job = job
        self.offsets: dict[int, tuple[int, int]] = {}

    def read(self, tick: TickSpec) -> Iterable[list[Record]]:
        """All rows, as records in time order, whatever their order in the file."""
        records = read_ticks(Path(self._job.ticks), tick, in_order=False)
        self.offsets = {0: (0, len(records))}
        return [records]

    def serving(self) -> Model | None:
        """The model in the file, if one is named. Raises DataError."""
        if not self._job.serving:
            return None
        data = Path(self._job.serving).read_bytes()
        stored = parse(data) if len(data) <= MOST_BYTES else None
        model = from_stored(stored) if stored is not None and not isinstance(stored, Refused) else stored
        if model is None or isinstance(model, Refused):
            raise DataError(f"{self._job.serving}: {model.message if model else 'is too large for a model'}")
        return model

    def publish(self, model: Model, reason: str) -> None:
        """Write the model whole, or not at all. Raises DataError."""
        del reason
        path = Path(self._job.candidate)
        unfinished = path.with_name(f"{path.name}.part")
        try:
            with written_to(path):
                unfinished.write_bytes(to_stored(model).data)
                unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)


def newest(there: Mapping[int, tuple[int, int]], most: int) -> dict[int, tuple[int, int]]:
    """The newest `most` offsets of all partitions together: of each the same number, as far as it has them.

    >>> newest({0: (0, 100), 1: (90, 100)}, 50)
    {0: (60, 100), 1: (90, 100)}
    """
    lengths = {partition: end - start for partition, (start, end) in there.items()}
    left, share = most, {}
    for place, partition in enumerate(sorted(lengths, key=lambda p: lengths[p])):
        share[partition] = min(lengths[partition], left // (len(lengths) - place))
        left -= share[partition]
    return {partition: (end - share[partition], end) for partition, (_, end) in sorted(there.items())}
