"""A jump to a new level takes the past along; a spike, a burst and a walk do not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from forecaster.core import shift
from forecaster.core.fold import Fold
from forecaster.core.grid import GridSpec
from forecaster.core.model import ModelSpec
from forecaster.core.shift import Shift
from forecaster.core.table import SeriesSpec
from forecaster.core.tick import Tick
from tests.folds import play

JUMP_AT, STEPS, JUMP = 300, 420, 30.0
NOISE = np.random.default_rng(0).normal(size=STEPS)


def levels(values: np.ndarray) -> tuple[np.ndarray, Shift]:
    """By how much each value moves the past; what the past tells is the mean of the 50 before it, moved along."""
    observe, past = jax.jit(shift.observe), values.copy()
    state, moved = Shift(*np.zeros((shift.STATE, 1), np.float32)), np.zeros(len(values))
    for n, value in enumerate(values):
        told = past[max(n - 50, 0) : n].mean() if n else value
        state, by = observe(state, np.array([value - told], np.float32), np.array([n]))
        moved[n] = np.asarray(by)[0]
        if moved[n]:
            past[: max(n + 1 - shift.CONFIRM, 0)] += moved[n]
    return moved, state


def test_the_fourth_value_at_a_new_level_makes_one_and_the_past_comes_along() -> None:
    moved, state = levels(NOISE + JUMP * (np.arange(STEPS) >= JUMP_AT))
    assert np.flatnonzero(moved).tolist() == [JUMP_AT + 3]
    assert abs(moved.sum() - JUMP) < 2
    assert float(state.since[0]) == STEPS - JUMP_AT
    ago = np.arange(STEPS - 1, -1, -1)[None]
    seen = np.asarray(shift.seen(state, jnp.zeros((1, STEPS)), jnp.asarray(ago)))[0]
    np.testing.assert_allclose(seen, np.where(np.arange(STEPS) < JUMP_AT, moved.sum(), 0.0), rtol=1e-5)


def test_only_forecasts_made_at_the_new_level_teach() -> None:
    _, state = levels(NOISE[: JUMP_AT + 6] + JUMP * (np.arange(JUMP_AT + 6) >= JUMP_AT))
    assert np.asarray(shift.here(state, 4))[:, 0].tolist() == [True, True, False, False]
    assert np.asarray(shift.here(Shift(*jnp.zeros((shift.STATE, 1))), 4)).all()


@pytest.mark.parametrize("length", [1, 2, 3])
def test_a_spike_makes_no_level(length: int) -> None:
    spike = (np.arange(STEPS) >= JUMP_AT) & (np.arange(STEPS) < JUMP_AT + length)
    assert not levels(NOISE + JUMP * spike)[0].any()


def test_a_value_back_at_the_level_before_takes_it_back_at_once() -> None:
    burst = (np.arange(STEPS) >= JUMP_AT) & (np.arange(STEPS) < JUMP_AT + 20)
    moved, state = levels(NOISE + JUMP * burst)
    assert np.flatnonzero(moved).tolist() == [JUMP_AT + 3, JUMP_AT + 20]
    assert moved.sum() == 0
    assert not float(state.since[0])


def test_where_levels_do_not_last_no_other_is_believed() -> None:
    values = np.random.default_rng(1).normal(size=3000)
    for start in range(300, 2900, 100):
        values[start : start + 8] += JUMP
    assert np.count_nonzero(levels(values)[0] > 0) < 6


@pytest.mark.parametrize("seed", range(3))
def test_noise_walks_and_on_and_off_have_one_level(seed: int) -> None:
    rng = np.random.default_rng(seed)
    steps = rng.normal(size=1000)
    for values in (
        steps,
        steps.cumsum(),
        rng.standard_t(4, 1000),
        10.0 * (np.arange(1000) // 15 % 2) + steps,
    ):
        assert not levels(values)[0].any()


def test_a_season_holds_at_a_new_level_from_the_fifth_tick_on() -> None:
    """Beside the same series that never jumped; no network serves."""
    spec = ModelSpec(horizon=6, levels=(0.1, 0.5, 0.9), context_length=16, warm_up=4, hidden=8)
    plain = 50 + 10 * np.sin(2 * np.pi * np.arange(STEPS) / 24) + 0.3 * NOISE
    series = {"plain": plain, "jumps": plain + JUMP * (np.arange(STEPS) >= JUMP_AT)}
    fold = Fold(spec, SeriesSpec(max_series=8), GridSpec())
    log = [Tick(name, 1.7e9 + i, float(values[i])) for i in range(STEPS) for name, values in series.items()]
    issued, _ = play(fold, log, 100)
    medians: dict[str, list[np.ndarray]] = {name: [] for name in series}
    for part in issued:
        for name, offset in zip(part.series, part.offset, strict=True):
            medians[name].append(offset[:, 1])
    apart = np.abs(np.array(medians["jumps"]) - np.array(medians["plain"]))
    assert apart[JUMP_AT : JUMP_AT + 3].max() > 5  # it may as well be a spike
    assert apart[JUMP_AT + 10 :].max() < 3
    assert apart[JUMP_AT + 5 :].mean() < 0.5
