"""What is kept in memory is the same, to the bit, whatever it is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from forecaster.core.apart import apart

ODD = [0.0, -0.0, 1.5, -2.5, np.inf, -np.inf, np.nan, 1e-45, 3e38]


@pytest.mark.parametrize("first", ODD)
def test_every_number_stays_what_it_is(first: float) -> None:
    x = np.array([[first, *ODD]], np.float32)
    kept = np.asarray(jax.jit(apart)(x))
    same = kept.view(np.int32) == x.view(np.int32)
    assert (same | (np.isnan(kept) & np.isnan(x))).all()


def test_what_two_read_is_computed_once() -> None:
    """Seen in what XLA makes of it: without the wall the same sum is in the loops of both."""

    def loops(wall: bool) -> int:
        def both(x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
            shared = x * 3 - y
            shared = apart(shared) if wall else shared
            return jnp.cumsum(shared * x, axis=0), (shared * y)[:, ::-1] + 1

        text = jax.jit(both).lower(*[jnp.ones((64, 64))] * 2).compile().as_text()
        return str(text).count(" subtract(")

    assert loops(wall=True) == 1 < loops(wall=False)
