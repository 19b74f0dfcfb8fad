"""A slice of the log -> what training reads: examples, split in time, and the seasons found in them.

In come series (event times and values that went through the same grid as serving); out go, for every step that is kept,
the inputs that serving would have made there, the targets, and whether it may be trained on or is held out. All series
lie end to end in flat arrays, so that a window is a pair of numbers and windows may start anywhere:

    series   |-- warm_up --|---- train ----|- older -|---- train ----|- horizon -|------ hold-out ------|- horizon -|
                                  [burn_in][   span   ]                                [burn_in][ span ]
    every step of a span is an origin; burn_in only settles the carry and may reach back into anything

No target of a training origin lies at or after the first hold-out origin. The older stretch, where a series is long
enough for one, is a second hold-out amid what trains, a horizon away from it on both sides: no step is target in both.
No network and no loss live here.
"""

from collections.abc import Sequence
from enum import IntEnum
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import NDArray
from pydantic import Field

from forecaster.core import features, stats, table, waiting
from forecaster.core.birth import Loan, plant, unlent
from forecaster.core.covariates import in_bounds
from forecaster.core.model import ModelSpec
from forecaster.core.perceive import Steps, perceive
from forecaster.core.row import layout
from forecaster.core.spec import Spec
from forecaster.core.table import Layout, Rows

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

LANES, CHUNK = 32, 256  # series side by side and steps in one call of the fold
TARGET_CAP = 1e3  # running scales; what jumps further teaches nothing more
WEIGHT_CAP = 10.0  # times the series' mean change; one burst must not own the loss
FIRST_CHANGES = 8  # steps whose mean change a series is lent as its first scale
OLDER_SHARE = 0.25  # of the length of the hold-out: what the older stretch takes
SILENCE = 128  # steps for which covariates are kept from a network that is trained
SILENT_SHARE = 0.1  # of the steps: in such a silence
SILENT_COVARIATES = 0.5  # share of the covariates that each silence takes

PERIOD_SERIES = 48  # series in which seasons are looked for
PERIOD_STEPS = 4096  # newest steps of each
PERIOD_SHARE = 0.4  # of a series: a longer season has shown itself less than two and a half times
PERIOD_GAIN = 0.1  # share by which a season has to beat its half, and the last value NAIVE_STEPS ago
PERIOD_WORTH = 0.02  # what a further season has to add to the two best of a series, in the mean of all
PERIOD_SECOND = 0.25  # what the second best of a series counts for
PERIOD_NEARLY = 0.9  # of the best one's worth: the shortest that has so much is taken, as it is known earlier
PERIOD_APART = 0.1  # two seasons whose lengths differ by less, relatively, are one


class HistorySpec(Spec):
    """What of the history is trained on, and how it is cut."""

    holdout_ratio: float = Field(
        0.15,
        gt=0,
        lt=0.9,
        description="Share of each series, its newest part, that judges instead of trains; where a series is long"
        " enough, a quarter as much from its middle judges too.",
    )
    max_origins: int = Field(
        100_000,
        ge=100,
        description="Most steps trained on; above it each series keeps its newest, and some are left out.",
    )
    burn_in: int = Field(48, ge=0, le=1024, description="Steps that settle the carry before a span.")
    span: int = Field(96, ge=1, le=4096, description="Origins in a row in one training window.")


class Slice(NamedTuple):
    """Consecutive steps of one series, oldest first; float64."""

    series: str
    time_s: NDArray[np.float64]  # (time,)
    value: NDArray[np.float64]  # (time,)
    covariates: NDArray[np.float64] | None = None  # (time, covariate), NaN: missing; None: all are
    filled: NDArray[np.bool_] | None = None  # (time,), stands in for a tick that never came; None: none does


class Span(NamedTuple):
    """Event times [start_s, end_s) that nobody should learn from; `series` "" means all of them."""

    series: str
    start_s: float
    end_s: float


class Role(IntEnum):
    """What a step is good for as an origin."""

    NONE = 0
    TRAIN = 1
    HOLDOUT = 2
    OLDER = 3
    """Neither trained on nor looked at while fitting: whether a candidate forgets is seen here."""


