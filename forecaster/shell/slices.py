"""Records -> slices of series: decoded and put on the grid as serving does it, for training and for backtests.

In come records of any partitions, in offset order within each; out go the consecutive steps of every series. What
serving would dead-letter, drop as late or see as a duplicate is left out here as well; a series that starts anew
after a long gap gives two slices. Nothing is read and no rows are kept.
"""

from array import array
from collections.abc import Iterable

import numpy as np

from forecaster.core.grid import Clock, GridSpec, close_bars, place_in_bar, place_tick
from forecaster.core.history import Slice
from forecaster.core.tick import Outcome, Reject, Tick, TickSpec, make_decoder
from forecaster.shell.kafka import Record


class Slicer:
    """Takes records in, chunk by chunk, and gives the slices at the end."""

    def __init__(self, tick: TickSpec, grid: GridSpec) -> None:
        self.ticks = 0
        """Records that were ticks."""
        self.newest_s = float("-inf")
        """Newest event time among them."""
        self._decode = make_decoder(tick)
        self._same_time, self._grid = tick.same_time, grid
        self._open: dict[tuple[int, str], _Open] = {}
        self._done: list[Slice] = []
        self._watermark_s: dict[int, float] = {}

    def add(self, records: Iterable[Record]) -> None:
        """Take in records; those that are no ticks are passed over."""
        for record in records:
            tick = self._decode(record.key, record.value, record.timestamp_ms)
            if isinstance(tick, Reject):
                continue
            self.ticks += 1
            self.newest_s = max(self.newest_s, tick.time_s)
            key = (record.partition, tick.series)
            series = self._open.get(key)
            if series is None:
                series = self._open[key] = _Open(tick.series)
            if self._grid.interval_s:
                self._add_to_bars(series, tick, record)
            elif place_tick(series.clock, tick, self._same_time) is Outcome.ACCEPTED:
                series.append(tick.time_s, tick.value)

    def slices(self) -> list[Slice]:
        """What has come so far, in the order in which the series appeared; open bars are left out."""
        return self._done + [series.cut() for series in self._open.values() if len(series.value)]

    def _add_to_bars(self, series: "_Open", tick: Tick, record: Record) -> None:
        before_s = self._watermark_s.get(record.partition, float("-inf"))
        now_s = self._watermark_s[record.partition] = max(before_s, tick.time_s)
        by_partition = self._grid.close_by == "partition"
        if by_partition:  # serving closed these bars when the others' ticks came
            self._close(series, before_s)
        place_in_bar(series.clock, tick, record.offset, self._grid, self._same_time)
        self._close(series, now_s if by_partition else series.clock.time_s)

    def _close(self, series: "_Open", now_s: float) -> None:
        for step in close_bars(series.clock, now_s, self._grid):
            if step.fresh and len(series.value):
                self._done.append(series.cut())
                series.clear()
            series.append(step.time_s, step.value)


class _Open:
    """A series that may still grow."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.clock = Clock()
        self.clear()

    def clear(self) -> None:
        """Forget the steps, not where the series stands."""
        self.time_s, self.value = array("d"), array("d")

    def append(self, time_s: float, value: float) -> None:
        """One more step."""
        self.time_s.append(time_s)
        self.value.append(value)

    def cut(self) -> Slice:
        """The steps so far."""
        return Slice(self.name, np.array(self.time_s), np.array(self.value))
