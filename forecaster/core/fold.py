"""The driver of the fold: ticks in the order of the log in, forecasts out; the one owner of the table.

Ticks pass the grid and become steps; steps of different series run together, steps of one series one after the
other; every batch is padded to one of a few sizes, so that nothing compiles once `compile` has run. Serving, replay,
backtest and tests all drive this same object, which knows neither where ticks come from nor what time it is.
"""

import heapq
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain, pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from forecaster.core import advance as fold
from forecaster.core import table
from forecaster.core.advance import Forecasts, Loan, Serving, Steps
from forecaster.core.calls import Call, Shape, plan
from forecaster.core.features import DAY_S, WEEK_DAYS
from forecaster.core.grid import GridSpec, Step, close_bars, due_s, place_in_bar, place_tick
from forecaster.core.model import Model, ModelSpec, untrained
from forecaster.core.pages import Replay
from forecaster.core.score import Scores
from forecaster.core.table import Index, Rows, Series, SeriesSpec
from forecaster.core.tick import Outcome, Tick

QUICK: Any = {
    "xla_backend_optimization_level": 1
}  # compiles a quarter faster than the default, and runs as fast
PART = 512  # steps that are looked at while the device works on the next ones
PLANT = 64  # newborn series a batch
REWARM = 64  # series whose carry is warmed up at once
SHAPES = Shape(128, 1, 300, 1060), Shape(8, 32, 460, 95), Shape(1, 128, 320, 25)
"""Of the programs that take steps in: wide for many series, deep for few (small batches, too), deeper for one."""
COPIED = 32  # rows that are copied out or put back at once
LENDERS = 512  # series of a partition that a newborn borrows from
LOAN_EVERY = 2048  # offsets after which a partition's loan is made anew
MOST_LENT = 256  # loans that are kept for whoever writes them down
UNKNOWN = "?"  # the version of a model that is not known, whose carries are not used


Programs = dict[tuple[str, int], Any]
"""Compiled programs by name and size."""


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


class _Served(NamedTuple):
    """A model that serves, and the number by which rows name it."""

    number: int
    model: Model
    serving: Serving