class Examples(NamedTuple):
    """Steps of all series end to end (step axis), and where each series lies (series axis)."""

    inputs: Floats  # (step, recurrent input)
    direct: Floats  # (step, direct input)
    target: Floats  # (step, horizon), (value h ahead - value) / running scale; 0 where unknown
    known: NDArray[np.bool_]  # (step, horizon)
    weight: Floats  # (step,), running scale over the series' mean change: what makes losses comparable
    role: NDArray[np.int8]  # (step,)
    begin: Ints  # (series,), index of its first step
    end: Ints  # (series,), one past its last
    span_s: float = 0.0  # event time that half of the series span at least

    def count(self, role: Role) -> int:
        """Number of origins with this role that know at least one target."""
        return int(np.sum((self.role == role) & self.known.any(axis=1)))


class _Flat(NamedTuple):
    """All steps of all series end to end, before anything is left out."""

    value: NDArray[np.float64]
    time_s: NDArray[np.float64]
    came: NDArray[np.bool_]  # a tick did; else a gap was filled
    covariates: Floats  # (step, covariate)
    base: Floats  # (series,)
    begin: Ints  # (series,)
    end: Ints  # (series,)
    series: Ints  # (step,), number of the series

    def ago(self, at: Ints, steps: Ints | int) -> Ints:
        """Index of the step so many steps before `at`; the oldest one where the series is younger."""
        return np.maximum(at - steps, self.begin[self.series[at]])

    def relative(self, at: Ints, owner: Ints) -> Floats:
        """Values relative to the base of the series; small numbers, so float32 keeps them."""
        return (self.value[at] - self.base[owner]).astype(np.float32)


def prepare(
    history: Sequence[Slice],
    spec: HistorySpec,
    model: ModelSpec,
    periods: NDArray[np.int32],
    spans: Sequence[Span] = (),
    seed: int = 0,
) -> Examples:
    """Examples of the newest steps of each series, at most about `max_origins` of them to train on.

    What lies in the `spans`, or was filled in, is neither origin nor target.

    Which steps are kept depends on lengths and `seed` only, never on values or `periods`: two models can be judged
    on the same origins.
    """
    flat = _flatten(history, len(model.covariates))
    kept, begin, end = _keep(flat, spec, seed)
    split = end - np.round((end - begin) * spec.holdout_ratio).astype(np.int64)
    index = np.concatenate(
        [np.arange(b, e) for b, e in zip(begin, end, strict=True)] or [np.zeros(0, np.int64)]
    )
    lengths = end - begin
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    owner = np.repeat(np.arange(len(kept)), lengths)
    usable = _usable(history, flat, spans)
    ahead = index[:, None] + np.arange(1, model.horizon + 1)
    known = (ahead < flat.end[flat.series[index]][:, None]) & usable[np.minimum(ahead, len(flat.value) - 1)]
    inputs, direct, scale = _experience(_silenced(flat, begin, split, seed), periods, index, model)
    change = flat.value[np.minimum(ahead, len(flat.value) - 1)] - flat.value[index][:, None]
    target = np.clip(change / scale[:, None], -TARGET_CAP, TARGET_CAP)
    taught = zip(offsets[:-1], offsets[:-1] + split - begin, strict=True)
    usual = np.array([scale[first:last].mean() if last > first else 1.0 for first, last in taught])
    weight = np.minimum(scale / usual[owner], WEIGHT_CAP)
    return Examples(
        inputs=inputs,
        direct=direct,
        target=np.where(known, target, 0.0).astype(np.float32),
        known=known,
        weight=weight.astype(np.float32),
        role=_roles(flat, index, owner, begin, split, end, usable, spec, model),
        begin=offsets[:-1],
        end=offsets[1:],
        span_s=_span_s(flat.time_s, begin, end),
    )


def _flatten(history: Sequence[Slice], covariates: int) -> _Flat:
    lengths = np.array([len(part.value) for part in history], np.int64)
    ends = np.cumsum(lengths)
    none = [np.zeros(0)]
    missing = np.full(covariates, np.nan)
    more = [
        np.broadcast_to(
            missing if part.covariates is None else part.covariates, (len(part.value), covariates)
        )
        for part in history
    ]
    nothing = np.zeros(1, np.bool_)
    filled = [
        np.broadcast_to(nothing if part.filled is None else part.filled, part.value.shape) for part in history
    ]
    return _Flat(
        value=np.concatenate([part.value for part in history] or none).astype(np.float64),
        time_s=np.concatenate([part.time_s for part in history] or none).astype(np.float64),
        came=~np.concatenate([*filled, nothing[:0]]),
        covariates=in_bounds(np.concatenate([*more, np.zeros((0, covariates))])),
        base=np.array([part.value[0] if len(part.value) else 0.0 for part in history], np.float32),
        begin=ends - lengths,
        end=ends,
        series=np.repeat(np.arange(len(history)), lengths),
    )


