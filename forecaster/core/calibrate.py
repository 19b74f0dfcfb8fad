"""Quantiles kept honest online: each level and step ahead of each series is moved until it is hit as often as it says.

Adaptive conformal inference in its quantile-tracking form (Angelopoulos, Candes, Tibshirani 2023, "Conformal PID
control", arXiv:2307.16895, the P part): after each settled forecast an offset, in units of the running scale, takes a
step towards the side on which the outcome fell. Long-run coverage then holds for any stream of bounded errors.
"""

import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float

from forecaster.core import score

RATE = 0.03  # of the spread, for each settled forecast


def correct(
    quantiles: Float[Array, "batch horizon level"], offset: Float[Array, "batch horizon level"]
) -> Float[Array, "batch horizon level"]:
    """Quantiles with their correction, sorted."""
    return jnp.sort(quantiles + offset, axis=-1)


def settle(
    offset: Float[Array, "batch horizon level"],
    published: Float[Array, "batch horizon level"],
    actual: Float[Array, "batch horizon"],
    spread: Float[Array, "batch horizon"],
    settled: Bool[Array, "batch horizon"],
    levels: tuple[float, ...],
) -> Float[Array, "batch horizon level"]:
    """Move each offset by RATE spreads times (level - outcome below the quantile)."""
    miss = jnp.asarray(levels, jnp.float32) - score.below(published, actual)
    return jnp.where(settled[..., None], offset + RATE * spread[..., None] * miss, offset)
