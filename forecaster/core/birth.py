"""Newborn series: what they borrow from the others of their partition until they know themselves; how rows begin."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from forecaster.core import experts, row, stats, table
from forecaster.core.model import ModelSpec
from forecaster.core.table import Rows

MATURE = 32  # steps after which a series can lend


class Loan(NamedTuple):
    """What a newborn series borrows from the others of its partition until it knows itself."""

    scale: Array  # the running scale as a share of the magnitude of the value
    step: Array  # the running scale itself, for a series that begins at 0
    blend: Float[Array, "3 expert horizon"]  # a `Blend`
    offset: Float[Array, "horizon level"]


def unlent(spec: ModelSpec) -> Loan:
    """The loan when nobody has anything to lend: a random walk of one part in a thousand a step."""
    return Loan(
        jnp.float32(1e-3),
        jnp.float32(0.0),
        jnp.stack(experts.newborn(spec.horizon)),
        jnp.zeros((spec.horizon, len(spec.levels)), jnp.float32),
    )


def lend(spec: ModelSpec, rows: Rows, idx: Int[Array, " batch"], valid: Bool[Array, " batch"]) -> Loan:
    """The mean of what the grown-up ones among these rows know, or `unlent` while there are none."""

    def read(column: Array) -> Array:
        return table.whole(column, idx)

    count = read(rows.count)
    grown = valid & (count >= MATURE)
    weight = grown / jnp.maximum(grown.sum(), 1)
    newest = table.lagged(rows.value, idx, count, jnp.ones((idx.shape[0], 1), jnp.int32))[:, 0]
    size = jnp.maximum(jnp.abs(newest + read(rows.base)), 1e-30)
    scale = row.unpack(read(rows.running)).running.of("scale")

    def typical(scale: Array) -> Array:
        """Their geometric mean."""
        return jnp.exp((weight * jnp.log(scale)).sum())

    def mean(column: Array) -> Array:
        return jnp.tensordot(weight, read(column), 1)

    known = Loan(
        typical(jnp.clip(scale / size, 1e-7, 1.0)),
        typical(jnp.maximum(scale, stats.LEAST)),
        mean(rows.blend),
        mean(rows.offset),
    )
    return jax.tree.map(lambda new, default: jnp.where(grown.any(), new, default), known, unlent(spec))


def plant(rows: Rows, idx: Int[Array, " batch"], base: Float[Array, " batch"], loan: Loan) -> Rows:
    """Start rows anew, each with what it borrows; the arrays of `loan` have a leading batch axis.

    What a row waits for needs no clearing: without steps nothing is settled.
    """
    batch = idx.shape[0]
    horizon = rows.origin.shape[1]
    scale = jnp.maximum(jnp.where(base == 0, loan.step, loan.scale * jnp.abs(base)), stats.LEAST)
    packed = stats.pack(stats.newborn(scale))
    rest = jnp.zeros((batch, rows.running.shape[1] - packed.shape[1]))
    linear = experts.newborn_linear(batch, horizon)

    def whole(column: Array, value: Array | float) -> Array:
        return column.at[idx].set(value, mode="drop")

    return rows._replace(
        count=whole(rows.count, 0),
        base=whole(rows.base, base),
        running=whole(rows.running, jnp.concatenate([packed, rest], axis=1)),
        covariance=whole(rows.covariance, linear.covariance),
        weights=whole(rows.weights, linear.weights),
        blend=whole(rows.blend, loan.blend),
        carry=whole(rows.carry, 0.0),
        offset=whole(rows.offset, loan.offset),
    )
