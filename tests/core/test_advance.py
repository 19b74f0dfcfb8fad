"""One step of the fold: padding and rows that take no part change nothing; what newborn series are lent."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from forecaster.core import birth, row, table
from forecaster.core.birth import MATURE, Loan
from forecaster.core.fold import Fold
from forecaster.core.model import ModelSpec
from forecaster.core.perceive import Steps
from tests.folds import LANES, ROUNDS, ROWS, SPEC, make_fold, make_model, merged, play, walk

LEND = jax.jit(partial(birth.lend, SPEC))


def grown(steps: int = 50) -> Fold:
    fold = make_fold()
    fold.swap(make_model())
    play(fold, merged(*(walk(f"s{i}", steps, i, 100.0 * (i + 1)) for i in range(3))))
    return fold


def steps(values: list[float], valid: list[bool]) -> Steps:
    """One step for each of LANES rows; those that are missing are padding."""
    missing = LANES - len(values)
    real = np.full(LANES, 5.0, np.float32)
    value = np.asarray([*values, *[-9e9] * missing], np.float32)
    live, real_one = np.ones(LANES, bool), np.asarray([*valid, *[False] * missing])
    return Steps(value, real, 0.1 * real, live, real_one, real_one, np.zeros((LANES, 0), np.float32))


def lanes(*rows: int) -> np.ndarray:
    return np.asarray([*rows, *[ROWS] * (LANES - len(rows))], np.int32)


def test_a_row_of_the_defaults_takes_at_most_10_kb() -> None:
    rows = table.empty(row.layout(ModelSpec()), 8)
    assert sum(column.nbytes for column in rows) / 8 <= 10 * 1024


def test_padding_changes_neither_forecasts_nor_scores_nor_the_table() -> None:
    fold = grown()
    run = fold._program("advance", LANES)
    alone = [
        run(fold._default.serving, fold.rows, lanes(row), steps([v], [True]))
        for row, v in ((2, 1.0), (0, 2.0))
    ]
    idx = lanes(2, 0)
    changes, told, scores = run(fold._default.serving, fold.rows, idx, steps([1.0, 2.0], [True, True]))
    for i, mine in enumerate(alone):
        for expected, found in zip(mine[1], told, strict=True):
            np.testing.assert_allclose(expected[0], found[i], rtol=1e-5, atol=1e-6)
    for i, found in enumerate(scores):
        np.testing.assert_allclose(alone[0][2][i] + alone[1][2][i], found, rtol=1e-5)
    after = table.write(fold.rows, idx, changes)
    others = np.asarray([1, *range(3, ROWS)])
    for before, now in zip(fold.rows, after, strict=True):
        np.testing.assert_array_equal(before[others], now[others])
    assert after.count[idx[:2]].tolist() == (fold.rows.count[idx[:2]] + 1).tolist()


def test_a_round_without_a_step_leaves_its_row_alone() -> None:
    """Three rounds of two series, of which the second has a step in the middle one only."""
    fold = grown()
    once, idx = fold._program("advance", LANES), lanes(0, 1)
    valid = [[True, False], [True, True], [True, False]]
    rounds = [steps([1.0 + r, 2.0], valid[r]) for r in range(3)]
    unused = [steps([], [])] * (ROUNDS - 3)
    stacked = jax.tree.map(lambda *x: np.stack(x), *rounds, *unused)
    local, forecasts, scores = fold._program("rounds", LANES)(
        fold._default.serving, fold.rows, idx, stacked, np.int32(3)
    )
    rows, count = fold.rows, 0.0
    for r in range(3):
        some = np.flatnonzero(valid[r])
        changes, told, settled = once(fold._default.serving, rows, idx, rounds[r])
        rows = table.write(rows, np.where(rounds[r].valid, idx, ROWS), changes)
        count += float(settled.count[0])
        np.testing.assert_allclose(forecasts.offset[r][some], told.offset[some], rtol=2e-3, atol=1e-4)
    for mine, theirs in zip(local, rows, strict=True):
        np.testing.assert_allclose(
            np.asarray(mine[:2], np.float32), np.asarray(theirs[:2], np.float32), rtol=5e-3, atol=5e-3
        )
    assert float(scores.count[0]) == count == 4.0


def test_what_was_corrected_without_a_network_is_forgotten_at_its_first_word() -> None:
    fold = make_fold()
    play(fold, walk("s", 60, 1))
    assert np.asarray(fold.rows.offset[0]).any()
    fold.swap(make_model())
    play(fold, walk("s", 61, 1)[60:], first=60)
    assert not np.asarray(fold.rows.offset[0]).any()
    play(fold, walk("s", 65, 1)[61:], first=61)
    assert np.asarray(fold.rows.offset[0]).any()


def test_a_loan_is_the_mean_of_what_the_grown_up_know() -> None:
    fold = grown(MATURE + 5)
    play(fold, walk("young", MATURE - 5, 9), first=1000)
    idx = jnp.asarray([0, 1, 2, 3, ROWS])
    loan = LEND(fold.rows, idx, jnp.asarray([True, True, True, True, False]))
    np.testing.assert_allclose(loan.blend, np.asarray(fold.rows.blend[:3]).mean(0), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(loan.offset, np.asarray(fold.rows.offset[:3]).mean(0), rtol=1e-5, atol=1e-7)
    scale = np.asarray(fold.rows.running[:3, 0], np.float64)
    newest = [
        float(fold.rows.value[i, (int(fold.rows.count[i]) - 1) % fold.rows.value.shape[1]]) for i in range(3)
    ]
    size = np.abs(np.asarray(newest) + np.asarray(fold.rows.base[:3]))
    assert float(loan.scale) == pytest.approx(float(np.exp(np.log(scale / size).mean())), rel=1e-4)
    assert float(loan.step) == pytest.approx(float(np.exp(np.log(scale).mean())), rel=1e-4)


def test_while_nobody_is_grown_up_a_newborn_is_a_random_walk() -> None:
    fold = grown(MATURE - 1)
    loan = LEND(fold.rows, jnp.asarray([0, 1, 2]), jnp.ones(3, bool))
    for mine, theirs in zip(loan, birth.unlent(SPEC), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    np.testing.assert_allclose(loan.blend[0, 0], np.sqrt(np.arange(1, SPEC.horizon + 1)), rtol=1e-6)


def test_planting_starts_rows_anew_and_touches_no_others() -> None:
    fold = grown()
    loan = jax.tree.map(lambda x: jnp.stack([x, x]), birth.unlent(SPEC))
    assert isinstance(loan, Loan)
    planted = birth.plant(fold.rows, jnp.asarray([1, ROWS]), jnp.asarray([-200.0, 5.0]), loan)
    others = np.asarray([0, *range(2, ROWS)])
    for before, now in zip(fold.rows, planted, strict=True):
        np.testing.assert_array_equal(before[others], now[others])
    assert (int(planted.count[1]), float(planted.base[1])) == (0, -200.0)
    assert not planted.carry[1].any()
    assert float(planted.running[1, 0]) == pytest.approx(0.2)
    lent = loan._replace(step=jnp.full(2, 3.0))
    at_nothing = birth.plant(fold.rows, jnp.asarray([1, 2]), jnp.asarray([0.0, 1e-9]), lent)
    np.testing.assert_allclose(at_nothing.running[1:3, 0], [3.0, 1e-12], rtol=1e-5)
