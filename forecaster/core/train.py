"""Examples -> a fitted network: loss, train step, and when to stop.

In come examples (`history`), specs and perhaps a parent to start from; out goes the model that did best on the
hold-out, or the reason why there is none. Every step draws windows anywhere in the series and trains on many
origins of each at once (forking sequences, Wen et al. 2017, arXiv:1711.11053). Pure: the same arguments
give the same model; what has a clock watches through `progress`, whose answer can end the fit early.
"""

from collections.abc import Callable, Iterator, Sequence
from enum import StrEnum
from functools import partial
from math import prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jaxtyping import Float
from pydantic import Field

from forecaster.core import features
from forecaster.core import model as network
from forecaster.core.history import Examples, HistorySpec, Role
from forecaster.core.model import Card, Model, ModelSpec, Params
from forecaster.core.score import pinball_loss

HOLDOUT_WINDOWS = 192  # at most so many windows judge; more make the verdict slower, hardly surer
NON_FINITE_STEPS = 5  # steps in a row without a finite gradient, from which the fit has diverged
LEAST_ORIGINS = 200  # fewer teach a network nothing that the last value does not know
# Days and weeks from which on a history may teach what their time tells, if only by heart; and from which on it does.
FEW_CYCLES = 2.0, 2.0
MANY_CYCLES = 4.0, 10.0
CLEAR_GAIN = 0.03  # share of the loss by which a network has to be better for what few cycles taught it
WARM_UP_STEPS = 100  # of the learning rate
LEAST_GAIN = 3e-4  # share of the loss; less does not renew the patience
SAMPLE = 50_000  # targets whose quantiles the head starts from


class TrainSpec(HistorySpec):
    """How a network is fitted."""

    steps: int = Field(600, ge=1, description="Most gradient steps.")
    warm_start_steps: int = Field(125, ge=1, description="Most gradient steps after a warm start.")
    batch: int = Field(32, ge=1, description="Windows in a gradient step.")
    stride: int = Field(
        8, ge=1, description="Steps from one origin of a window to the next; windows start anywhere."
    )
    learning_rate: float = Field(2.5e-3, gt=0, lt=1, description="Peak learning rate (AdamW).")
    warm_start: bool = Field(True, description="Start from the serving model where the shapes agree.")
    warm_start_ratio: float = Field(
        0.5, gt=0, le=1, description="Share of the learning rate that a warm start is given."
    )
    weight_decay: float = Field(1e-3, ge=0, description="Decoupled weight decay of the matrices.")
    clip: float = Field(1.0, gt=0, description="Largest global norm of a gradient.")
    average: float = Field(
        0.98, ge=0, lt=1, description="Decay of the average of the weights, which is what serves; 0: none."
    )
    evaluate_every: int = Field(25, ge=1, description="Steps from one look at the hold-out to the next.")
    patience: int = Field(6, ge=1, description="Looks without gain after which the fit ends.")
    refresh_steps: int = Field(
        200,
        ge=0,
        description="Most gradient steps on everything, what was held out too, before a network serves; never more than"
        " half as many as its fit took.",
    )
    seed: int = Field(0, ge=0, description="Seed of weights, windows and dropout.")


class Failure(StrEnum):
    """Why a fit gave no model; also the word in the log and, as a retrain's outcome, the metric label."""

    NO_DATA = "no_data"
    DIVERGED = "diverged"


class Progress(NamedTuple):
    """Where a fit stands, after each look at the hold-out."""

    step: int
    steps: int
    loss: float  # of the last steps, on what is trained on
    holdout_loss: float
    best_loss: float


class Fit(NamedTuple):
    """A fitted network and how it came about."""

    model: Model
    steps_taken: int  # gradient steps until the best look
    losses: tuple[float, ...]  # hold-out loss at each look; the first one before any step
    skipped: int  # steps that had no finite gradient and changed nothing


Watch = Callable[[Progress], bool]


def carry_on(_: Progress) -> bool:
    """A watch that never ends the fit."""
    return True


