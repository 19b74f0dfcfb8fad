"""What waits for its targets, in words of 16 bits (decision 47).

What a network had a say in waits as float32 without its last eight bits: programs of different sizes differ in the last
bits of a product, and where a step of what is kept falls between them, a restored worker learns another number. In 24
bits that is at most one part in 65,000, in half precision one in 2,000. The seasonal and the linear expert's points
are the same in every program and wait in half precision. A step ahead takes, in this order,

    seasonal, linear          float16                        a word each
    network, then quantiles   the upper half of a float32    a word each
    the same again            the next eight bits            two numbers a word
"""

from collections.abc import Sequence

import jax.numpy as jnp
from jax import Array
from jax.lax import bitcast_convert_type as bits_as
from jaxtyping import Float, UInt16

from forecaster.core import experts

LIMIT = 60_000.0  # what float16 holds
COARSE = experts.CURVES - 1
_HALF_STEP = 1 << 7  # of what is cut off


def width(levels: int) -> int:
    """Words that a step ahead takes."""
    fine = 1 + levels
    return COARSE + fine + (fine + 1) // 2


def pack(
    curves: Sequence[Float[Array, "horizon batch"]], quantiles: Float[Array, "horizon level batch"]
) -> UInt16[Array, "batch horizon word"]:
    """Of each step ahead its words; NaN of an expert stays NaN."""
    network, *others = curves
    coarse = jnp.clip(jnp.stack(others, axis=1), -LIMIT, LIMIT).astype(jnp.float16)
    bits = bits_as(jnp.concatenate([network[:, None], quantiles], axis=1), jnp.uint32) + _HALF_STEP
    lower = bits >> 8 & 0xFF
    lower = jnp.pad(lower, ((0, 0), (0, lower.shape[1] % 2), (0, 0)))
    first, second = jnp.split(lower, 2, axis=1)
    words = [
        bits_as(coarse, jnp.uint16),
        (bits >> 16).astype(jnp.uint16),
        (first | second << 8).astype(jnp.uint16),
    ]
    return jnp.moveaxis(jnp.concatenate(words, axis=1), -1, 0)


def unpack(
    words: UInt16[Array, "batch horizon word"],
) -> tuple[list[Float[Array, "horizon batch"]], Float[Array, "horizon level batch"]]:
    """The experts' points and the quantiles."""
    words = jnp.moveaxis(words, 0, -1)
    fine = (words.shape[1] - COARSE) * 2 // 3
    coarse = bits_as(words[:, :COARSE], jnp.float16).astype(jnp.float32)
    upper, pairs = jnp.split(words[:, COARSE:].astype(jnp.uint32), [fine], axis=1)
    lower = jnp.concatenate([pairs & 0xFF, pairs >> 8], axis=1)[:, :fine]
    numbers = bits_as(upper << 16 | lower << 8, jnp.float32)
    return [numbers[:, 0], *jnp.moveaxis(coarse, 1, 0)], numbers[:, 1:]