class _Queue:
    """Steps on their way to the device: parallel lists, in the order of the log."""

    __slots__ = ("base", "dt_s", "fresh", "name", "partition", "row", "segment", "source", "time_s", "value")

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
        self.segment: list[int] = []

    def add(self, series: Series, partition: int, step: Step, segment: int) -> None:
        """Queue one step; a fresh one moves the base of its series."""
        fresh = series.fresh or step.fresh
        if fresh:
            series.base, series.stepped_s, series.fresh = step.value, step.time_s, False
        self.name.append(series.name)
        self.row.append(series.row)
        self.partition.append(partition)
        self.source.append(step.source)
        self.time_s.append(step.time_s)
        self.dt_s.append(step.time_s - series.stepped_s)
        self.value.append(step.value)
        self.base.append(series.base)
        self.fresh.append(fresh)
        self.segment.append(segment)
        series.stepped_s = step.time_s


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
        shapes: Sequence[Shape] = SHAPES,
    ) -> None:
        """Batches run in programs of these `shapes`, one of which has rounds."""
        self.spec, self.grid, self.same_time = spec, grid, same_time
        self._shapes = tuple(shapes)
        self.index = Index(series)
        self.rows = table.empty(fold.layout(spec), series.max_series)
        self.swaps = 0
        self.lent: deque[tuple[int, int, Loan]] = deque(maxlen=MOST_LENT)
        """Loans lately made: partition, stretch of its log, loan. For whoever writes them down."""
        self._numbers: dict[str, int] = {"": 0}  # of models, by version
        self._default = self._serve(untrained(spec))
        self._served: dict[int, _Served] = {}  # by partition, where it is not the default
        self._carry_of = np.zeros(
            series.max_series, np.int64
        )  # number of the model that a row's carry belongs to
        self._queue = _Queue()
        self._loans: dict[int, Loan] = {}
        self._stretch: dict[int, int] = {}  # which LOAN_EVERY offsets a partition is in
        self._lenders: list[
            tuple[int, int, np.ndarray]
        ] = []  # partitions whose stretch began in this batch, the stretch, and rows then
        self._replays: dict[int, Replay] = {}
        self._known_loans: dict[int, Mapping[int, Loan]] = {}  # of partitions that were restored, by stretch
        self._due: dict[
            int, list[tuple[float, str]]
        ] = {}  # open bars by partition: heap of (closing time, series)
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
            if offset // LOAN_EVERY != stretch:
                stretch = self._stretch[partition] = offset // LOAN_EVERY
                self._lenders.append((partition, stretch, self.index.stepped(partition)[:LENDERS]))
            if tick.time_s > watermark_s:
                watermark_s = self.index.watermark_s[partition] = tick.time_s
                self.index.sweep(partition, sleeps)
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
            step = Step(tick.time_s, tick.value, offset, False)
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
        while due and due[0][0] <= now_s:
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
        queue, self._queue = self._queue, _Queue()
        lenders, self._lenders = self._lenders, []
        work = _Work(queue, live)
        served = {p: self._served_in(p) for p in np.unique(work.partition).tolist()}
        waiting: _Part | None = None
        for segment, ats in enumerate(work.stretches(len(lenders) + 1)):
            if segment:
                self._renew_loan(*lenders[segment - 1])
            for at in ats:
                part = _Part(work, at, served)
                self._run_part(part)
                if waiting is not None:
                    yield waiting.issued(self.spec)
                waiting = part
        if waiting is not None:
            yield waiting.issued(self.spec)

    def _run_part(self, part: "_Part") -> None:
        for model, at in part.by_model():
            chains = _Chains(part.work.row[at], part.work.fresh[at])
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

    def _once(self, work: "_Work", at: np.ndarray, cell: _Cell, call: Call, serving: Serving) -> _Result:
        """One step each of many series; `cell` says in which round and lane each runs."""
        size = call.shape.lanes
        idx = self._padded(work.row[at], size)
        changes, forecasts, scores = self._program("advance", size)(
            serving, self.rows, idx, work.steps(at, cell[1], (size,))
        )
        self.rows = self._program("write", size)(self.rows, idx, changes)
        return cell[1], forecasts, scores

    def _rounds(self, work: "_Work", at: np.ndarray, cell: _Cell, call: Call, serving: Serving) -> _Result:
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
        idx = np.full(size, self.index.spec.max_series, np.int32)
        idx[: len(rows)] = rows
        return idx

    # ------------------------------------------------------------------ newborns, swaps

    def _prepare(self, work: "_Work", at: np.ndarray, served: _Served) -> None:
        """Plant newborn rows, and warm up again those whose carry belongs to another model."""
        self._plant(work, at, served)
        rows = work.row[at]
        stale = rows[self._carry_of[rows] != served.number]
        for start in range(0, len(stale), REWARM):
            idx = self._padded(stale[start : start + REWARM], REWARM)
            carry = self._program("rewarm", REWARM)(served.serving, self.rows, idx)
            self.rows = self._program("set_carry", REWARM)(self.rows, idx, carry)
        self._carry_of[stale] = served.number

    def _plant(self, work: "_Work", at: np.ndarray, served: _Served) -> None:
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
        self.swaps += 1
        if partition is None:
            self._default = self._serve(model)
        else:
            self._served[partition] = self._serve(model)

    def version(self, partition: int) -> str:
        """Of the model that a partition is served with."""
        return self._served_in(partition).model.version

    def _served_in(self, partition: int) -> _Served:
        return self._served.get(partition, self._default)

    def _serve(self, model: Model) -> _Served:
        return _Served(self._number(model.version), model, _serving(model))

    def _number(self, version: str) -> int:
        return self._numbers.setdefault(version, len(self._numbers))

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
            padded = [np.zeros((COPIED, *column.shape[1:]), column.dtype) for column in columns]
            for room, column in zip(padded, columns, strict=True):
                room[: len(some)] = column[done : done + len(some)]
            self.rows = self._program("put", COPIED)(self.rows, idx, Rows(*map(jnp.asarray, padded)))
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
        sizes = [(name, shape.lanes) for shape in self._shapes for name in _names(shape)]
        wanted = list(
            dict.fromkeys([*sizes, *_PROGRAMS])
        )  # one that has rounds may be as wide as what is copied
        made = each(lambda key: self._compiled(spec, *key), wanted)
        return dict(zip(wanted, made, strict=True))

    def adopt(self, spec: ModelSpec, programs: Programs) -> None:
        """Go on with networks of another cell or size; the rows stay, and their carries are warmed up when touched."""
        if not self.takes(spec):
            raise ValueError(f"a network with {spec} does not fit a table made for {self.spec}")
        carry = jnp.zeros((self.rows.carry.shape[0], spec.carry_size), jnp.float32)
        self.spec, self.rows, self._programs = spec, self.rows._replace(carry=carry), dict(programs)
        self._carry_of[:] = self._number(UNKNOWN)
        self._default = self._serve(untrained(spec))
        self._served.clear()

    def takes(self, spec: ModelSpec) -> bool:
        """Whether networks of this spec fit the table: all but the recurrent part has to be the same."""
        ours, theirs = fold.layout(self.spec), fold.layout(spec)
        return theirs._replace(carry=0) == ours._replace(carry=0) and spec.levels == self.spec.levels

    def _program(self, name: str, size: int) -> Any:
        if (name, size) not in self._programs:
            self._programs[name, size] = self._compiled(self.spec, name, size)
        return self._programs[name, size]

    def _compiled(self, spec: ModelSpec, name: str, size: int) -> Any:
        function, written, arguments = self._source(spec, name, size)
        donated = 0 if written else ()
        return jax.jit(function, donate_argnums=donated).lower(*arguments).compile(QUICK)

    def _source(
        self, spec: ModelSpec, name: str, size: int
    ) -> tuple[Callable[..., Any], bool, tuple[Any, ...]]:
        """A program: the function, whether it writes its first argument (the table), and its arguments' shapes."""

        def like(tree: Any, *lead: int) -> Any:
            return jax.tree.map(lambda x: jax.ShapeDtypeStruct((*lead, *x.shape), x.dtype), tree)

        def result(function: Callable[..., Any], *arguments: Any) -> Any:
            return jax.eval_shape(function, *arguments)

        table_rows = self.index.spec.max_series
        rows = result(lambda: table.empty(fold.layout(spec), table_rows))
        serving = result(lambda: _serving(untrained(spec)))
        kinds = jnp.int32, jnp.float32, jnp.bool_
        idx, real, flag = (result(partial(jnp.zeros, size, kind)) for kind in kinds)
        number = result(partial(jnp.zeros, (), jnp.int32))
        steps = Steps(real, real, real, flag, flag)
        advance, rewarm = partial(fold.advance, spec), partial(fold.rewarm, spec)
        rounds, lend = partial(fold.advance_rounds, spec), partial(fold.lend, spec)
        match name:
            case "advance":
                program = advance, False, (serving, rows, idx, steps)
            case "write":
                program = table.write, True, (rows, idx, result(advance, serving, rows, idx, steps)[0])
            case "rounds":
                most = next(shape.rounds for shape in self._shapes if shape.lanes == size)
                program = rounds, False, (serving, rows, idx, like(steps, most), number)
            case "put":
                program = table.put, True, (rows, idx, result(table.take, rows, idx))
            case "take":
                program = table.take, False, (rows, idx)
            case "rewarm":
                program = rewarm, False, (serving, rows, idx)
            case "set_carry":
                program = fold.set_carry, True, (rows, idx, result(rewarm, serving, rows, idx))
            case "lend":
                program = lend, False, (rows, idx, flag)
            case _:
                program = fold.plant, True, (rows, idx, real, like(result(lend, rows, idx, flag), size))
        return program


