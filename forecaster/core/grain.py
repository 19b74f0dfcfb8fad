"""The grain of a series: the step in which its values come, and forecasts that keep to it.

A thermometer tells hundredths, a counter whole numbers, a price ticks. Where the outcome is one of few values, the
quantile that loses least is one of them, while a network draws it anywhere between. So what is forecast is drawn
towards the nearest value that can come: for an outcome that is the rounding of something smooth, the quantile is the
rounding of its quantile (as for counts: Machado, Santos Silva 2005, "Quantiles for counts", JASA 100). A share of the
distance is left: the quantile stays on its side of the value, so that every interval holds exactly the outcomes that
it held, and the order stays.

The grain is found as the series streams in: the usual size of the smallest changes, trusted while all changes
are multiples of it.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

MEMORY = 200.0  # steps over which the usual change is a mean
DOUBT_RATE = 0.02  # at which doubt follows
SMALL = 0.1  # of the usual change: what is smaller is noise on a value, not a change of it
SMALLER = 0.75  # of the grain: a change below this is a smaller grain
FOLLOW = 0.05  # rate at which the grain follows changes of its own size
FAR = 8.0  # grains; how well a larger change fits says nothing, as an error of the grain adds up
UNFIT = 0.25  # mean distance from a multiple when there is no grain
DOUBTED = 0.15  # mean distance from which another grain is tried
LOOSE, FIRM = 0.1, 0.03  # mean distances: from here on the grain draws nothing, up to there all it can
LEFT = 0.05  # share of the distance that is left: more than rounding takes away
STEEP = 0.05  # grains to both sides of the middle between two multiples, where the draw changes sides
FINE, COARSE = 0.05, 0.1  # scales: no draw to a grain up to here, as it is worth nothing; all from there on


class Grain(NamedTuple):
    """One a series, float32, shape (batch,); all zero in a series that has not changed yet."""

    size: Array  # in units of the value
    doubt: Array  # mean distance of changes from a multiple, in grains
    usual: Array  # mean size of changes


STATE = len(Grain._fields)


def observe(grain: Grain, change: Float[Array, " batch"], count: Int[Array, " batch"]) -> Grain:
    """Take in one change, in units of the value; none at all teaches nothing. `count` is the number of steps before."""
    size, age = jnp.abs(change), count.astype(jnp.float32)
    first = grain.size == 0
    usual = jnp.where(first, size, grain.usual + (size - grain.usual) / jnp.clip(age, 1.0, MEMORY))
    ratio = size / jnp.where(first, jnp.inf, grain.size)
    multiple = jnp.round(ratio)
    counts = size > SMALL * usual
    off = jnp.where((multiple > 0) & (multiple <= FAR), jnp.abs(ratio - multiple), UNFIT)
    off = jnp.minimum(jnp.where(counts, off, ratio), UNFIT)
    before = jnp.where(first, UNFIT, grain.doubt)
    other = counts & (first | (ratio < SMALLER) | (before > DOUBTED))
    follows = counts & (multiple == 1)
    nearer = jnp.where(follows, grain.size + FOLLOW * (size - grain.size), grain.size)
    doubt = before + (off - before) * jnp.maximum(DOUBT_RATE, 1 / (age + 3))
    new = Grain(jnp.where(other, size, nearer), doubt, usual)
    return Grain(*(jnp.where(size > 0, after, old) for after, old in zip(new, grain, strict=True)))


def keep_to(
    quantiles: Float[Array, "horizon level batch"], grain: Grain, scale: Float[Array, " batch"]
) -> Float[Array, "horizon level batch"]:
    """Quantiles relative to the last value, in units of `scale`, drawn towards multiples of the grain.

    Steep between two of them, but without a jump: what differs by rounding before still does after.
    """
    step = grain.size / scale
    doubted = (grain.doubt - FIRM) / (LOOSE - FIRM)
    left = jnp.clip(jnp.maximum(doubted, (COARSE - step) / (COARSE - FINE)), LEFT, 1.0)
    step = jnp.maximum(step, FINE)
    places = quantiles / step
    nearest = jnp.round(places)
    off = places - nearest
    knee = 0.5 - STEEP
    slope = (0.5 - left * knee) / STEEP
    size = jnp.maximum(left * jnp.abs(off), left * knee + slope * (jnp.abs(off) - knee))
    return jnp.where(left < 1, (nearest + jnp.copysign(size, off)) * step, quantiles)