def fit(
    examples: Examples,
    periods: np.ndarray,
    spec: TrainSpec,
    shape: ModelSpec,
    parent: Model | None = None,
    progress: Watch = carry_on,
) -> Fit | Failure:
    """Fit a network to the examples; `progress` ends it early by answering False, with the best model so far."""
    windows = holdout_windows(examples, spec)
    if examples.count(Role.TRAIN) < LEAST_ORIGINS or not len(windows):
        return Failure.NO_DATA
    pool, draw = _pool(examples), _draw(examples, spec)
    look = partial(_loss, pool=pool, windows=windows, examples=examples, spec=spec, shape=shape)
    fresh = _fresh(examples, spec, shape)
    inherited = _inherited(fresh[0], examples, spec, shape, parent, look)
    warm = inherited is not None
    starts = [inherited] if inherited is not None else [_flat(params) for params in fresh]
    peak = spec.learning_rate * (spec.warm_start_ratio if warm else 1.0)
    steps = spec.warm_start_steps if warm else spec.steps
    walk = partial(
        _train,
        pool=pool,
        draw=draw,
        schedule=_Schedule(jnp.float32(peak), jnp.float32(steps)),
        spec=spec,
        shape=shape,
    )
    course = _choose(list(_courses(starts, walk, look, steps, spec, progress)))
    if isinstance(course, Failure):
        return course
    ancestor = parent.version if parent is not None and warm else ""
    card = Card(parent=ancestor, seed=spec.seed, steps_taken=course.step)
    best = Model(shape, _params(course.params, shape), jnp.asarray(periods, jnp.int32), card)
    return Fit(best, course.step, course.losses, course.skipped)


