"""What waits, against numpy: how much rounding takes away, and what stays as it was."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from forecaster.core import waiting

HORIZON, BATCH = 2, 3
NUMBERS = st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=False)
SIXTEEN_BITS = st.floats(-waiting.LIMIT, waiting.LIMIT, width=16) | st.just(np.nan)


@pytest.mark.parametrize("levels", [0, 1, 2, 11])
@settings(deadline=None, max_examples=20)
@given(st.data())
def test_what_is_unpacked_is_what_was_packed_to_24_bits(levels: int, data: st.DataObject) -> None:
    network = data.draw(arrays(np.float32, (HORIZON, BATCH), elements=NUMBERS | st.just(np.nan)))
    others = data.draw(arrays(np.float32, (waiting.COARSE, HORIZON, BATCH), elements=SIXTEEN_BITS))
    quantiles = data.draw(arrays(np.float32, (HORIZON, levels, BATCH), elements=NUMBERS))
    words = waiting.pack([jnp.asarray(network), *map(jnp.asarray, others)], jnp.asarray(quantiles))
    assert words.dtype == jnp.uint16
    assert words.shape == (BATCH, HORIZON, waiting.width(levels))
    (mine, *theirs), told = waiting.unpack(words)
    np.testing.assert_allclose(mine, network, rtol=2.0**-16)
    np.testing.assert_array_equal(theirs, others)
    np.testing.assert_allclose(told, quantiles, rtol=2.0**-16)


def test_what_half_precision_cannot_hold_waits_as_the_most_that_it_can() -> None:
    far = jnp.asarray([[1e9], [-1e9]])
    (network, *others), quantiles = waiting.unpack(waiting.pack([far, far, far], far[:, None]))
    for held in others:
        np.testing.assert_array_equal(held[:, 0], np.float16([waiting.LIMIT, -waiting.LIMIT]))
    for held in (network[:, 0], quantiles[:, 0, 0]):
        np.testing.assert_allclose(held, [1e9, -1e9], rtol=2.0**-16)
