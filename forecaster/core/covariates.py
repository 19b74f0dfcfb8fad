"""What the network sees of a series' covariates: further numbers that came with its ticks, each in units of its own.

In come the covariates of a step as they are, NaN where one is missing; out go running statistics of each and, for the
recurrent cells, how far it is from its long-run level, how far it has moved, and whether it came at all. One that is
missing goes from where it was last known towards its level, bit by bit. Nothing looks ahead: a covariate is known from
its own tick on.

Without covariates every array here has no width, and nothing is computed.
"""

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float
from numpy.typing import NDArray

from forecaster.core.features import squash
from forecaster.core.stats import LEVEL_MEMORY, SCALE_MEMORY

STATE = 5  # floats of running statistics a covariate: last, level, spread, change, times known
SIGNALS = 3  # recurrent inputs a covariate
FADE = 16.0  # steps after which what was last known of a covariate that does not come is mostly forgotten
FLOOR = 1e-6  # of the covariate itself: float32 resolves little less
FARTHEST = 1e18  # what lies beyond is taken for this; its square still fits float32


def in_bounds(raw: NDArray[np.float64]) -> NDArray[np.float32]:
    """Covariates as ticks carry them, as the fold takes them in."""
    return np.clip(raw, -FARTHEST, FARTHEST).astype(np.float32)


def observe(
    packed: Float[Array, "batch packed"], now: Float[Array, "batch covariate"]
) -> tuple[Float[Array, "batch packed"], Float[Array, "batch signal"]]:
    """Take in the covariates of one step: the statistics after it, and the inputs that it gives.

    `packed` holds STATE numbers a covariate, all of one kind beside each other; a newborn's are 0.
    """
    if not now.shape[1]:
        return packed, packed
    last, level, spread, change, count = jnp.split(packed, STATE, axis=1)
    known = jnp.isfinite(now)
    value = jnp.where(known, now, last + (level - last) / FADE)

    def toward(old: Array, new: Array, memory: float, age: Array) -> Array:
        return jnp.where(known, old + (new - old) / jnp.clip(age, 1.0, memory), old)

    moved = jnp.where(known & (count > 0), value - last, 0.0)
    level = toward(level, value, LEVEL_MEMORY, count + 1)
    spread = toward(spread, jnp.abs(value - level), LEVEL_MEMORY, count + 1)
    change = toward(change, jnp.abs(moved), SCALE_MEMORY, count)
    floor = FLOOR * jnp.abs(value) + 1e-12
    signals = (
        squash((value - level) / jnp.maximum(spread, floor)),
        squash(moved / jnp.maximum(change, floor)),
        known.astype(jnp.float32),
    )
    after = (value, level, spread, change, count + known)
    return jnp.concatenate(after, axis=1), jnp.concatenate(signals, axis=1)
