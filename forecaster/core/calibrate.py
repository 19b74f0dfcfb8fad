"""Quantiles kept honest online: moved and widened until each is hit as often as it says.

Two corrections, both in units of the running scale. An affine one, shift and widening of all levels of a step ahead,
follows the pinball loss by gradient: it absorbs a jump of level or variance within a few dozen ticks. Then each level of
each step ahead has an offset that takes a step towards the side on which the outcome fell: adaptive conformal inference
in its quantile-tracking form (Angelopoulos, Candes, Tibshirani 2023, "Conformal PID control", arXiv:2307.16895, the P
part), whose long-run coverage holds for any stream of bounded errors.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float

from forecaster.core.model import in_order

LEVEL_RATE = 0.01  # of the mix's error, for each settled forecast
LEVEL_FADE = 0.001
AFFINE_RATE = 0.01
AFFINE_FADE = 0.002
WIDEST = 1.0  # of the logarithm of the widening


class Correction(NamedTuple):
    """What is added to the mix."""

    affine: Float[Array, "batch 2 horizon"]  # shift, in scales; logarithm of the widening
    offset: Float[Array, "batch horizon level"]  # in scales


def correct(
    quantiles: Float[Array, "batch horizon level"], correction: Correction, median: int
) -> Float[Array, "batch horizon level"]:
    """Quantiles with their correction, in order."""
    centre = quantiles[..., median : median + 1]
    shift, widening = correction.affine[:, 0, :, None], correction.affine[:, 1, :, None]
    return in_order(centre + shift + (quantiles - centre) * jnp.exp(widening) + correction.offset, median)


def settle(
    correction: Correction,
    published: Float[Array, "batch horizon level"],
    slope: Float[Array, "batch horizon level"],
    unit: Float[Array, "batch horizon"],
    settled: Bool[Array, "batch horizon"],
    median: int,
) -> Correction:
    """Learn from what came: `slope` is the derivative of the pinball loss at the published quantiles, `unit` the mix's
    own mean absolute error in scales."""
    wide = published - published[..., median : median + 1]
    width = jnp.maximum(wide[..., -2] - wide[..., 1], 1e-3)
    fade = 1 - AFFINE_FADE
    shift = (correction.affine[:, 0] - AFFINE_RATE * unit * slope.mean(-1)) * fade
    widening = (correction.affine[:, 1] - 4 * AFFINE_RATE * (slope * wide).mean(-1) / width) * fade
    affine = jnp.stack([shift, jnp.clip(widening, -WIDEST, WIDEST)], axis=1)
    offset = (correction.offset - LEVEL_RATE * unit[..., None] * slope) * (1 - LEVEL_FADE)
    return Correction(
        jnp.where(settled[:, None], affine, correction.affine),
        jnp.where(settled[..., None], offset, correction.offset),
    )