def _silenced(flat: _Flat, begin: Ints, split: Ints, seed: int) -> _Flat:
    """The same, but covariates do not come for a while now and then, in what is trained on: a network that has never
    gone without one cannot.
    """
    heard, rng = flat.covariates.copy(), np.random.default_rng(seed)
    for first, last in zip(begin, split, strict=True):
        for start in first + np.flatnonzero(rng.random(last - first) < SILENT_SHARE / SILENCE):
            silent = rng.random(heard.shape[1]) < SILENT_COVARIATES
            heard[start : min(start + SILENCE, last), silent] = np.nan
    return flat._replace(covariates=heard)


def _keep(flat: _Flat, spec: HistorySpec, seed: int) -> tuple[Ints, Ints, Ints]:
    """The series that are kept (numbers), and from where to where in the flat arrays: their newest steps."""
    numbers = np.arange(len(flat.begin))
    least = spec.burn_in + spec.span
    budget = int(spec.max_origins / (1 - spec.holdout_ratio))
    drawn = np.random.default_rng(seed).permutation(numbers)
    needed = np.minimum((flat.end - flat.begin)[drawn], least).cumsum()
    numbers = np.sort(drawn[: max(1, np.searchsorted(needed, budget, "right"))])
    lengths = (flat.end - flat.begin)[numbers]
    kept = np.minimum(lengths, _level(lengths, budget))
    return numbers, flat.end[numbers] - kept, flat.end[numbers]


def _level(lengths: Ints, budget: int) -> int:
    """The length to which the longest have to be cut so that all together fit the budget."""
    low, high = 0, int(lengths.max(initial=0))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if np.minimum(lengths, middle).sum() <= budget else (low, middle - 1)
    return low


def _span_s(time_s: NDArray[np.float64], begin: Ints, end: Ints) -> float:
    spans = [time_s[e - 1] - time_s[b] for b, e in zip(begin, end, strict=True) if e > b]
    return float(np.median(spans)) if spans else 0.0


def _usable(history: Sequence[Slice], flat: _Flat, spans: Sequence[Span]) -> NDArray[np.bool_]:
    usable = flat.came.copy()
    names = np.array([part.series for part in history])
    for span in spans:
        inside = (flat.time_s >= span.start_s) & (flat.time_s < span.end_s)
        usable &= ~(inside & (names[flat.series] == span.series) if span.series else inside)
    return usable


def _roles(
    flat: _Flat,
    index: Ints,
    owner: Ints,
    begin: Ints,
    split: Ints,
    end: Ints,
    usable: NDArray[np.bool_],
    spec: HistorySpec,
    model: ModelSpec,
) -> NDArray[np.int8]:
    first = begin[owner]
    age = index - flat.begin[flat.series[index]]
    settled = (index - first >= spec.burn_in) | (first == flat.begin[flat.series[index]])
    origin = (age + 1 >= model.warm_up) & settled & usable[index]
    start, stop = (edge[owner] for edge in _older(begin, split, end, spec, model))
    apart = (index + model.horizon < start) | (index >= stop + model.horizon)
    role = np.select(
        [
            index >= split[owner],
            (index >= start) & (index < stop),
            apart & (index + model.horizon < split[owner]),
        ],
        [Role.HOLDOUT, Role.OLDER, Role.TRAIN],
        Role.NONE,
    )
    return np.where(origin, role, Role.NONE).astype(np.int8)


