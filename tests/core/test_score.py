"""Scores against numpy by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from forecaster.core import score

LEVELS = (0.1, 0.5, 0.9)


def test_the_loss_is_the_mean_over_levels_without_a_factor_of_two() -> None:
    quantiles = jnp.asarray([[0.0], [1.0], [4.0]])
    loss = score.pinball_loss(quantiles, jnp.asarray([2.0]), jnp.asarray(LEVELS))
    expected = (0.1 * 2.0 + 0.5 * 1.0 + 0.1 * 2.0) / 3
    assert float(loss[0]) == pytest.approx(expected)


def test_what_comes_on_a_quantile_counts_half() -> None:
    found = score.below(jnp.asarray([[0.0], [2.0], [4.0]]), jnp.asarray([2.0]))
    assert found.tolist() == [[0.0], [0.5], [1.0]]


def test_sums_are_those_of_numpy() -> None:
    rng = np.random.default_rng(3)
    quantiles = np.sort(rng.normal(size=(4, 3, 20)), axis=1).astype(np.float32)
    actual = rng.normal(size=(4, 20)).astype(np.float32)
    settled = rng.random((4, 20)) < 0.7
    found = score.score(jnp.asarray(quantiles), jnp.asarray(actual), jnp.asarray(settled), LEVELS)
    for h in range(4):
        q, a = quantiles[h][:, settled[h]].T, actual[h, settled[h]]
        loss = [
            sum(max(level * (x - p), (level - 1) * (x - p)) for level, p in zip(LEVELS, row, strict=True)) / 3
            for row, x in zip(q, a, strict=True)
        ]
        assert float(found.count[h]) == len(a)
        assert float(found.error[h]) == pytest.approx(np.abs(a - q[:, 1]).sum(), rel=1e-5)
        assert float(found.last_error[h]) == pytest.approx(np.abs(a).sum(), rel=1e-5)
        assert float(found.pinball[h]) == pytest.approx(sum(loss), rel=1e-5)
        np.testing.assert_allclose(found.below[h], (a[:, None] < q).sum(0), rtol=1e-6)


@pytest.mark.parametrize("junk", [np.nan, np.inf])
def test_what_is_not_settled_may_hold_anything(junk: float) -> None:
    quantiles = jnp.full((1, 3, 2), junk).at[..., 0].set(0.0)
    actual = jnp.asarray([[1.0, junk]])
    found = score.score(quantiles, actual, jnp.asarray([[True, False]]), LEVELS)
    assert [float(x) for x in (found.count[0], found.error[0], found.last_error[0])] == [1.0, 1.0, 1.0]
    assert np.isfinite(np.asarray(found.pinball)).all()


def test_one_error_adds_no_more_than_the_cap() -> None:
    quantiles, actual = jnp.zeros((1, 3, 2)), jnp.asarray([[1e9, 2.0]])
    found = score.score(quantiles, actual, jnp.ones((1, 2), bool), LEVELS)
    assert float(found.error[0]) == float(found.last_error[0]) == score.CAP + 2.0
    assert float(found.pinball[0]) == score.CAP + 1.0


def test_an_anomaly_is_measured_against_the_half_of_the_interval_it_fell_in() -> None:
    quantiles = jnp.asarray([[-1.0, 0.0, 4.0]] * 4 + [[0.0, 0.0, 0.0]]).T
    found = score.anomaly(quantiles, jnp.asarray([0.0, 4.0, -1.0, 8.0, 0.0]), 1)
    np.testing.assert_allclose(found, [0.0, 1.0, 1.0, 2.0, 0.0], atol=1e-6)


def test_where_a_constant_series_moves_the_anomaly_is_as_large_as_it_gets_and_no_larger() -> None:
    """So that neither a mean nor an axis of anomalies is of that one tick alone."""
    still = jnp.zeros((3, 4))
    found = score.anomaly(still, jnp.asarray([0.0, 1e-3, 1e12, -jnp.inf]), 1)
    np.testing.assert_allclose(found, [0.0, 1e3, 1e3, 1e3])


def test_there_is_no_anomaly_on_a_side_without_quantiles() -> None:
    outcomes = jnp.asarray([-2.0, 2.0])
    for levels, median, expected in (
        ([[0.0]], 0, [np.nan, np.nan]),  # (0.5,)
        ([[0.0], [4.0]], 0, [np.nan, 0.5]),  # (0.5, 0.9)
        ([[-4.0], [0.0]], 1, [0.5, np.nan]),  # (0.1, 0.5)
    ):
        quantiles = jnp.asarray(levels) * jnp.ones(2)
        np.testing.assert_allclose(score.anomaly(quantiles, outcomes, median), expected)
