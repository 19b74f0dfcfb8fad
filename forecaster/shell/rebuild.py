"""Rows of a new partition, rebuilt by reading back the log: on a thread of its own, without publishing.

In come partitions with the offsets at which serving goes on; out come the records before them, chunk by chunk, for the
loop to fold. The group's consumer is not touched: a second, group-less one reads.
"""

import threading
from collections.abc import Mapping
from queue import Empty, Full, Queue

import structlog

from forecaster.errors import ForecasterError
from forecaster.shell.kafka import KafkaSpec, Record
from forecaster.shell.kafka.log import Log

CHUNKS = 4  # read ahead at most so many
RETRY_S = 1.0
_log = structlog.get_logger(__name__)


class Rebuild:
    """One reading back. `poll` never blocks; when `done`, the partitions may be served."""

    def __init__(
        self,
        spec: KafkaSpec,
        topic: str,
        ends: Mapping[int, int],
        most: int,
        timeout_s: float = 60.0,
        retries: int = 3,
    ) -> None:
        """Read at most `most` records before each end; give up after `retries` attempts of `timeout_s`."""
        self.partitions = frozenset(ends)
        self.short: set[int] = set()
        """Partitions whose log was not read as far as it should have been: their series start young."""
        self._spec, self._topic, self._ends, self._most = spec, topic, dict(ends), most
        self._timeout_s, self._retries = timeout_s, retries
        self._chunks: Queue[list[Record]] = Queue(CHUNKS)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="rebuild", daemon=True)
        self._thread.start()

    @property
    def done(self) -> bool:
        """Whether everything that could be read was handed out."""
        return not self._thread.is_alive() and self._chunks.empty()

    def poll(self) -> list[Record]:
        """The next chunk, or nothing yet."""
        try:
            return self._chunks.get_nowait()
        except Empty:
            return []

    def cancel(self) -> None:
        """Read no further."""
        self._stop.set()

    def _run(self) -> None:
        reached: dict[int, int] = {}
        for _ in range(self._retries):
            try:
                self._read(reached)
                return
            except ForecasterError as error:
                _log.warning("rebuild_interrupted", topic=self._topic, error=str(error))
                if self._stop.wait(RETRY_S):
                    return
        self.short |= {p for p, end in self._ends.items() if reached.get(p, -1) < end}

    def _read(self, reached: dict[int, int]) -> None:
        log = Log(self._spec)
        try:
            first = log.beginning_offsets(self._topic, list(self._ends))
            ranges = {
                p: (max(first.get(p, 0), end - self._most, reached.get(p, 0)), end)
                for p, end in self._ends.items()
            }
            wanted = {p: span for p, span in ranges.items() if span[0] < span[1]}
            if not wanted:
                return
            for records in log.read(self._topic, wanted, self._timeout_s):
                if not self._put(records):
                    return
                reached |= {record.partition: record.offset + 1 for record in records}
        finally:
            log.close()

    def _put(self, records: list[Record]) -> bool:
        while not self._stop.is_set():
            try:
                self._chunks.put(records, timeout=0.1)
            except Full:
                continue
            return True
        return False
