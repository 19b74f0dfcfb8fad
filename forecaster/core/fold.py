"""The driver of the fold: ticks in the order of the log in, forecasts out; the one owner of the table.

Ticks pass the grid and become steps; steps of different series run together, steps of one series one after the
other; every batch is padded to one of a few sizes, so that nothing compiles once `compile` has run. Serving, replay,
backtest and tests all drive this same object, which knows neither where ticks come from nor what time it is.
"""

import heapq
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np

from forecaster.core import programs, row, table
from forecaster.core.advance import Forecasts, Serving
from forecaster.core.batch import Chains, Issued, Part, Queue, Served, Work, joined
from forecaster.core.birth import Loan
from forecaster.core.calls import Call, Shape, plan
from forecaster.core.grid import GridSpec, Step, close_bars, due_s, place_in_bar, place_tick, reached
from forecaster.core.model import Model, ModelSpec, untrained
from forecaster.core.pages import Replay
from forecaster.core.programs import COPIED, LENDERS, PLANT, REWARM, Programs, serving_of, shapes_for
from forecaster.core.score import Scores
from forecaster.core.table import Index, Rows, Series, SeriesSpec
from forecaster.core.tick import Outcome, Tick

LOAN_EVERY = 2048  # offsets after which a partition's loan is made anew
MOST_LENT = 256  # loans that are kept for whoever writes them down
UNKNOWN = "?"  # the version of a model that is not known, whose carries are not used


_Cell = tuple[np.ndarray, np.ndarray]
"""Rounds and lanes of steps in a call."""
_Result = tuple[Any, Forecasts, Scores]
"""Where steps are in the forecasts of a call, these, and what was settled."""


