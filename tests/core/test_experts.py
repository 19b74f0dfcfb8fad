"""The experts against plain numpy; weights that find the better one; a mix hardly worse than the best."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from forecaster.core import experts, score
from forecaster.core.experts import (
    COUNT,
    LINEAR_FORGET,
    LINEAR_PRIOR,
    NAMES,
    REGRESSORS,
    Alarm,
    Blend,
    Linear,
)

LEVELS = (0.1, 0.5, 0.9)
HORIZON = 2
FIRST_SHARE = 0.9


def blend() -> Blend:
    return Blend(*(x[..., None] for x in experts.newborn(HORIZON)))


def test_holt_follows_a_line_with_a_damped_slope() -> None:
    level, slope = 0.0, 0.0
    found = jnp.zeros(1), jnp.zeros(1)
    for n, value in enumerate((3.0, 5.0, 6.0, 9.0)):
        found = experts.holt(*found, jnp.asarray([n]), jnp.asarray([value]))
        if n == 0:
            level, slope = value, 0.0
            continue
        new = experts.HOLT_LEVEL * value + (1 - experts.HOLT_LEVEL) * (level + experts.DAMPING * slope)
        slope = experts.HOLT_SLOPE * (new - level) + (1 - experts.HOLT_SLOPE) * experts.DAMPING * slope
        level = new
    assert [float(x[0]) for x in found] == pytest.approx([level, slope])


def test_experts_of_a_few_numbers_say_the_same_now_and_when_they_are_due() -> None:
    lines = jnp.asarray([1.0, 2.0, 3.0, 0.5, 0.25])[:, None, None]
    now = experts.spread_lines(lines, HORIZON)
    due = experts.spread_lines(jnp.repeat(lines, HORIZON, axis=1), HORIZON)
    for mine, theirs in zip(now, due, strict=True):
        np.testing.assert_allclose(mine, theirs)
    damped = np.cumsum(experts.DAMPING ** np.arange(1, HORIZON + 1))
    np.testing.assert_allclose(now[2][:, 0], 3.0 + 0.5 * damped, rtol=1e-6)
    np.testing.assert_allclose(now[3][:, 0], 0.25 * np.arange(1, HORIZON + 1))


def test_the_shape_of_errors_has_a_mean_absolute_value_of_one() -> None:
    levels = tuple((np.arange(4000) + 0.5) / 4000)
    assert np.abs(experts.shape(levels)).mean() == pytest.approx(1.0, abs=0.01)
    assert experts.shape(LEVELS) == pytest.approx(-experts.shape(LEVELS)[::-1])


# --- the alarm ---


def alarms(said: list[float], outcomes: list[float]) -> list[Alarm]:
    """After each outcome, the mix having said that; each is relative to the one before, as in a table."""
    alarm, last, found = Alarm(*jnp.zeros((3, 1))), said[0], []
    for mean, outcome in zip(said, outcomes, strict=True):
        points = jnp.full((COUNT, HORIZON, 1), mean - last)
        centre = experts.centre(blend(), points, jnp.ones(points.shape, bool), FIRST_SHARE)
        np.testing.assert_allclose(centre, mean - last, atol=1e-5)
        came, last = jnp.full(1, outcome - last), outcome
        alarm = experts.sound(alarm._replace(foretold=centre), came, jnp.ones(1))
        found.append(alarm)
    return found


def heights(said: float, outcomes: list[float]) -> list[float]:
    return [float(alarm.height[0]) for alarm in alarms([said] * len(outcomes), outcomes)]


def last_share(alarm: Alarm) -> float:
    awake = jnp.ones((COUNT, HORIZON, 1), bool)
    share = experts.weights(blend(), awake, FIRST_SHARE, experts.heard(alarm))
    np.testing.assert_allclose(share.sum(0), 1.0, rtol=1e-5)
    return float(share[experts.LAST].min())


def test_a_new_level_raises_an_alarm_with_the_second_tick_and_hands_all_steps_to_the_last_value() -> None:
    found = alarms([0.0] * 5, [0.1, 20.0, 20.3, 19.8, 20.1])
    before, *after = (float(alarm.height[0]) for alarm in found)
    assert max(before, after[0]) < 0.2  # one tick far away may as well be a spike
    assert last_share(found[2]) > 2 * last_share(found[0])
    assert last_share(found[3]) > 0.9
    assert after == sorted(after)


def test_a_spike_that_goes_back_raises_none_and_a_mix_that_learns_ends_it() -> None:
    assert max(heights(0.0, [0.1, 20.0, 0.2, -0.1, 0.1])) < experts.CALM
    assert heights(20.0, [20.0, 20.5, 19.7, 20.2] * 5)[-1] < experts.CALM


def test_noise_around_a_known_mean_raises_hardly_an_alarm() -> None:
    found = heights(0.0, np.random.default_rng(0).normal(size=1000).tolist())
    assert np.mean(np.array(found) > experts.CALM) < 0.01


def test_alarms_that_prove_wrong_are_heard_no_more_and_those_that_prove_right_for_good() -> None:
    on_and_off = ([0.0] * 10 + [9.0] * 10) * 10
    early = (
        on_and_off[2:] + on_and_off[:2]
    )  # the mix foretells each turn two steps too early, then is right about it
    found = [last_share(alarm) for alarm in alarms(early, on_and_off)]
    calm, loudest = found[0], [max(found[start : start + 20]) for start in range(0, 200, 20)]
    assert loudest[0] > 2 * calm
    assert loudest[-1] < 1.2 * calm
    stairs = np.repeat(9.0 * np.arange(10), 20)
    slow = np.repeat(9.0 * np.arange(-1, 19) // 2, 10)  # the mix learns of each ten steps after it
    found = [last_share(alarm) for alarm in alarms(slow.tolist(), stairs.tolist())]
    assert min(max(found[start : start + 20]) for start in range(20, 200, 20)) > 0.9


# --- weights ---


def replay(says: dict[str, float], steps: int = 600) -> tuple[Blend, list[float], dict[str, list[float]]]:
    """Noise around 1.0; each named expert always says its number. The mix's loss, and each expert's alone."""
    points = np.full((COUNT, HORIZON, 1), np.nan, np.float32)
    for name, value in says.items():
        points[NAMES.index(name)] = value
    given, settled = jnp.asarray(points), jnp.ones((HORIZON, 1), bool)
    q = jnp.asarray(LEVELS, jnp.float32)
    silent = jnp.zeros((HORIZON, 3, 1))

    @jax.jit
    def turn(state: Blend, actual: jax.Array, count: jax.Array) -> tuple[Blend, jax.Array, jax.Array]:
        share = experts.weights(state, jnp.isfinite(given), FIRST_SHARE)
        known = jnp.where(jnp.isfinite(given), given, 0.0)
        published = experts.mix(known, silent, state, share, LEVELS)
        loss = score.pinball_loss(published, actual, q).mean()
        widths = jnp.asarray(experts.shape(LEVELS))[:, None]
        alone = known[:, :, None] + state.error[:, :, None] * widths
        each = score.pinball_loss(alone, jnp.broadcast_to(actual, known.shape), q).mean((1, 2))
        slope = score.below(published, actual) - q[:, None]
        state, _ = experts.settle(state, given, published, slope, settled, LEVELS, FIRST_SHARE)
        return state._replace(error=experts.follow(state.error, given, actual, settled, count)), loss, each

    state, losses, alone = blend(), [], {name: [] for name in says}
    for n, actual in enumerate(1 + 0.5 * np.random.default_rng(2).normal(size=steps)):
        state, loss, each = turn(state, jnp.full((HORIZON, 1), actual, jnp.float32), jnp.asarray([n]))
        losses.append(float(loss))
        for name in says:
            alone[name].append(float(each[NAMES.index(name)]))
    return state, losses, alone


def test_weight_moves_to_the_expert_that_is_right_and_the_mix_is_hardly_worse() -> None:
    state, losses, alone = replay({"last_value": -1.0, "slow_mean": 1.0, "drift": 4.0})
    awake = jnp.zeros((COUNT, HORIZON, 1), bool)
    for name in ("last_value", "slow_mean", "drift"):
        awake = awake.at[NAMES.index(name)].set(True)
    share = np.asarray(experts.weights(state, awake, FIRST_SHARE))[:, 0, 0]
    assert NAMES[int(share.argmax())] == "slow_mean"
    assert share.argmax() == NAMES.index("slow_mean")
    assert share[share.argmax()] > 0.8
    late = slice(200, None)
    best = min(np.mean(alone[name][late]) for name in alone)
    assert np.mean(losses[late]) < 1.1 * best


@pytest.mark.parametrize("first_share", [0.5, 0.95, 1.0])
def test_before_anything_was_judged_the_network_has_its_first_share_and_the_last_value_most_of_the_rest(
    first_share: float,
) -> None:
    found = experts.weights(blend(), jnp.ones((COUNT, HORIZON, 1), bool), jnp.float32(first_share))
    share = np.asarray(found)[:, 0, 0]
    others = [i for i in range(COUNT) if i not in (experts.NETWORK, experts.LAST)]
    assert share[experts.NETWORK] == pytest.approx(first_share, rel=0.04)
    np.testing.assert_allclose(share[others], 0.005, rtol=0.04)
    assert share[experts.LAST] == pytest.approx(max(1 - first_share - 0.03, 0.005), rel=0.04)


def test_weights_add_up_and_who_has_nothing_to_say_gets_none() -> None:
    awake = jnp.ones((COUNT, HORIZON, 1), bool).at[experts.NETWORK].set(False)
    share = experts.weights(blend(), awake, FIRST_SHARE)
    np.testing.assert_allclose(share.sum(0), 1.0, rtol=1e-6)
    assert not share[experts.NETWORK].any()


def test_a_network_that_wakes_is_not_held_against_what_came_before_it() -> None:
    """Regrets start anew where it speaks for the first time; they stay where it sleeps, or has been judged."""
    earned = jnp.ones((COUNT, HORIZON, 3)).at[experts.NETWORK, :, :2].set(0.0)
    before = Blend(jnp.ones_like(earned), earned, earned)
    fresh = experts.first_words(before, speaks=jnp.asarray([True, False, True]))
    assert fresh.tolist() == [True, False, False]
    after = experts.unbiased(before, fresh)
    np.testing.assert_array_equal(after.error, before.error)
    for kept, was in ((after.regret, before.regret), (after.square, before.square)):
        assert not kept[..., 0].any()
        np.testing.assert_array_equal(kept[..., 1:], was[..., 1:])


def test_an_expert_with_nothing_to_say_learns_nothing() -> None:
    points = jnp.full((COUNT, HORIZON, 1), jnp.nan).at[1].set(0.5)
    published, slope = jnp.zeros((HORIZON, 3, 1)), jnp.full((HORIZON, 3, 1), 0.3)
    settled = jnp.asarray([[True], [False]])
    before = blend()
    after, unit = experts.settle(before, points, published, slope, settled, LEVELS, FIRST_SHARE)
    assert bool(jnp.isfinite(unit).all())
    silent = np.asarray([i for i in range(COUNT) if i != 1])
    np.testing.assert_array_equal(after.regret[silent], before.regret[silent])
    assert not np.array_equal(after.regret[1, 0], before.regret[1, 0])
    error = experts.follow(before.error, points, jnp.ones((HORIZON, 1)), settled, jnp.asarray([9]))
    np.testing.assert_array_equal(error[silent], before.error[silent])


def test_one_outlandish_outcome_does_not_blow_up_an_error() -> None:
    points, settled = jnp.zeros((COUNT, HORIZON, 1)), jnp.ones((HORIZON, 1), bool)
    error = experts.follow(blend().error, points, jnp.full((HORIZON, 1), 1e30), settled, jnp.asarray([500]))
    assert float(error.max()) <= 2 + experts.FAR * experts.ERROR_RATE * 2


def test_the_mix_is_the_mean_of_quantiles_weighed() -> None:
    rng = np.random.default_rng(0)
    points = jnp.asarray(rng.normal(size=(COUNT, HORIZON, 1)), jnp.float32)
    network = jnp.asarray(np.sort(rng.normal(size=(HORIZON, 3, 1)), axis=1), jnp.float32)
    share = jax.nn.softmax(jnp.asarray(rng.normal(size=(COUNT, HORIZON, 1)), jnp.float32), axis=0)
    state = blend()
    found = experts.mix(points, network, state, share, LEVELS)
    expected = np.zeros((HORIZON, 3))
    for i in range(COUNT):
        for h in range(HORIZON):
            own = points[i, h] + state.error[i, h] * experts.shape(LEVELS)
            expected[h] += float(share[i, h, 0]) * np.asarray(
                network[h, :, 0] if i == experts.NETWORK else own
            )
    np.testing.assert_allclose(found[..., 0], expected, rtol=1e-4, atol=1e-5)


# --- the linear expert ---


def learned(xs: np.ndarray, ys: np.ndarray) -> Linear:
    linear = experts.newborn_linear(1, ys.shape[1])
    learn = jax.jit(experts.learn)
    for x, y in zip(xs, ys, strict=True):
        linear = learn(
            linear,
            jnp.asarray(x[None], jnp.float32),
            jnp.asarray(y[None], jnp.float32),
            jnp.asarray([1e9]),
            jnp.asarray([True]),
        )
    return linear


def test_it_learns_what_weighted_ridge_regression_finds() -> None:
    """With every error trusted, recursion solves least squares with forgetting and a prior on the weights."""
    rng = np.random.default_rng(4)
    n = 60
    xs = rng.normal(size=(n, REGRESSORS))
    ys = xs @ rng.normal(size=(REGRESSORS, HORIZON)) + 0.1 * rng.normal(size=(n, HORIZON))
    found = learned(xs, ys)
    fade = LINEAR_FORGET ** np.arange(n - 1, -1, -1)
    normal = (xs * fade[:, None]).T @ xs + LINEAR_FORGET**n / LINEAR_PRIOR * np.eye(REGRESSORS)
    expected = np.linalg.solve(normal, (xs * fade[:, None]).T @ ys)
    np.testing.assert_allclose(found.weights[0], expected, rtol=0.01, atol=0.01)
    upper = np.triu_indices(REGRESSORS)
    np.testing.assert_allclose(found.covariance[0], np.linalg.inv(normal)[upper], rtol=0.02, atol=1e-3)


def test_a_spike_bends_the_weights_far_less_than_trust_would() -> None:
    xs = np.random.default_rng(4).normal(size=(100, REGRESSORS))
    linear = learned(xs, xs[:, :HORIZON])
    x, spike = jnp.asarray(xs[:1], jnp.float32), jnp.full((1, HORIZON), 30.0)
    bent = [
        float(
            jnp.abs(
                experts.learn(linear, x, spike, jnp.asarray([usual]), jnp.asarray([True])).weights
                - linear.weights
            ).max()
        )
        for usual in (0.1, 1e9)
    ]
    assert bent[0] < 0.1 * bent[1]


def test_nothing_is_learned_before_the_targets_are_known() -> None:
    linear = experts.newborn_linear(1, HORIZON)
    x = jnp.ones((1, REGRESSORS))
    same = experts.learn(linear, x, jnp.ones((1, HORIZON)), jnp.asarray([1.0]), jnp.asarray([False]))
    for mine, theirs in zip(linear, same, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    np.testing.assert_array_equal(experts.predict(linear, x), jnp.zeros((1, HORIZON)))


def test_its_covariance_stays_bounded_when_inputs_say_nothing() -> None:
    xs = np.zeros((3000, REGRESSORS))
    xs[:, -1] = 0.25
    linear = learned(xs, np.ones((3000, HORIZON)))
    row, column = np.triu_indices(REGRESSORS)
    assert float(linear.covariance[0, row == column].sum()) <= 10 * REGRESSORS * LINEAR_PRIOR * 1.01
    assert bool(jnp.isfinite(linear.weights).all())
