"""The fold over a log: how ticks are cut into batches, who else is in them and what comes later change nothing; what
a swap, a broken network, an eviction and a newborn series do; live scores told again from the forecasts alone.
"""

import random
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise

import jax.numpy as jnp
import numpy as np
import pytest
from jax import monitoring

from forecaster.core import advance, features, model, stats
from forecaster.core.advance import COLD, FALLBACK, OK, WARMING
from forecaster.core.batch import Issued
from forecaster.core.fold import LOAN_EVERY
from forecaster.core.grid import GridSpec
from forecaster.core.model import ModelSpec
from forecaster.core.programs import needed
from forecaster.core.score import CAP, TIE
from forecaster.core.tick import LARGEST, Outcome, Tick
from tests.folds import (
    COVERED,
    ROWS,
    SHAPES,
    SPEC,
    START_S,
    accompanied,
    broken,
    by_source,
    make_fold,
    make_model,
    merged,
    play,
    row_of,
    same_forecasts,
    walk,
)

CLOSE = 1e-5  # of the spread of a series, or of a number's size: what programs of other sizes leave open


def closely_the_same(one: list[Issued], other: list[Issued]) -> None:
    """Both answered the same ticks with the same numbers, to CLOSE of each series' spread."""
    told: dict[str, list[float]] = defaultdict(list)
    for part in one:
        for name, last in zip(part.series, part.last.tolist(), strict=True):
            told[name].append(last)
    spread = {name: float(np.std(values)) or 1.0 for name, values in told.items()}
    series = {
        place: name
        for part in one
        for place, name in zip(
            zip(part.partition.tolist(), part.source.tolist(), strict=True), part.series, strict=True
        )
    }
    mine, theirs = by_source(one), by_source(other)
    assert mine.keys() == theirs.keys()
    off = np.array(
        [np.abs(told - theirs[place]).max() / spread[series[place]] for place, told in mine.items()]
    )
    assert off.max() < CLOSE, off.max()


def statuses(issued: list[Issued]) -> list[int]:
    return [status for part in issued for status in part.status.tolist()]


# --- batches ---


@pytest.mark.parametrize(("batch", "spec"), [(1, SPEC), (7, SPEC), (7, COVERED)])
def test_many_ticks_of_one_series_in_a_batch_are_the_same_as_many_batches(
    batch: int, spec: ModelSpec
) -> None:
    ticks, served = accompanied(walk("a", 60), spec), make_model(spec=spec)
    folds = [make_fold(spec) for _ in range(2)]
    for fold in folds:
        fold.swap(served)
    one, other = play(folds[0], ticks), play(folds[1], ticks, batch)
    assert one[1] == other[1] == [Outcome.ACCEPTED] * 60
    same_forecasts(one[0], other[0])
    for mine, theirs in zip(folds[0].rows, folds[1].rows, strict=True):
        np.testing.assert_array_equal(mine[0], theirs[0])


@pytest.mark.parametrize("spec", [SPEC, COVERED])
def test_a_log_cut_anywhere_gives_the_same_forecasts_and_scores(spec: ModelSpec) -> None:
    log = merged(*(walk(f"s{i}", 10 + 25 * (i % 3), i, 10.0**i, 10.0 ** (i - 2)) for i in range(7)))
    found = []
    for batch in (3, 40, 1000):
        fold = make_fold(spec)
        fold.swap(make_model(spec=spec))
        found.append(play(fold, accompanied(log, spec), batch)[0])
    for other in found[1:]:
        closely_the_same(found[0], other)
        for name in ("count", "error", "last_error", "pinball"):
            sums = [sum(getattr(part.scores, name) for part in issued) for issued in (found[0], other)]
            np.testing.assert_allclose(sums[0], sums[1], rtol=1e-4)


