"""What the network sees of covariates: against plain Python, in any unit, and through gaps."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from forecaster.core import covariates
from forecaster.core.covariates import STATE
from forecaster.core.features import KNEE
from forecaster.core.stats import LEVEL_MEMORY, SCALE_MEMORY

OBSERVE = jax.jit(covariates.observe)
NAN = math.nan


def signals(numbers: np.ndarray) -> np.ndarray:
    """What each step (time, covariate) gives; (time, signal)."""
    state, found = jnp.zeros((1, STATE * numbers.shape[1])), []
    for now in covariates.in_bounds(numbers):
        state, told = OBSERVE(state, jnp.asarray(now[None]))
        found.append(np.asarray(told[0]))
    return np.stack(found)


def squashed(x: float) -> float:
    return KNEE * math.asinh(x / KNEE)


def naive(numbers: list[float]) -> list[list[float]]:
    """The same of one covariate, from its definition."""
    last = level = spread = change = 0.0
    seen, found = 0, []
    for now in numbers:
        known = not math.isnan(now)
        value = now if known else last + (level - last) / covariates.FADE
        moved = value - last if known and seen else 0.0
        if known:
            seen += 1
            level += (value - level) / min(seen, LEVEL_MEMORY)
            spread += (abs(value - level) - spread) / min(seen, LEVEL_MEMORY)
            change += (abs(moved) - change) / min(max(seen - 1, 1), SCALE_MEMORY)
        last = value
        floor = covariates.FLOOR * abs(value) + 1e-12
        far = (value - level) / max(spread, floor)
        found.append([squashed(far), squashed(moved / max(change, floor)), float(known)])
    return found


def walks(steps: int) -> np.ndarray:
    rng = np.random.default_rng(1)
    numbers = np.array([0.0, 50.0]) + np.cumsum(rng.normal(size=(steps, 2)), axis=0)
    numbers[rng.random(numbers.shape) < 0.3] = NAN
    return numbers


def test_each_tells_how_far_it_is_how_far_it_moved_and_whether_it_came() -> None:
    numbers = walks(700)
    found = signals(numbers)
    for i in range(2):
        np.testing.assert_allclose(found[:, i::2], naive(numbers[:, i].tolist()), rtol=1e-3, atol=2e-3)


def test_the_unit_does_not_matter() -> None:
    numbers = walks(100)
    np.testing.assert_allclose(signals(numbers), signals(numbers * [1e-9, 1e9]), rtol=1e-3, atol=1e-3)


def test_what_is_missing_fades_to_its_level_and_what_never_came_says_nothing() -> None:
    silence = [[NAN, NAN]] * 100
    found = signals(np.array([[NAN, NAN], [1.0, NAN], [3.0, NAN], *silence]))
    never, once = found[:, 1::2], found[:, ::2]
    assert not never.any()
    assert not once[0].any()
    assert once[2, 1] > 0
    assert once[2, 0] > once[3, 0] > 0.9 * once[2, 0]
    assert (np.diff(once[2:, 0]) < 0).all()
    assert 0 < once[-1, 0] < 0.01 * once[2, 0]
    assert not once[3:, 1:].any()


def test_whatever_comes_gives_finite_signals() -> None:
    numbers = np.array([0.0, 1e300, -1e300, 1e-300, NAN, 5.0, 5.0, math.inf, 1e18, 5.0])[:, None]
    found = signals(numbers)
    assert np.isfinite(found).all()
    assert np.abs(found).max() < np.finfo(np.float16).max


def test_without_covariates_nothing_is_computed() -> None:
    traced = jax.make_jaxpr(covariates.observe)(jnp.zeros((4, 0)), jnp.zeros((4, 0)))
    assert not traced.eqns
    assert [out.shape for out in traced.out_avals] == [(4, 0), (4, 0)]
