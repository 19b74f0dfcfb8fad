"""The least and the greatest value a series has had, and whether it stops there.

A counter does not fall below zero, a share does not pass one, a machine has a most that it can do; a price knows no
such bound. Which is which shows in the outcomes of forecasts that reached as far as the extreme: of a series without a
bound, at least the share that the level promises goes beyond it. `trust` is the running share of such
outcomes that stayed inside, and once it passes TRUSTED, no forecast goes further. Outcomes beyond are seen whether
forecasts stop at the extreme or not, so trust can be lost as it was won. Where nothing stops a series, no forecast
leaves by far what it has been all the same: a network that meets what it was not taught draws anything.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float

RATE = 0.01  # of the share of outcomes inside, for each step at which all forecasts reached the extreme
# A level of 0.05 that is as low as an extreme leaves more than 5 % beyond it where there is no bound.
TRUSTED = 0.95
ROOM = 2.0  # scales for each step ahead by which a forecast may always leave what a series has been
NEAR = 1e-4  # of the distance: what waits is rounded


class Bounds(NamedTuple):
    """One a series, float32, shape (batch,); all zero in a newborn series, whose first value is its base."""

    lowest: Array  # value so far, relative to the series' base
    highest: Array
    low_trust: Array  # share of outcomes that stayed inside, from 0
    high_trust: Array


STATE = len(Bounds._fields)


def outer(levels: tuple[float, ...]) -> tuple[int, int]:
    """Which levels tell of a bound: the outermost that leave at least 1 - TRUSTED outside."""
    share = 1 - TRUSTED - 1e-9
    low = next((i for i, level in enumerate(levels) if level >= share), len(levels) - 1)
    high = next((i for i in reversed(range(len(levels))) if 1 - levels[i] >= share), 0)
    return low, high


def observe(
    bounds: Bounds,
    value: Float[Array, " batch"],
    had: Float[Array, "horizon batch"],
    reached: tuple[Float[Array, "horizon batch"], Float[Array, "horizon batch"]],
    settled: Bool[Array, "horizon batch"],
) -> Bounds:
    """Take in one value.

    `had` is the last value at the origins, `reached` the quantiles of the two `outer` levels that were forecast there,
    relative to it, all in units of the value.
    """
    known = jnp.maximum(settled.sum(0), 1)
    low, high = reached

    def follow(trust: Array, inside: Array, there: Array) -> Array:
        return trust + RATE * (there & settled).sum(0) / known * (inside - trust)

    at_low = low <= (bounds.lowest - had) * (1 - NEAR)
    at_high = high >= (bounds.highest - had) * (1 - NEAR)
    return Bounds(
        lowest=jnp.minimum(bounds.lowest, value),
        highest=jnp.maximum(bounds.highest, value),
        low_trust=follow(bounds.low_trust, value >= bounds.lowest, at_low),
        high_trust=follow(bounds.high_trust, value <= bounds.highest, at_high),
    )


def limits(bounds: Bounds) -> tuple[Float[Array, " batch"], Float[Array, " batch"]]:
    """How low and how high a forecast may go, relative to the base; infinite where nothing stops it."""
    low = jnp.where(bounds.low_trust > TRUSTED, bounds.lowest, -jnp.inf)
    high = jnp.where(bounds.high_trust > TRUSTED, bounds.highest, jnp.inf)
    return low, high


def reach(
    bounds: Bounds, scale: Float[Array, " batch"], horizon: int
) -> tuple[Float[Array, " batch"], Float[Array, " batch"]]:
    """The same of forecasts made now, finite: where nothing stops a series they may leave what it has been by as much
    again, or by ROOM where that is more.
    """
    low, high = limits(bounds)
    beyond = jnp.maximum(bounds.highest - bounds.lowest, ROOM * horizon * scale)
    return jnp.maximum(low, bounds.lowest - beyond), jnp.minimum(high, bounds.highest + beyond)


def stop(quantiles: Array, ends: tuple[Float[Array, " batch"], ...]) -> Array:
    """Quantiles that end where the series does: what is beyond or as good as there is exactly there.

    Both relative to the last value and in the same units; the batch is the last axis. On the way there is no jump, so
    that what differs by rounding before still does after.
    """
    low, high = ends
    # Nothing is left up to NEAR a bound; from there on twice what goes further, until a quantile is where it was.
    left = jnp.maximum(2 * (quantiles - low * (1 - NEAR)), 0.0)
    quantiles = jnp.where(quantiles < low * (1 - 2 * NEAR), low + left, quantiles)
    left = jnp.minimum(2 * (quantiles - high * (1 - NEAR)), 0.0)
    return jnp.where(quantiles > high * (1 - 2 * NEAR), high + left, quantiles)


def settle(
    fell: Float[Array, "horizon level batch"],
    waited: Float[Array, "horizon level batch"],
    actual: Float[Array, "horizon batch"],
    stopped: tuple[Float[Array, "horizon batch"], ...],
) -> Float[Array, "horizon level batch"]:
    """Outcomes below their quantiles (1, else 0), where one on a bound counts as inside of a quantile that it stopped.

    So a correction learns as if its quantile had gone further, and neither runs away nor comes out of the bound as long
    as outcomes lie there. All but `fell` are in the same units, relative to the origin.
    """
    low, high = stopped
    at_low = (waited <= (low * (1 - NEAR))[:, None]) & (actual >= low)[:, None]
    at_high = (waited >= (high * (1 - NEAR))[:, None]) & (actual <= high)[:, None]
    return jnp.where(at_low, 0.0, jnp.where(at_high, 1.0, fell))
