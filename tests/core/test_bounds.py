"""Where a series stops: learned from outcomes, for series that stop alone, and unlearned when they go further."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forecaster.core import bounds, score, waiting
from forecaster.core.bounds import Bounds
from forecaster.core.calls import Shape
from forecaster.core.model import ModelSpec
from forecaster.core.tick import Tick
from tests.folds import make_fold, make_model

SPEC = ModelSpec(hidden=4, horizon=3, levels=(0.05, 0.5, 0.95), context_length=8, warm_up=4)
NEWBORN = Bounds(*jnp.zeros((bounds.STATE, 1)))


def forecasts(values: np.ndarray) -> np.ndarray:
    """All quantiles of one series after each of its values: (step, horizon, level)."""
    fold = make_fold(SPEC, rows=8, shapes=[Shape(1, 64, 1, 1)])
    ticks = [Tick("a", 60.0 * t, float(value)) for t, value in enumerate(values)]
    fold.admit(0, range(len(ticks)), ticks)
    issued = fold.run()
    return issued.last[:, None, None] + issued.offset


def follow(values: np.ndarray, reach: float) -> np.ndarray:
    """Limits after each value when every forecast reaches `reach` to both sides of the value before."""
    settled = jnp.ones((1, 1), bool)

    def step(state: tuple[Bounds, jax.Array], value: jax.Array) -> tuple[tuple[Bounds, jax.Array], jax.Array]:
        before, had = state
        ends = jnp.full((1, 1), -reach), jnp.full((1, 1), reach)
        after = bounds.observe(before, value[None], had, ends, settled)
        return (after, value[None, None]), jnp.stack(bounds.limits(after))[:, 0]

    start = NEWBORN, jnp.zeros((1, 1))
    return np.asarray(jax.jit(lambda v: jax.lax.scan(step, start, v))(jnp.asarray(values, jnp.float32))[1])


def test_a_counter_is_not_forecast_below_zero() -> None:
    rng = np.random.default_rng(0)
    counts = rng.poisson(1.0, 1500) * (rng.random(1500) < 0.5)
    found = forecasts(counts)
    assert found[:100].min() < -0.1  # nobody knows yet
    assert found[1000:].min() == 0
    assert found[1000:, :, 2].mean() > 1  # and the other side is as open as it was


@pytest.mark.parametrize("seed", range(3))
def test_a_random_walk_stops_nowhere(seed: int) -> None:
    values = np.cumsum(np.random.default_rng(seed).normal(size=2000))
    assert np.isinf(follow(values, 1.645)).mean() > 0.95


def test_a_bound_that_is_passed_is_soon_forgotten() -> None:
    rng = np.random.default_rng(1)
    before, after = np.abs(rng.normal(size=1000)), rng.normal(size=200)
    found = forecasts(np.concatenate([before, after]))
    low = found[:, 0, 0]
    assert low[900:1000].min() >= 0
    assert np.median(low[1100:]) < -0.5


def test_levels_that_tell_of_a_bound_leave_enough_outside() -> None:
    assert bounds.outer((0.05, 0.5, 0.95)) == (0, 2)
    assert bounds.outer((0.001, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999)) == (2, 4)
    assert bounds.outer((0.5,)) == (0, 0)


@settings(deadline=None)
@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=60, max_size=60), st.floats(0, 1e6, width=32))
def test_limits_hold_everything_that_was_seen(values: list[float], reach: float) -> None:
    found = follow(np.array([0.0, *values]), reach)
    seen = np.array([0.0, *values], np.float32)
    assert (found[:, 0] <= np.minimum.accumulate(seen)).all()
    assert (found[:, 1] >= np.maximum.accumulate(seen)).all()


def test_an_outcome_on_a_bound_is_inside_of_a_quantile_that_it_stopped() -> None:
    waited = jnp.asarray([[-1.0], [0.0], [2.0]])[None]
    ends = jnp.full((1, 1), -1.0), jnp.full((1, 1), 2.0)

    def fell(actual: float) -> list[float]:
        outcome = jnp.full((1, 1), actual)
        return bounds.settle(score.below(waited, outcome), waited, outcome, ends)[0, :, 0].tolist()

    assert fell(-1.0) == [0, 1, 1]  # not half
    assert fell(2.0) == [0, 0, 1]
    assert fell(0.5) == [0, 0, 1]
    assert fell(-1.1) == [1, 1, 1]  # beyond it
    assert fell(2.1) == [0, 0, 0]


@settings(deadline=None)
@given(
    st.lists(st.floats(-10, 10, width=32, allow_subnormal=False), min_size=5, max_size=5),
    st.floats(-5, 0),
    st.floats(0, 5),
)
def test_what_is_stopped_is_in_order_and_inside(said: list[float], low: float, high: float) -> None:
    ends = jnp.full(1, low), jnp.full(1, high)
    found = bounds.stop(jnp.asarray(sorted(said), jnp.float32)[:, None], ends)[:, 0]
    assert (np.diff(found) >= 0).all()
    assert np.float32(low) <= found.min()
    assert found.max() <= np.float32(high)


@pytest.mark.parametrize("bound", [-5.001, -1e-3, -3e4])
def test_what_rounding_leaves_short_of_a_bound_is_on_it(bound: float) -> None:
    quantile, ends = jnp.full((1, 1, 1), bound), (jnp.asarray([bound]), jnp.asarray([jnp.inf]))
    none = jnp.zeros((1, 1))
    _, waited = waiting.unpack(waiting.pack([none, none, none], quantile))
    assert bounds.stop(waited, ends) == jnp.float32(bound)


@settings(deadline=None)
@given(st.floats(-10, 10), st.floats(0, 1e-3), st.floats(-5, 0), st.floats(0, 5))
def test_what_hardly_differs_hardly_differs_once_stopped(
    said: float, more: float, low: float, high: float
) -> None:
    ends = jnp.full(1, low), jnp.full(1, high)
    one, other = bounds.stop(jnp.asarray([[said], [said + more]]), ends)[:, 0]
    assert abs(other - one) <= 2 * more + 1e-5


def test_a_wild_network_does_not_leave_by_far_what_a_series_has_been() -> None:
    """A series that falls from 100 to 0 for a while, as sensors do, and a network that makes a thousand of it."""
    rng = np.random.default_rng(2)
    values = 100 + rng.normal(size=300)
    values[200:215] = 0.0
    fold = make_fold(SPEC, rows=8, shapes=[Shape(1, 64, 1, 1)])
    wild = make_model(spec=SPEC)
    fold.swap(wild._replace(params={name: 10 * p for name, p in wild.params.items()}))
    fold.admit(0, range(len(values)), [Tick("a", 60.0 * t, float(v)) for t, v in enumerate(values)])
    issued = fold.run()
    found = issued.last[:, None, None] + issued.offset
    lowest, highest = np.minimum.accumulate(values), np.maximum.accumulate(values)
    beyond = np.maximum(highest - lowest, bounds.ROOM * SPEC.horizon * issued.scale)
    low, high = (lowest - beyond)[:, None, None], (highest + beyond)[:, None, None]
    assert (found >= low - 0.01).all()
    assert (found <= high + 0.01).all()
    there = (found <= low + 0.01) | (found >= high - 0.01)
    assert there.any(axis=(1, 2)).sum() >= 5  # until it has lost its weight
