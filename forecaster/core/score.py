"""Forecasts matched with what came: pinball loss, coverage, scaled errors, in unit-free terms so that series add up.

In come quantiles in units of the running scale at their origin, relative to the last value there, and what came in
the same units; out go sums over series (`Scores`). Skill is against the last value: 1 - error / last_error.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float

TIE = 1e-6  # scales: what came is on the quantile when it is this near; both are float32
MOST_ANOMALY = 1e3  # half intervals: where a constant series moves there is next to none
CAP = 1e3  # scales: a series that leaves a constant level has next to none yet, and one error would drown all others


class Scores(NamedTuple):
    """Sums over the forecasts that one batch settled."""

    count: Float[Array, " horizon"]  # pyright: ignore[reportIncompatibleMethodOverride] - forecasts settled
    error: Float[Array, " horizon"]  # absolute error of the median, in scales
    last_error: Float[Array, " horizon"]  # absolute error of the last value, in scales
    pinball: Float[Array, " horizon"]  # pinball loss, mean over levels, in scales
    below: Float[Array, "horizon level"]  # outcomes below the quantile; one on it counts half


def pinball_loss(
    quantiles: Float[Array, "*at level batch"],
    actual: Float[Array, "*at batch"],
    levels: Float[Array, " level"],
) -> Float[Array, "*at batch"]:
    """Mean over levels of max(q*e, (q-1)*e) with e = actual - quantile; no factor 2."""
    e, q = actual[..., None, :] - quantiles, levels[:, None]
    return jnp.maximum(q * e, (q - 1) * e).mean(-2)


def below(quantiles: Float[Array, "*at level batch"], actual: Float[Array, "*at batch"]) -> Array:
    """1 where what came is below the quantile, 0 above, 1/2 on it."""
    e = actual[..., None, :] - quantiles
    return jnp.where(jnp.abs(e) <= TIE, 0.5, (e < 0).astype(jnp.float32))


def score(
    quantiles: Float[Array, "horizon level batch"],
    actual: Float[Array, "horizon batch"],
    settled: Bool[Array, "horizon batch"],
    levels: tuple[float, ...],
) -> Scores:
    """Sums over the batch of what is `settled`, each error up to `CAP` so that sums stay sums over all series."""
    q = jnp.asarray(levels, jnp.float32)
    weight = settled.astype(jnp.float32)
    # Only what settled is looked at: the rest may hold anything, and 0 * inf is not 0.
    quantiles = jnp.where(settled[:, None], quantiles, 0.0)
    actual = jnp.where(settled, actual, 0.0)
    median = quantiles[:, levels.index(0.5)]
    return Scores(
        count=weight.sum(-1),
        error=(weight * jnp.minimum(jnp.abs(actual - median), CAP)).sum(-1),
        last_error=(weight * jnp.minimum(jnp.abs(actual), CAP)).sum(-1),
        pinball=(weight * jnp.minimum(pinball_loss(quantiles, actual, q), CAP)).sum(-1),
        below=(weight[:, None] * below(quantiles, actual)).sum(-1),
    )


def anomaly(quantiles: Float[Array, "level batch"], actual: Float[Array, " batch"], median: int) -> Array:
    """Where the outcome fell in its forecast: 0 at the median, 1 at the outermost quantile of its side, up to
    MOST_ANOMALY; NaN on a side where no quantile is.
    """
    off = actual - quantiles[median]
    upper = quantiles[-1] - quantiles[median] if median + 1 < len(quantiles) else jnp.nan
    lower = quantiles[median] - quantiles[0] if median else jnp.nan
    side = jnp.where(off > 0, upper, lower)
    return jnp.minimum(jnp.abs(off) / jnp.maximum(side, TIE), MOST_ANOMALY)
