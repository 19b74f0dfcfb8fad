"""The fold over a file: every series' warm-up first, a training, then the rest in time order, retrained as it goes.

In come records of a file and a configuration; out go the forecasts that the daemon would have issued, with the same
decoder, grid, fold, promotion and swaps. Nothing is published, and nothing here draws or scores.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from forecaster.config import Config
from forecaster.core.fold import Fold, Issued
from forecaster.core.promote import Decision, Retrained, retrain
from forecaster.core.train import Failure, Progress
from forecaster.shell.kafka import Record
from forecaster.shell.metrics import Metrics
from forecaster.shell.pipeline import Pipeline
from forecaster.shell.slices import Slicer

CHUNK = 512  # records folded at once


class Verdict(NamedTuple):
    """What a retrain decided, and when."""

    offset: int  # of the record before which the model served
    version: str  # of the candidate
    decision: Decision | Failure


@dataclass(frozen=True)
class Part:
    """What one chunk of the streamed part came to."""

    issued: Issued
    done: int  # records so far, of all
    total: int


def ordered(records: Sequence[Record], warm_up: float) -> tuple[list[Record], int]:
    """The records with the first share of each series in front, offsets from 0 on; and how many those are.

    Both parts stay in time order. A series is told by its key.
    """
    lengths = Counter(record.key for record in records)
    seen: Counter[bytes | None] = Counter()
    front: list[Record] = []
    rest: list[Record] = []
    for record in records:
        (front if seen[record.key] < int(warm_up * lengths[record.key]) else rest).append(record)
        seen[record.key] += 1
    numbered = [r._replace(partition=0, offset=i) for i, r in enumerate([*front, *rest])]
    return numbered, len(front)


def backtest(
    records: Sequence[Record],
    config: Config,
    warm_up: float = 0.6,
    progress: Callable[[Progress], bool] = lambda _: True,
) -> Iterator[Part | Verdict]:
    """Forecasts and verdicts in the order in which they come about."""
    records, warm = ordered(records, warm_up)
    training = config.training
    names = len({record.key for record in records})
    # Series of a file may come from different years: none is dropped for being idle.
    series = config.series.model_copy(update={"idle_s": float("inf"), "max_series": max(names, 8)})
    lanes = 1 << (min(names, 32) - 1).bit_length()
    fold = Fold(config.model, series, config.grid, config.tick.same_time, lanes=lanes, rounds=512 // lanes)
    metrics = Metrics(config.metrics, horizon=config.model.horizon, levels=config.model.levels)
    pipeline = Pipeline(fold, config.tick, config.grid, config.topics.ticks, metrics)
    slicer = Slicer(config.tick, config.grid)
    next_retrain = float(warm)
    for start in _starts(len(records), warm):
        if start >= next_retrain:
            next_retrain = start + training.ticks_between(start)
            version = f"backtest-{start}"
            result = retrain(slicer.slices(), training, config.model, training, fold.model, progress=progress)
            if isinstance(result, Retrained) and result.decision.promote:
                card = result.model.card.model_copy(update={"version": version})
                fold.swap(result.model._replace(card=card))
            yield Verdict(start, version, result.decision if isinstance(result, Retrained) else result)
        end = min(start + CHUNK, warm if start < warm else len(records))
        slicer.add(records[start:end])
        answers = pipeline.handle(records[start:end], live=False)
        if start >= warm:
            yield Part(answers.issued, end, len(records))


def _starts(total: int, warm: int) -> list[int]:
    return [*range(0, warm, CHUNK), *range(warm, total, CHUNK)]
