"""Quantiles kept honest online: each is moved until it is hit as often as it says.

Every level of every step ahead has an offset, in units of the running scale, that after each settled forecast takes a
step towards the side on which the outcome fell: adaptive conformal inference in its quantile-tracking form
(Angelopoulos, Candes, Tibshirani 2023, "Conformal PID control", arXiv:2307.16895, the P part), whose long-run coverage
holds for any stream of bounded errors. Most of a step is the mean over all steps ahead, which are wrong together:
single outcomes are noisy. Offsets fade besides: what a correction has to hold against FADE shows as a miss of coverage
of FADE / RATE times its size. Together they move and widen the whole forecast, so a jump of level or variance that the
scale does not absorb is followed without a retrain.
"""

import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float

from forecaster.core.apart import apart
from forecaster.core.model import in_order

RATE = 0.01  # of the mix's own mean absolute error, for each settled forecast
BORROW = 0.7  # share of a step that is the mean over all steps ahead
FADE = 0.0001  # of the offset, so that what is long past is forgotten


def correct(
    quantiles: Float[Array, "horizon level batch"], offset: Float[Array, "horizon level batch"], median: int
) -> Float[Array, "horizon level batch"]:
    """Quantiles with their offsets, in order."""
    return in_order(apart(quantiles + offset), median)


def settle(
    offset: Float[Array, "horizon level batch"],
    slope: Float[Array, "horizon level batch"],
    unit: Float[Array, "horizon batch"],
    settled: Bool[Array, "horizon batch"],
) -> Float[Array, "horizon level batch"]:
    """Learn from what came.

    `slope` is the derivative of the pinball loss at the published quantiles (outcome below less level), `unit` the
    mix's own mean absolute error in scales.
    """
    known = settled[:, None].astype(jnp.float32)
    together = (slope * known).sum(0) / jnp.maximum(known.sum(0), 1)
    step = (1 - BORROW) * slope + BORROW * together
    moved = (offset - RATE * unit[:, None] * step) * (1 - FADE)
    return jnp.where(settled[:, None], moved, offset)