def _names(shape: Shape) -> tuple[str, str]:
    """The program that computes, and the one that writes."""
    return ("advance", "write") if shape.rounds == 1 else ("rounds", "put")


_PROGRAMS = (
    ("rewarm", REWARM),
    ("set_carry", REWARM),
    ("lend", LENDERS),
    ("plant", PLANT),
    ("take", COPIED),
    ("put", COPIED),
)
"""Those beside the steps, the longest to compile first."""


class _Work:
    """A queue as arrays, and the padded steps cut from it."""

    def __init__(self, queue: _Queue, live: bool | Collection[int]) -> None:
        self.name = queue.name
        self.row = np.array(queue.row, np.int32)
        self.partition = np.array(queue.partition, np.int32)
        self.source = np.array(queue.source, np.int64)
        self.time_s = np.array(queue.time_s, np.float64)
        self.value = np.array(queue.value, np.float64)
        self.base = np.array(queue.base, np.float64)
        self.fresh = np.array(queue.fresh, bool)
        self.segment = np.array(queue.segment, np.int32)
        # Times and values are float64 here and float32 only as differences.
        self._change = (self.value - self.base).astype(np.float32)
        self._dt_s = np.array(queue.dt_s, np.float64).astype(np.float32)
        self._week = (self.time_s / DAY_S % WEEK_DAYS).astype(np.float32)
        self._live = (self.source >= 0) & (
            live if isinstance(live, bool) else np.isin(self.partition, list(live))
        )

    def stretches(self, segments: int) -> Iterator[list[np.ndarray]]:
        """The steps of each segment, cut in as many parts as are of about PART steps, at least one."""
        edges = np.searchsorted(self.segment, np.arange(segments + 1))
        for start, stop in pairwise(edges.tolist()):
            yield np.array_split(np.arange(start, stop), max(1, round((stop - start) / PART)))

    def steps(self, at: np.ndarray, where: Any, shape: tuple[int, ...]) -> Steps:
        """The steps `at`, put `where` they run in arrays of this shape; the rest is padding."""

        def spread(values: np.ndarray) -> Any:
            out = np.zeros(shape, values.dtype)
            out[where] = values
            return out

        return Steps(
            spread(self._change[at]),
            spread(self._dt_s[at]),
            spread(self._week[at]),
            spread(self._live[at]),
            spread(np.ones(len(at), bool)),
        )


