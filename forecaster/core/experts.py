"""Simple forecasters beside the network, and the online mix of them all.

Each expert gives one point a step ahead, relative to the last value and in units of the running scale; its spread is
its own mean absolute error, kept per series and step ahead. Experts are weighed for each series and horizon by what
they lost lately, so that the mix is hardly worse than the best of them. Everything is O(1) a tick.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

NAMES = ("last_value", "drift", "mean", "seasonal", "network")
NETWORK = NAMES.index("network")
COUNT = len(NAMES)
MEMORY = 128.0  # settled forecasts after which a loss is forgotten
SHARPNESS = 8.0  # weight of an expert ~ loss ** -SHARPNESS
DRIFT_STEPS = 64
MEAN_MEMORY = 5.0  # steps
SMOOTH = 1  # floats of smoothing state: the exponentially weighted mean


class Blend(NamedTuple):
    """What the mix remembers of each series, expert and horizon."""

    loss: Float[Array, "batch expert horizon"]  # pinball loss lately, in scales
    error: Float[Array, "batch expert horizon"]  # mean absolute error lately, in scales


def shape(levels: tuple[float, ...]) -> np.ndarray:
    """Quantiles of an error whose mean absolute value is 1: halfway between normal and Laplace tails. (level,)"""
    from statistics import NormalDist  # noqa: PLC0415

    q = np.asarray(levels)
    laplace = -np.sign(q - 0.5) * np.log(np.maximum(1 - 2 * np.abs(q - 0.5), 1e-12))
    normal = np.array([NormalDist().inv_cdf(level) for level in levels]) * np.sqrt(np.pi / 2)
    return ((laplace + normal) / 2).astype(np.float32)


def newborn(horizon: int) -> Blend:
    """Of a series that has seen nothing, when nobody lends it anything: a random walk's errors."""
    walk = jnp.sqrt(jnp.arange(1, horizon + 1, dtype=jnp.float32)) * jnp.ones((COUNT, 1))
    handicap = jnp.where(jnp.arange(COUNT) == 0, 1.0, 1.1)[
        :, None
    ]  # others have to show that they are better
    return Blend(loss=0.4 * walk * handicap, error=walk)


def smooth(level: Array, count: Array, value: Array) -> Array:
    """The exponentially weighted mean after one more value."""
    return level + (value - level) / jnp.clip(count.astype(jnp.float32) + 1, 1.0, MEAN_MEMORY)


def points(
    last: Float[Array, " batch"],
    scale: Float[Array, " batch"],
    before: Float[Array, " batch"],
    span: Float[Array, " batch"],
    mean: Float[Array, " batch"],
    ahead: Float[Array, "batch horizon"],
    network: Float[Array, "batch horizon"],
) -> Float[Array, "batch horizon expert"]:
    """Each expert's point for each step ahead. `before` is the value `span` steps ago; `ahead` one season before."""
    h = jnp.arange(1, network.shape[1] + 1, dtype=jnp.float32)
    s = scale[:, None]
    drift = ((last - before) / jnp.maximum(span, 1.0))[:, None] * h / s
    return jnp.stack(
        [
            jnp.zeros_like(network),
            drift,
            jnp.broadcast_to((mean - last)[:, None] / s, network.shape),
            (ahead - last[:, None]) / s,
            network,
        ],
        axis=-1,
    )


def weights(blend: Blend, awake: Array) -> Float[Array, "batch expert horizon"]:
    """Share of each expert in the mix; `awake` (batch, expert) leaves experts out that have nothing to say."""
    score = jnp.where(awake[:, :, None], -SHARPNESS * jnp.log(blend.loss + 1e-9), -jnp.inf)
    rise = jnp.exp(score - score.max(1, keepdims=True))
    return rise / rise.sum(1, keepdims=True)


def mix(
    points: Float[Array, "batch horizon expert"],
    network: Float[Array, "batch horizon level"],
    blend: Blend,
    awake: Array,
    levels: tuple[float, ...],
) -> Float[Array, "batch horizon level"]:
    """Quantiles of the mix: the weighed mean of the experts' quantiles, level by level."""
    w = weights(blend, awake)
    others = w.at[:, NETWORK].set(0.0)
    centre = jnp.einsum("bkh,bhk->bh", others, points)
    spread = (others * blend.error).sum(1)
    return (
        centre[..., None]
        + spread[..., None] * jnp.asarray(shape(levels))
        + w[:, NETWORK][..., None] * network
    )


def settle(
    blend: Blend,
    points: Float[Array, "batch horizon expert"],
    actual: Float[Array, "batch horizon"],
    settled: Array,
    levels: tuple[float, ...],
    count: Array,
) -> Blend:
    """Learn from what came: each expert's loss and error move towards what it just earned."""
    e = jnp.swapaxes(actual[..., None] - points, 1, 2)  # (batch, expert, horizon)
    miss = jnp.abs(e)
    q, form = jnp.asarray(levels, jnp.float32), jnp.asarray(shape(levels))
    off = e[..., None] - blend.error[..., None] * form
    loss = jnp.maximum(q * off, (q - 1) * off).mean(-1)
    rate = 1 / jnp.clip(count.astype(jnp.float32), 4.0, MEMORY)[:, None, None]
    keep = settled[:, None, :] & jnp.isfinite(miss)
    return Blend(
        loss=jnp.where(keep, blend.loss + rate * (loss - blend.loss), blend.loss),
        error=jnp.where(keep, blend.error + rate * (miss - blend.error), blend.error),
    )
