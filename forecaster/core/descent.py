"""Gradient steps and the loss, compiled: what `train` walks and looks with.

Every step draws windows anywhere in the series and trains on many origins of each at once (forking sequences, Wen et
al. 2017, arXiv:1711.11053). Parameters are one vector here, and examples are padded to one of few lengths: so few
programs are compiled, and a warm start runs that of a fresh fit.
"""

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

from forecaster.core import model as network
from forecaster.core.history import Examples, HistorySpec, Role
from forecaster.core.model import ModelSpec, Params
from forecaster.core.score import pinball_loss

NON_FINITE_STEPS = 5  # steps in a row without a finite gradient, from which the fit has diverged
WARM_UP_STEPS = 100  # of the learning rate


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
    noise: float = Field(
        0.3,
        ge=0,
        le=2,
        description="Noise on the inputs while training, in spreads of each: so much on those of the cells for a whole"
        " window, a third of it on those of the head, and half of it at each step besides; 0: none.",
    )
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
    seed: int = Field(0, ge=0, description="Seed of weights, windows, noise and dropout.")


class Pool(NamedTuple):
    """The examples on the device, padded to one of few lengths so that few programs are compiled."""

    inputs: Array
    direct: Array
    target: Array
    known: Array
    weight: Array
    role: Array
    first: Array  # (step,), index of the first step of its series
    last: Array  # (step,), and of the last


class Draw(NamedTuple):
    """From where training windows are drawn, for each series that has something to train on."""

    log_share: Array  # (series,)
    low: Array  # (series,), first origin of the earliest window
    places: Array  # (series,), how many there are from there on


class State(NamedTuple):
    """All parameters end to end in one vector: what is done to each of them compiles once, not once a matrix."""

    params: Array
    average: Array
    optimiser: Any
    key: Array


class Schedule(NamedTuple):
    """Of the learning rate; arguments, so that a warm start runs the same program."""

    peak: Array
    steps: Array


@partial(jax.jit, static_argnames="spec")
def began(start: Array, *, spec: TrainSpec) -> State:
    """Before the first step, from these parameters. Compiled as a whole: bit by bit it takes a second longer."""
    return State(start, start, _optimiser(spec).init(start), jax.random.key(spec.seed))


