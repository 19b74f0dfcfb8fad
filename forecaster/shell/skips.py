"""Ticks that are passed over because they are too old: an operator may prefer fresh forecasts to a complete backlog.

In come records just before they are answered; out goes which stretches of the log are skipped. Only here the wall clock
decides about ticks, so each decision is an event on the state topic, and whoever reads the log again is told it.
"""

import time
from bisect import bisect_right, insort
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import dropwhile, groupby, takewhile
from operator import attrgetter

import structlog

from forecaster.core.pages import Skip
from forecaster.shell.kafka import Record

_start = attrgetter("offset")
_log = structlog.get_logger(__name__)


class Skips:
    """The stretches that are skipped, as far as they still lie ahead: those on the log, and new decisions.

    Ask `(partition, offset) in skips` whether a record is in one of them.
    """

    def __init__(self, limit_s: float, source: str, now: Callable[[], float] = time.time) -> None:
        """`limit_s`: how old a record may be, 0: as old as it likes; `source` names the log, `now` is epoch s."""
        self._limit_s, self._source, self._now = limit_s, source, now
        self._ahead: dict[int, list[Skip]] = {}  # by partition, in the order of the log, none without a skip
        self._ticks: dict[int, int] = {}  # skipped so far, of partitions that are skipping now

    def __len__(self) -> int:
        return len(self._ahead)

    def __contains__(self, place: tuple[int, int]) -> bool:
        partition, offset = place
        ahead = self._ahead.get(partition, ())
        at = bisect_right(ahead, offset, key=_start)
        return at > 0 and offset < ahead[at - 1].until

    def decide(self, records: Sequence[Record]) -> dict[int, Skip]:
        """By partition what is skipped of these from now on (grouped by partition, in offset order).

        It is all or nothing of what came together: nothing if its newest is young enough. Once begun, skipping goes
        on until that is half as old as it may be: one long gap does less harm than many short ones.
        """
        found: dict[int, Skip] = {}
        if not self._limit_s:
            return found
        for partition, group in groupby(records, attrgetter("partition")):

            def known(record: Record) -> bool:
                return (record.partition, record.offset) in self

            new = list(takewhile(lambda r: not known(r), dropwhile(known, group)))
            if new and self._stale(partition, new):
                found[partition] = Skip(self._source, new[0].offset, new[-1].offset + 1, len(new))
                self.follow(partition, [found[partition]])
        return found

    def _stale(self, partition: int, records: Sequence[Record]) -> bool:
        newest_ms = max(record.timestamp_ms for record in records)
        age_s = self._now() - newest_ms / 1e3
        skipping = partition in self._ticks
        stale = newest_ms >= 0 and age_s > self._limit_s / (2 if skipping else 1)
        if stale:
            self._ticks[partition] = self._ticks.get(partition, 0) + len(records)
        if stale and not skipping:
            _log.warning(
                "skipping_stale_ticks",
                partition=partition,
                offset=records[0].offset,
                age_s=round(age_s),
                mend="more workers, or a longer kafka.max_staleness_s",
            )
        elif skipping and not stale:
            _log.warning(
                "skipped_stale_ticks",
                partition=partition,
                upto_offset=records[0].offset,
                ticks=self._ticks.pop(partition),
            )
        return stale

    def follow(self, partition: int, skips: Iterable[Skip]) -> None:
        """These were decided, whoever did it."""
        for skip in skips:
            insort(self._ahead.setdefault(partition, []), skip, key=_start)

    def passed(self, offsets: Mapping[int, int]) -> None:
        """Everything before these offsets is done with."""
        for partition in self._ahead.keys() & offsets.keys():
            ahead = [skip for skip in self._ahead[partition] if skip.until > offsets[partition]]
            if ahead:
                self._ahead[partition] = ahead
            else:
                del self._ahead[partition]

    def forget(self, partitions: Iterable[int]) -> None:
        """They moved away."""
        for partition in partitions:
            self._ahead.pop(partition, None)
            self._ticks.pop(partition, None)