def test_the_large_batch_says_what_the_small_one_does() -> None:
    """More series than lanes go through another program."""
    names = [f"s{i}" for i in range(10)]
    log = merged(*(walk(name, 12, i) for i, name in enumerate(names)))
    alone = [make_fold() for _ in names]
    together = make_fold()
    expected = defaultdict[str, list[np.ndarray]](list)
    for fold, name in zip(alone, names, strict=True):
        for part in play(fold, [t for t in log if t.series == name])[0]:
            expected[name] += list(part.last[:, None, None] + part.offset)
    (issued,), _ = play(together, log)
    seen: dict[str, int] = defaultdict(int)
    for i, name in enumerate(issued.series):
        quantiles = issued.last[i] + issued.offset[i]
        np.testing.assert_allclose(quantiles, expected[name][seen[name]], rtol=CLOSE)
        seen[name] += 1
    assert set(seen.values()) == {12}


def test_parts_are_the_whole_in_the_order_of_the_log() -> None:
    log = merged(*(walk(f"s{i}", 200, i) for i in range(6)))
    whole, parted = make_fold(), make_fold()
    (expected,), _ = play(whole, log)
    parted.admit(0, range(len(log)), log)
    parts = list(parted.parts())
    assert len(parts) > 1
    assert [place for part in parts for place in part.source.tolist()] == list(range(len(log)))
    same_forecasts([expected], parts)
    assert sum(part.scores.count for part in parts).tolist() == expected.scores.count.tolist()


def test_the_order_of_series_within_a_batch_does_not_matter() -> None:
    parts = [walk(name, 9, i) for i, name in enumerate("abcdef")]
    rounds = [[part[t] for part in parts] for t in range(9)]
    found: list[dict[tuple[str, float], np.ndarray]] = []
    for seed in (None, 4):
        fold, answers = make_fold(), {}
        fold.admit(0, range(6), rounds[0])  # rows are allotted in one order
        issued = [fold.run()]
        for t, row in enumerate(rounds[1:], 1):
            order = row if seed is None else random.Random(seed + t).sample(row, len(row))
            fold.admit(0, range(6 * t, 6 * t + 6), order)
            issued.append(fold.run())
        for part in issued:
            for i, name in enumerate(part.series):
                answers[name, float(part.time_s[i])] = part.offset[i]
        found.append(answers)
    assert found[0].keys() == found[1].keys()
    for key, offset in found[0].items():
        np.testing.assert_array_equal(offset, found[1][key])


def test_changing_the_future_changes_nothing_in_the_past() -> None:
    log = merged(walk("a", 40), walk("b", 40, 1))
    changed = log[:50] + [Tick(t.series, t.time_s, -7.0 * t.value) for t in log[50:]]
    found = [by_source(play(make_fold(), ticks)[0]) for ticks in (log, changed)]
    for place, quantiles in found[0].items():
        if place[1] < 50:
            np.testing.assert_array_equal(quantiles, found[1][place])
        else:
            assert not np.allclose(quantiles, found[1][place])


def test_a_covariate_speaks_from_its_own_tick_on() -> None:
    log = accompanied(walk("a", 40))
    changed = [*log[:30], *accompanied(log[30:], seed=1)]
    found = []
    for ticks in (log, changed):
        fold = make_fold(COVERED)
        fold.swap(make_model(spec=COVERED))
        found.append(by_source(play(fold, ticks)[0]))
    for place, quantiles in found[0].items():
        assert np.array_equal(quantiles, found[1][place]) == (place[1] < 30)


def test_forecasts_scale_and_shift_with_the_series() -> None:
    """A price of 1e-5 and a sensor at 1e6 get the same forecast, in their own units."""
    ticks = walk("a", 80, start=0.0)
    found = []
    for factor, base in ((1.0, 1000.0), (1e-8, 1e-5), (1e3, 1e6)):
        fold = make_fold()
        (part,), _ = play(fold, [Tick("a", t.time_s, factor * t.value + base) for t in ticks])
        found.append(part.offset[40:] / factor)
    for other in found[1:]:
        np.testing.assert_allclose(found[0], other, rtol=0.02, atol=0.02 * float(np.abs(found[0]).max()))


