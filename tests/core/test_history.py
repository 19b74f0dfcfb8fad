"""Examples against plain Python, against serving itself, and against a changed future; seasons that were planted."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forecaster.core import features, model, stats
from forecaster.core import history as history_module
from forecaster.core.birth import unlent
from forecaster.core.calls import Shape
from forecaster.core.fold import Fold
from forecaster.core.grid import GridSpec
from forecaster.core.history import (
    SILENCE,
    SILENT_COVARIATES,
    SILENT_SHARE,
    WEIGHT_CAP,
    Examples,
    HistorySpec,
    Role,
    Slice,
    Span,
    find_periods,
    prepare,
)
from forecaster.core.model import Card, Model, ModelSpec
from forecaster.core.table import SeriesSpec
from forecaster.core.tick import Tick

SHAPE = ModelSpec(hidden=8, horizon=3, warm_up=4, context_length=16, covariates=("load", "wind"))
SPEC = HistorySpec(burn_in=4, span=8, holdout_ratio=0.25)
NO_PERIODS = np.zeros(stats.SEASONS, np.int32)
PERIODS = np.array([7, 5, 0, 0, 0, 0], np.int32)


def walk(steps: int, seed: int = 0, name: str = "a", scale: float = 1.0, start: float = 0.0) -> Slice:
    rng = np.random.default_rng(seed)
    times = 1.7e9 + np.cumsum(rng.exponential(10.0, steps))
    return Slice(name, times, start + scale * np.cumsum(rng.normal(size=steps)))


def seasonal(steps: int, period: float, noise: float, seed: int = 0) -> Slice:
    rng = np.random.default_rng(seed)
    t = np.arange(steps)
    return Slice(
        f"s{seed}", 1.7e9 + 3600.0 * t, np.sin(2 * np.pi * t / period) + noise * rng.normal(size=steps)
    )


def accompanied(part: Slice, seed: int = 0) -> Slice:
    """The same with two covariates, now and then missing."""
    rng = np.random.default_rng(seed)
    numbers = rng.normal(size=(len(part.value), 2)) * [1.0, 1e6]
    return part._replace(covariates=np.where(rng.random(numbers.shape) < 0.2, np.nan, numbers))


def naive_scales(value: np.ndarray) -> list[float]:
    """The running scale after each step, as `stats` describes it, in plain Python."""
    lent = float(np.abs(np.diff(value[:8])).mean()) if len(value) > 1 else 0.0
    lately = slow = max(lent, 1e-12)
    scales = []
    for n, now in enumerate(value.tolist()):
        if n:
            size = abs(now - value[n - 1])
            lately += (size - lately) / min(n + stats.PRIOR_STEPS, stats.SCALE_MEMORY)
            slow += (size - slow) / min(n + stats.PRIOR_STEPS, stats.SLOW_MEMORY)
        if n == stats.OWN:
            lately = slow = float(np.abs(np.diff(value[: n + 1])).mean())
        scales.append(max(lately, stats.SLOW_SHARE * slow))
    return scales


def test_what_tells_the_time_of_a_cycle_is_what_changes_with_the_clock_alone() -> None:
    """The same series five hours, and three days, later."""
    shape, day = SHAPE.model_copy(update={"covariates": ()}), features.DAY_S
    part = seasonal(24 * 21, 24, 0.3)
    now, *later = (
        prepare([part._replace(time_s=part.time_s + shift)], SPEC, shape, PERIODS)
        for shift in (0.0, 5 * 3600.0, 3 * day)
    )
    for other, cycles in zip(later, ([0, 1], [1]), strict=True):
        for column, expected in enumerate(features.calendar_inputs(cycles)):
            changed = (np.abs(now[column] - other[column]) > 1e-3).any(0)
            np.testing.assert_array_equal(np.flatnonzero(changed), np.sort(np.arange(len(changed))[expected]))
    assert now.span_s == pytest.approx(21 * day - 3600)


@settings(max_examples=25, deadline=None)
@given(lengths=st.lists(st.integers(1, 60), min_size=1, max_size=4), seed=st.integers(0, 100))
def test_targets_roles_and_weights_are_those_of_plain_python(lengths: list[int], seed: int) -> None:
    history = [walk(n, seed + i, f"s{i}", 10.0**i) for i, n in enumerate(lengths)]
    examples = prepare(history, SPEC, SHAPE, NO_PERIODS)
    assert (examples.end - examples.begin).tolist() == lengths
    for part, begin in zip(history, examples.begin, strict=True):
        n, value = len(part.value), part.value
        scales, split = naive_scales(value), n - round(n * SPEC.holdout_ratio)
        usual = float(np.mean(scales[:split])) if split else 0.0
        for t in range(n):
            row = begin + t
            known = [t + h < n for h in (1, 2, 3)]
            targets = [(value[t + h] - value[t]) / scales[t] if t + h < n else 0.0 for h in (1, 2, 3)]
            assert examples.known[row].tolist() == known
            np.testing.assert_allclose(
                examples.target[row], np.clip(targets, -1e3, 1e3), rtol=2e-4, atol=1e-4
            )
            expected = Role.HOLDOUT if t >= split else Role.TRAIN if t + 3 < split else Role.NONE
            assert examples.role[row] == (expected if t + 1 >= SHAPE.warm_up else Role.NONE)
            if usual > 0:
                weight = min(scales[t] / usual, WEIGHT_CAP)
                assert examples.weight[row] == pytest.approx(weight, rel=1e-4)


def squashed(x: np.ndarray) -> np.ndarray:
    return features.KNEE * np.arcsinh(x / features.KNEE)


def test_direct_inputs_are_lags_and_the_values_a_season_before_the_targets() -> None:
    part = seasonal(120, 7, 0.05)
    examples = prepare([part], SPEC, SHAPE, PERIODS)
    value, t = part.value, 110
    scale = naive_scales(value)[t]
    lags = [(value[t - k] - value[t]) / scale for k in range(features.LAGS, 0, -1)]
    np.testing.assert_allclose(
        examples.direct[t, : features.LAGS], squashed(np.array(lags)), rtol=1e-3, atol=1e-3
    )
    season = np.asarray(features.candidates(examples.direct[t], SHAPE.horizon))[0]
    change = (value[t + np.array([1, 2, 3]) - 7] - value[t]) / scale
    np.testing.assert_allclose(season, squashed(change), rtol=1e-3, atol=1e-3)
    back = np.array(features.WAKE)
    beyond = (value[t] - value[t - back]) - (value[t - 7] - value[t - 7 - back])
    start = features.direct_size(SHAPE.horizon) - 2 * len(back) - 4 * len(features.HARMONICS)
    wake = examples.direct[t, start : start + len(back)] / squashed(beyond / scale)
    np.testing.assert_allclose(wake, wake[0], rtol=0.01)  # as far as the season is trusted
    assert 0.5 < wake[0] <= 1.0


def test_a_season_shorter_than_the_horizon_is_read_as_many_cycles_back_as_needed() -> None:
    shape = SHAPE.model_copy(update={"horizon": 9})
    part = seasonal(120, 7, 0.05)
    examples = prepare([part], SPEC, shape, PERIODS)
    value, t = part.value, 100
    season = np.asarray(features.candidates(examples.direct[t], 9))[0]
    back = np.array([1, 2, 3, 4, 5, 6, 7, 8, 9]) - np.array([7, 7, 7, 7, 7, 7, 7, 14, 14])
    change = (value[t + back] - value[t]) / naive_scales(value)[t]
    np.testing.assert_allclose(season, squashed(change), rtol=1e-3, atol=1e-3)


@settings(max_examples=50, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 600), min_size=1, max_size=3),
    horizon=st.sampled_from([3, 13]),
    span=st.integers(1, 40),
    ratio=st.floats(0.05, 0.8),
    seed=st.integers(0, 100),
)
def test_no_step_is_target_both_in_training_and_in_a_holdout(
    lengths: list[int], horizon: int, span: int, ratio: float, seed: int
) -> None:
    shape = SHAPE.model_copy(update={"horizon": horizon})
    spec = SPEC.model_copy(update={"span": span, "holdout_ratio": ratio, "max_origins": 800})
    history = [walk(n, seed + i, f"s{i}") for i, n in enumerate(lengths)]
    examples = prepare(history, spec, shape, NO_PERIODS)

    def targets(role: Role) -> set[int]:
        origin, ahead = np.nonzero((examples.role == role)[:, None] & examples.known)
        return set((origin + 1 + ahead).tolist())

    assert not targets(Role.TRAIN) & (targets(Role.OLDER) | targets(Role.HOLDOUT))
    for begin, end in zip(examples.begin, examples.end, strict=True):
        older = np.flatnonzero(examples.role[begin:end] == Role.OLDER)
        newest = int((examples.role[begin:end] == Role.HOLDOUT).sum())
        if len(older):
            assert len(older) == older[-1] - older[0] + 1 >= span
            assert len(older) <= 0.25 * newest < newest
            after = np.flatnonzero(examples.role[begin:end] == Role.TRAIN) > older[-1]
            assert after.any()
            assert not after.all()


def test_an_older_stretch_lies_in_the_middle_of_what_trains() -> None:
    """By hand: 400 steps, 100 of them held out, 25 amid the other 300, three steps to keep clear on either side."""
    examples = prepare([walk(400)], SPEC, SHAPE, NO_PERIODS)
    n, t, o, h = Role.NONE, Role.TRAIN, Role.OLDER, Role.HOLDOUT
    expected = [n] * 3 + [t] * 131 + [n] * 3 + [o] * 25 + [n] * 3 + [t] * 132 + [n] * 3 + [h] * 100
    assert examples.role.tolist() == expected


@pytest.mark.parametrize(("steps", "span", "horizon"), [(120, 8, 3), (400, 26, 3), (400, 8, 13)])
def test_a_short_history_has_no_older_stretch(steps: int, span: int, horizon: int) -> None:
    shape = SHAPE.model_copy(update={"horizon": horizon})
    examples = prepare([walk(steps)], SPEC.model_copy(update={"span": span}), shape, NO_PERIODS)
    assert not examples.count(Role.OLDER)
    longer = prepare([walk(steps + 16)], SPEC.model_copy(update={"span": span}), shape, NO_PERIODS)
    assert longer.count(Role.OLDER)


def lent_right(part: Slice, shape: ModelSpec) -> Slice:
    """Moved to where the scale that serving lends a first series is the one that training lends it."""
    changes = np.abs(np.diff(part.value[:8])).mean()
    return part._replace(value=part.value - part.value[0] + changes / float(unlent(shape).scale))


@pytest.mark.slow
def test_inputs_are_those_that_serving_makes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history_module, "SILENT_SHARE", 0.0)  # silences are what serving did not see
    """Fold a messy history tick by tick; the carry is that of the network run over the inputs made here."""
    shape, periods = (
        SHAPE.model_copy(update={"context_length": 64}),
        np.array([24, 12, 0, 0, 0, 0], np.int32),
    )
    counter = walk(700, 3, "counter", 0.2)
    history = [
        walk(700, 1, "walk", 1e-5),
        seasonal(700, 24, 0.1, 2),
        counter._replace(
            value=np.floor(counter.value) + 0.01 * np.minimum(np.arange(700), 5)
        ),  # hardly ever moves
    ]
    history = [accompanied(lent_right(part, shape), i) for i, part in enumerate(history)]
    served = Model(shape, model.init(shape, 1), jnp.asarray(periods), Card(version="1"))
    fold = Fold(shape, SeriesSpec(max_series=8, idle_s=1e9), GridSpec(), shapes=[Shape(4, 8, 5, 12)])
    fold.swap(served)
    for begin in range(0, 700, 100):
        for part in history:
            some = slice(begin, begin + 100)
            columns = part.time_s[some], part.value[some], np.asarray(part.covariates)[some].tolist()
            ticks = [Tick(part.series, t, v, None, tuple(more)) for t, v, more in zip(*columns, strict=True)]
            fold.admit(0, range(len(ticks)), ticks)
        fold.run()
    examples = prepare(history, HistorySpec(), shape, periods)
    for part, begin, end in zip(history, examples.begin, examples.end, strict=True):
        xs = jnp.asarray(examples.inputs[begin:end])[None]
        carry, _ = model.unroll(shape, served.params, model.initial_carry(shape, 1), xs)
        row = fold.index.partitions[0][part.series].row
        np.testing.assert_allclose(fold.rows.carry[row], carry[0], atol=1e-3, err_msg=part.series)


def rows(examples: Examples, role: Role) -> list[np.ndarray]:
    at = examples.role == role
    return [column[at] for column in examples[:5]]


def test_covariates_fall_silent_now_and_then_in_what_trains_and_never_in_what_judges() -> None:
    part = walk(20_000)
    covariates = np.random.default_rng(0).normal(size=(20_000, 2))
    examples = prepare([part._replace(covariates=covariates)], SPEC, SHAPE, NO_PERIODS, seed=1)
    came = examples.inputs[:, -2:]
    assert came[examples.role == Role.HOLDOUT].all()
    trains = came[examples.role == Role.TRAIN]
    silent = 1 - trains.mean(0)
    wanted = SILENT_SHARE * SILENT_COVARIATES
    assert ((0.3 * wanted < silent) & (silent < 2 * wanted)).all(), "a dozen silences, drawn"
    lengths = np.diff(np.flatnonzero(np.diff(trains[:, 0])))[::2]
    assert np.median(lengths) == SILENCE
    assert 0 < ((trains == 0).all(1)).mean() < silent.min(), "both at once, sometimes"
    again = prepare([part._replace(covariates=covariates)], SPEC, SHAPE, NO_PERIODS, seed=1)
    np.testing.assert_array_equal(again.inputs, examples.inputs)


def test_what_comes_after_the_split_changes_nothing_that_is_trained_on() -> None:
    before = walk(100, name="a")
    changed = before.value.copy()
    changed[75:] += 100 * np.random.default_rng(9).normal(size=25)
    one = prepare([before, walk(80, 5, "b")], SPEC, SHAPE, PERIODS)
    other = prepare([before._replace(value=changed), walk(80, 5, "b")], SPEC, SHAPE, PERIODS)
    for mine, theirs in zip(rows(one, Role.TRAIN), rows(other, Role.TRAIN), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert (
        find_periods([before], SPEC).tolist() == find_periods([before._replace(value=changed)], SPEC).tolist()
    )


@settings(max_examples=10, deadline=None)
@given(cut=st.integers(20, 99))
def test_inputs_up_to_a_step_depend_on_nothing_after_it(cut: int) -> None:
    part = accompanied(seasonal(100, 7, 0.3))
    later = np.arange(100) >= cut
    changed = Slice("s0", part.time_s, part.value + 3.0 * later, part.covariates + 3.0 * later[:, None])  # type: ignore[operator]
    one, other = (prepare([which], SPEC, SHAPE, PERIODS) for which in (part, changed))
    np.testing.assert_array_equal(one.inputs[:cut], other.inputs[:cut])
    np.testing.assert_array_equal(one.direct[:cut], other.direct[:cut])


def test_a_span_that_is_left_out_is_neither_origin_nor_target() -> None:
    part = walk(100)
    out = Span("a", float(part.time_s[40]), float(part.time_s[50]))
    examples = prepare([part, walk(100, 1, "b")], SPEC, SHAPE, NO_PERIODS, [out])
    assert not examples.role[40:50].any()
    assert examples.known[36].tolist() == [True, True, True]
    assert examples.known[38].tolist() == [True, False, False]
    assert examples.role[139] == Role.TRAIN
    everywhere = prepare([part, walk(100, 1, "b")], SPEC, SHAPE, NO_PERIODS, [Span("", 0.0, 1e11)])
    assert not everywhere.role.any()


def test_what_was_filled_in_is_neither_origin_nor_target() -> None:
    part, other = walk(100), walk(100, 1, "b")
    filled = (np.arange(100) >= 40) & (np.arange(100) < 50)
    examples = prepare([part._replace(filled=filled), other], SPEC, SHAPE, NO_PERIODS)
    span = Span("a", float(part.time_s[40]), float(part.time_s[50]))
    as_if_annotated = prepare([part, other], SPEC, SHAPE, NO_PERIODS, [span])
    for name, mine, theirs in zip(examples._fields, examples, as_if_annotated, strict=True):
        if name != "direct":
            np.testing.assert_array_equal(mine, theirs)
    told = examples.direct != as_if_annotated.direct  # of errors: what was filled in is no outcome of theirs
    assert told.any()
    assert not told[:40].any()
    assert not examples.role[40:50].any()
    assert examples.role[150] == Role.TRAIN


def test_above_the_cap_each_series_keeps_its_newest_steps() -> None:
    spec = SPEC.model_copy(update={"max_origins": 100})
    history = [walk(400, i, f"s{i}") for i in range(3)] + [walk(20, 9, "short")]
    examples = prepare(history, spec, SHAPE, NO_PERIODS)
    assert examples.count(Role.TRAIN) <= 100
    assert (examples.end - examples.begin).tolist() == [37, 37, 37, 20]
    whole = prepare(history, SPEC, SHAPE, NO_PERIODS)
    np.testing.assert_allclose(examples.inputs[:37], whole.inputs[400 - 37 : 400], atol=1e-5)
    assert not examples.role[: spec.burn_in].any()  # the carry has to settle first


def test_which_series_stay_is_drawn_from_the_seed_alone() -> None:
    spec = SPEC.model_copy(update={"max_origins": 100})
    history = [walk(20, i, f"s{i}") for i in range(30)]
    louder = [part._replace(value=7 * part.value) for part in history]
    kept = [
        prepare(h, spec, SHAPE, NO_PERIODS, seed=s).target
        for h, s in ((history, 1), (louder, 1), (history, 2))
    ]
    np.testing.assert_allclose(kept[0], kept[1], atol=1e-3)  # scaled: only the choice could differ
    assert kept[0].shape != kept[2].shape or not np.allclose(kept[0], kept[2])


@pytest.mark.parametrize("history", [[], [Slice("empty", np.zeros(0), np.zeros(0))], [walk(1)]])
def test_next_to_nothing_gives_no_examples(history: list[Slice]) -> None:
    examples = prepare(history, SPEC, SHAPE, NO_PERIODS)
    assert examples.count(Role.TRAIN) == examples.count(Role.HOLDOUT) == 0


def test_huge_and_tiny_and_constant_series_give_finite_examples() -> None:
    history = [walk(60, i, f"s{i}", s, 100 * s) for i, s in enumerate((1e-8, 1.0, 1e12))]
    history.append(Slice("constant", np.arange(60.0), np.full(60, 1e6)))
    examples = prepare(history, SPEC, SHAPE, PERIODS)
    for column in examples[:5]:
        assert np.isfinite(column).all()
    assert not examples.target[examples.begin[3] :].any()


# --- seasons ---


def test_a_week_is_found_beside_its_days_and_two_days_are_not() -> None:
    """Working days alike, weekends at another level: two days ago tells less than one, seven days ago more than six."""
    rng = np.random.default_rng(3)
    hour = np.arange(24 * 7 * 20)
    working = hour // 24 % 7 < 5
    value = np.sin(2 * np.pi * hour / 24) * np.where(working, 1.0, 0.4) + 0.8 * working
    value = value + np.cumsum(rng.normal(size=hour.size)) * 0.02
    found = find_periods([Slice("load", 3600.0 * hour, value)], HistorySpec())
    assert found[:3].tolist() == [24, 168, 0]


@pytest.mark.parametrize(("period", "noise"), [(24, 0.2), (48, 0.1), (144, 0.05), (12, 0.3)])
def test_a_planted_season_is_found_first(period: int, noise: float) -> None:
    found = find_periods([seasonal(2000, period, noise, seed) for seed in range(3)], HistorySpec())
    assert abs(found[0] - period) <= 1 or found[0] % period == 0
    assert found.dtype == np.int32


def test_a_season_is_found_under_a_trend_that_rises_far_above_it() -> None:
    rising = [
        part._replace(value=part.value + 0.2 * np.arange(2000.0)) for part in (seasonal(2000, 52, 0.1),)
    ]
    assert find_periods(rising, HistorySpec())[0] == 52
    assert not find_periods(
        [walk(2000)._replace(value=walk(2000).value + np.arange(2000.0))], HistorySpec()
    ).any()


def test_a_multiple_of_a_season_is_none_where_no_more_of_it_are_seen() -> None:
    """Sixty steps of a season of 12: at two of them few changes are compared, and may look better by chance."""
    for seed in range(8):
        assert find_periods([seasonal(75, 12, 0.3, seed)], HistorySpec()).tolist() in (
            [12] + [0] * 5,
            [0] * 6,
        )


def test_two_seasons_in_different_series_are_both_found() -> None:
    history = [seasonal(2000, 24, 0.1, 1), seasonal(2000, 65, 0.05, 2)]
    found = find_periods(history, HistorySpec())
    assert {24, 65} <= set(found.tolist())


def test_a_long_season_of_one_series_is_found_beside_the_shorter_one_of_most() -> None:
    """Up to 102 steps are looked at: of 70 nobody knows what 40 more would cost, but it is no multiple of 40."""
    history = [seasonal(320, 40, 0.05, seed) for seed in range(3)] + [seasonal(320, 70, 0.05, 3)]
    assert find_periods(history, HistorySpec())[:2].tolist() == [40, 70]


@pytest.mark.parametrize("seed", range(5))
def test_no_season_is_found_where_there_is_none(seed: int) -> None:
    rng = np.random.default_rng(seed)
    noise = Slice("noise", np.arange(2000.0), rng.normal(size=2000))
    assert not find_periods([walk(2000, seed), noise], HistorySpec()).any()


def test_a_season_that_was_not_seen_two_and_a_half_times_is_not_believed() -> None:
    assert find_periods([seasonal(300, 60, 0.05)], HistorySpec())[0] == 60
    assert not find_periods([seasonal(150, 60, 0.05)], HistorySpec()).any()


def test_a_constant_or_short_history_has_no_season() -> None:
    constant = Slice("constant", np.arange(500.0), np.full(500, 3.0))
    assert not find_periods([constant, walk(5)], HistorySpec()).any()