def refresh(fitted: Model, examples: Examples, spec: TrainSpec, progress: Watch = carry_on) -> Model:
    """The network after more steps on everything, the newest part that has judged it included.

    Half as many as its fit took, up to `refresh_steps`: the fit was best there because more would have been learned by
    heart, which nothing would notice any more. What it was goes along as `judged`. A network that these steps make
    worse where it is taught is left as it was.
    """
    shape, start = fitted.spec, _flat(fitted.params)
    steps = min(spec.refresh_steps, fitted.card.steps_taken // 2)
    everything = examples._replace(role=_taught(examples.role))
    pool, windows = _pool(examples), holdout_windows(examples, spec)
    look = partial(_loss, pool=pool, windows=windows, examples=examples, spec=spec, shape=shape)
    walk = partial(
        _train,
        pool=pool._replace(role=jnp.asarray(_taught(np.asarray(pool.role)))),
        draw=_draw(everything, spec),
        schedule=_Schedule(jnp.float32(spec.learning_rate), jnp.float32(steps)),
        spec=spec,
        shape=shape,
    )
    state, before = _at(start, spec), look(start)
    for taken in range(0, steps, spec.evaluate_every):
        state, loss = walk(state, jnp.int32(taken))
        at = taken + spec.evaluate_every
        if not progress(Progress(at, steps, float(loss), before, before)):
            break
    if not look(state.average) < before:  # NaN, too
        return fitted
    return fitted._replace(params=_params(state.average, shape), judged=fitted.params)


def _taught(role: np.ndarray) -> np.ndarray:
    """Roles with which everything that has one trains."""
    return np.where(role == Role.NONE, Role.NONE, Role.TRAIN).astype(role.dtype)


class _Course(NamedTuple):
    """Where a descent was best."""

    params: Array
    step: int
    losses: tuple[float, ...]
    skipped: int
    cut_short: bool  # by whoever watched


def _descend(
    start: Array,
    walk: Callable[["_State", Array], tuple["_State", Array]],
    look: Callable[[Array], float],
    steps: int,
    spec: TrainSpec,
    progress: Watch,
) -> _Course | Failure:
    """Walk on until the steps are taken, the patience is at its end, or whoever watches says so."""
    state = _at(start, spec)
    best, best_step, gained_step, taken = start, 0, 0, 0
    losses, going_on = [look(start)], True
    while taken < steps and np.isfinite(losses[-1]):
        state, loss = walk(state, jnp.int32(taken))
        taken += spec.evaluate_every
        before = min(losses)
        losses.append(look(state.average))
        if losses[-1] < before:
            best, best_step = state.average, taken
        if losses[-1] < before * (1 - LEAST_GAIN):
            gained_step = taken
        going_on = progress(Progress(taken, steps, float(loss), losses[-1], min(losses)))
        if not going_on or taken - gained_step >= spec.patience * spec.evaluate_every:
            break
    if not np.isfinite(losses[-1]):
        return Failure.DIVERGED
    skipped = int(np.sum(state.optimiser.total_notfinite))
    return _Course(best, best_step, tuple(losses), skipped, not going_on)


def _courses(
    starts: Sequence[Array],
    walk: Callable[["_State", Array], tuple["_State", Array]],
    look: Callable[[Array], float],
    steps: int,
    spec: TrainSpec,
    progress: Watch,
) -> Iterator[_Course]:
    """From each start, those that do not diverge, until whoever watches ends one; to them it is one long fit."""
    for number, start in enumerate(starts):

        def watch(at: Progress, before: int = number * steps) -> bool:
            return progress(at._replace(step=before + at.step, steps=len(starts) * steps))

        course = _descend(start, walk, look, steps, spec, watch)
        if isinstance(course, Failure):
            continue
        yield course
        if course.cut_short:
            return


def _choose(courses: Sequence[_Course]) -> _Course | Failure:
    """The first, if none is clearly better."""
    if not courses:
        return Failure.DIVERGED
    first, best = courses[0], min(courses, key=lambda course: min(course.losses))
    return best if min(best.losses) < min(first.losses) * (1 - CLEAR_GAIN) else first


def _inherited(
    fresh: Params,
    examples: Examples,
    spec: TrainSpec,
    shape: ModelSpec,
    parent: Model | None,
    look: Callable[[Array], float],
) -> Array | None:
    """The parent's parameters, if it is of this shape, hears all that a `fresh` network does, and knows more than the
    last value: ruins are not built on.
    """
    if parent is None or not spec.warm_start or not fits(parent, shape):
        return None
    if (network.hears(fresh) & ~network.hears(parent.params)).any():
        return None
    params = _flat(parent.params)
    return params if look(params) < last_value_loss(examples, spec, shape) else None


def fits(parent: Model, shape: ModelSpec) -> bool:
    """Whether the parent's parameters have the shapes of this network."""
    return {name: tuple(p.shape) for name, p in parent.params.items()} == _layout(shape)


def _fresh(examples: Examples, spec: TrainSpec, shape: ModelSpec) -> list[Params]:
    """Fresh parameters, standardised to what is trained on, that start from the last value and the errors it had.

    One set, and a second one that hears the calendar where the history may be too short to teach it: fits will tell.
    """
    rows, drawn = _whole(examples), network.init(shape, spec.seed)
    fitted = network.standardised(
        shape, drawn, examples.inputs[rows], examples.direct[rows], examples.target[rows]
    )
    days = examples.span_s / features.DAY_S
    spanned = days, days / features.WEEK_DAYS
    wary, bold = (
        [cycle for cycle in range(2) if spanned[cycle] < least[cycle]] for least in (MANY_CYCLES, FEW_CYCLES)
    )
    ways = [wary] if wary == bold else [wary, bold]
    return [network.without(fitted, features.calendar_inputs(cycles)) for cycles in ways]


def _whole(examples: Examples) -> np.ndarray:
    """Up to SAMPLE origins that train and know all their targets; of all that train where none does."""
    train = examples.role == Role.TRAIN
    whole = np.flatnonzero(train & examples.known.all(axis=1))
    rows = whole if len(whole) else np.flatnonzero(train)
    return rows[:: max(1, len(rows) // SAMPLE)]


def change_quantiles(examples: Examples, shape: ModelSpec) -> np.ndarray:
    """Quantiles (horizon, level) of the scaled changes over the origins that train: what the last value knows.

    The median is 0, the last value itself.
    """
    quantiles = np.quantile(examples.target[_whole(examples)], shape.levels, axis=0).T
    return np.sort(quantiles - quantiles[:, shape.median, None], axis=1)


# --- the hold-out -------------------------------------------------------------------------------------


def holdout_windows(examples: Examples, spec: HistorySpec, role: Role = Role.HOLDOUT) -> np.ndarray:
    """Index of the first origin of each window that covers the hold-outs, sampled when there are too many."""
    starts = [
        np.arange(rows[0], rows[-1] + 1, spec.span)
        for begin, end in zip(examples.begin, examples.end, strict=True)
        if len(rows := begin + np.flatnonzero(examples.role[begin:end] == role))
    ]
    windows = np.concatenate(starts) if starts else np.zeros(0, np.int64)
    if len(windows) > HOLDOUT_WINDOWS:
        windows = np.sort(np.random.default_rng(0).choice(windows, HOLDOUT_WINDOWS, replace=False))
    return windows


def holdout_loss(fitted: Model, examples: Examples, spec: TrainSpec, role: Role = Role.HOLDOUT) -> float:
    """Pinball loss on the hold-out, in units of each series' mean change; mean of the series. NaN without any."""
    windows = holdout_windows(examples, spec, role)
    return _loss(_flat(fitted.params), _pool(examples), windows, examples, spec, fitted.spec, role)


def last_value_loss(examples: Examples, spec: TrainSpec, shape: ModelSpec) -> float:
    """The same for the last value with the quantiles that its errors had in what is trained on."""
    quantiles = jnp.asarray(change_quantiles(examples, shape), jnp.float32)
    at, wanted = _spans(holdout_windows(examples, spec), examples, spec)
    known = examples.known[at] & wanted[..., None]
    loss = pinball_loss(
        quantiles[..., None], _batch_last(jnp.asarray(examples.target[at])), jnp.asarray(shape.levels)
    )
    weighted = np.asarray(loss).T.reshape(known.shape) * known * examples.weight[at][..., None]
    return _mean_of_series(weighted.sum((1, 2)), known.sum((1, 2)), at[:, 0], examples)


def _spans(windows: np.ndarray, examples: Examples, spec: HistorySpec) -> tuple[np.ndarray, np.ndarray]:
    """Steps (window, span) of the windows, and which of them are held-out origins of the window's own series."""
    at = windows[:, None] + np.arange(spec.span)
    series = np.searchsorted(examples.begin, windows, side="right") - 1
    inside = at < examples.end[series][:, None]
    at = np.minimum(at, len(examples.role) - 1)
    return at, inside & (examples.role[at] == Role.HOLDOUT)


def _mean_of_series(loss: np.ndarray, count: np.ndarray, windows: np.ndarray, examples: Examples) -> float:
    series = np.searchsorted(examples.begin, windows, side="right") - 1
    total = np.bincount(series, loss, len(examples.begin))
    known = np.bincount(series, count, len(examples.begin))
    return float(np.mean(total[known > 0] / known[known > 0])) if known.any() else float("nan")


def _loss(
    params: Array,
    pool: "_Pool",
    windows: np.ndarray,
    examples: Examples,
    spec: TrainSpec,
    shape: ModelSpec,
    role: Role = Role.HOLDOUT,
) -> float:
    padded = np.full((_roomy(-(-len(windows) // spec.batch)), spec.batch), len(examples.role), np.int32)
    padded.reshape(-1)[: len(windows)] = windows
    loss, count = _evaluate(params, pool, jnp.asarray(padded), jnp.int8(role), spec=spec, shape=shape)
    n = len(windows)
    return _mean_of_series(np.asarray(loss).ravel()[:n], np.asarray(count).ravel()[:n], windows, examples)


# --- compiled -----------------------------------------------------------------------------------------


class _Pool(NamedTuple):
    """The examples on the device, padded to one of few lengths so that few programs are compiled."""

    inputs: Array
    direct: Array
    target: Array
    known: Array
    weight: Array
    role: Array
    first: Array  # (step,), index of the first step of its series
    last: Array  # (step,), and of the last


class _Draw(NamedTuple):
    """From where training windows are drawn, for each series that has something to train on."""

    log_share: Array  # (series,)
    low: Array  # (series,), first origin of the earliest window
    places: Array  # (series,), how many there are from there on


class _State(NamedTuple):
    """All parameters end to end in one vector: what is done to each of them compiles once, not once a matrix."""

    params: Array
    average: Array
    optimiser: Any
    key: Array


class _Schedule(NamedTuple):
    """Of the learning rate; arguments, so that a warm start runs the same program."""

    peak: Array
    steps: Array


def _at(start: Array, spec: TrainSpec) -> _State:
    return _State(start, start, _optimiser(spec).init(start), jax.random.key(spec.seed))


def _layout(shape: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Shapes of the parameters by name, in the order in which the vector holds them."""
    wanted = network.shapes(shape)
    return {name: tuple(wanted[name].shape) for name in sorted(wanted)}


def _flat(params: Params) -> Array:
    return jnp.asarray(np.concatenate([np.ravel(params[name]) for name in sorted(params)]), jnp.float32)


def _params(flat: Array, shape: ModelSpec) -> Params:
    sizes = [prod(size) for size in _layout(shape).values()]
    starts = np.cumsum([0, *sizes[:-1]])
    return {
        name: flat[start : start + prod(size)].reshape(size)
        for start, (name, size) in zip(starts.tolist(), _layout(shape).items(), strict=True)
    }


def _masks(shape: ModelSpec) -> tuple[np.ndarray, np.ndarray]:
    """1 where the vector holds what training moves (all but the standardisation); 1 where it decays (matrices)."""
    layout = _layout(shape).items()
    moved = [np.full(prod(size), not name.startswith("norm."), np.float32) for name, size in layout]
    decayed = [np.full(prod(size), len(size) > 1, np.float32) for _, size in layout]
    return np.concatenate(moved), np.concatenate(decayed)


def _roomy(n: int) -> int:
    """The next of 1, 2, 3, 4, 6, 8, 12, 16, ..."""
    power = 1 << max(n - 1, 0).bit_length()
    return power * 3 // 4 if power >= 4 and n <= power * 3 // 4 else power


def _pool(examples: Examples) -> _Pool:
    pad = _roomy(len(examples.role) + 1) - len(examples.role)
    lengths = examples.end - examples.begin
    columns = (
        *examples[:6],
        np.repeat(examples.begin, lengths).astype(np.int32),
        np.repeat(examples.end - 1, lengths).astype(np.int32),
    )
    return _Pool(*(jnp.asarray(np.pad(c, [(0, pad)] + [(0, 0)] * (c.ndim - 1))) for c in columns))


def _draw(examples: Examples, spec: TrainSpec) -> _Draw:
    """Series by the root of what they hold: long ones shall not drown short ones, nor the other way round."""
    shares, lows, counts = [], [], []
    for begin, end in zip(examples.begin, examples.end, strict=True):
        rows = begin + np.flatnonzero(examples.role[begin:end] == Role.TRAIN)
        if len(rows):
            low = max(rows[0] - spec.span // 4, begin)
            shares.append(0.5 * np.log(len(rows)))
            lows.append(low)
            counts.append(max(1, rows[-1] + 1 - spec.span * 3 // 4 - low))
    pad = (0, _roomy(len(shares)) - len(shares))
    return _Draw(
        jnp.asarray(np.pad(np.array(shares), pad, constant_values=-np.inf), jnp.float32),
        jnp.asarray(np.pad(np.array(lows), pad), jnp.int32),
        jnp.asarray(np.pad(np.array(counts), pad, constant_values=1), jnp.int32),
    )


def _optimiser(spec: TrainSpec) -> optax.GradientTransformation:
    """Adam without its learning rate, which is an argument; steps without a finite gradient change nothing."""
    adam = optax.chain(optax.clip_by_global_norm(spec.clip), optax.scale_by_adam(b2=0.99))
    return optax.apply_if_finite(adam, NON_FINITE_STEPS)


def _rate(schedule: _Schedule, step: Array) -> Array:
    """Linear warm-up, and half a cosine down to a fiftieth."""
    warm = jnp.minimum(1.0, (step + 1) / WARM_UP_STEPS)
    cosine = jnp.cos(jnp.pi * jnp.minimum(step / schedule.steps, 1.0))
    return schedule.peak * warm * (0.02 + 0.49 * (1 + cosine))


@partial(jax.jit, static_argnames=("spec", "shape"))
def _train(
    state: _State,
    taken: Array,
    *,
    pool: _Pool,
    draw: _Draw,
    schedule: _Schedule,
    spec: TrainSpec,
    shape: ModelSpec,
) -> tuple[_State, Array]:
    """`evaluate_every` gradient steps; also their mean loss."""
    moved, decayed = (jnp.asarray(mask) for mask in _masks(shape))

    def loss_of(flat: Array, windows: Array, key: Array) -> Array:
        total, count = _pinball(_params(flat, shape), pool, windows, Role.TRAIN, spec, shape, key)
        return total.sum() / jnp.maximum(count.sum(), 1.0)

    def step(carry: _State, now: Array) -> tuple[_State, Array]:
        key, which, where, drop = jax.random.split(carry.key, 4)
        series = jax.random.categorical(which, draw.log_share, shape=(spec.batch,))
        windows = draw.low[series] + jax.random.randint(where, series.shape, 0, draw.places[series])
        loss, gradient = jax.value_and_grad(loss_of)(carry.params, windows, drop)
        updates, optimiser = _optimiser(spec).update(gradient * moved, carry.optimiser, carry.params)
        moves = jnp.asarray(updates)
        decay = spec.weight_decay * decayed * carry.params
        params = carry.params - _rate(schedule, now) * (moves + decay)
        keep = jnp.minimum(spec.average, (1.0 + now) / (10.0 + now))
        average = keep * carry.average + (1 - keep) * params
        return _State(params, average, optimiser, key), loss

    state, losses = jax.lax.scan(step, state, taken + jnp.arange(spec.evaluate_every))
    return state, losses.mean()


@partial(jax.jit, static_argnames=("spec", "shape"))
def _evaluate(
    flat: Array, pool: _Pool, windows: Array, role: Array, *, spec: TrainSpec, shape: ModelSpec
) -> tuple[Array, Array]:
    """Summed loss and number of targets of each window; `windows` (batch, window), one batch at a time."""
    params = _params(flat, shape)
    return jax.lax.map(lambda batch: _pinball(params, pool, batch, role, spec, shape, None), windows)


def _pinball(
    params: Params,
    pool: _Pool,
    windows: Float[Array, " window"],
    role: Role | Array,
    spec: TrainSpec,
    shape: ModelSpec,
    key: Array | None,
) -> tuple[Float[Array, " window"], Float[Array, " window"]]:
    """Weighted pinball loss summed over the origins with this role in each window's span, and how many targets.

    With a `key` as training sees it: every `stride`-th origin (a neighbour says nearly the same, for as much work),
    with dropout, quantiles as they are drawn.
    """
    at = windows[:, None] + jnp.arange(-spec.burn_in, spec.span)
    home = jnp.clip(windows, 0, len(pool.role) - 1)[:, None]
    present = (at >= pool.first[home]) & (at <= pool.last[home])
    at = jnp.clip(at, 0, len(pool.role) - 1)
    xs = pool.inputs[at]
    carry = network.initial_carry(shape, len(windows))
    _, ys = network.unroll(shape, params, carry, xs, present, key)
    origins = slice(spec.burn_in, None, 1 if key is None else spec.stride)
    origin = at[:, origins]
    draw = network.quantiles if key is None else network.head  # crossing ones are put in order to be judged
    seen = (ys[:, origins], xs[:, origins], pool.direct[origin])
    quantiles = draw(shape, params, *(part.reshape(-1, part.shape[-1]) for part in seen))
    wanted = present[:, origins] & (pool.role[origin] == role)
    known = _batch_last(pool.known[origin] & wanted[..., None]).astype(jnp.float32)
    losses = pinball_loss(quantiles, _batch_last(pool.target[origin]), jnp.asarray(shape.levels, jnp.float32))
    loss = losses * known * pool.weight[origin].reshape(-1)

    def of_windows(x: Float[Array, "horizon origin"]) -> Float[Array, " window"]:
        return x.reshape(len(x), *origin.shape).sum((0, 2))

    return of_windows(loss), of_windows(known)


def _batch_last(x: Array) -> Array:
    """(window, span, horizon) -> (horizon, origin)"""
    return x.reshape(-1, x.shape[-1]).T