def test_a_replay_that_nobody_sees_settles_uncounted_and_forecasts_the_same() -> None:
    ticks = walk("a", 40)
    seen, unseen = make_fold(), make_fold()
    first = play(seen, ticks[:20])[0]
    unseen.admit(0, range(20), ticks[:20])
    replayed = unseen.run(live=False)
    same_forecasts(first, [replayed])
    assert first[0].scores.count.tolist() == [19, 18, 17]
    assert replayed.scores.count.tolist() == [0, 0, 0]
    after = [play(fold, ticks[20:], first=20)[0] for fold in (seen, unseen)]
    same_forecasts(*after)
    assert after[0][0].scores.count.tolist() == [20, 20, 20]
    assert after[1][0].scores.count.tolist() == [19, 18, 17]


# --- what is published ---


def naive_scores(issued: list[Issued]) -> dict[str, np.ndarray]:
    """From the published forecasts alone: each settled by the values of its series that came after."""
    horizon, levels = SPEC.horizon, np.asarray(SPEC.levels)
    sums = {name: np.zeros(horizon) for name in ("count", "error", "last_error", "pinball")}
    sums["below"] = np.zeros((horizon, len(levels)))
    by_series: defaultdict[str, list[tuple[float, np.ndarray, float]]] = defaultdict(list)
    for part in issued:
        for i, name in enumerate(part.series):
            by_series[name].append((part.last[i], part.offset[i] / part.scale[i], part.scale[i]))
    for told in by_series.values():
        for n, (last, quantiles, scale) in enumerate(told):
            for h in range(1, min(horizon, len(told) - 1 - n) + 1):
                actual = (told[n + h][0] - last) / scale
                e = actual - quantiles[h - 1]
                sums["count"][h - 1] += 1
                sums["error"][h - 1] += min(abs(e[SPEC.median]), CAP)
                sums["last_error"][h - 1] += min(abs(actual), CAP)
                sums["pinball"][h - 1] += min(np.maximum(levels * e, (levels - 1) * e).mean(), CAP)
                sums["below"][h - 1] += np.where(np.abs(e) <= TIE, 0.5, e < 0)
    return sums


def test_live_scores_are_those_recomputed_from_the_forecasts_and_the_ticks() -> None:
    fold = make_fold()
    fold.swap(make_model())
    log = merged(*(walk(f"s{i}", 50, i, 0.0 if i else 100.0, 3.0**i) for i in range(5)))
    issued, _ = play(fold, log, 33)
    expected = naive_scores(issued)
    for name, sums in expected.items():
        live = sum(getattr(part.scores, name) for part in issued)
        np.testing.assert_allclose(live, sums, rtol=1e-5, atol=1e-4, err_msg=name)


def test_ties_count_half_on_a_series_that_never_moves() -> None:
    issued, _ = play(make_fold(), [Tick("a", START_S + i, 5.0) for i in range(200)])
    scores = issued[0].scores
    expected = naive_scores(issued)
    np.testing.assert_allclose(scores.below, expected["below"], atol=0.5)
    assert np.isfinite(issued[0].offset).all()
    assert float(np.abs(issued[0].offset[-1]).max()) < 0.05 * 5.0


WILD = [0.0, 1e18, -1e18, LARGEST, -LARGEST, 1e-18, 5.0, 5.0, 5.0, 1e18, 0.0, 0.0, 3e-9, -2.0, 1e6, 1e6]


WILDER = [*WILD, float("nan"), 1e300, -1e300, 1e-300]


