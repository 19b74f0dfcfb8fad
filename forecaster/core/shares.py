"""Rows -> what each expert weighs in the forecasts that were made last, for whoever watches.

Who said something then is read off what waits. The fold itself needs none of this.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from forecaster.core import experts, row, table, waiting
from forecaster.core.experts import Blend
from forecaster.core.table import Rows


@partial(jax.jit, static_argnames="horizon")
def shares(
    rows: Rows, idx: Int[Array, " batch"], first_share: Float[Array, ""], *, horizon: int
) -> Float[Array, "expert horizon batch"]:
    """The weights in the newest forecast of each row, experts in the order of `experts.NAMES`; they add up to 1.

    `first_share` is the serving network's, see `model.Card`.
    """
    newest = table.whole(rows.count, idx) - 1
    curves, _ = waiting.unpack(table.due(rows.waiting, idx, newest, horizon))
    lines = jnp.zeros((experts.LINES, 1, idx.shape[0]))  # which are never at a loss
    awake = jnp.isfinite(experts.assemble(lines, curves))
    blend = Blend(*row.batch_last(table.whole(rows.blend, idx)))
    heard = experts.heard(row.unpack(table.whole(rows.running, idx)).alarm)
    return experts.weights(blend, awake, first_share, heard)
