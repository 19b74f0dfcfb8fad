"""When each partition last gave a record: pure bookkeeping for the watch over partitions that are stuck."""

from collections.abc import Callable, Collection, Iterable


class Progress:
    """When each partition last gave a record; `suspects` are those that have been silent for too long."""

    def __init__(self, stall_s: float, now: Callable[[], float]) -> None:
        self._now = now
        self._stall_s = stall_s
        self._patience = 1.0
        self._last: dict[int, float] = {}
        self._look_at_s = now() + stall_s / 4

    def due(self) -> bool:
        """Whether it is time to look; a few times in each stall time."""
        return self._now() >= self._look_at_s

    def suspects(self, reading: Collection[int]) -> list[int]:
        """Those of the partitions being read that gave nothing for the stall time."""
        now = self._now()
        self._look_at_s = now + self._stall_s / 4
        limit = now - self._stall_s * self._patience
        return [partition for partition in reading if self._last.setdefault(partition, now) < limit]

    def restart(self, partitions: Iterable[int]) -> None:
        """These gave something, or were only now asked to."""
        self._last.update(dict.fromkeys(partitions, self._now()))

    def forget(self, partitions: Iterable[int]) -> None:
        """These are not ours any more."""
        for partition in partitions:
            self._last.pop(partition, None)

    def be_patient(self) -> None:
        """A new client may not help either: wait longer before the next one."""
        self._patience = min(8.0, self._patience * 2)
