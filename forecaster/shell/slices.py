"""Records -> slices of series: decoded and put on the grid as serving does it, for training and for backtests.

In come records of any partitions, in any order; out go the consecutive steps of every series, in the order of their
event times. So what serving saw too late, because its source was slow or because it was a dead letter that was sent
again, is learned from all the same. What serving would dead-letter or see as a duplicate is left out here as well; a
series that starts anew after a long gap gives two slices. Nothing is read and no rows are kept.
"""

from array import array
from collections.abc import Iterable, Iterator

import numpy as np

from forecaster.core.grid import Clock, GridSpec, Step, close_bars, place_in_bar, place_tick
from forecaster.core.history import Slice
from forecaster.core.tick import Outcome, Reject, Tick, TickSpec, make_decoder
from forecaster.shell.kafka import Record

NO_SEQUENCE = -1 << 63


class Slicer:
    """Takes records in, chunk by chunk, and gives the slices whenever it is asked."""

    def __init__(self, tick: TickSpec, grid: GridSpec) -> None:
        self.ticks = 0
        """Records that were ticks."""
        self.newest_s = float("-inf")
        """Newest event time among them."""
        self._decode = make_decoder(tick)
        self._same_time, self._grid = tick.same_time, grid
        self._series: dict[tuple[int, str], _Ticks] = {}
        self._watermark_s: dict[int, float] = {}

    def add(self, records: Iterable[Record]) -> None:
        """Take in records; those that are no ticks are passed over."""
        for record in records:
            tick = self._decode(record.key, record.value, record.timestamp_ms)
            if isinstance(tick, Reject):
                continue
            self.ticks += 1
            self.newest_s = max(self.newest_s, tick.time_s)
            before_s = self._watermark_s.get(record.partition, float("-inf"))
            self._watermark_s[record.partition] = max(before_s, tick.time_s)
            key = (record.partition, tick.series)
            ticks = self._series.get(key)
            if ticks is None:
                ticks = self._series[key] = _Ticks(tick.series)
            ticks.append(tick, record.offset)

    def slices(self) -> list[Slice]:
        """What has come so far, in the order in which the series appeared; open bars are left out."""
        return [
            piece
            for (partition, _), ticks in self._series.items()
            for piece in self._cut(ticks, self._watermark_s[partition])
        ]

    def _cut(self, ticks: "_Ticks", watermark_s: float) -> Iterator[Slice]:
        piece = _Piece()
        steps = self._bars(ticks, watermark_s) if self._grid.interval_s else self._steps(ticks)
        for step in steps:
            if step.fresh and piece.time_s:
                yield piece.slice(ticks.series)
                piece = _Piece()
            piece.append(step)
        if piece.time_s:
            yield piece.slice(ticks.series)

    def _steps(self, ticks: "_Ticks") -> Iterator[Step]:
        clock = Clock()
        for tick, offset in ticks.ordered(self._same_time):
            if place_tick(clock, tick, self._same_time) is Outcome.ACCEPTED:
                yield Step(tick.time_s, tick.value, offset, False, tick.covariates)

    def _bars(self, ticks: "_Ticks", watermark_s: float) -> Iterator[Step]:
        clock = Clock()
        for tick, offset in ticks.ordered(self._same_time):
            place_in_bar(clock, tick, offset, self._grid, self._same_time)
            yield from close_bars(clock, tick.time_s, self._grid)
        if self._grid.close_by == "partition":  # serving closed these when the others' ticks came
            yield from close_bars(clock, watermark_s, self._grid)


class _Piece:
    """Consecutive steps, not yet a slice."""

    def __init__(self) -> None:
        self.time_s, self._value, self._covariates = array("d"), array("d"), array("d")
        self._filled = array("b")

    def append(self, step: Step) -> None:
        """One more step."""
        self.time_s.append(step.time_s)
        self._value.append(step.value)
        self._covariates.extend(step.covariates)
        self._filled.append(step.source < 0)

    def slice(self, series: str) -> Slice:
        """What has come, at least one step."""
        covariates = np.array(self._covariates).reshape(len(self.time_s), -1)
        filled = np.array(self._filled, np.bool_)
        return Slice(series, np.array(self.time_s), np.array(self._value), covariates, filled)


class _Ticks:
    """The ticks of one series, as they came."""

    def __init__(self, series: str) -> None:
        self.series = series
        self._time_s, self._value = array("d"), array("d")
        self._sequence, self._offset = array("q"), array("q")
        self._covariates = array("d")

    def append(self, tick: Tick, offset: int) -> None:
        """One more tick."""
        self._time_s.append(tick.time_s)
        self._value.append(tick.value)
        self._sequence.append(NO_SEQUENCE if tick.sequence is None else tick.sequence)
        self._offset.append(offset)
        self._covariates.extend(tick.covariates)

    def ordered(self, same_time: str) -> Iterator[tuple[Tick, int]]:
        """Ticks with their offsets by event time; of those with the same time, as they came or by sequence number."""
        each = len(self._covariates) // max(1, len(self._offset))
        keys = (self._sequence, self._time_s) if same_time == "sequence" else (self._time_s,)
        for i in np.lexsort([np.asarray(key) for key in keys]).tolist():
            sequence = self._sequence[i]
            known = None if sequence == NO_SEQUENCE else sequence
            more = tuple(self._covariates[i * each : (i + 1) * each])
            yield Tick(self.series, self._time_s[i], self._value[i], known, more), self._offset[i]
