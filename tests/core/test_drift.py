"""Drift: found soon after a rise, rarely without one, and never more often than the budget allows."""

from itertools import pairwise

import numpy as np
import pytest

from forecaster.core.drift import BLOCK, Drift, DriftSpec, observe, reset, statistic

SPEC = DriftSpec.model_validate({})


def alarms(means: np.ndarray, step_s: float = 60.0, spec: DriftSpec = SPEC) -> list[int]:
    """Blocks at which drift is found when the mean scaled error of each is as given."""
    state, found = Drift(), []
    for i, mean in enumerate(means.tolist()):
        state, drifted = observe(state, mean * BLOCK, BLOCK, i * step_s, spec)
        if drifted:
            found.append(i)
    return found


def noisy(levels: np.ndarray, seed: int) -> np.ndarray:
    """Block means as heavy-tailed errors give them."""
    return levels * np.random.default_rng(seed).lognormal(0.0, 0.1, len(levels))


@pytest.mark.parametrize("seed", range(5))
def test_a_rise_by_half_is_found_within_thirty_blocks(seed: int) -> None:
    found = alarms(noisy(np.r_[np.ones(200), np.full(100, 1.5)], seed))
    assert found
    assert 200 <= found[0] < 230


def test_no_false_alarm_in_three_thousand_blocks_of_twenty_seeds_together() -> None:
    found = [alarms(noisy(np.ones(150), seed)) for seed in range(20)]
    assert sum(map(len, found)) == 0


def test_a_fall_of_the_error_is_no_drift() -> None:
    assert not alarms(noisy(np.r_[np.full(100, 2.0), np.ones(200)], 0))


def test_one_wild_block_is_no_drift() -> None:
    levels = np.ones(200)
    levels[100] = 1e6
    assert not alarms(noisy(levels, 1))


def test_no_more_alarms_than_the_budget_in_any_hour() -> None:
    rising = np.exp(0.2 * np.arange(2000))
    found = alarms(np.minimum(rising, 1e300), step_s=10.0)
    assert len(found) > 2
    third = zip(found, found[2:], strict=False)
    assert all((later - first) * 10.0 >= 3600.0 for first, later in third)
    assert all(one < two for one, two in pairwise(found))


def test_small_batches_add_up_to_blocks() -> None:
    whole, parts = Drift(), Drift()
    for i in range(60):
        mean = 1.0 if i < 30 else 3.0
        whole, at_once = observe(whole, mean * BLOCK, BLOCK, float(i), SPEC)
        piecewise = False
        for _ in range(4):
            parts, found = observe(parts, mean * BLOCK / 4, BLOCK / 4, float(i), SPEC)
            piecewise |= found
        assert piecewise == at_once
    assert parts == whole


def test_the_statistic_reaches_one_at_an_alarm_and_restarts_after_a_swap() -> None:
    state = Drift()
    for i in range(40):
        state, found = observe(state, BLOCK * (1.0 if i < 30 else 1.8), BLOCK, float(i), SPEC)
        if found:
            break
        before = statistic(state, SPEC)
    assert found
    assert 0.5 < before <= 1.0
    assert statistic(reset(state), SPEC) == 0.0
    assert reset(state).alarms_s == state.alarms_s


def test_errors_of_zero_do_no_harm() -> None:
    assert not alarms(np.zeros(100))
