"""Offsets that make quantiles honest: on a stationary stream, and soon again after its variance has tripled."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from forecaster.core import calibrate, score
from forecaster.core.calls import Shape
from forecaster.core.model import ModelSpec
from forecaster.core.tick import Tick
from tests.folds import make_fold

LEVELS = (0.05, 0.5, 0.95)


def stream(values: np.ndarray, said: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Forecast every value with the same quantiles, corrected as it goes: share below each, and the mean offset,
    both of the second half.
    """
    q = jnp.asarray(LEVELS, jnp.float32)
    given, unit, known = jnp.asarray(said)[None, :, None], jnp.ones((1, 1)), jnp.ones((1, 1), bool)

    def step(offset: jax.Array, actual: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        published = calibrate.correct(given, offset, 1)
        fell = score.below(published, actual.reshape(1, 1))
        return calibrate.settle(offset, fell - q[:, None], unit, known), (fell[0, :, 0], offset[0, :, 0])

    _, seen = jax.jit(lambda v: jax.lax.scan(step, jnp.zeros((1, 3, 1)), v))(jnp.asarray(values))
    fell, offset = (np.asarray(each)[len(values) // 2 :].mean(0) for each in seen)
    return fell, offset


@pytest.mark.parametrize("said", [(-0.2, 0.0, 0.2), (-9.0, 0.0, 9.0), (1.0, 2.0, 3.0)])
def test_wrong_quantiles_are_moved_until_misses_and_forgetting_balance(said: tuple[float, ...]) -> None:
    values = np.random.default_rng(5).normal(size=20_000).astype(np.float32)
    shares, offset = stream(values, np.asarray(said, np.float32))
    pull = calibrate.FADE / calibrate.RATE * offset  # of forgetting, in shares
    np.testing.assert_allclose(shares - LEVELS, -pull, atol=0.02)
    exact = np.asarray([-1.645, 0.0, 1.645])
    assert (np.abs(said + offset - exact) <= np.abs(said - exact) + 0.02).all()


def test_what_is_right_is_left_nearly_alone() -> None:
    values = np.random.default_rng(6).normal(size=5_000).astype(np.float32)
    _, offset = stream(values, np.asarray([-1.645, 0.0, 1.645], np.float32))
    assert np.abs(offset).max() < 0.2


def test_what_one_step_ahead_learns_the_others_learn_in_part() -> None:
    slope = jnp.asarray([0.5, 0.0]).reshape(2, 1, 1)
    unit, known = jnp.ones((2, 1)), jnp.ones((2, 1), bool)
    own, other = calibrate.settle(jnp.zeros((2, 1, 1)), slope, unit, known)[:, 0, 0]
    assert own < other < 0
    alone = calibrate.settle(jnp.zeros((2, 1, 1)), slope, unit, known.at[1].set(False))[:, 0, 0]
    np.testing.assert_allclose(alone, [own + other, 0.0], rtol=1e-5)  # the mean is over what settled


def test_only_what_settled_is_learned_from() -> None:
    offset = jnp.ones((1, 3, 2))
    slope = jnp.ones((1, 3, 2))
    moved = calibrate.settle(offset, slope, jnp.ones((1, 2)), jnp.asarray([[True, False]]))
    assert (moved[..., 0] < 1).all()
    np.testing.assert_array_equal(moved[..., 1], offset[..., 1])


def test_corrected_quantiles_are_in_order_and_keep_their_median() -> None:
    rng = np.random.default_rng(0)
    quantiles, offset = (jnp.asarray(rng.normal(size=(4, 3, 50)), jnp.float32) for _ in range(2))
    found = calibrate.correct(quantiles, offset, 1)
    assert (jnp.diff(found, axis=1) >= 0).all()
    np.testing.assert_allclose(found[:, 1], (quantiles + offset)[:, 1])


SERIES, CHANGE = 24, 1500


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", range(3))
def test_coverage_returns_after_the_variance_has_tripled(seed: int) -> None:
    """Random walks and noise around a level, through the whole fold: forecasts 500 to 1,500 after the change."""
    spec = ModelSpec(hidden=4, horizon=3, levels=(0.05, 0.5, 0.95), context_length=8, warm_up=4)
    fold = make_fold(spec, rows=32, shapes=[Shape(32, 8, 1, 1)])
    rng = np.random.default_rng(seed)
    steps = CHANGE + 1500 + spec.horizon
    shock = rng.normal(size=(steps, SERIES)) * np.where(np.arange(steps) < CHANGE, 1.0, 3**0.5)[:, None]
    walks = np.arange(SERIES) % 2 == 0
    values = 100 + np.where(walks, np.cumsum(shock, axis=0), shock)
    quantiles = np.empty((steps, SERIES, spec.horizon, 3))
    for start in range(0, steps, 64):
        part = values[start : start + 64]
        ticks = [
            Tick(f"s{i}", 60.0 * (start + t), float(v))
            for t, row in enumerate(part)
            for i, v in enumerate(row)
        ]
        fold.admit(0, range(start * SERIES, start * SERIES + len(ticks)), ticks)
        issued = fold.run()
        found = issued.last[:, None, None] + issued.offset
        quantiles[start : start + 64] = found.reshape(len(part), SERIES, spec.horizon, 3)

    def covered(origins: np.ndarray) -> float:
        """Share of what came that fell into the 90 % intervals made at these steps."""
        inside = []
        for h in range(1, spec.horizon + 1):
            actual, low, high = (
                values[origins + h],
                quantiles[origins, :, h - 1, 0],
                quantiles[origins, :, h - 1, 2],
            )
            inside.append((low <= actual) & (actual <= high))
        return float(np.mean(inside))

    assert 0.88 <= covered(np.arange(500, CHANGE - spec.horizon)) <= 0.92
    assert 0.88 <= covered(np.arange(CHANGE + 500, CHANGE + 1500)) <= 0.92