class Fold:
    """The state of a worker: its table, its index of series, its serving model, and the compiled programs."""

    def __init__(
        self,
        spec: ModelSpec,
        series: SeriesSpec,
        grid: GridSpec,
        same_time: str = "drop_equal",
        *,
        shapes: Sequence[Shape] | None = None,
        spare: int = 0,
    ) -> None:
        """Batches run in programs of these `shapes`, one of which has rounds; without, in those that suit so many
        series. The table has `spare` rows more than there are series, for whoever runs steps beside what is served.
        """
        self.spec, self.grid, self.same_time = spec, grid, same_time
        self._shapes = tuple(shapes or shapes_for(series.max_series))
        self.index = Index(series)
        self.spare = range(series.max_series, series.max_series + spare)
        """The rows of no series."""
        self.watch: Callable[[Work], None] | None = None
        """Is shown all steps just before they are taken in."""
        self._table_rows = self.spare.stop
        self._recipe = programs.Recipe(spec, self._table_rows, self._shapes)
        self.rows = table.empty(row.layout(spec), self._table_rows)
        self.lent: deque[tuple[int, int, Loan]] = deque(maxlen=MOST_LENT)
        """Loans lately made: partition, stretch of its log, loan. For whoever writes them down."""
        self._numbers: dict[str, int] = {"": 0}  # of models, by version
        self._default = self.serve(untrained(spec))
        self._served: dict[int, Served] = {}  # by partition, where it is not the default
        self._carry_of = np.zeros(self._table_rows, np.int64)  # number of the model that a row's carry is of
        self._queue = Queue()
        self._loans: dict[int, Loan] = {}
        self._stretch: dict[int, int] = {}  # which LOAN_EVERY offsets a partition is in
        # Partitions whose stretch began in this batch, the stretch, and rows then.
        self._lenders: list[tuple[int, int, np.ndarray]] = []
        self._replays: dict[int, Replay] = {}
        self._known_loans: dict[int, Mapping[int, Loan]] = {}  # of partitions that were restored, by stretch
        # Open bars by partition: heap of (closing time, series).
        self._due: dict[int, list[tuple[float, str]]] = {}
        self._programs: Programs = {}

    # ------------------------------------------------------------------ ticks to steps

    def admit(self, partition: int, offsets: Iterable[int], ticks: Iterable[Tick]) -> list[Outcome]:
        """Put ticks of one partition, in the order of the log, on the grid; what became of each."""
        place = self._place_in_bar if self.grid.interval_s else self._place
        members = self.index.partitions.setdefault(partition, {})
        watermark_s = self.index.watermark_s.get(partition, float("-inf"))
        stretch = self._stretch.get(partition)
        replay = self._replays.get(partition)
        sleeps: Callable[[str], bool] | None = None
        outcomes: list[Outcome] = []
        for offset, tick in zip(offsets, ticks, strict=True):
            if replay is not None:
                replay.advance(self.index, partition, offset)
                watermark_s = self.index.watermark_s.get(partition, watermark_s)
                sleeps = partial(replay.sleeps, offset)
                if offset >= replay.until:  # all are awake from here on
                    replay = sleeps = None
            if offset // LOAN_EVERY != stretch:
                stretch = self._stretch[partition] = offset // LOAN_EVERY
                self._lenders.append((partition, stretch, self.index.stepped(partition, LENDERS)))
            if tick.time_s > watermark_s:
                before_s, watermark_s = watermark_s, tick.time_s
                self.index.watermark_s[partition] = watermark_s
                self.index.sweep(partition, before_s, sleeps)
            if sleeps is not None and sleeps(tick.series):
                self._close_due(partition, watermark_s)
                outcomes.append(Outcome.SKIPPED)
                continue
            series = members.get(tick.series) or self.index.allot(partition, tick.series, offset)
            outcomes.append(place(partition, offset, tick, series) if series else Outcome.OVER_CAP)
        return outcomes

    def _place(self, partition: int, offset: int, tick: Tick, series: Series) -> Outcome:
        outcome = place_tick(series.clock, tick, self.same_time)
        if outcome is Outcome.ACCEPTED:
            step = Step(tick.time_s, tick.value, offset, False, tick.covariates)
            self._queue.add(series, partition, step, len(self._lenders))
        return outcome

    def _place_in_bar(self, partition: int, offset: int, tick: Tick, series: Series) -> Outcome:
        before_s = due_s(series.clock, self.grid)
        outcome = place_in_bar(series.clock, tick, offset, self.grid, self.same_time)
        if outcome is not Outcome.ACCEPTED:
            return outcome
        if self.grid.close_by == "series":
            self._close(partition, series, series.clock.time_s)
            return outcome
        if due_s(series.clock, self.grid) < before_s:
            self._wait(partition, series)
        self._close_due(partition, self.index.watermark_s[partition])
        return outcome

    def _wait(self, partition: int, series: Series) -> None:
        """Note when the oldest open bar of a series is to be closed."""
        entry = (due_s(series.clock, self.grid), series.name)
        heapq.heappush(self._due.setdefault(partition, []), entry)

    def _close_due(self, partition: int, now_s: float) -> None:
        """Close the bars that end by the partition's time, whichever series they belong to."""
        due = self._due.get(partition, [])
        while due and reached(due[0][0], now_s):
            noted_s, name = heapq.heappop(due)
            series = self.index.partitions[partition].get(name)
            if series is None or due_s(series.clock, self.grid) != noted_s:
                continue  # evicted, or closed already
            self._close(partition, series, now_s)
            if series.clock.bars:
                self._wait(partition, series)

    def _close(self, partition: int, series: Series, now_s: float) -> None:
        for step in close_bars(series.clock, now_s, self.grid):
            self._queue.add(series, partition, step, len(self._lenders))

    # ------------------------------------------------------------------ steps to forecasts

    def run(self, live: bool | Collection[int] = True) -> Issued:
        """Take in all queued steps; the forecasts of those that answer a tick.

        `live` says that they will be published, or of which partitions they were.
        """
        return joined(list(self.parts(live)))

    def parts(self, live: bool | Collection[int] = True) -> Iterator[Issued]:
        """The same part by part, in the order of the log, and at least one; to be gone through to the end.

        While one part is looked at, the device works on the next.
        """
        queue, self._queue = self._queue, Queue()
        lenders, self._lenders = self._lenders, []
        work = Work.of(queue, live, len(self.spec.covariates))
        if self.watch is not None:
            self.watch(work)
        served = {p: self._served_in(p) for p in np.unique(work.partition).tolist()}
        waiting: Part | None = None
        for segment, ats in enumerate(work.stretches(len(lenders) + 1)):
            if segment:
                self._renew_loan(*lenders[segment - 1])
            for at in ats:
                part = Part(work, at, served)
                self._run_part(part)
                if waiting is not None:
                    yield waiting.issued(self.spec)
                waiting = part
        if waiting is not None:
            yield waiting.issued(self.spec)

    def _run_part(self, part: Part) -> None:
        for model, at in part.by_model():
            chains = Chains(part.work.row[at], part.work.fresh[at])
            for life in range(chains.lives):
                ours, start, lengths = chains.of_life(life)
                steps = at[ours]
                self._prepare(part.work, steps[start], model)
                for call in plan(lengths, self._shapes):
                    lane = np.repeat(np.arange(len(call.chains)), call.steps)
                    turn = np.arange(len(lane)) - np.repeat(np.cumsum(call.steps) - call.steps, call.steps)
                    some = steps[(start[call.chains] + call.first)[lane] + turn]
                    run = self._once if call.shape.rounds == 1 else self._rounds
                    where, forecasts, scores = run(part.work, some, (turn, lane), call, model.serving)
                    part.results.append((some, where, forecasts, scores))

    def _once(self, work: Work, at: np.ndarray, cell: _Cell, call: Call, serving: Serving) -> _Result:
        """One step each of many series; `cell` says in which round and lane each runs."""
        size = call.shape.lanes
        idx = self._padded(work.row[at], size)
        changes, forecasts, scores = self._program("advance", size)(
            serving, self.rows, idx, work.steps(at, cell[1], (size,))
        )
        self.rows = self._program("write", size)(self.rows, idx, changes)
        return cell[1], forecasts, scores

    def _rounds(self, work: Work, at: np.ndarray, cell: _Cell, call: Call, serving: Serving) -> _Result:
        """Several steps of a few series inside one program."""
        size = call.shape.lanes
        idx = self._padded(work.row[at[cell[0] == 0]], size)
        steps = work.steps(at, cell, (call.shape.rounds, size))
        local, forecasts, scores = self._program("rounds", size)(
            serving, self.rows, idx, steps, np.int32(call.rounds)
        )
        self.rows = self._program("put", size)(self.rows, idx, local)
        return cell, forecasts, scores

    def _padded(self, rows: np.ndarray, size: int) -> np.ndarray:
        idx = np.full(size, self._table_rows, np.int32)
        idx[: len(rows)] = rows
        return idx

    # ------------------------------------------------------------------ newborns, swaps

    def _prepare(self, work: Work, at: np.ndarray, served: Served) -> None:
        """Plant newborn rows, and warm up again those whose carry belongs to another model."""
        self._plant(work, at, served)
        rows = work.row[at]
        stale = rows[self._carry_of[rows] != served.number]
        for start in range(0, len(stale), REWARM):
            idx = self._padded(stale[start : start + REWARM], REWARM)
            warmed = self._program("rewarm", REWARM)(served.serving, self.rows, idx)
            self.rows = self._program("set_warmed", REWARM)(self.rows, idx, warmed)
        self._carry_of[stale] = served.number

    def _plant(self, work: Work, at: np.ndarray, served: Served) -> None:
        newborn = at[work.fresh[at]]
        for start in range(0, len(newborn), PLANT):
            some = newborn[start : start + PLANT]
            lenders = [self._loans[p] for p in work.partition[some].tolist()]
            lenders += lenders[:1] * (PLANT - len(some))
            columns: list[Any] = [np.stack(column) for column in zip(*lenders, strict=True)]
            base = np.zeros(PLANT, np.float32)
            base[: len(some)] = work.base[some]
            idx = self._padded(work.row[some], PLANT)
            self.rows = self._program("plant", PLANT)(self.rows, idx, base, Loan(*columns))
        self._carry_of[work.row[newborn]] = served.number

    def _renew_loan(self, partition: int, stretch: int, rows: np.ndarray) -> None:
        """Make the loan of a partition anew where its log has come to a multiple of LOAN_EVERY.

        A replay does so, too, or is told what it was: rows that are ahead cannot make it again.
        """
        if known := self._known_loans.get(partition, {}).get(stretch):
            self._loans[partition] = known
            return
        valid = np.arange(LENDERS) < len(rows)
        loan = self._program("lend", LENDERS)(self.rows, self._padded(rows, LENDERS), valid)
        self._loans[partition] = loan
        self.lent.append((partition, stretch, loan))

    def drop(self, partition: int) -> int:
        """Forget a partition that moved away; how many series that were."""
        dropped = self.index.drop(partition)
        books = (self._loans, self._stretch, self._due, self._served, self._replays, self._known_loans)
        for book in books:
            book.pop(partition, None)
        return dropped

    @property
    def model(self) -> Model:
        """What serves the partitions that have no model of their own."""
        return self._default.model

    def swap(self, model: Model, partition: int | None = None) -> None:
        """Serve with another model of the same spec from the next step on; each row is warmed up when next touched.

        A partition that is named has a model of its own from then on; without a name, all the others get it.
        """
        if model.spec != self.spec:
            raise ValueError(f"the model's spec {model.spec} is not the table's {self.spec}")
        if partition is None:
            self._default = self.serve(model)
        else:
            self._served[partition] = self.serve(model)

    def version(self, partition: int) -> str:
        """Of the model that a partition is served with."""
        return self._served_in(partition).model.version

    def _served_in(self, partition: int) -> Served:
        return self._served.get(partition, self._default)

    def serve(self, model: Model) -> Served:
        """A model as `beside` wants it; nothing is swapped by that."""
        return Served(self._number(model.version), model, serving_of(model))

    def _number(self, version: str) -> int:
        return self._numbers.setdefault(version, len(self._numbers))

    # ------------------------------------------------------------------ beside what is served (by shadow.py)

    def copy(self, rows: np.ndarray, to: np.ndarray) -> None:
        """Put copies of rows into as many others."""
        for (_, idx), (_, put) in zip(self._parts(rows), self._parts(to), strict=True):
            self.rows = self._program("put", COPIED)(
                self.rows, put, self._program("take", COPIED)(self.rows, idx)
            )
        self._carry_of[to] = self._carry_of[rows]

    def beside(self, work: Work, served: Served) -> Part:
        """Take in steps whose rows are spare ones, with this model. Returns before the device is done."""
        part = Part(work, np.arange(len(work.row)), dict.fromkeys(work.partition.tolist(), served))
        self._run_part(part)
        return part

    # ------------------------------------------------------------------ pages (filled and taken over by snapshot.py)

    def read(self, rows: np.ndarray) -> list[np.ndarray]:
        """Rows by their numbers, in host memory; a list in the order of the columns."""
        parts = [
            [np.asarray(column)[: len(some)] for column in self._program("take", COPIED)(self.rows, idx)]
            for some, idx in self._parts(rows)
        ]
        if not parts:
            return [np.zeros((0, *column.shape[1:]), column.dtype) for column in self.rows]
        return [np.concatenate(column) for column in zip(*parts, strict=True)]

    def carries(self, rows: np.ndarray) -> list[str]:
        """The version of the model that the carry of each row belongs to."""
        versions = list(self._numbers)  # their numbers are their places
        return [versions[number] for number in self._carry_of[rows].tolist()]

    def restore(
        self, partition: int, series: Sequence[Series], columns: Sequence[np.ndarray], carries: Sequence[str]
    ) -> None:
        """Take over series that were just allotted, with the contents of their rows."""
        rows, done = np.array([one.row for one in series], np.int32), 0
        for some, idx in self._parts(rows):
            padded: list[Any] = [np.zeros((COPIED, *column.shape[1:]), column.dtype) for column in columns]
            for room, column in zip(padded, columns, strict=True):
                room[: len(some)] = column[done : done + len(some)]
            self.rows = self._program("put", COPIED)(self.rows, idx, Rows(*padded))
            done += len(some)
        self._carry_of[rows] = [self._number(version) for version in carries]
        for one in series:
            if one.clock.bars:
                self._wait(partition, one)

    def replay(self, partition: int, replay: Replay, loans: Mapping[int, Loan]) -> None:
        """The log before the pages of a restored partition comes next; `loans` are those made then, by stretch."""
        self.index.order(partition)
        self._replays[partition], self._known_loans[partition] = replay, loans

    def replayed(self, partition: int) -> None:
        """The log was gone through as far as the newest page, or as far as it could be."""
        if replay := self._replays.pop(partition, None):
            replay.advance(self.index, partition, replay.until)

    def _parts(self, rows: np.ndarray) -> Iterable[tuple[np.ndarray, np.ndarray]]:
        for start in range(0, len(rows), COPIED):
            some = rows[start : start + COPIED]
            yield some, self._padded(some, COPIED)

    # ------------------------------------------------------------------ programs

    def compile(self, each: Callable[..., Iterable[Any]] = map) -> None:
        """Compile every program for every size. `each` maps a function over a list, and may do so in threads."""
        self._programs |= self.programs(self.spec, each)

    def programs(self, spec: ModelSpec, each: Callable[..., Iterable[Any]] = map) -> Programs:
        """All programs for networks of this spec on a table like ours; reads shapes only, so safe beside the loop."""
        wanted = programs.needed(self._shapes)
        made = each(replace(self._recipe, spec=spec), wanted)
        return dict(zip(wanted, made, strict=True))

    def adopt(self, spec: ModelSpec, compiled: Programs) -> None:
        """Go on with networks of another cell or size; the rows stay, and their carries are warmed up when touched."""
        if not self.takes(spec):
            raise ValueError(f"a network with {spec} does not fit a table made for {self.spec}")
        carry = jnp.zeros((self.rows.carry.shape[0], spec.carry_size), jnp.float32)
        self.spec, self.rows, self._programs = spec, self.rows._replace(carry=carry), dict(compiled)
        self._recipe = replace(self._recipe, spec=spec)
        self._carry_of[:] = self._number(UNKNOWN)
        self._default = self.serve(untrained(spec))
        self._served.clear()

    def takes(self, spec: ModelSpec) -> bool:
        """Whether networks of this spec fit the table: all but the recurrent part has to be the same."""
        ours, theirs = row.layout(self.spec), row.layout(spec)
        same = (spec.levels, spec.covariates) == (self.spec.levels, self.spec.covariates)
        return theirs._replace(carry=0) == ours._replace(carry=0) and same

    def _program(self, name: str, size: int) -> Any:
        key = name, size
        if key not in self._programs:
            self._programs[key] = self._recipe(key)
        return self._programs[key]
