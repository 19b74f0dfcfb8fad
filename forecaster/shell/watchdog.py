"""Who watches the worker: its loop from a thread of its own, its broker and its partitions from the loop.

What can be mended was tried before by those who own it: clients are built anew, work is taken back and done again.
What comes here is that all of this has not helped for too long. Then the process ends with a code of its own, so that
its supervisor can start it elsewhere or call somebody. Time is handed in.
"""

import faulthandler
import os
import threading
import time
from collections.abc import Callable, Mapping

import structlog

from forecaster.errors import StuckError

LOOK_S = 1.0
AWAY_S = 60.0  # a partition that is away for so long is not ours any more: until then it may only change its client
_log = structlog.get_logger(__name__)


class LoopWatch:
    """Ends the process when the loop does not turn.

    Only time in which this watch itself ran counts: a process that was stopped or a machine that slept has not hung.
    """

    def __init__(
        self,
        turns: Callable[[], int],
        limit_s: float,
        now: Callable[[], float] = time.monotonic,
        end: Callable[[float], None] | None = None,
    ) -> None:
        """`turns` counts the turns of the loop; `end(seconds)` is what is done when they stop."""
        self._turns, self._limit_s, self._now = turns, limit_s, now
        self._end = end or _end_process
        self._seen, self._looked_s, self._idle_s = turns(), now(), 0.0

    def start(self) -> None:
        """Watch from a thread, as long as the process lives: stopping may hang, too."""
        threading.Thread(target=self._run, name="watchdog", daemon=True).start()

    def look(self) -> None:
        """See whether the loop has turned since the last look."""
        now_s, seen = self._now(), self._turns()
        passed_s, self._looked_s = now_s - self._looked_s, now_s
        self._idle_s = 0.0 if seen != self._seen else self._idle_s + min(passed_s, 2 * LOOK_S)
        self._seen = seen
        if self._idle_s > self._limit_s:
            self._end(self._idle_s)

    def _run(self) -> None:
        while True:
            time.sleep(LOOK_S)
            self.look()


def _end_process(idle_s: float) -> None:
    faulthandler.dump_traceback(all_threads=True)
    _log.critical("loop_hangs", seconds=round(idle_s), mend="the stacks of all threads are on standard error")
    os._exit(StuckError.exit_code)


class BrokerWatch:
    """Raises when no broker has answered for too long; what was before the first look does not count."""

    def __init__(self, limit_s: float, now: Callable[[], float] = time.monotonic) -> None:
        self._limit_s, self._now = limit_s, now
        self._began_s: float | None = None

    def look(self, last_contact_s: float) -> None:
        """Take note of when a broker last answered. Raises StuckError."""
        now_s = self._now()
        self._began_s = now_s if self._began_s is None else self._began_s
        silent_s = now_s - max(last_contact_s, self._began_s)
        if silent_s > self._limit_s:
            raise StuckError(
                f"no broker has answered for {silent_s:.0f} s, new clients did not help (kafka.give_up_s)"
            )


class PartitionWatch:
    """Raises when a partition does not advance although it has lag."""

    def __init__(self, limit_s: float, now: Callable[[], float] = time.monotonic) -> None:
        self.stuck_s = 0.0
        """How long the worst one has not advanced."""
        self._limit_s, self._now = limit_s, now
        self._reached: dict[int, int] = {}  # furthest position
        self._moved_s: dict[int, float] = {}  # when it was reached, or there was no lag
        self._seen_s: dict[int, float] = {}

    def look(self, positions: Mapping[int, int], lag: Mapping[int, int]) -> None:
        """Take note of where the partitions that should advance are. Raises StuckError."""
        now_s = self._now()
        for partition in [p for p, seen_s in self._seen_s.items() if now_s - seen_s > AWAY_S]:
            self.forget(partition)
        for partition, position in positions.items():
            self._seen_s[partition] = now_s
            if position > self._reached.get(partition, -1) or not lag.get(partition):
                self._reached[partition], self._moved_s[partition] = position, now_s
        stuck_s = {p: now_s - moved_s for p, moved_s in self._moved_s.items()}
        worst = max(stuck_s, key=lambda p: stuck_s[p], default=-1)
        self.stuck_s = stuck_s.get(worst, 0.0)
        if self.stuck_s > self._limit_s:
            raise StuckError(
                f"partition {worst} has lag and stands at {self._reached[worst]} for {self.stuck_s:.0f} s, new clients"
                " did not help (kafka.give_up_s)"
            )

    def forget(self, partition: int) -> None:
        """It goes on from somewhere else."""
        for kept in (self._reached, self._moved_s, self._seen_s):
            kept.pop(partition, None)