@pytest.mark.parametrize(("seed", "spec"), [(0, SPEC), (1, SPEC), (2, COVERED)])
def test_whatever_comes_what_is_published_is_finite_and_in_order(seed: int, spec: ModelSpec) -> None:
    rng = random.Random(seed)
    fold = make_fold(spec)
    fold.swap(make_model(spec=spec))

    def more() -> tuple[float, ...]:
        return tuple(rng.choice(WILDER) for _ in spec.covariates)

    ticks = [
        Tick(rng.choice("abc"), START_S + i * rng.choice((0, 1, 1e6)), rng.choice(WILD), None, more())
        for i in range(200)
    ]
    ticks += [
        Tick(t.series, START_S + 1e9 + i, 1.0 + 0.1 * rng.random(), None, more()) for i, t in enumerate(ticks)
    ]
    issued, _ = play(fold, ticks, 50)
    for part in issued:
        quantiles = part.last[:, None, None] + part.offset
        assert np.isfinite(quantiles).all()
        assert (np.diff(quantiles, axis=2) >= 0).all()
    for column in fold.rows:
        rows = np.asarray(column[np.asarray([row_of(fold, name) for name in "abc"])], np.float32)
        assert column is fold.rows.waiting or np.isfinite(rows).all()


# --- the network ---


def test_statuses_tell_who_answers() -> None:
    fold = make_fold()
    cold, _ = play(fold, walk("a", 3))
    assert statuses(cold) == [COLD] * 3
    fold.swap(make_model())
    issued, _ = play(fold, walk("b", 6), first=3)
    assert statuses(issued) == [WARMING] * 3 + [OK] * 3


def test_after_a_swap_the_carry_depends_on_the_window_and_the_new_model_alone() -> None:
    ticks, carries = walk("a", 50), []
    for before, after in (("v1", "v3"), ("v2", "v3"), ("v4", "v3"), ("v1", "v1")):
        fold = make_fold()
        fold.swap(make_model(before, int(before[1])))
        play(fold, ticks[:-2])
        fold.swap(make_model(after, int(after[1])))
        play(fold, ticks[-2:], first=48)
        carries.append(np.asarray(fold.rows.carry[0]))
    np.testing.assert_array_equal(carries[0], carries[1])
    np.testing.assert_array_equal(carries[0], carries[2])
    assert not np.allclose(carries[0], carries[3], atol=0.05)


@pytest.mark.parametrize("spec", [SPEC, COVERED])
def test_rewarming_is_running_the_window_through_the_network(spec: ModelSpec) -> None:
    fold, served = make_fold(spec), make_model(spec=spec)
    fold.swap(served)
    play(fold, accompanied(walk("a", 3 * SPEC.context_length), spec))
    idx = jnp.asarray([0])
    found = advance.rewarm(spec, fold._default.serving, fold.rows, idx).carry
    count, time = int(fold.rows.count[0]), SPEC.context_length

    def newest(column: object, n: int) -> np.ndarray:
        ring = np.asarray(column[0], np.float64)  # type: ignore[index]
        return ring[np.arange(count - n, count) % len(ring)]

    log_scale, log_dt, week, *signals = newest(fold.rows.trace, time).T
    assert len(signals) == spec.inputs - features.RECURRENT
    dts = np.exp(log_dt)
    running = stats.unpack(fold.rows.running[:1, : stats.RUNNING])
    values = newest(fold.rows.value, time + features.LEAD) if count >= time + features.LEAD else None
    if values is None:
        known = newest(fold.rows.value, count)
        values = np.concatenate([np.full(time + features.LEAD - count, known[0]), known])
    none = jnp.zeros(1)
    xs = features.recurrent_inputs(
        jnp.asarray(values, jnp.float32)[None],
        jnp.asarray(np.exp(log_scale), jnp.float32)[None],
        jnp.asarray(dts, jnp.float32)[None],
        jnp.asarray(week, jnp.float32)[None],
        jnp.zeros((1, time, 2)),
        fold.rows.base[:1],
        running,
        stats.Season(jnp.zeros(1, jnp.int32), none, none),
    )
    told = jnp.asarray(np.reshape(signals, (len(signals), time)).T[None], jnp.float32)
    xs = jnp.concatenate([xs, told], axis=2)
    carry, _ = model.unroll(spec, served.params, model.initial_carry(spec, 1), xs)
    np.testing.assert_allclose(found, carry, atol=1e-3)


