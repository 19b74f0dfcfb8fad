"""The plan of a batch: every step runs once and in the order of its series; the busy ones do not make the rest wait."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forecaster.core.calls import Call, plan
from forecaster.core.programs import FEW, SHAPES, shapes_for

WIDE, DEEP, ALONE = SHAPES


def cost_us(calls: list[Call]) -> float:
    return sum(call.shape.call_us + call.rounds * call.shape.round_us for call in calls)


@pytest.mark.parametrize("seed", range(5))
def test_every_step_runs_once_and_after_those_before_it(seed: int) -> None:
    rng = np.random.default_rng(seed)
    lengths = np.ceil(rng.pareto(0.8, rng.integers(1, 600)) + 0.01).clip(1, 700).astype(np.int64)
    done = np.zeros_like(lengths)
    for call in plan(lengths, SHAPES):
        assert len(set(call.chains.tolist())) == len(call.chains) <= call.shape.lanes
        assert 1 <= call.rounds <= call.shape.rounds
        assert (call.steps >= 1).all()
        assert call.steps.max() == call.rounds
        np.testing.assert_array_equal(call.first, done[call.chains])
        done[call.chains] += call.steps
    np.testing.assert_array_equal(done, lengths)


@given(st.lists(st.integers(1, 300), min_size=1, max_size=FEW))
def test_few_series_never_call_the_wide_program(steps: list[int]) -> None:
    assert WIDE not in [call.shape for call in plan(np.array(steps, np.int64), SHAPES)]


def test_few_series_take_a_step_each_in_one_call() -> None:
    assert shapes_for(FEW) == (DEEP,)
    assert [call.rounds for call in plan(np.ones(FEW, np.int64), shapes_for(FEW))] == [1]


def test_one_more_series_has_all_shapes() -> None:
    assert shapes_for(FEW + 1) == SHAPES
    assert WIDE in [call.shape for call in plan(np.ones(FEW + 1, np.int64), SHAPES)]


def test_nothing_to_do_is_no_call() -> None:
    assert list(plan(np.zeros(0, np.int64), SHAPES)) == []


def test_a_busy_series_goes_on_alone() -> None:
    lengths = np.array([1] * 300 + [1000], np.int64)
    calls = list(plan(lengths, SHAPES))
    alone = sum(call.rounds for call in calls if call.shape is ALONE)
    assert alone > 900
    quickest_us = cost_us(list(plan(np.array([1000]), [ALONE]))) + cost_us(list(plan(lengths[:300], [WIDE])))
    assert cost_us(calls) <= 1.1 * quickest_us


def test_many_series_of_a_step_each_run_side_by_side() -> None:
    calls = list(plan(np.ones(2 * WIDE.lanes, np.int64), SHAPES))
    assert [call.shape for call in calls] == [WIDE, WIDE]
