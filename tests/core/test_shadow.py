"""What both models lose on copies of rows is what they would have lost serving, and serving does not notice."""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
import pytest
from jax import monitoring

from forecaster.core.fold import Fold
from forecaster.core.grid import GridSpec
from forecaster.core.model import Card, Model
from forecaster.core.programs import needed
from forecaster.core.shadow import ROWS, Shadow
from forecaster.core.tick import Tick
from forecaster.core.trial import Losses
from tests.folds import SHAPES, SPEC, make_fold, make_model, merged, play, same_forecasts, walk

SERIES = 5
BLOCK = SERIES * SPEC.horizon


def far_off(version: str = "bad") -> Model:
    """A network whose every forecast is far too high."""
    good = make_model(version)
    params = good.params | {"out.bias": jnp.full_like(good.params["out.bias"], 20.0)}
    return good._replace(params=params, card=Card(version=version))


def ticks(steps: int, series: int = SERIES) -> list[Tick]:
    return merged(*(walk(f"s{i}", steps, seed=i) for i in range(series)))


def swapped(before: Model, model: Model, past: list[Tick], spare: int = ROWS, **changes: object) -> Fold:
    """A fold in which `model` has just taken over from `before`, which served all that is past."""
    fold = make_fold(spare=spare, **changes)  # type: ignore[arg-type]
    fold.swap(before)
    play(fold, past)
    fold.swap(model)
    return fold


def judged(shadow: Shadow, fold: Fold, some: list[Tick], first: int, batch: int = BLOCK) -> list[Losses]:
    """Blocks that come to their end while the fold takes in ticks, and what is left in the open one."""
    found = []
    for start in range(0, len(some), batch):
        play(fold, some[start : start + batch], first=first + start)
        found.append(shadow.turn(idle=True))
    found += [shadow.turn(idle=True), shadow.turn(idle=True), shadow._losses]
    return [block for block in found if block is not None]


def test_both_lose_what_they_would_have_lost_serving() -> None:
    before, model, all_ticks = make_model("v1", seed=1), make_model("v2", seed=2), ticks(80)
    past, then = all_ticks[:150], all_ticks[150:]
    fold = swapped(before, model, past)
    shadow = Shadow(fold, model, before)
    blocks = judged(shadow, fold, then, len(past))
    assert len(blocks) - 1 >= len(then) // BLOCK

    served = swapped(before, model, past, spare=0)
    stayed = swapped(before, before, past, spare=0)
    for name, other in (("model", served), ("before", stayed)):
        issued, _ = play(other, then, 40, first=len(past))
        lost = sum(float(part.scores.pinball.sum()) for part in issued)
        assert sum(getattr(block, name) for block in blocks) == pytest.approx(lost, rel=1e-4)


def test_a_model_that_is_far_off_loses_more_until_the_mix_is_rid_of_it() -> None:
    before, model, all_ticks = make_model("v1"), far_off(), ticks(80)
    fold = swapped(before, model, all_ticks[:150])
    first, second, third, *_ = judged(Shadow(fold, model, before), fold, all_ticks[150:], 150)
    assert first.model > 3 * first.before
    assert second.model > 1.5 * second.before
    assert third.model < 1.2 * third.before


def test_serving_does_not_notice() -> None:
    before, model, all_ticks = make_model("v1"), make_model("v2", seed=2), ticks(60)
    past, then = all_ticks[:100], all_ticks[100:]
    fold, alone = swapped(before, model, past), swapped(before, model, past)
    shadow = Shadow(fold, model, before)
    parts = []
    for start in range(0, len(then), 20):
        parts += play(fold, then[start : start + 20], first=len(past) + start)[0]
        shadow.turn(idle=start % 40 == 0)
    same_forecasts(parts, play(alone, then, 20, first=len(past))[0])


def test_nothing_is_compiled_for_it() -> None:
    before, model, all_ticks = make_model("v1"), make_model("v2", seed=2), ticks(60)
    fold = swapped(before, model, all_ticks[:100])
    fold.compile()
    play(fold, all_ticks[100:200], first=100)
    compiled: list[str] = []

    def listen(event: str, _: float, **__: str | int) -> None:
        if event.endswith("backend_compile_duration"):
            compiled.append(event)

    monitoring.register_event_duration_secs_listener(listen)
    try:
        judged(Shadow(fold, model, before), fold, all_ticks[200:], 200)
    finally:
        monitoring.unregister_event_duration_listener(listen)
    assert not compiled
    assert fold._programs.keys() == set(needed(SHAPES))


def test_busy_steps_wait_until_they_are_worth_a_call() -> None:
    before, model, all_ticks = make_model("v1"), make_model("v2", seed=2), ticks(200)
    fold = swapped(before, model, all_ticks[:100])
    shadow = Shadow(fold, model, before)
    taken = []
    beside = fold.beside
    fold.beside = lambda work, served: taken.append(len(work.row)) or beside(work, served)  # type: ignore[method-assign]
    for start in (100, 107, 114, 121):
        play(fold, all_ticks[start : start + 7], first=start)
        shadow.turn(idle=False)
    assert taken == [BLOCK, BLOCK], "both models take in a block's steps"
    for _ in range(3):
        shadow.turn(idle=True)
    assert taken == [BLOCK, BLOCK, 13, 13]


def restarted(fold: Fold) -> None:
    """A gap that is longer than a row lives through."""
    play(
        fold, [Tick("s0", 1.8e9, 5.0), Tick("s0", 1.8e9 + 30, 5.0), Tick("s0", 1.8e9 + 60, 5.0)], first=10_000
    )


def moved_away(fold: Fold) -> None:
    """Another series gets the row."""
    fold.drop(0)
    names = [f"n{i}" for i in range(SERIES)]
    for late_s in (0, 30, 60):
        play(fold, [Tick(name, 1.8e9 + late_s, 5.0) for name in names], first=10_000 + late_s, partition=1)


@pytest.mark.parametrize(("happens", "left"), [(restarted, SERIES - 1), (moved_away, 0)])
def test_a_row_that_is_another_life_or_series_leaves_the_sample(
    happens: Callable[[Fold], None], left: int
) -> None:
    before, model, past = make_model("v1"), make_model("v2", seed=2), ticks(20)
    fold = swapped(before, model, past, grid=GridSpec(interval_s=20.0, close_by="series"))
    shadow = Shadow(fold, model, before)
    play(fold, [Tick(t.series, t.time_s + 1000, t.value) for t in past], first=len(past))
    assert sum(len(work.row) for work in shadow._waiting)
    happens(fold)
    assert np.count_nonzero(shadow._place >= 0) == left


def test_the_sample_is_the_same_whatever_the_order_and_at_most_so_many() -> None:
    fold, turned = make_fold(rows=16, spare=ROWS), make_fold(rows=16, spare=ROWS)
    some = ticks(2, series=12)
    play(fold, some)
    play(turned, sorted(some, key=lambda tick: (tick.series[::-1], tick.time_s), reverse=False))
    first, second = ([series.name for _, series in f.index.sample(7, [0])] for f in (fold, turned))
    assert first == second
    assert len(first) == 7
    assert len(fold.index.sample(100, [0])) == 12
    assert fold.index.sample(100, []) == []


def test_it_ends_with_close() -> None:
    before, model, past = make_model("v1"), make_model("v2", seed=2), ticks(20)
    fold = swapped(before, model, past)
    shadow = Shadow(fold, model, before)
    shadow.close()
    play(fold, [Tick(t.series, t.time_s + 1000, t.value) for t in past], first=len(past))
    assert shadow.turn(idle=True) is None
    assert not shadow._waiting