def test_a_season_that_a_new_model_brings_is_judged_by_what_is_remembered() -> None:
    fold, log = make_fold(), walk("a", 200)
    play(fold, log[:-1])
    fold.swap(make_model()._replace(periods=jnp.asarray([0, 7, 24, 150, 400, 0], jnp.int32)))
    play(fold, log[-1:], first=199)
    found = stats.unpack(fold.rows.running[:1, : stats.RUNNING]).season[0]
    value = np.array([tick.value for tick in log])
    usual = []
    for period in (7, 24, 150):
        *across, last = (
            value[period:] - value[:-period]
        )  # of all remembered, and one that came after the swap
        scores = np.abs(np.array(across) - np.mean(across))
        usual.append(scores.mean() + (abs(last - np.mean(across)) - scores.mean()) / (len(across) + 1))
    np.testing.assert_allclose(found, [0.0, *usual, 0.0, 0.0], rtol=1e-3)


def test_a_swap_leaves_what_was_said_alone_and_goes_on_finite() -> None:
    log = merged(walk("a", 60), walk("b", 60, 1))
    plain, swapped = make_fold(), make_fold()
    for fold in (plain, swapped):
        fold.swap(make_model())
    before = play(plain, log[:80])[0], play(swapped, log[:80])[0]
    same_forecasts(*before)
    swapped.swap(make_model("v2", 2))
    after = [play(fold, log[80:], 20, first=80)[0] for fold in (plain, swapped)]
    mine, theirs = map(by_source, after)
    assert mine.keys() == theirs.keys()
    assert not np.allclose(mine[0, 119], theirs[0, 119])
    assert all(np.isfinite(quantiles).all() for quantiles in theirs.values())
    assert set(statuses(after[1])) == {OK}


@pytest.mark.parametrize("spec", [SPEC, COVERED])
def test_two_swaps_at_the_same_offsets_are_the_same_however_the_log_is_cut(spec: ModelSpec) -> None:
    log = accompanied(merged(*(walk(name, 80, i) for i, name in enumerate("abcdefghij"))), spec)
    swaps = {0: make_model("v1", 1, spec), 211: make_model("v2", 2, spec), 487: make_model("v3", 3, spec)}
    found = []
    for batch in (1, 4, 30, 1000):
        fold, issued = make_fold(spec), list[Issued]()
        for start, end in pairwise([*swaps, len(log)]):
            fold.swap(swaps[start])
            issued += play(fold, log[start:end], batch, first=start)[0]
        found.append(issued)
    for other in found[1:]:
        closely_the_same(found[0], other)


def test_a_network_that_says_nothing_finite_falls_back() -> None:
    fold, never = make_fold(), make_fold()
    fold.swap(broken(make_model())._replace(periods=never.model.periods))  # so that both see the same seasons
    ticks = walk("a", 30)
    (issued,), _ = play(fold, ticks)
    (expected,), _ = play(never, ticks)
    assert statuses([issued]) == [WARMING] * 3 + [FALLBACK] * 27
    np.testing.assert_array_equal(issued.offset, expected.offset)  # as if there were no network
    fold.swap(make_model("v2", 2))
    healed, _ = play(fold, walk("a", 40)[30:], first=30)
    assert set(statuses(healed)) == {OK}


def test_a_carry_that_went_wrong_falls_back_for_its_own_series_only() -> None:
    fold, healthy = make_fold(), make_fold()
    log = merged(walk("a", 30), walk("b", 30, 1))
    for one in (fold, healthy):
        one.swap(make_model())
        play(one, log[:40])
    carry = fold.rows.carry.at[row_of(fold, "a")].set(jnp.nan)
    fold.rows = fold.rows._replace(carry=carry)
    (issued,), _ = play(fold, log[40:], first=40)
    (expected,), _ = play(healthy, log[40:], first=40)
    mine = [i for i, name in enumerate(issued.series) if name == "a"]
    theirs = [i for i, name in enumerate(issued.series) if name == "b"]
    assert issued.status[mine].tolist() == [FALLBACK] + [OK] * (len(mine) - 1)  # and it recovers
    assert np.isfinite(issued.offset).all()
    assert set(issued.status[theirs].tolist()) == {OK}
    np.testing.assert_array_equal(issued.offset[theirs], expected.offset[theirs])