def joined(parts: Sequence[Issued]) -> Issued:
    """One of several."""
    if len(parts) == 1:
        return parts[0]
    columns: list[Any] = list(zip(*parts, strict=True))
    names, arrays, scores = columns[0], columns[1:-2], columns[-2]
    totals: list[Any] = [sum(part) for part in zip(*scores, strict=True)]
    fields: list[Any] = [*map(np.concatenate, arrays), Scores(*totals), parts[0].versions]
    return Issued(list(chain.from_iterable(names)), *fields)


def _serving(model: Model) -> Serving:
    params = {name: jnp.asarray(p, jnp.float32) for name, p in model.params.items()}
    return Serving(params, jnp.asarray(model.periods, jnp.int32), jnp.asarray(bool(model.version)))


class _Part:
    """Steps that are looked at together, on their way through the device."""

    def __init__(self, work: _Work, at: np.ndarray, served: Mapping[int, _Served]) -> None:
        self.work = work
        self.results: list[tuple[np.ndarray, Any, Forecasts, Scores]] = []
        """Of each call: the steps, where they are in its forecasts, what it gave."""
        self._at, self._served = at, served

    def by_model(self) -> Iterator[tuple[_Served, np.ndarray]]:
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
        totals: list[Any] = [np.zeros(h)] * 4 + [np.zeros((h, levels))]
        for steps, where, forecasts, scores in self.results:
            mine = steps - first
            for column, told in zip((offset, scale, status, anomaly), forecasts, strict=True):
                column[mine] = np.asarray(told)[where]
            totals = [
                total + np.asarray(part, np.float64) for total, part in zip(totals, scores, strict=True)
            ]
        out = np.flatnonzero(work.source[at] >= 0)
        steps = at[out]
        return Issued(
            [work.name[i] for i in steps.tolist()],
            work.partition[steps],
            work.source[steps],
            work.time_s[steps],
            work.value[steps],
            offset[out],
            scale[out],
            status[out],
            anomaly[out],
            Scores(*totals),
            {p: its.model.version for p, its in self._served.items()},
        )


class _Chains:
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