def layout(shape: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Shapes of the parameters by name, in the order in which the vector holds them."""
    wanted = network.shapes(shape)
    return {name: tuple(wanted[name].shape) for name in sorted(wanted)}


def to_vector(params: Params) -> Array:
    """Parameters end to end, by name."""
    return jnp.asarray(np.concatenate([np.ravel(params[name]) for name in sorted(params)]), jnp.float32)


@partial(jax.jit, static_argnames="shape")
def from_vector(vector: Array, *, shape: ModelSpec) -> Params:
    """And back."""
    sizes = [prod(size) for size in layout(shape).values()]
    starts = np.cumsum([0, *sizes[:-1]])
    return {
        name: vector[start : start + prod(size)].reshape(size)
        for start, (name, size) in zip(starts.tolist(), layout(shape).items(), strict=True)
    }


def _masks(shape: ModelSpec) -> tuple[np.ndarray, np.ndarray]:
    """1 where the vector holds what training moves (all but the standardisation); 1 where it decays (matrices)."""
    sizes = layout(shape).items()
    moved = [np.full(prod(size), not name.startswith("norm."), np.float32) for name, size in sizes]
    decayed = [np.full(prod(size), len(size) > 1, np.float32) for _, size in sizes]
    return np.concatenate(moved), np.concatenate(decayed)


def roomy(n: int) -> int:
    """The next of 1, 2, 3, 4, 6, 8, 12, 16, ..."""
    power = 1 << max(n - 1, 0).bit_length()
    return power * 3 // 4 if power >= 4 and n <= power * 3 // 4 else power


def pooled(examples: Examples) -> Pool:
    """The examples, padded and on the device."""
    pad = roomy(len(examples.role) + 1) - len(examples.role)
    lengths = examples.end - examples.begin
    columns = (
        *examples[:6],
        np.repeat(examples.begin, lengths).astype(np.int32),
        np.repeat(examples.end - 1, lengths).astype(np.int32),
    )
    return Pool(*(jnp.asarray(np.pad(c, [(0, pad)] + [(0, 0)] * (c.ndim - 1))) for c in columns))


def draws(examples: Examples, spec: TrainSpec) -> Draw:
    """Series by the root of what they hold: long ones shall not drown short ones, nor the other way round."""
    shares, lows, counts = [], [], []
    for begin, end in zip(examples.begin, examples.end, strict=True):
        rows = begin + np.flatnonzero(examples.role[begin:end] == Role.TRAIN)
        if len(rows):
            low = max(rows[0] - spec.span // 4, begin)
            shares.append(0.5 * np.log(len(rows)))
            lows.append(low)
            counts.append(max(1, rows[-1] + 1 - spec.span * 3 // 4 - low))
    pad = (0, roomy(len(shares)) - len(shares))
    return Draw(
        jnp.asarray(np.pad(np.array(shares), pad, constant_values=-np.inf), jnp.float32),
        jnp.asarray(np.pad(np.array(lows), pad), jnp.int32),
        jnp.asarray(np.pad(np.array(counts), pad, constant_values=1), jnp.int32),
    )


def _optimiser(spec: TrainSpec) -> optax.GradientTransformation:
    """Adam without its learning rate, which is an argument; steps without a finite gradient change nothing."""
    adam = optax.chain(optax.clip_by_global_norm(spec.clip), optax.scale_by_adam(b2=0.99))
    return optax.apply_if_finite(adam, NON_FINITE_STEPS)


def _rate(schedule: Schedule, step: Array) -> Array:
    """Linear warm-up, and half a cosine down to a fiftieth."""
    warm = jnp.minimum(1.0, (step + 1) / WARM_UP_STEPS)
    cosine = jnp.cos(jnp.pi * jnp.minimum(step / schedule.steps, 1.0))
    return schedule.peak * warm * (0.02 + 0.49 * (1 + cosine))


@partial(jax.jit, static_argnames=("spec", "shape"))
def walk(
    state: State,
    taken: Array,
    *,
    pool: Pool,
    draw: Draw,
    schedule: Schedule,
    spec: TrainSpec,
    shape: ModelSpec,
) -> tuple[State, Array]:
    """`evaluate_every` gradient steps; also their mean loss."""
    moved, decayed = (jnp.asarray(mask) for mask in _masks(shape))

    def loss_of(vector: Array, windows: Array, key: Array) -> Array:
        params = from_vector(vector, shape=shape)
        total, count = _pinball(params, pool, windows, Role.TRAIN, spec, shape, None, key)
        return total.sum() / jnp.maximum(count.sum(), 1.0)

    def step(carry: State, now: Array) -> tuple[State, Array]:
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
        return State(params, average, optimiser, key), loss

    state, losses = jax.lax.scan(step, state, taken + jnp.arange(spec.evaluate_every))
    return state, losses.mean()


class Mixed(NamedTuple):
    """What is judged: the network's quantiles, averaged level by level with those of the last value."""

    share: Array  # of the network, ()
    others: Float[Array, "horizon level"]  # the last value's, the same at every origin


@partial(jax.jit, static_argnames=("spec", "shape"))
def evaluate(
    vector: Array,
    pool: Pool,
    windows: Array,
    role: Array,
    mixed: Mixed,
    *,
    spec: TrainSpec,
    shape: ModelSpec,
) -> tuple[Array, Array]:
    """Summed loss and number of targets of each window; `windows` (batch, window), one batch at a time."""
    params = from_vector(vector, shape=shape)
    return jax.lax.map(lambda batch: _pinball(params, pool, batch, role, spec, shape, mixed), windows)


def _pinball(
    params: Params,
    pool: Pool,
    windows: Float[Array, " window"],
    role: Role | Array,
    spec: TrainSpec,
    shape: ModelSpec,
    mixed: Mixed | None,
    key: Array | None = None,
) -> tuple[Float[Array, " window"], Float[Array, " window"]]:
    """Weighted pinball loss summed over the origins with this role in each window's span, and how many targets.

    Either `mixed`, to be judged, or as training sees it, with a `key`: every `stride`-th origin (a neighbour says
    nearly the same, for as much work), with noise and dropout, quantiles as they are drawn.
    """
    at = windows[:, None] + jnp.arange(-spec.burn_in, spec.span)
    home = jnp.clip(windows, 0, len(pool.role) - 1)[:, None]
    present = (at >= pool.first[home]) & (at <= pool.last[home])
    at = jnp.clip(at, 0, len(pool.role) - 1)
    origins = slice(spec.burn_in, None, 1 if key is None else spec.stride)
    origin = at[:, origins]
    xs, direct = pool.inputs[at], pool.direct[origin]
    if key is not None and spec.noise > 0:
        # The layers draw with the numbers before this one.
        own, heads = jax.random.split(jax.random.fold_in(key, shape.layers))
        xs = _noisy(xs, params["norm.input_rate"], spec.noise, spec.noise / 2, own)
        direct = _noisy(direct, params["norm.direct_rate"], spec.noise / 3, spec.noise / 2, heads)
    carry = network.initial_carry(shape, len(windows))
    _, ys = network.unroll(shape, params, carry, xs, present, key)
    seen = (ys[:, origins], xs[:, origins], direct)
    quantiles = network.head(shape, params, *(part.reshape(-1, part.shape[-1]) for part in seen))
    if mixed is not None:  # crossing ones are put in order to be judged
        ordered = network.in_order(quantiles, shape.median)
        quantiles = mixed.share * ordered + (1 - mixed.share) * mixed.others[..., None]
    wanted = present[:, origins] & (pool.role[origin] == role)
    known = batch_last(pool.known[origin] & wanted[..., None]).astype(jnp.float32)
    losses = pinball_loss(quantiles, batch_last(pool.target[origin]), jnp.asarray(shape.levels, jnp.float32))
    loss = losses * known * pool.weight[origin].reshape(-1)

    def of_windows(x: Float[Array, "horizon origin"]) -> Float[Array, " window"]:
        return x.reshape(len(x), *origin.shape).sum((0, 2))

    return of_windows(loss), of_windows(known)


def _noisy(
    x: Float[Array, "window step feature"],
    rate: Float[Array, " feature"],
    window: float,
    step: float,
    key: Array,
) -> Float[Array, "window step feature"]:
    """Inputs with noise of so many spreads, the same in a whole window, and of so many at each step besides.

    A window's is the one that tells: what changes slowly is a clock, by which a history is learned by heart.
    """
    for_window, for_step = jax.random.split(key)
    spread = jnp.where(rate > 0, 1 / jnp.where(rate > 0, rate, 1.0), 0.0)  # nothing for what is not heard
    same = jax.random.normal(for_window, (x.shape[0], 1, x.shape[2]))
    return x + spread * (window * same + step * jax.random.normal(for_step, x.shape))


def batch_last(x: Array) -> Array:
    """(window, span, horizon) -> (horizon, origin)"""
    return x.reshape(-1, x.shape[-1]).T
