"""Examples -> a fitted network: where to start, when to stop, and what judges.

In come examples (`history`), specs and perhaps a parent to start from; out goes the model that did best on the
hold-out, or the reason why there is none. The steps themselves are in `descent`. Pure: the same arguments give the same
model; what has a clock watches through `progress`, whose answer can end the fit early.
"""

from collections.abc import Callable, Iterator, Sequence
from enum import StrEnum
from functools import partial
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from forecaster.core import descent, features
from forecaster.core import model as network
from forecaster.core.descent import Pool, State, TrainSpec
from forecaster.core.history import Examples, HistorySpec, Role
from forecaster.core.model import Card, Model, ModelSpec, Params

HOLDOUT_WINDOWS = 192  # at most so many windows judge; more make the verdict slower, hardly surer
LEAST_ORIGINS = 200  # fewer teach a network nothing that the last value does not know
# Days and weeks from which on a history may teach what their time tells, if only by heart; and from which on it does.
FEW_CYCLES = 2.0, 2.0
MANY_CYCLES = 4.0, 10.0
CLEAR_GAIN = 0.03  # share of the loss by which a network has to be better for what few cycles taught it
LEAST_GAIN = 3e-4  # share of the loss; less does not renew the patience
SHARES = 0.0, 0.25, 0.5, 0.75, 1.0  # of the network beside the last value, of which the best is looked for
FIRST_SHARES = 0.5, 0.95  # least and most of what the mix begins with
SAMPLE = 50_000  # targets whose quantiles the head starts from


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
    pool, draw = descent.pooled(examples), descent.draws(examples, spec)
    look = partial(_loss, pool=pool, windows=windows, examples=examples, spec=spec, shape=shape)
    fresh = _fresh(examples, spec, shape)
    inherited = _inherited(fresh[0], examples, spec, shape, parent, look)
    warm = inherited is not None
    starts = [inherited] if inherited is not None else [descent.to_vector(params) for params in fresh]
    peak = spec.learning_rate * (spec.warm_start_ratio if warm else 1.0)
    steps = spec.warm_start_steps if warm else spec.steps
    walk = partial(
        descent.walk,
        pool=pool,
        draw=draw,
        schedule=descent.Schedule(jnp.float32(peak), jnp.float32(steps)),
        spec=spec,
        shape=shape,
    )
    course = _choose(list(_courses(starts, walk, look, steps, spec, progress)))
    if isinstance(course, Failure):
        return course
    ancestor = parent.version if parent is not None and warm else ""
    card = Card(parent=ancestor, seed=spec.seed, steps_taken=course.step)
    best = Model(
        shape, descent.from_vector(course.params, shape=shape), jnp.asarray(periods, jnp.int32), card
    )
    return Fit(best, course.step, course.losses, course.skipped)


def refresh(fitted: Model, examples: Examples, spec: TrainSpec, progress: Watch = carry_on) -> Model:
    """The network after more steps on everything, the newest part that has judged it included.

    Half as many as its fit took, up to `refresh_steps`: the fit was best there because more would have been learned by
    heart, which nothing would notice any more. What it was goes along as `judged`. A network that these steps make
    worse where it is taught is left as it was.
    """
    shape, start = fitted.spec, descent.to_vector(fitted.params)
    steps = min(spec.refresh_steps, fitted.card.steps_taken // 2)
    everything = examples._replace(role=_taught(examples.role))
    pool, windows = descent.pooled(examples), holdout_windows(examples, spec)
    look = partial(_loss, pool=pool, windows=windows, examples=examples, spec=spec, shape=shape)
    walk = partial(
        descent.walk,
        pool=pool._replace(role=jnp.asarray(_taught(np.asarray(pool.role)))),
        draw=descent.draws(everything, spec),
        schedule=descent.Schedule(jnp.float32(spec.learning_rate), jnp.float32(steps)),
        spec=spec,
        shape=shape,
    )
    state, before = descent.began(start, spec=spec), look(start)
    for taken in range(0, steps, spec.evaluate_every):
        state, loss = walk(state, jnp.int32(taken))
        at = taken + spec.evaluate_every
        if not progress(Progress(at, steps, float(loss), before, before)):
            break
    if not look(state.average) < before:  # NaN, too
        return fitted
    return fitted._replace(params=descent.from_vector(state.average, shape=shape), judged=fitted.params)


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
    walk: Callable[[State, Array], tuple[State, Array]],
    look: Callable[[Array], float],
    steps: int,
    spec: TrainSpec,
    progress: Watch,
) -> _Course | Failure:
    """Walk on until the steps are taken, the patience is at its end, or whoever watches says so."""
    state = descent.began(start, spec=spec)
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
    walk: Callable[[State, Array], tuple[State, Array]],
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
    params = descent.to_vector(parent.params)
    return params if look(params) < last_value_loss(examples, spec, shape) else None


