"""Drift: found soon after a rise, rarely without one, and never more often than the budget allows."""

import numpy as np
import pytest

from forecaster.core.drift import BLOCK, Drift, DriftSpec, observe, statistic

SPEC = DriftSpec.model_validate({})


def alarms(means: np.ndarray, spec: DriftSpec = SPEC) -> list[int]:
    """Blocks at which drift is found when the mean scaled error of each is as given."""
    state, found = Drift(), []
    for i, mean in enumerate(means.tolist()):
        state, drifted = observe(state, mean * BLOCK, BLOCK, spec, allowed=True)
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


def test_an_alarm_that_is_not_allowed_comes_as_soon_as_it_is() -> None:
    state = Drift()
    for i in range(60):
        state, found = observe(state, BLOCK * (1.0 if i < 30 else 3.0), BLOCK, SPEC, allowed=False)
        assert not found
    assert statistic(state, SPEC) > 1
    state, found = observe(state, BLOCK * 3.0, BLOCK, SPEC, allowed=True)
    assert found
    assert state == Drift()


def test_small_batches_add_up_to_blocks() -> None:
    whole, parts = Drift(), Drift()
    for i in range(60):
        mean = 1.0 if i < 30 else 3.0
        whole, at_once = observe(whole, mean * BLOCK, BLOCK, SPEC, allowed=True)
        piecewise = False
        for _ in range(4):
            parts, found = observe(parts, mean * BLOCK / 4, BLOCK / 4, SPEC, allowed=True)
            piecewise |= found
        assert piecewise == at_once
    assert parts == whole


def test_the_statistic_reaches_one_at_an_alarm() -> None:
    state = Drift()
    for i in range(40):
        state, found = observe(state, BLOCK * (1.0 if i < 30 else 1.8), BLOCK, SPEC, allowed=True)
        if found:
            break
        before = statistic(state, SPEC)
    assert found
    assert 0.5 < before <= 1.0


def test_errors_of_zero_do_no_harm() -> None:
    assert not alarms(np.zeros(100))