def test_a_network_of_another_shape_is_refused_and_of_another_cell_adopted() -> None:
    fold = make_fold()
    fold.swap(make_model())
    play(fold, walk("a", 20))
    other = SPEC.model_copy(update={"cell": "lstm"})
    with pytest.raises(ValueError, match="spec"):
        fold.swap(make_model("v2", spec=other))
    assert not fold.takes(SPEC.model_copy(update={"horizon": 4}))
    assert not fold.takes(COVERED)
    assert not make_fold(COVERED).takes(COVERED.model_copy(update={"covariates": ("wind", "load")}))
    assert fold.takes(other)
    fold.adopt(other, make_fold(other)._programs)
    fold.swap(make_model("v2", spec=other))
    (issued,), _ = play(fold, walk("a", 30)[20:], first=20)
    assert set(statuses([issued])) == {OK}
    assert np.isfinite(issued.offset).all()


# --- rows that come and go ---


def test_a_row_that_changes_hands_starts_clean() -> None:
    ticks = walk("b", 20, 7)
    used, unused = make_fold(idle_s=100.0), make_fold(idle_s=100.0)
    for fold in (used, unused):
        fold.swap(make_model())
    passer_by = [Tick("c", START_S + t, t) for t in (-50.0, 0.0)]
    play(used, [Tick("a", t.time_s - 1e6, 1e9 * t.value) for t in walk("a", 20)] + passer_by)
    play(unused, passer_by)
    mine = play(used, ticks, first=LOAN_EVERY)[0]  # "a" is idle by then, and lends nothing
    theirs = play(unused, ticks, first=LOAN_EVERY)[0]
    assert (row_of(used, "b"), row_of(unused, "b")) == (0, 1)
    assert (used.index.evicted, unused.index.evicted) == (2, 1), "the passer-by goes, too"
    same_forecasts(mine, theirs)


def test_a_row_that_changes_hands_within_a_batch_starts_clean() -> None:
    before = [Tick("a", START_S + i, 1e9 * (i % 3)) for i in range(40)]
    after = [Tick("c", START_S + t, t) for t in (9950.0, 1e4)]
    after += [Tick("b", t.time_s + 1e4, t.value) for t in walk("b", 8, 7)]
    one, other = make_fold(idle_s=100.0), make_fold(idle_s=100.0)
    mine = play(one, before + after)[0]
    theirs = play(other, before + after, 1)[0]
    assert (row_of(one, "b"), one.index.evicted) == (0, 1)
    same_forecasts(mine, theirs)


def test_a_row_freed_by_one_partition_serves_another_within_the_same_batch() -> None:
    """Partition 1 begins a new stretch of its log; the row that it frees is taken by partition 0's newcomer."""
    old = [Tick("old", START_S + i, 5.0 + i % 2) for i in range(10)]
    jump = [Tick("busy", START_S + 1e6 + 50 * i, 1.0 + i % 3) for i in range(3)]
    new = [Tick("new", START_S + i, 100.0 + i % 4) for i in range(8)]
    found = []
    for together in (True, False):
        fold = make_fold(idle_s=100.0)
        play(fold, [Tick("first", START_S, 1.0)])
        issued = []
        for partition, part, first in ((1, old + jump, LOAN_EVERY - 2), (0, new, 1)):
            fold.admit(partition, range(first, first + len(part)), part)
            if not together:
                issued.append(fold.run())
        found.append(issued or [fold.run()])
    same_forecasts(*found)


def test_a_silence_of_all_makes_none_idle_and_one_that_stays_silent_goes() -> None:
    """Ticks once a week, some seconds apart, and a series that ends."""
    fold, week_s = make_fold(idle_s=7 * 86400.0), 7 * 86400.0 + 1
    ticks = [
        Tick(name, START_S + week_s * week + 5.0 * n, float(week % 3 + n))
        for week in range(6)
        for n, name in enumerate("abz")
        if name != "z" or week < 2
    ]
    play(fold, ticks, 1)
    assert fold.index.allotted == 3
    assert sorted(fold.index.partitions[0]) == ["a", "b"]


