"""The fold over a file: every series' warm-up first, a training, then the rest in time order, retrained as it goes.

In come records of a file and a configuration; out go the forecasts that the daemon would have issued, with the same
decoder, grid, fold, promotion and swaps. Nothing is published, and nothing here draws or scores.
"""

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import ceil, inf
from typing import NamedTuple

import numpy as np

from forecaster.config import Config
from forecaster.core.batch import Issued
from forecaster.core.fold import Fold
from forecaster.core.model import Model
from forecaster.core.promote import Decision, Retrained, retrain, too_short
from forecaster.core.shares import shares
from forecaster.core.tick import Outcome
from forecaster.core.train import Failure, Progress
from forecaster.shell.kafka import Record
from forecaster.shell.metrics import Metrics
from forecaster.shell.pipeline import Pipeline
from forecaster.shell.retrain import RetrainSpec
from forecaster.shell.slices import Slicer
from forecaster.shell.tally import Counts

CHUNK = 512  # records folded at once
LOOKS = 48  # times in a run that the experts' shares are noted
SAMPLE = 64  # series that they are the mean of


class Verdict(NamedTuple):
    """What a retrain decided, and when."""

    offset: int  # of the record before which the model served
    version: str  # of the candidate
    decision: Decision | Failure
    seconds: float = 0.0  # that it took
    model: Model | None = None  # that serves from then on, if it is a new one
    lacks: str = ""  # what the history lacks, where it is too little to train on


@dataclass(frozen=True)
class Part:
    """What one chunk came to."""

    issued: Issued
    done: int  # records so far, of all
    total: int
    warm: bool = False  # still the warm-up: the forecasts are nobody's
    shares: np.ndarray | None = None  # of each expert in the mix just then (experts.NAMES), now and then
    # Records that were no accepted ticks, by reason.
    unused: Counter[str] = field(default_factory=Counter[str])


def ordered(records: Sequence[Record], warm_up: float) -> tuple[list[Record], int]:
    """The records with the first share of each series in front, offsets from 0 on; and how many those are.

    Both parts stay in time order. A series is told by its key. The last record of a warm-up is the first that is
    answered, so it begins the second part.
    """
    lengths = Counter(record.key for record in records)
    seen: Counter[bytes | None] = Counter()
    front: list[Record] = []
    rest: list[Record] = []
    for record in records:
        (front if seen[record.key] < int(warm_up * lengths[record.key]) - 1 else rest).append(record)
        seen[record.key] += 1
    numbered = [r._replace(partition=0, offset=i) for i, r in enumerate([*front, *rest])]
    return numbered, len(front)


def backtest(
    records: Sequence[Record],
    config: Config,
    warm_up: float = 0.6,
    progress: Callable[[Progress], bool] = lambda _: True,
    swaps: Mapping[int, Model] | None = None,
) -> Iterator[Part | Verdict]:
    """Forecasts and verdicts in the order in which they come about.

    With `swaps`, the models of a run that was recorded, by the number of the record before which each began to serve,
    nothing is trained: without a warm-up the forecasts are those of that run.
    """
    records, warm = ordered(records, warm_up)
    names = len({record.key for record in records})
    # Series of a file may come from different years: none is dropped for being idle.
    series = config.series.model_copy(update={"idle_s": float("inf"), "max_series": max(names, 8)})
    fold = Fold(config.network, series, config.grid, config.tick.same_time)
    metrics = Metrics(config.metrics, horizon=config.model.horizon, levels=config.model.levels)
    pipeline = Pipeline(fold, config.tick, config.grid, config.topics.ticks, metrics)
    slicer = Slicer(config.tick, config.grid)
    starts = _starts(len(records), warm, swaps or ())
    noted = set(starts[-1 :: -max(1, (len(records) - warm) // CHUNK // LOOKS)])
    schedule = _Schedule(config.training, float(warm) if swaps is None else inf)
    for start, end in pairwise((*starts, len(records))):
        if swaps is not None and start in swaps:
            fold.swap(swaps[start])
        streamed, at = start >= warm, start
        while at < end:
            if schedule.due(at, slicer.newest_s):
                schedule.began(at, slicer.newest_s)
                yield _retrain(fold, slicer, config, at, progress)
            done = schedule.feed(slicer, records, at, end)
            answers = pipeline.handle(records[at:done], live=False)
            shares = _shares_of(fold) if streamed and at in noted else None
            yield Part(answers.issued, done, len(records), not streamed, shares, _unused(answers.total))
            at = done


class _Schedule:
    """When the next retrain is due, by records and by event time; the first one before record number `first`."""

    def __init__(self, spec: RetrainSpec, first: float) -> None:
        self._spec = spec
        self._next, self._began_s = first, inf

    def due(self, at: int, newest_s: float) -> bool:
        """Whether one is, before record number `at`; `newest_s` is the newest event time by then."""
        every_s = self._spec.every_s
        return at >= self._next or (every_s > 0 and newest_s - self._began_s >= every_s)

    def began(self, at: int, newest_s: float) -> None:
        """One begins here: the next is counted from it."""
        self._next, self._began_s = at + self._spec.ticks_between(at), newest_s

    def feed(self, slicer: Slicer, records: Sequence[Record], at: int, end: int) -> int:
        """Give the slicer records from number `at` on, up to the one before which a retrain is due; its number."""
        end = max(at + 1, ceil(min(self._next, end)))
        if not self._spec.every_s:
            slicer.add(records[at:end])
            return end
        for number in range(at, end):
            slicer.add(records[number : number + 1])
            if self.due(number + 1, slicer.newest_s):
                return number + 1
        return end


def _unused(total: Counts) -> Counter[str]:
    """By outcome, dead letters by their reason."""
    passed_over = {outcome.value: n for outcome, n in total.outcomes.items() if outcome not in _COUNTED_APART}
    return Counter(passed_over) + Counter({reason.value: n for reason, n in total.reasons.items()})


_COUNTED_APART = {Outcome.ACCEPTED, Outcome.DEAD_LETTERED}


def _starts(total: int, warm: int, swaps: Collection[int]) -> list[int]:
    return sorted({*range(0, warm, CHUNK), *range(warm, total, CHUNK), *swaps})


def _retrain(
    fold: Fold, slicer: Slicer, config: Config, at: int, progress: Callable[[Progress], bool]
) -> Verdict:
    """Train on all that has come, and swap the candidate in if it is better."""
    began_s, version, training = time.monotonic(), f"backtest-{at}", config.training
    model: Model | None = None
    history = slicer.slices()
    result = retrain(history, training, config.network, training, fold.model, progress=progress)
    if isinstance(result, Retrained) and result.decision.promote:
        card = result.model.card.model_copy(update={"version": version})
        model = result.model._replace(card=card)
        fold.swap(model)
    decision = result.decision if isinstance(result, Retrained) else result
    lacks = too_short(history, training, config.network) if decision is Failure.NO_DATA else ""
    return Verdict(at, version, decision, time.monotonic() - began_s, model, lacks)


def _shares_of(fold: Fold) -> np.ndarray:
    """Mean weight of each expert in the forecasts that were just made, over series and steps ahead."""
    rows = np.resize(fold.index.stepped(0, SAMPLE), SAMPLE)
    first_share = np.float32(fold.model.card.first_share)
    return np.asarray(shares(fold.rows, rows, first_share, horizon=fold.spec.horizon)).mean((1, 2))
