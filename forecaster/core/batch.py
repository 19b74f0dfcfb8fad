"""Steps that run together, and their forecasts: parallel lists become arrays, these are cut into parts and chains, and
what the device gave is put in the order of the log again.

In come steps of series, in that order; out comes `Issued`. Knows neither the table nor the compiled programs.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import chain, pairwise
from typing import Any, NamedTuple

import numpy as np

from forecaster.core.advance import Forecasts, Serving
from forecaster.core.covariates import in_bounds
from forecaster.core.features import DAY_S, WEEK_DAYS
from forecaster.core.grid import Step
from forecaster.core.model import Model, ModelSpec
from forecaster.core.perceive import Steps
from forecaster.core.score import Scores
from forecaster.core.table import Series

PART = 512  # steps that are looked at while the device works on the next ones


class Issued(NamedTuple):
    """Forecasts of one call, in the order of the log; arrays of n entries."""

    series: list[str]
    partition: np.ndarray  # int32
    source: np.ndarray  # int64, offset of the tick that each answers
    time_s: np.ndarray  # float64, of the tick or the end of the bar
    last: np.ndarray  # float64, the value it starts from
    offset: np.ndarray  # float32 (n, horizon, level), quantiles minus `last`
    scale: np.ndarray  # float32
    status: np.ndarray  # int32, index into advance.STATUSES
    anomaly: np.ndarray  # float32, NaN: no forecast had been made for this step
    scores: Scores  # float64 sums, numpy
    versions: dict[int, str]  # of the model that each partition was served with

    def __len__(self) -> int:
        return len(self.series)


class Served(NamedTuple):
    """A model that serves, and the number by which rows name it."""

    number: int
    model: Model
    serving: Serving


class Queue:
    """Steps on their way to the device: parallel lists, in the order of the log."""

    __slots__ = (
        "base",
        "covariates",
        "dt_s",
        "fresh",
        "name",
        "partition",
        "row",
        "segment",
        "source",
        "time_s",
        "value",
    )

    def __init__(self) -> None:
        self.name: list[str] = []
        self.row: list[int] = []
        self.partition: list[int] = []
        self.source: list[int] = []
        self.time_s: list[float] = []
        self.dt_s: list[float] = []
        self.value: list[float] = []
        self.base: list[float] = []
        self.fresh: list[bool] = []
        self.covariates: list[float] = []  # of all steps, one step's after the other's
        self.segment: list[int] = []

    def add(self, series: Series, partition: int, step: Step, segment: int) -> None:
        """Queue one step; a fresh one moves the base of its series."""
        fresh = series.step(step.value, step.time_s, step.fresh)
        self.name.append(series.name)
        self.row.append(series.row)
        self.partition.append(partition)
        self.source.append(step.source)
        self.time_s.append(step.time_s)
        self.dt_s.append(step.time_s - series.stepped_s)
        self.value.append(step.value)
        self.base.append(series.base)
        self.fresh.append(fresh)
        self.covariates.extend(step.covariates)
        self.segment.append(segment)
        series.stepped_s = step.time_s


class Work(NamedTuple):
    """Steps as arrays, an entry a step, in the order of the log."""

    name: np.ndarray  # object: str
    row: np.ndarray  # int32
    partition: np.ndarray  # int32
    source: np.ndarray  # int64
    time_s: np.ndarray  # float64
    value: np.ndarray  # float64
    base: np.ndarray  # float64
    fresh: np.ndarray  # bool
    segment: np.ndarray  # int32
    change: np.ndarray  # float32, value - base: both are float64, and float32 only as a difference
    dt_s: np.ndarray  # float32
    week: np.ndarray  # float32
    live: np.ndarray  # bool
    covariates: np.ndarray  # float32 (step, covariate)

    @staticmethod
    def of(queue: Queue, live: bool | Collection[int], covariates: int) -> "Work":
        """All steps of a queue, each with so many `covariates`."""
        partition, source = np.array(queue.partition, np.int32), np.array(queue.source, np.int64)
        time_s = np.array(queue.time_s, np.float64)
        value, base = np.array(queue.value, np.float64), np.array(queue.base, np.float64)
        more = np.array(queue.covariates, np.float64).reshape(len(queue.name), covariates)
        return Work(
            name=np.array(queue.name, object),
            row=np.array(queue.row, np.int32),
            partition=partition,
            source=source,
            time_s=time_s,
            value=value,
            base=base,
            fresh=np.array(queue.fresh, bool),
            segment=np.array(queue.segment, np.int32),
            change=(value - base).astype(np.float32),
            dt_s=np.array(queue.dt_s, np.float64).astype(np.float32),
            week=(time_s / DAY_S % WEEK_DAYS).astype(np.float32),
            live=(source >= 0) & (live if isinstance(live, bool) else np.isin(partition, list(live))),
            covariates=in_bounds(more),
        )

    def picked(self, at: np.ndarray | slice) -> "Work":
        """The steps `at` alone."""
        return Work(*(column[at] for column in self))

    def stretches(self, segments: int) -> Iterator[list[np.ndarray]]:
        """The steps of each segment, cut in as many parts as are of about PART steps, at least one."""
        edges = np.searchsorted(self.segment, np.arange(segments + 1))
        for start, stop in pairwise(edges.tolist()):
            yield np.array_split(np.arange(start, stop), max(1, round((stop - start) / PART)))

    def steps(self, at: np.ndarray, where: Any, shape: tuple[int, ...]) -> Steps:
        """The steps `at`, put `where` they run in arrays of this shape; the rest is padding."""

        def spread(values: np.ndarray) -> Any:
            out = np.zeros((*shape, *values.shape[1:]), values.dtype)
            out[where] = values
            return out

        return Steps(
            spread(self.change[at]),
            spread(self.dt_s[at]),
            spread(self.week[at]),
            spread(self.live[at]),
            spread(np.ones(len(at), bool)),
            spread(self.source[at] >= 0),
            spread(self.covariates[at]),
        )


class Part:
    """Steps that are looked at together, on their way through the device."""

    def __init__(self, work: Work, at: np.ndarray, served: Mapping[int, Served]) -> None:
        self.work = work
        self.results: list[tuple[np.ndarray, Any, Forecasts, Scores]] = []
        """Of each call: the steps, where they are in its forecasts, what it gave."""
        self._at, self._served = at, served

    def by_model(self) -> Iterator[tuple[Served, np.ndarray]]:
        """The steps that each model serves."""
        models = {model.number: model for model in self._served.values()}
        for number, model in models.items():
            theirs = [p for p, its in self._served.items() if its.number == number]
            yield (
                model,
                self._at if len(models) == 1 else self._at[np.isin(self.work.partition[self._at], theirs)],
            )

    def issued(self, spec: ModelSpec) -> Issued:
        """The forecasts of those that answer a tick, once the device has them."""
        work, at, n, h, levels = self.work, self._at, len(self._at), spec.horizon, len(spec.levels)
        first = int(at[0]) if n else 0
        offset = np.empty((n, h, levels), np.float32)
        scale, anomaly = np.empty(n, np.float32), np.empty(n, np.float32)
        status = np.empty(n, np.int32)
        for steps, where, forecasts, _ in self.results:
            mine = steps - first
            for column, told in zip((offset, scale, status, anomaly), forecasts, strict=True):
                column[mine] = np.asarray(told)[where]
        out = np.flatnonzero(work.source[at] >= 0)
        steps = at[out]
        return Issued(
            work.name[steps].tolist(),
            work.partition[steps],
            work.source[steps],
            work.time_s[steps],
            work.value[steps],
            offset[out],
            scale[out],
            status[out],
            anomaly[out],
            self.scores(spec),
            {p: its.model.version for p, its in self._served.items()},
        )

    def scores(self, spec: ModelSpec) -> Scores:
        """Sums over what the steps settled, once the device has them; float64."""
        h, levels = spec.horizon, len(spec.levels)
        totals: list[Any] = [np.zeros(h)] * 4 + [np.zeros((h, levels))]
        for _, _, _, scores in self.results:
            totals = [
                total + np.asarray(part, np.float64) for total, part in zip(totals, scores, strict=True)
            ]
        return Scores(*totals)


class Chains:
    """The steps of each row, in order. A row that starts anew in the middle has several lives, one after another."""

    def __init__(self, rows: np.ndarray, fresh: np.ndarray) -> None:
        self._order = np.argsort(rows, kind="stable")
        rows, fresh = rows[self._order], fresh[self._order]
        self._first = np.ones(len(rows), bool)
        self._first[1:] = rows[1:] != rows[:-1]
        again = np.cumsum(fresh & ~self._first)
        self._life = again - np.maximum.accumulate(np.where(self._first, again, 0))
        self._first |= fresh

    @property
    def lives(self) -> int:
        """Most of one row."""
        return int(self._life.max(initial=-1)) + 1

    def of_life(self, life: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Steps by row and in order, where the chain of each row starts among them, and its length."""
        ours = self._life == life
        start = np.flatnonzero(self._first[ours])
        return self._order[ours], start, np.diff(start, append=np.count_nonzero(ours))


def joined(parts: Sequence[Issued]) -> Issued:
    """One of several."""
    if len(parts) == 1:
        return parts[0]
    columns: list[Any] = list(zip(*parts, strict=True))
    names, arrays, scores = columns[0], columns[1:-2], columns[-2]
    totals: list[Any] = [sum(part) for part in zip(*scores, strict=True)]
    fields: list[Any] = [*map(np.concatenate, arrays), Scores(*totals), parts[0].versions]
    return Issued(list(chain.from_iterable(names)), *fields)