def test_over_the_cap_ticks_are_told_and_the_others_served() -> None:
    fold = make_fold()
    log = [Tick(f"s{i}", START_S, float(i)) for i in range(ROWS + 3)]
    issued, outcomes = play(fold, log)
    assert outcomes == [Outcome.ACCEPTED] * ROWS + [Outcome.OVER_CAP] * 3
    assert sum(map(len, issued)) == ROWS


def test_a_partition_that_comes_back_starts_anew() -> None:
    fold, fresh = make_fold(), make_fold()
    ticks = walk("a", 20)
    play(fold, [*ticks, Tick("z", START_S, 3.0)])
    assert fold.drop(0) == 2
    assert len(fold.index) == 0
    same_forecasts(play(fold, ticks)[0], play(fresh, ticks)[0])


def test_a_newborn_borrows_the_spread_of_the_others() -> None:
    for value in (500.0, 0.0):
        found = []
        for scale in (0.1, 10.0):
            fold = make_fold()
            play(fold, merged(*(walk(f"s{i}", 60, i, 1000.0, scale) for i in range(3))))
            (issued,), _ = play(fold, [Tick("new", START_S + 1e4, value)], first=LOAN_EVERY)
            found.append(float(np.ptp(issued.offset[0, 0])))
        assert 50 < found[1] / found[0] < 200
        assert found[0] > 0.01
    (alone,), _ = play(make_fold(), [Tick("new", START_S, 500.0)])
    assert 0 < float(np.ptp(alone.offset[0, 0])) < 500.0 * 0.01


def test_what_a_newborn_borrows_does_not_depend_on_how_the_log_is_cut() -> None:
    """Lenders are those of the place in the log where the loan is made, not of the end of the batch."""
    log = merged(walk("a", 60), walk("b", 60, 1, 10.0, 5.0))
    late = [
        Tick("new", log[-1].time_s + 1, 50.0),
        *(Tick("c", log[-1].time_s + 2 + i, float(i % 7)) for i in range(40)),
    ]
    ticks = log + late
    found = [play(make_fold(), ticks, batch, first=LOAN_EVERY - 120)[0] for batch in (5, 1000)]
    closely_the_same(*found)


# --- bars ---


def test_a_batch_that_closes_no_bar_is_no_reason_to_forget_the_loan() -> None:
    fold = make_fold(grid=GridSpec(interval_s=10.0))
    issued, _ = play(fold, [Tick("a", 1.0, 1.0), Tick("a", 11.0, 2.0)], 1)
    assert [len(part) for part in issued] == [0, 1]


def test_the_time_of_a_partition_closes_the_bars_of_idle_series() -> None:
    """Also the second bar of a series, opened while the first still waited for late ticks."""
    grid = GridSpec(interval_s=10.0, lateness_s=20.0, close_by="partition")
    fold = make_fold(grid=grid)
    ticks = [Tick("idle", 1, 1.0), Tick("idle", 12, 2.0)] + [Tick("busy", t, 0.0) for t in range(0, 90, 5)]
    issued, outcomes = play(fold, ticks, 4)
    assert set(outcomes) == {Outcome.ACCEPTED}
    told = [(n, float(t)) for part in issued for n, t in zip(part.series, part.time_s, strict=True)]
    assert [t for n, t in told if n == "idle"] == [10.0, 20.0]
    assert [t for n, t in told if n == "busy"] == [10.0, 20.0, 30.0, 40.0, 50.0, 60.0]


def test_a_tick_on_the_edge_closes_the_bar_that_ends_there_however_its_time_is_rounded() -> None:
    fold = make_fold(grid=GridSpec(interval_s=0.1, close_by="partition"))
    ticks = [Tick("a", (17_000_000_000 + n) / 10, float(n)) for n in range(100)]
    issued, _ = play(fold, ticks, 1)
    assert [len(part) for part in issued] == [0] + [1] * 99