def fits(parent: Model, shape: ModelSpec) -> bool:
    """Whether the parent's parameters have the shapes of this network."""
    return {name: tuple(p.shape) for name, p in parent.params.items()} == descent.layout(shape)


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
    return mean(mixed_losses(fitted, examples, spec, role)[0])


def last_value_loss(examples: Examples, spec: TrainSpec, shape: ModelSpec) -> float:
    """The same for the last value with the quantiles that its errors had in what is trained on."""
    return mean(mixed_losses(network.untrained(shape), examples, spec, shares=(0.0,))[0])


def first_share(losses: np.ndarray) -> float:
    """The network's share in the mix of a series before anything is known of how it does there.

    The mean of those that were best for each series of the hold-out, within FIRST_SHARES; `losses` are those of SHARES.
    """
    return float(np.clip(np.asarray(SHARES)[losses.argmin(0)].mean(), *FIRST_SHARES))


def mixed_losses(
    fitted: Model,
    examples: Examples,
    spec: TrainSpec,
    role: Role = Role.HOLDOUT,
    shares: Sequence[float] = (1.0,),
) -> np.ndarray:
    """Losses (share, series) of the network's quantiles averaged with the last value's, the network's having each of
    the shares; of the series that have anything held out.
    """
    windows, pool = holdout_windows(examples, spec, role), descent.pooled(examples)
    params, shape = descent.to_vector(fitted.params), fitted.spec
    others = change_quantiles(examples, shape)
    return np.stack(
        [_losses(params, pool, windows, examples, spec, shape, role, share, others) for share in shares]
    )


def _loss(
    params: Array, pool: Pool, windows: np.ndarray, examples: Examples, spec: TrainSpec, shape: ModelSpec
) -> float:
    return mean(_losses(params, pool, windows, examples, spec, shape))


def _losses(
    params: Array,
    pool: Pool,
    windows: np.ndarray,
    examples: Examples,
    spec: TrainSpec,
    shape: ModelSpec,
    role: Role = Role.HOLDOUT,
    share: float = 1.0,
    others: np.ndarray | None = None,
) -> np.ndarray:
    padded = np.full(
        (descent.roomy(-(-len(windows) // spec.batch)), spec.batch), len(examples.role), np.int32
    )
    padded.reshape(-1)[: len(windows)] = windows
    beside = np.zeros((shape.horizon, len(shape.levels))) if others is None else others
    loss, count = descent.evaluate(
        params,
        pool,
        jnp.asarray(padded),
        jnp.int8(role),
        descent.Mixed(jnp.float32(share), jnp.asarray(beside, jnp.float32)),
        spec=spec,
        shape=shape,
    )
    series = np.searchsorted(examples.begin, windows, side="right") - 1
    total, known = (
        np.bincount(series, np.asarray(part).ravel()[: len(windows)], len(examples.begin))
        for part in (loss, count)
    )
    return total[known > 0] / known[known > 0]


def mean(losses: np.ndarray) -> float:
    """Of the series; NaN without any."""
    return float(losses.mean()) if len(losses) else float("nan")
