"""What the network sees: causal, the same for all units and levels, finite for whatever stands still."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forecaster.core import features
from forecaster.core.features import LEAD
from forecaster.core.stats import Running, Season, running_scale
from tests.core.test_stats import STEPS, observed, scale_of, season

INPUTS = jax.jit(features.recurrent_inputs)


def inputs(values: np.ndarray, base: float, running: Running, time: int = 20) -> np.ndarray:
    """Recurrent inputs of the newest `time` steps; values are relative to the base."""
    known = np.asarray(values, np.float32)
    padded = np.concatenate([np.full(LEAD + time, known[0]), known])[-LEAD - time :]
    scale = np.asarray(running_scale(running, jnp.asarray(known[-1:])))
    found = INPUTS(
        jnp.asarray(padded[None]),
        jnp.full((1, time), scale[0]),
        jnp.full((1, time), 60.0),
        jnp.zeros((1, time)),
        jnp.asarray(np.stack([padded[LEAD - 7 : -7], padded[LEAD - 6 : -6]], axis=-1)[None]),
        jnp.asarray([base], jnp.float32),
        running,
        Season(jnp.asarray([7]), jnp.asarray([0.0]), jnp.asarray([0.5])),
    )
    return np.asarray(found[0])


@pytest.mark.parametrize("factor", [1e-5, 1e-2, 1e6])
@pytest.mark.parametrize("shift", [-100.0, 0.0, 3.3])
def test_inputs_do_not_know_the_unit_nor_the_level(factor: float, shift: float) -> None:
    values = season()
    one = inputs(values, 0.0, observed(values)[-1])
    moved = factor * (values - values[0])  # as the table holds them: relative to the first
    other = inputs(moved, factor * (values[0] + shift), observed(moved, lent=factor)[-1])
    same = [i for i in range(features.RECURRENT) if i != 15]  # number 15 is the level itself, in scales
    np.testing.assert_allclose(one[:, same], other[:, same], atol=5e-3)


@pytest.mark.parametrize("level", [1e-5, 1.0, 1e6])
def test_a_constant_series_gives_finite_inputs(level: float) -> None:
    running = observed(np.zeros(STEPS), lent=1e-3 * level)[-1]
    assert np.isfinite(inputs(np.zeros(STEPS), level, running)).all()


@pytest.mark.parametrize("time", [1, 20])
def test_inputs_at_a_step_read_nothing_after_it(time: int) -> None:
    """The running statistics are handed in; values after a step leave its inputs alone."""
    values = season()
    running = observed(values)[-1]
    one = inputs(values, 0.0, running, time)
    values[-1] += 0.0
    longer = inputs(values, 0.0, running, 20)
    np.testing.assert_allclose(one[-1], longer[-1], atol=1e-4)
    changed = values.copy()
    changed[-5:] += 50.0
    other = inputs(changed, 0.0, running, 20)
    assert scale_of(running) > 0
    np.testing.assert_allclose(longer[:15], other[:15], atol=1e-3)
    assert not np.allclose(longer[15:], other[15:], atol=0.5)


@settings(max_examples=40, deadline=None)
@given(period=st.integers(1, 100), horizon=st.sampled_from([1, 3, 12]))
def test_a_target_looks_at_its_own_place_in_earlier_cycles_never_ahead(period: int, horizon: int) -> None:
    lags = np.asarray(features.season_lags(jnp.asarray([period]), horizon, 3))[0]
    for cycle in range(3):
        for h in range(horizon + 1):
            lag = lags[cycle, h]
            assert lag >= 0
            assert (lag + h) % period == 0
            assert lag + h == period * (max(-(-h // period), 1) + cycle)


@settings(deadline=None)
@given(st.floats(-400, 400))
def test_unsquash_is_the_inverse_of_squash(x: float) -> None:
    assert float(features.unsquash(features.squash(jnp.asarray(x)))) == pytest.approx(x, rel=1e-4, abs=1e-4)


def test_squash_is_odd_rising_and_nearly_linear_near_zero() -> None:
    x = jnp.linspace(-1e4, 1e4, 2001)
    y = np.asarray(features.squash(x))
    assert (np.diff(y) > 0).all()
    np.testing.assert_allclose(y, -y[::-1], atol=1e-3)
    assert float(features.squash(jnp.asarray(0.1))) == pytest.approx(0.1, rel=1e-3)
    assert np.isfinite(np.asarray(features.unsquash(jnp.asarray([1e30, -1e30])))).all()


def test_overtones_are_those_of_the_calendar_and_silent_with_it() -> None:
    angle = jnp.asarray([0.3, 2.9])
    circle, nothing = (jnp.sin(angle), jnp.cos(angle)), (jnp.zeros(2), jnp.zeros(2))
    found = features.overtones((circle, nothing))
    expected = [f(k * angle) for k in (2, 3) for f in (np.sin, np.cos)]
    np.testing.assert_allclose(found[:, :4].T, expected, atol=1e-6)
    assert not found[:, 4:].any()


def test_the_calendar_is_silent_where_steps_are_too_long_for_it() -> None:
    day = features.DAY_S

    def at(dt_s: float) -> list[bool]:
        found = features.calendar(jnp.asarray([0.3]), jnp.asarray([dt_s]))
        return [bool((jnp.stack(pair) != 0).any()) for pair in found]

    assert [at(dt_s) for dt_s in (3600.0, day, 7 * day)] == [[True, True], [False, True], [False, False]]