def _older(begin: Ints, split: Ints, end: Ints, spec: HistorySpec, model: ModelSpec) -> tuple[Ints, Ints]:
    """From where to where each series' older stretch goes, in the middle of what would train.

    It is empty where it would not hold a span, or cost training more around it than in it or more than a quarter.
    """
    length = ((end - split) * OLDER_SHARE).astype(np.int64)
    enough = (length >= max(spec.span, 2 * model.horizon)) & (4 * length <= split - begin)
    start = np.where(enough, (begin + split - length) // 2, split)
    return start, np.where(enough, start + length, split)


def _mean_change(flat: _Flat, begin: int, end: int) -> float:
    return float(np.abs(np.diff(flat.value[begin:end])).mean()) if end - begin > 1 else 0.0


# --- what serving would have seen ---------------------------------------------------------------------


class _Seen(NamedTuple):
    """Of each step of `index`, as serving makes it one by one."""

    inputs: Floats  # (step, recurrent input)
    direct: Floats  # (step, direct input)
    scale: Floats  # (step,)


@partial(jax.jit, static_argnames="spec")
def _scan(
    rows: Rows, columns: Steps, periods: Array, *, spec: ModelSpec
) -> tuple[Rows, tuple[Array, Array, Array]]:
    """Perceive CHUNK steps of LANES series; what is seen has the time axis first."""
    lanes = jnp.arange(LANES)

    def step(rows: Rows, now: Steps) -> tuple[Rows, tuple[Array, Array, Array]]:
        changes, percept = perceive(spec, rows, lanes, now, periods)
        moved = table.write(rows, jnp.where(now.valid, lanes, LANES), changes)
        return moved, (percept.x, percept.direct, percept.scale)

    return jax.lax.scan(step, rows, columns)


def _experience(flat: _Flat, periods: NDArray[np.int32], index: Ints, model: ModelSpec) -> _Seen:
    """What the fold sees at the steps `index`, run over every series from its first step."""
    place = np.full(len(flat.value), -1, np.int64)
    place[index] = np.arange(len(index))
    seen = _Seen(
        np.zeros((len(index), model.inputs), np.float32),
        np.zeros((len(index), features.direct_size(model.horizon)), np.float32),
        np.ones(len(index), np.float32),
    )
    wanted = np.unique(flat.series[index])
    longest = wanted[np.argsort((flat.begin - flat.end)[wanted], kind="stable")]
    for start in range(0, len(longest), LANES):
        _run_lanes(flat, periods, longest[start : start + LANES], model, place, seen)
    return seen


def _run_lanes(
    flat: _Flat, periods: NDArray[np.int32], lanes: Ints, model: ModelSpec, place: Ints, seen: _Seen
) -> None:
    begin, end = flat.begin[lanes], flat.end[lanes]
    rows = _planted(flat, lanes, model)
    pad = LANES - len(lanes)
    for done in range(0, int((end - begin).max(initial=0)), CHUNK):
        at = begin[None, :] + done + np.arange(CHUNK)[:, None]
        real = at < end[None, :]
        at = np.minimum(at, end[None, :] - 1)
        columns = (
            flat.relative(at, np.broadcast_to(lanes, at.shape)),
            (flat.time_s[at] - flat.time_s[np.maximum(at - 1, begin)]).astype(np.float32),
            (flat.time_s[at] / features.DAY_S % features.WEEK_DAYS).astype(np.float32),
            np.zeros(at.shape, np.bool_),
            real,
            real & flat.came[at],
            flat.covariates[at],
        )
        steps = Steps(
            *(jnp.asarray(np.pad(c, [(0, 0), (0, pad)] + [(0, 0)] * (c.ndim - 2))) for c in columns)
        )
        rows, each = _scan(rows, steps, jnp.asarray(periods), spec=model)
        to = place[at]
        kept = real & (to >= 0)
        for whole, part in zip(seen, each, strict=True):
            whole[to[kept]] = np.asarray(part)[:, : len(lanes)][kept]


def _planted(flat: _Flat, lanes: Ints, model: ModelSpec) -> Rows:
    """Rows of newborn series, each lent the scale of its own first changes; without what only serving needs."""
    sizes = layout(model)._replace(carry=0, levels=0, waiting=waiting.width(0))
    first = [
        _mean_change(flat, b, min(b + FIRST_CHANGES, e))
        for b, e in zip(flat.begin[lanes], flat.end[lanes], strict=True)
    ]
    pad = (0, LANES - len(lanes))
    base = np.pad(flat.base[lanes], pad)
    step = np.pad(np.array(first, np.float32), pad)
    return _plant(jnp.asarray(base), jnp.asarray(step), sizes=sizes, model=model)


@partial(jax.jit, static_argnames=("sizes", "model"))
def _plant(base: Array, step: Array, *, sizes: Layout, model: ModelSpec) -> Rows:
    """One program; done one operation after the other, each would be compiled."""
    loan = unlent(model)._replace(offset=jnp.zeros((model.horizon, 0)))
    rest = (jnp.stack([part] * LANES) for part in loan[2:])
    lent = Loan(step / jnp.maximum(jnp.abs(base), stats.LEAST), step, *rest)
    return plant(table.empty(sizes, LANES), jnp.arange(LANES), base, lent)


# --- seasons ------------------------------------------------------------------------------------------


def find_periods(history: Sequence[Slice], spec: HistorySpec) -> NDArray[np.int32]:
    """Up to SEASONS candidate season lengths in steps, best first, 0 where there are no more.

    A season of a series is a length at which the values one period apart differ clearly less than those half a period
    apart and those NAIVE_STEPS apart. Of all that any series shows, those are taken, one after the other, that most
    lower the costs of the best two of each series. The newest part of each, which judges, is not looked at.
    """
    periods = np.zeros(stats.SEASONS, np.int32)
    longest = sorted(history, key=lambda part: -len(part.value))
    chosen = longest[:: max(1, len(longest) // PERIOD_SERIES)][:PERIOD_SERIES]
    costs = [cost for part in chosen if (cost := _period_costs(part.value, spec)) is not None]
    if not costs:
        return periods
    cost = np.stack(costs)
    dips = np.stack([_dips(row) for row in costs])
    candidates = np.flatnonzero(dips.any(axis=0))
    beside = dips | np.roll(dips, 1, axis=1) | np.roll(dips, -1, axis=1)
    gain = np.where(beside, np.maximum(1.0 - cost, 0.0), 0.0)
    two = np.zeros((len(cost), 2))  # of each series, the gains of its best and its second best so far
    for place in range(stats.SEASONS):
        candidates = candidates[
            np.abs(candidates / np.maximum(periods[:, None], 1) - 1).min(0) > PERIOD_APART
        ]
        if not len(candidates):
            break
        more = np.maximum(gain[:, candidates, None] - two[:, None], 0.0).mean(axis=0)
        worth = more[:, 0] + PERIOD_SECOND * more[:, 1]
        if worth.max() < PERIOD_WORTH:
            break
        chosen_length = candidates[worth >= PERIOD_NEARLY * worth.max()][0]
        periods[place] = chosen_length
        two = -np.sort(-np.column_stack([two, gain[:, chosen_length]]), axis=1)[:, :2]
        gain = np.where(_echoes(cost, chosen_length), 0.0, gain)
    return periods


def _period_costs(value: NDArray[np.float64], spec: HistorySpec) -> NDArray[np.float64] | None:
    """Mean |change| over each number of steps, in units of that over NAIVE_STEPS; infinite where unknown."""
    value = value[: len(value) - round(len(value) * spec.holdout_ratio)][-PERIOD_STEPS:]
    longest = min(stats.MAX_PERIOD, int(PERIOD_SHARE * len(value)))
    if longest <= stats.NAIVE_STEPS:
        return None
    now = value[longest:]
    cost = np.full(stats.MAX_PERIOD + 1, np.inf)
    for steps in range(1, longest + 1):
        change = now - value[longest - steps : len(value) - steps]
        cost[steps] = np.abs(change - change.mean()).mean()
    naive = cost[stats.NAIVE_STEPS]
    return cost / naive if naive > 0 else None


def _dips(cost: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Lengths that are a local minimum of the cost, clearly below half of the length and below 1."""
    steps = np.arange(len(cost))
    local = np.zeros(len(cost), np.bool_)
    local[1:-1] = (cost[1:-1] <= cost[:-2]) & (cost[1:-1] <= cost[2:])
    clear = cost < (1 - PERIOD_GAIN) * np.minimum(cost[steps // 2], 1.0)
    return local & clear & (steps > stats.NAIVE_STEPS)


def _echoes(cost: NDArray[np.float64], period: int) -> NDArray[np.bool_]:
    """Lengths that owe their low cost to a season: one more or one less of it costs no more, or they are multiples of
    it and nobody knows what one more costs. (series, length)
    """
    less, more = np.full_like(cost, np.inf), np.full_like(cost, np.inf)
    less[:, period + 1 :] = cost[:, 1:-period]
    more[:, :-period] = cost[:, period:]
    lengths = np.arange(cost.shape[1])
    cycles = np.rint(lengths / period)
    multiple = np.abs(lengths - cycles * period) <= cycles  # a season is known to a step
    return (cost >= np.minimum(less, more)) | (multiple & np.isinf(more) & np.isfinite(less))
