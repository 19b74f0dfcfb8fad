"""What the network sees: causal, the same for all units and levels, finite for whatever stands still."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forecaster.core import features
from forecaster.core.features import LEAD, Running

STEPS = 120
OBSERVE, INPUTS = jax.jit(lambda *seen: features.observe(*seen)[0]), jax.jit(features.recurrent_inputs)
PERIODS = jnp.asarray([7, 24, 0, 0, 0, 0], jnp.int32)


def observed(
    values: np.ndarray, periods: jnp.ndarray = PERIODS, dt_s: float = 60.0, lent: float = 1.0
) -> list[Running]:
    """The running statistics after each step of one series."""
    running, found = features.newborn(jnp.asarray([lent])), []
    known = np.asarray(values, np.float32)
    for n in range(len(values)):
        past = np.concatenate([np.full(LEAD, known[0]), known[:n]])[-LEAD:]
        lags = [known[max(n - max(int(p), 1), 0)] for p in periods]
        running = OBSERVE(
            running,
            jnp.asarray([n]),
            jnp.asarray(known[n : n + 1]),
            jnp.asarray([dt_s if n else 0.0]),
            jnp.asarray(past[None]),
            jnp.asarray([lags]),
            periods,
        )
        found.append(running)
    return found


def inputs(values: np.ndarray, base: float, running: Running, time: int = 20) -> np.ndarray:
    """Recurrent inputs of the newest `time` steps; values are relative to the base."""
    known = np.asarray(values, np.float32)
    padded = np.concatenate([np.full(LEAD + time, known[0]), known])[-LEAD - time :]
    scale = np.asarray(features.running_scale(running, jnp.asarray(known[-1:])))
    found = INPUTS(
        jnp.asarray(padded[None]),
        jnp.full((1, time), scale[0]),
        jnp.full((1, time), 60.0),
        jnp.zeros((1, time)),
        jnp.asarray(np.stack([padded[LEAD - 7 : -7], padded[LEAD - 6 : -6]], axis=-1)[None]),
        jnp.asarray([base], jnp.float32),
        running,
        features.Season(jnp.asarray([7]), jnp.asarray([0.0]), jnp.asarray([0.5])),
    )
    return np.asarray(found[0])


def scale_of(running: Running) -> float:
    return float(features.running_scale(running, jnp.zeros(1))[0])


def season(steps: int = STEPS, period: int = 7, noise: float = 0.1, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.sin(2 * np.pi * np.arange(steps) / period) + noise * rng.normal(size=steps)


def test_the_running_scale_is_the_mean_change_lately() -> None:
    values = np.cumsum(np.random.default_rng(0).normal(size=STEPS)).astype(np.float32)
    changes = [abs(now - before) for before, now in pairwise(values.tolist())]
    scale = float(np.mean(changes[: features.OWN]))
    for n, change in enumerate(changes[features.OWN :], features.OWN + 1):
        scale += (change - scale) / min(n + features.PRIOR_STEPS, features.SCALE_MEMORY)
    found = observed(values)[-1]
    assert float(found.of("scale")[0]) == pytest.approx(scale, rel=1e-4)
    assert float(found.of("dt_s")[0]) == pytest.approx(60.0, rel=0.05)


def test_the_scale_has_a_floor_that_float32_can_resolve() -> None:
    found = observed(np.full(STEPS, 3e6), lent=0.0)[-1]
    assert float(found.of("scale")[0]) == 0.0
    assert scale_of(found) == pytest.approx(features.SCALE_FLOOR * 3e6)
    assert scale_of(observed(np.zeros(STEPS), lent=0.0)[-1]) > 0
    burst = observed(np.append(np.random.default_rng(0).normal(size=STEPS), np.zeros(STEPS)))[-1]
    assert scale_of(burst) >= 0.1 * float(burst.of("slow")[0])


@pytest.mark.parametrize("lent", [1e-9, 1e-3, 1e6])
@pytest.mark.parametrize("still", [0, 5, 40])
def test_a_lent_scale_is_forgotten_with_the_first_changes_of_its_own(lent: float, still: int) -> None:
    values = np.cumsum(np.random.default_rng(0).normal(size=STEPS)) * (np.arange(STEPS) >= still)
    known, fitting = (observed(values, lent=scale)[-1] for scale in (lent, 1.0))
    for name in ("scale", "slow", "fast"):
        np.testing.assert_allclose(known.of(name), fitting.of(name), rtol=1e-5)
    moved = np.abs(np.diff(values))
    assert float(known.of("slow")[0]) == pytest.approx(moved.mean(), rel=0.25)


@pytest.mark.parametrize("value", [-1e4, 65535.0, 1e9])
def test_a_single_bad_tick_leaves_the_scales_and_the_means_alone(value: float) -> None:
    values = np.cumsum(np.random.default_rng(1).normal(size=STEPS))
    bad = values.copy()
    bad[100] = value
    good, spoiled = observed(values)[-1], observed(bad)[-1]
    for name in ("scale", "slow", "fast", "level", "spread"):
        np.testing.assert_allclose(spoiled.of(name), good.of(name), rtol=0.3, err_msg=name)
    np.testing.assert_allclose(spoiled.mean, good.mean, atol=2.0)


def test_a_new_level_is_one_to_the_means_and_nothing_to_the_scale() -> None:
    values = np.cumsum(np.random.default_rng(1).normal(size=STEPS))
    shifted = values + 1e4 * (np.arange(STEPS) >= 60)
    before, after = observed(values)[-1], observed(shifted)[-1]
    np.testing.assert_allclose(after.of("scale"), before.of("scale"), rtol=0.1)
    assert abs(float(after.mean[0, 0]) - shifted[-1]) < 10  # the fastest of them


def test_changes_that_stay_a_thousand_times_as_large_are_the_scale_within_a_few_dozen() -> None:
    changes = np.random.default_rng(1).normal(size=STEPS)
    changes[60:] *= 1e3
    found = observed(np.cumsum(changes))
    assert scale_of(found[59]) < 2
    assert scale_of(found[-1]) == pytest.approx(np.abs(changes[70:]).mean(), rel=0.5)


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


def test_the_season_that_foretells_best_is_chosen() -> None:
    running = observed(season())[-1]
    best, second = features.choose_seasons(running, jnp.asarray([STEPS - 1]), PERIODS)
    assert (int(best.period[0]), int(second.period[0])) == (7, 24 if float(second.trust[0]) > 0 else 0)
    assert 0.5 < float(best.trust[0]) <= 1.0
    young, _ = features.choose_seasons(running, jnp.asarray([13]), PERIODS)
    assert int(young.period[0]) == 0  # not yet seen twice


def test_a_season_is_trusted_under_a_trend_and_a_trend_is_not_taken_for_one() -> None:
    trend = 0.5 * np.arange(STEPS)
    best, _ = features.choose_seasons(observed(season() + trend)[-1], jnp.asarray([STEPS - 1]), PERIODS)
    plain, _ = features.choose_seasons(observed(season())[-1], jnp.asarray([STEPS - 1]), PERIODS)
    assert int(best.period[0]) == 7
    assert float(best.trust[0]) == pytest.approx(float(plain.trust[0]), abs=0.05)
    assert float(best.drift[0]) == pytest.approx(7 * 0.5, rel=0.02)
    walk = trend + np.cumsum(0.3 * np.random.default_rng(0).normal(size=STEPS))
    none, _ = features.choose_seasons(observed(walk)[-1], jnp.asarray([STEPS - 1]), PERIODS)
    assert float(none.trust[0]) < 0.3


def test_a_walk_has_no_season() -> None:
    running = observed(np.cumsum(np.random.default_rng(0).normal(size=STEPS)))[-1]
    best, _ = features.choose_seasons(running, jnp.asarray([STEPS - 1]), PERIODS)
    assert float(best.trust[0]) < 0.3


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


def test_packed_statistics_are_unpacked_as_they_were() -> None:
    running = observed(season(30))[-1]
    for mine, theirs in zip(running, features.unpack(features.pack(running)), strict=True):
        np.testing.assert_array_equal(mine, theirs)


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
