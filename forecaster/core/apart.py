"""What keeps XLA from computing a thing over and over: a wall between loops.

XLA computes what it takes to be cheap anew in each loop that reads it, be that a dozen loops, each of them turning the
batch around first. A barrier against this (`jax.lax.optimization_barrier`) is gone before XLA for the CPU decides which
loops there are. It does not look into the branches of a condition, even of one that chooses nothing (decision 45).
"""

import jax
import jax.numpy as jnp
from jax import Array


def apart(x: Array) -> Array:
    """The same, computed once and kept in memory."""
    return jax.lax.cond(x.reshape(-1)[0] > 0, lambda x: x, lambda x: jnp.minimum(x, jnp.inf), x)
