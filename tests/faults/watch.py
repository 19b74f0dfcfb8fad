"""What goes on while faults do: a committed reader of the predictions, and the size of the workers."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

import psutil
from kafka import KafkaConsumer, TopicPartition

from tests.faults.background import Background
from tests.faults.oracle import PATIENCE_MS, Told, told

LOOK_S = 0.5


class Reader(Background):
    """Reads a topic as its consumers do, from before the faults to after them."""

    def __init__(self, servers: str, topic: str, partitions: int) -> None:
        super().__init__("reader")
        self.seen: dict[int, list[Told]] = defaultdict(list)
        """What each partition has given, in order."""
        self._consumer = KafkaConsumer(
            bootstrap_servers=servers.split(","),
            isolation_level="read_committed",
            auto_offset_reset="earliest",
            enable_auto_commit=False,
            reconnect_backoff_max_ms=500,
            bootstrap_timeout_ms=PATIENCE_MS,
        )
        self._consumer.assign([TopicPartition(topic, p) for p in range(partitions)])

    @property
    def count(self) -> int:
        """Predictions seen so far."""
        return sum(map(len, self.seen.values()))

    def _close(self) -> None:
        self._consumer.close()

    def _run(self) -> None:
        while not self._stop.is_set():
            for records in self._consumer.poll(timeout_ms=100).values():
                for record in records:
                    self.seen[record.partition].append(told(record))


class Scales(Background):
    """Weighs processes, and remembers whom they have started."""

    def __init__(self, pids: Callable[[], Iterable[int]]) -> None:
        super().__init__("scales")
        self.children: set[psutil.Process] = set()
        self._pids = pids
        self._first_bytes: dict[int, int] = {}
        self._most_bytes: dict[int, int] = {}

    def growth_bytes(self) -> int:
        """By how much the resident memory of one has grown at the most since it was first weighed."""
        return max((most - self._first_bytes[pid] for pid, most in self._most_bytes.items()), default=0)

    def _run(self) -> None:
        while not self._stop.wait(LOOK_S):
            for pid in list(self._pids()):
                with suppress(psutil.Error):
                    process = psutil.Process(pid)
                    used = process.memory_info().rss
                    first = self._first_bytes.setdefault(pid, used)
                    self._most_bytes[pid] = max(self._most_bytes.get(pid, first), used)
                    self.children |= set(process.children(recursive=True))


def await_that(holds: Callable[[], Any], what: str, deadline_s: float) -> None:
    """Wait until it is so."""
    end_s = time.monotonic() + deadline_s
    while not holds():
        assert time.monotonic() < end_s, f"not within {deadline_s:g} s: {what}"
        time.sleep(0.05)


def is_alive(process: psutil.Process) -> bool:
    """Whether it runs (one that has ended and was not asked for its exit code does not)."""
    with suppress(psutil.Error):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False