def test_late_ticks_of_one_series_do_not_keep_others_waiting() -> None:
    grid = GridSpec(interval_s=10.0, lateness_s=10.0, close_by="partition")
    found = []
    for batch in (1, 100):
        rng = random.Random(5)
        ticks = [Tick(rng.choice("abc"), max(0.0, i + rng.uniform(-15, 0)), float(i % 9)) for i in range(200)]
        fold = make_fold(grid=grid)
        issued, outcomes = play(fold, ticks, batch)
        found.append((by_source(issued), outcomes))
        waiting = [s.clock.bars for s in fold.index.partitions[0].values()]
        assert all((min(open_bars) + 1) * 10 + 10 > 199 - 15 for open_bars in waiting if open_bars)
    assert found[0][1] == found[1][1]
    assert found[0][0].keys() == found[1][0].keys()


def test_a_filled_gap_gets_no_forecast_and_a_long_one_starts_anew() -> None:
    grid = GridSpec(interval_s=1.0, longest_gap=5)
    fold = make_fold(grid=grid)
    ticks = [Tick("a", float(t), float(t % 5)) for t in [*range(20), *range(23, 40), *range(100, 110)]]
    issued, _ = play(fold, ticks)
    assert len(by_source(issued)) == 19 + 17 + 9 + 1  # every closed bar with a tick; the newest is open
    assert int(fold.rows.count[0]) == 9  # 100 .. 108; 39 closed before


def test_what_fills_a_gap_is_no_outcome() -> None:
    grid = GridSpec(interval_s=1.0, longest_gap=5)
    ticks = [Tick("a", float(t), float(t % 5)) for t in [*range(20), *range(23, 41)]]
    issued, _ = play(make_fold(grid=grid), ticks)
    there = {*range(20), *range(23, 40)}
    expected = [sum(t - h in there for t in there) for h in range(1, SPEC.horizon + 1)]
    assert sum(part.scores.count for part in issued).tolist() == expected
    assert sum(int(np.isfinite(part.anomaly).sum()) for part in issued) == len(there) - 1  # but for the first


# --- compiling ---


@contextmanager
def compiles() -> Iterator[list[str]]:
    """Counts what the compiler is asked for."""
    found: list[str] = []
    wanted = "/jax/core/compile/backend_compile_duration"

    def note(event: str, *_: object, **__: object) -> None:
        if event == wanted:
            found.append(event)

    monitoring.register_event_duration_secs_listener(note)
    try:
        yield found
    finally:
        monitoring.unregister_event_duration_listener(note)


@pytest.mark.slow
def test_nothing_compiles_after_compile_over_a_messy_replay_with_two_swaps() -> None:
    rng = random.Random(1)
    fold = make_fold(idle_s=500.0, same_time="keep")
    models = [make_model("v1"), make_model("v2", 2, periods=(7, 5))]
    for key in needed(SHAPES):  # what `compile` makes; shared
        fold._program(*key)
    with compiles() as proof:
        jnp.arange(rng.randrange(10**6, 10**7)).sum().block_until_ready()
    assert proof, "the counter counts"
    with compiles() as found:
        offset = LOAN_EVERY - 300
        for turn in range(12):
            if turn in (4, 8):
                fold.swap(models.pop())
            for partition in range(3):
                size = rng.choice((0, 1, 2, 40, 200))
                ticks = [messy_tick(rng, turn, partition) for _ in range(size)]
                fold.admit(partition, range(offset, offset + size), ticks)
                offset += size
            issued = fold.run()
            assert np.isfinite(issued.offset).all()
            if turn == 6:
                fold.drop(1)
    assert not found
    assert fold.index.evicted > 0


def messy_tick(rng: random.Random, turn: int, partition: int) -> Tick:
    name = f"p{partition}-{rng.randrange(8)}" if rng.random() < 0.7 else f"hot{partition}"
    return Tick(
        name, START_S + 200.0 * turn + rng.uniform(-50, 50), rng.gauss(0, 1) * 10.0 ** rng.randrange(-3, 4)
    )
