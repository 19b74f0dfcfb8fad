"""What is known of a series: how much it changes and which seasons it has, whatever bad ticks and trends do."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from forecaster.core import stats
from forecaster.core.features import LEAD
from forecaster.core.stats import Running

STEPS = 120
OBSERVE = jax.jit(lambda *seen: stats.observe(*seen)[0])
PERIODS = jnp.asarray([7, 24, 0, 0, 0, 0], jnp.int32)


def observed(
    values: np.ndarray, periods: jnp.ndarray = PERIODS, dt_s: float = 60.0, lent: float = 1.0
) -> list[Running]:
    """The running statistics after each step of one series."""
    running, found = stats.newborn(jnp.asarray([lent])), []
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


def scale_of(running: Running) -> float:
    return float(stats.running_scale(running, jnp.zeros(1))[0])


def season(steps: int = STEPS, period: int = 7, noise: float = 0.1, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.sin(2 * np.pi * np.arange(steps) / period) + noise * rng.normal(size=steps)


def test_the_running_scale_is_the_mean_change_lately() -> None:
    values = np.cumsum(np.random.default_rng(0).normal(size=STEPS)).astype(np.float32)
    changes = [abs(now - before) for before, now in pairwise(values.tolist())]
    scale = float(np.mean(changes[: stats.OWN]))
    for n, change in enumerate(changes[stats.OWN :], stats.OWN + 1):
        scale += (change - scale) / min(n + stats.PRIOR_STEPS, stats.SCALE_MEMORY)
    found = observed(values)[-1]
    assert float(found.of("scale")[0]) == pytest.approx(scale, rel=1e-4)
    assert float(found.of("dt_s")[0]) == pytest.approx(60.0, rel=0.05)


def test_the_scale_has_a_floor_that_float32_can_resolve() -> None:
    found = observed(np.full(STEPS, 3e6), lent=0.0)[-1]
    assert float(found.of("scale")[0]) == 0.0
    assert scale_of(found) == pytest.approx(stats.SCALE_FLOOR * 3e6)
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


def test_the_season_that_foretells_best_is_chosen() -> None:
    running = observed(season())[-1]
    best, second = stats.choose_seasons(running, jnp.asarray([STEPS - 1]), PERIODS)
    assert (int(best.period[0]), int(second.period[0])) == (7, 24 if float(second.trust[0]) > 0 else 0)
    assert 0.5 < float(best.trust[0]) <= 1.0
    young, _ = stats.choose_seasons(running, jnp.asarray([13]), PERIODS)
    assert int(young.period[0]) == 0  # not yet seen twice


def test_a_season_is_trusted_under_a_trend_and_a_trend_is_not_taken_for_one() -> None:
    trend = 0.5 * np.arange(STEPS)
    best, _ = stats.choose_seasons(observed(season() + trend)[-1], jnp.asarray([STEPS - 1]), PERIODS)
    plain, _ = stats.choose_seasons(observed(season())[-1], jnp.asarray([STEPS - 1]), PERIODS)
    assert int(best.period[0]) == 7
    assert float(best.trust[0]) == pytest.approx(float(plain.trust[0]), abs=0.05)
    assert float(best.drift[0]) == pytest.approx(7 * 0.5, rel=0.02)
    walk = trend + np.cumsum(0.3 * np.random.default_rng(0).normal(size=STEPS))
    none, _ = stats.choose_seasons(observed(walk)[-1], jnp.asarray([STEPS - 1]), PERIODS)
    assert float(none.trust[0]) < 0.3


def test_a_walk_has_no_season() -> None:
    running = observed(np.cumsum(np.random.default_rng(0).normal(size=STEPS)))[-1]
    best, _ = stats.choose_seasons(running, jnp.asarray([STEPS - 1]), PERIODS)
    assert float(best.trust[0]) < 0.3


def test_packed_statistics_are_unpacked_as_they_were() -> None:
    running = observed(season(30))[-1]
    for mine, theirs in zip(running, stats.unpack(stats.pack(running)), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_a_sensor_that_hangs_goes_on_with_the_scale_that_it_had() -> None:
    before, hung = 100, 120
    walk = np.cumsum(np.random.default_rng(2).normal(size=before))
    found = observed(np.r_[walk, np.full(hung, walk[-1]), walk[-1] + 0.01])
    judged = found[before + stats.FAR_STEPS - 1]  # it has stood still for so long
    standing, moving = found[-2:]
    for name in ("slow", "still"):
        np.testing.assert_array_equal(standing.of(name), judged.of(name))
    assert scale_of(standing) < 0.2 * scale_of(found[before - 1])
    assert scale_of(moving) == float(judged.of("slow")[0])


def test_a_series_that_often_stands_still_forgets_its_scale_as_it_does() -> None:
    moves = np.arange(100) % 5 == 0
    walk = np.cumsum(np.random.default_rng(2).normal(size=100) * moves)
    found = observed(np.r_[walk, np.full(120, walk[-1])])
    assert float(found[-1].of("still")[0]) > float(found[99].of("still")[0]) > stats.OFTEN_STILL
    assert float(found[-1].of("slow")[0]) < 0.6 * float(found[99].of("slow")[0])
