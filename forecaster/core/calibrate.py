"""Quantiles kept honest online: each is moved until it is hit as often as it says.

Every level of every step ahead has an offset, in units of the running scale, that after each settled forecast takes a
step towards the side on which the outcome fell: adaptive conformal inference in its quantile-tracking form
(Angelopoulos, Candes, Tibshirani 2023, "Conformal PID control", arXiv:2307.16895, the P part), whose long-run coverage
holds for any stream of bounded errors. Offsets fade besides: what a correction has to hold against FADE shows as a
miss of coverage of FADE / RATE times its size. Together they move and widen the whole forecast, so a jump of level or
variance that the scale does not absorb is followed without a retrain.
"""

import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float

from forecaster.core.model import in_order

RATE = 0.005  # of the mix's own mean absolute error, for each settled forecast
FADE = 0.001  # of the offset, so that what is long past is forgotten


def correct(
    quantiles: Float[Array, "horizon level batch"], offset: Float[Array, "horizon level batch"], median: int
) -> Float[Array, "horizon level batch"]:
    """Quantiles with their offsets, in order."""
    return in_order(quantiles + offset, median)


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
    moved = (offset - RATE * unit[:, None] * slope) * (1 - FADE)
    return jnp.where(settled[:, None], moved, offset)
