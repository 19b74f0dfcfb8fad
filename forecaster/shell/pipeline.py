"""Records in, messages out: decode, grid, advance, encode. Serving, rebuilding, backtest and tests run this one path.

Knows neither the broker nor the clock; whoever drives it reads the records and sends the messages.
"""

from collections import Counter
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Sequence, Set
from functools import reduce
from itertools import groupby
from math import isnan
from operator import attrgetter
from typing import NamedTuple

import numpy as np

from forecaster.core.advance import STATUSES
from forecaster.core.batch import Issued, joined
from forecaster.core.fold import Fold
from forecaster.core.grid import GridSpec
from forecaster.core.tick import Outcome, Reason, Reject, Tick, TickSpec, make_decoder
from forecaster.shell.kafka import Record
from forecaster.shell.metrics import Metrics, Stage
from forecaster.shell.prediction import Encoder, Forecasts
from forecaster.shell.tally import Counts

Place = tuple[int, int]
"""Partition and offset of a record."""
POISON = Reject(Reason.POISON, "the workers that handled it died of it")


class DeadLetter(NamedTuple):
    """A record that cannot be used, and why."""

    record: Record
    reject: Reject


class Answers(NamedTuple):
    """What a batch of records comes to."""

    issued: Issued
    messages: list[bytes]  # one for each forecast, in the order of `issued`
    dead: list[DeadLetter]
    counts: dict[int, Counts]  # by partition; the scores, which are those of all, with the first
    next_offsets: dict[int, int]  # where each partition goes on

    @property
    def total(self) -> Counts:
        """Of all partitions."""
        return reduce(Counts.plus, self.counts.values(), Counts(Counter(), Counter()))


Send = Callable[[Issued, Sequence[bytes]], None]
"""Takes forecasts with their messages."""


def _keep(_issued: Issued, _messages: Sequence[bytes]) -> None:
    """They are in the answers, too."""


class Pipeline:
    """The stages of one worker around its fold."""

    def __init__(self, fold: Fold, tick: TickSpec, grid: GridSpec, topic: str, metrics: Metrics) -> None:
        self.fold = fold
        self.aside: Set[Place] = frozenset()
        """Records that are not even looked at: they killed workers."""
        self.skipped: Container[Place] = frozenset()
        """Records that are too old to be answered."""
        self._decode, self._covariates = make_decoder(tick), len(tick.covariates)
        self._encoder = Encoder(topic, fold.spec.levels, grid.interval_s or None)
        self._interval_s = grid.interval_s
        self._mean = mean_weights(fold.spec.levels)
        self._metrics = metrics

    def handle(
        self,
        records: Sequence[Record],
        *,
        live: bool = True,
        published: Collection[int] = (),
        send: Send = _keep,
    ) -> Answers:
        """Take in records (grouped by partition, in offset order). `live`: the messages will be published.

        Else `published` are the partitions of which these very messages were published before. `send` is given the
        messages part by part, while the device works on the next part.
        """
        dead: list[DeadLetter] = []
        counts: dict[int, Counts] = {}
        next_offsets: dict[int, int] = {}
        with self._metrics.stage(Stage.DECODE):
            if self.aside or self.skipped:
                decoded = self._passing_over(records)
            else:
                decoded = [self._decode(r.key, r.value, r.timestamp_ms) for r in records]
        with self._metrics.stage(Stage.GRID):
            at = 0
            for partition, group in groupby(records, attrgetter("partition")):
                outcomes, reasons = Counter[Outcome](), Counter[Reason]()
                offsets: list[int] = []
                ticks: list[Tick] = []
                for record in group:
                    tick = decoded[at]
                    at += 1
                    next_offsets[partition] = record.offset + 1
                    if tick is None:
                        outcomes[Outcome.SKIPPED] += 1
                    elif isinstance(tick, Reject):
                        dead.append(DeadLetter(record, tick))
                        outcomes[Outcome.DEAD_LETTERED] += 1
                        reasons[tick.reason] += 1
                    else:
                        offsets.append(record.offset)
                        ticks.append(tick)
                outcomes.update(self.fold.admit(partition, offsets, ticks))
                missing = self._missing(ticks) if self._covariates else 0
                newest_s = max((t.time_s for t in ticks), default=float("-inf"))
                counts[partition] = Counts(outcomes, reasons, missing, newest_s)
        parts: list[Issued] = []
        messages: list[bytes] = []
        for part in self._advanced(live or published):
            parts.append(part)
            if live:
                with self._metrics.stage(Stage.ENCODE):
                    texts = self._encode(part)
                with self._metrics.stage(Stage.SEND):
                    send(part, texts)
                messages += texts
        issued = joined(parts)
        if issued.scores.count.any():
            first = next(iter(counts))
            counts[first] = counts[first]._replace(scores=issued.scores)
        return Answers(issued, messages, dead, counts, next_offsets)

    def _advanced(self, live: bool | Collection[int]) -> Iterator[Issued]:
        """The parts of what was admitted; what is timed is the wait for them."""
        parts = self.fold.parts(live)
        while True:
            with self._metrics.stage(Stage.ADVANCE):
                part = next(parts, None)
            if part is None:
                return
            yield part

    def _passing_over(self, records: Sequence[Record]) -> list[Tick | Reject | None]:
        def one(r: Record) -> Tick | Reject | None:
            place = r.partition, r.offset
            if place in self.skipped:
                return None
            return POISON if place in self.aside else self._decode(r.key, r.value, r.timestamp_ms)

        return list(map(one, records))

    @staticmethod
    def _missing(ticks: Iterable[Tick]) -> int:
        return sum(isnan(covariate) for tick in ticks for covariate in tick.covariates)

    def _encode(self, issued: Issued) -> list[bytes]:
        quantiles = issued.last[:, None, None] + issued.offset
        times = None
        if self._interval_s:
            ahead_s = self._interval_s * np.arange(1, self.fold.spec.horizon + 1, dtype=np.float64)
            times = np.asarray(issued.time_s[:, None] + ahead_s, np.float64)
        batch = Forecasts(
            series=issued.series,
            issued_at=issued.time_s,
            last=issued.last,
            quantiles=quantiles,
            mean=issued.last[:, None] + issued.offset @ self._mean,
            status=[STATUSES[s] for s in issued.status.tolist()],
            partition=issued.partition.tolist(),
            offset=issued.source.tolist(),
            anomaly=issued.anomaly.astype(np.float64),
            target_times=times,
        )
        return self._encoder.encode(batch, issued.versions)


def mean_weights(levels: Iterable[float]) -> np.ndarray:
    """Weights of the quantiles in the mean of the distribution that runs straight between them; they sum to 1.

    >>> mean_weights((0.25, 0.5, 0.75)).tolist()
    [0.375, 0.25, 0.375]
    """
    q = np.asarray(list(levels))
    edges = np.concatenate([[0.0], (q[1:] + q[:-1]) / 2, [1.0]])
    return np.diff(edges)
