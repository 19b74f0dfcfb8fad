"""The loss against plain numpy; that a fit learns, stops in time, is repeatable, goes on from a parent, and says so
when it cannot be done. The examples are made up here: what history makes of a log is tested there.
"""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from forecaster.core import descent, features, model, train
from forecaster.core.descent import TrainSpec
from forecaster.core.history import Examples, Role
from forecaster.core.model import Card, Model, ModelSpec
from forecaster.core.train import (
    SHARES,
    Failure,
    Fit,
    Progress,
    change_quantiles,
    first_share,
    fit,
    holdout_loss,
    holdout_windows,
    last_value_loss,
    mixed_losses,
    refresh,
)

SHAPE = ModelSpec(hidden=8, horizon=2, levels=(0.1, 0.5, 0.9), warm_up=4, context_length=16, dropout=0.0)
SPEC = TrainSpec(
    burn_in=4, span=16, batch=16, stride=2, steps=300, warm_start_steps=50, learning_rate=1e-2, patience=3
)
PERIODS = np.array([24, 0, 0, 0, 0, 0], np.int32)
NOISE = 0.3


def made_up(series: int = 4, steps: int = 200, seed: int = 0, sign: float = 1.0) -> Examples:
    """The change ahead is what the first direct input says, and noise; `sign` turns that round in the hold-out."""
    rng = np.random.default_rng(seed)
    n = series * steps
    inputs = rng.normal(size=(n, features.RECURRENT)).astype(np.float32)
    direct = rng.normal(size=(n, features.direct_size(SHAPE.horizon))).astype(np.float32)
    place = np.tile(np.arange(steps), series)
    role = np.where(place < 4, Role.NONE, np.where(place < steps * 3 // 4 - 2, Role.TRAIN, Role.NONE))
    role = np.where(place >= steps * 3 // 4, Role.HOLDOUT, role).astype(np.int8)
    says = np.where(role == Role.HOLDOUT, sign, 1.0) * direct[:, 0]
    target = says[:, None] * np.array([1.0, 2.0]) + NOISE * rng.normal(size=(n, 2))
    known = place[:, None] + np.array([1, 2]) < steps
    begin = np.arange(series) * steps
    return Examples(
        inputs=inputs,
        direct=direct,
        target=np.where(known, target, 0.0).astype(np.float32),
        known=known,
        weight=rng.uniform(0.5, 2.0, n).astype(np.float32),
        role=role,
        begin=begin,
        end=begin + steps,
    )


def fitted(examples: Examples, spec: TrainSpec = SPEC, parent: Model | None = None, **more: object) -> Fit:
    result = fit(examples, PERIODS, spec, SHAPE, parent, **more)  # type: ignore[arg-type]
    assert isinstance(result, Fit)
    return result


@cache
def good_model() -> Model:
    return fitted(made_up()).model._replace(card=Card(version="v1", steps_taken=400))


def any_model(seed: int = 0) -> Model:
    return Model(SHAPE, model.init(SHAPE, seed), jnp.asarray(PERIODS), Card(version="parent"))


def pinball(quantiles: np.ndarray, actual: float) -> float:
    """Of one target, as the glossary has it: mean over levels, no factor 2."""
    return float(
        np.mean(
            [
                max(q * (actual - x), (q - 1) * (actual - x))
                for q, x in zip(SHAPE.levels, quantiles, strict=True)
            ]
        )
    )


pytestmark = pytest.mark.slow  # the first of them compiles

# --- the loss ---


def test_the_holdout_loss_is_that_of_plain_numpy() -> None:
    examples = made_up(series=3, steps=128)
    params = any_model().params

    @jax.jit
    def forecasts(xs: jax.Array, direct: jax.Array) -> jax.Array:
        _, ys = model.unroll(SHAPE, params, model.initial_carry(SHAPE, 1), xs[None])
        settled = slice(SPEC.burn_in, None)
        return model.quantiles(SHAPE, params, ys[0, settled], xs[settled], direct)

    losses = []
    for end in examples.end:
        total, count = 0.0, 0
        for start in (end - 32, end - 16):  # the last quarter, in two spans
            xs = examples.inputs[start - SPEC.burn_in : start + SPEC.span]
            drawn = np.moveaxis(forecasts(xs, examples.direct[start : start + SPEC.span]), -1, 0)
            for t, quantiles in enumerate(drawn, start):
                for h in np.flatnonzero(examples.known[t]):
                    total += examples.weight[t] * pinball(quantiles[h], examples.target[t, h])
                    count += 1
        losses.append(total / count)
    assert holdout_loss(any_model(), examples, SPEC) == pytest.approx(np.mean(losses), rel=1e-4)


def test_the_loss_of_the_last_value_is_that_of_its_empirical_quantiles() -> None:
    examples = made_up()
    quantiles = change_quantiles(examples, SHAPE)
    train_on = examples.target[examples.role == Role.TRAIN]
    expected = np.quantile(train_on, (0.1, 0.5, 0.9), axis=0).T
    np.testing.assert_allclose(quantiles, expected - expected[:, 1:2], atol=1e-6)
    assert (quantiles[:, 1] == 0).all()
    losses = []
    for begin, end in zip(examples.begin, examples.end, strict=True):
        at = begin + np.flatnonzero(examples.role[begin:end] == Role.HOLDOUT)
        pairs = [(t, h) for t in at for h in np.flatnonzero(examples.known[t])]
        losses.append(
            np.mean([examples.weight[t] * pinball(quantiles[h], examples.target[t, h]) for t, h in pairs])
        )
    assert last_value_loss(examples, SPEC, SHAPE) == pytest.approx(np.mean(losses), rel=1e-5)


def test_of_a_mix_that_is_judged_each_quantile_is_the_mean_of_two() -> None:
    examples, shares = made_up(), (0.0, 0.3, 1.0)
    last, between, network = mixed_losses(any_model(), examples, SPEC, shares=shares)
    assert last.mean() == pytest.approx(last_value_loss(examples, SPEC, SHAPE))
    assert network.mean() == pytest.approx(holdout_loss(any_model(), examples, SPEC))
    assert (between < 0.7 * last + 0.3 * network).all()  # the loss is convex
    beyond = np.full_like(examples.target, 1e3)  # of every quantile: there the loss is linear
    mixed = mixed_losses(any_model(), examples._replace(target=beyond), SPEC, shares=shares)
    np.testing.assert_allclose(mixed[1], 0.7 * mixed[0] + 0.3 * mixed[2], rtol=1e-5)


def test_the_first_share_is_the_mean_of_what_was_best_for_each_series() -> None:
    examples, turned = made_up(), made_up(sign=-1.0)
    last = slice(examples.begin[3], None)
    target = examples.target.copy()
    target[last] = turned.target[last]
    found = {
        "right": first_share(mixed_losses(good_model(), examples, SPEC, shares=SHARES)),
        "wrong in one of four": first_share(
            mixed_losses(good_model(), examples._replace(target=target), SPEC, shares=SHARES)
        ),
        "wrong": first_share(mixed_losses(good_model(), turned, SPEC, shares=SHARES)),
    }
    assert found == pytest.approx({"right": 0.95, "wrong in one of four": 0.75, "wrong": 0.5})


def test_series_count_alike_however_long_their_holdouts() -> None:
    examples = made_up(series=2)
    quiet = examples.target.copy()
    quiet[200:] = 0.0
    shortened = examples.role.copy()
    shortened[200:380] = Role.NONE
    one = last_value_loss(examples._replace(target=quiet), SPEC, SHAPE)
    other = last_value_loss(examples._replace(target=quiet, role=shortened), SPEC, SHAPE)
    assert one == pytest.approx(other, rel=0.2)


def test_windows_cover_every_held_out_origin_once() -> None:
    examples = made_up()
    windows = holdout_windows(examples, SPEC)
    covered = np.concatenate([np.arange(start, start + SPEC.span) for start in windows])
    inside = covered[covered < len(examples.role)]
    held_out = inside[examples.role[inside] == Role.HOLDOUT]
    assert sorted(held_out.tolist()) == np.flatnonzero(examples.role == Role.HOLDOUT).tolist()


# --- fitting ---


def test_a_fit_learns_what_there_is_to_learn() -> None:
    examples = made_up()
    result = fitted(examples)
    assert result.losses[-1] < result.losses[0]
    noise = NOISE * np.mean(
        [0.1755, 0.3989, 0.1755]
    )  # pinball losses of a normal variable at the three levels
    weight = examples.weight.mean()
    assert noise * weight < min(result.losses) < 2 * noise * weight
    assert min(result.losses) < 0.4 * last_value_loss(examples, SPEC, SHAPE)
    assert holdout_loss(result.model, examples, SPEC) == pytest.approx(min(result.losses), rel=1e-5)
    assert result.model.periods.tolist() == PERIODS.tolist()


def test_the_first_look_is_at_the_last_value_and_its_usual_errors() -> None:
    examples = made_up()
    assert fitted(examples).losses[0] == pytest.approx(last_value_loss(examples, SPEC, SHAPE), rel=0.1)


def test_a_fit_ends_when_the_holdout_gains_nothing_and_keeps_the_best() -> None:
    examples = made_up(sign=-1.0)  # what is learned is wrong on the hold-out
    result = fitted(examples)
    assert result.steps_taken == 0
    assert len(result.losses) == 1 + SPEC.patience
    assert holdout_loss(result.model, examples, SPEC) == pytest.approx(result.losses[0], rel=1e-5)


def test_the_same_arguments_give_the_same_model_and_another_seed_another() -> None:
    one, same = fitted(made_up()), fitted(made_up())
    other = fitted(made_up(), SPEC.model_copy(update={"seed": 1}))
    for name, param in one.model.params.items():
        np.testing.assert_array_equal(param, same.model.params[name])
    assert one.losses == same.losses
    assert any(not np.array_equal(p, other.model.params[name]) for name, p in one.model.params.items())


def test_noise_is_in_spreads_the_same_in_a_window_and_other_at_each_step() -> None:
    x = jnp.ones((500, 200, 3))
    rate = jnp.array([10.0, 0.0, 0.5])
    noise = np.asarray(descent._noisy(x, rate, 0.3, 0.15, jax.random.key(0))) - 1.0
    assert not noise[:, :, 1].any(), "what is not heard is left alone"
    for feature, spread in ((0, 0.1), (2, 2.0)):
        window = noise[:, :, feature].mean(1)
        each = noise[:, :, feature] - window[:, None]
        assert window.std() == pytest.approx(0.3 * spread, rel=0.1)
        assert each.std() == pytest.approx(0.15 * spread, rel=0.1)


def test_noise_teaches_and_never_judges() -> None:
    examples, model = made_up(), good_model()
    silent, loud = (SPEC.model_copy(update={"noise": noise}) for noise in (0.0, 2.0))
    assert holdout_loss(model, examples, silent) == holdout_loss(model, examples, loud)
    fits = [fitted(examples, spec) for spec in (silent, loud)]
    assert fits[0].losses[0] == fits[1].losses[0]
    assert min(fits[0].losses) < 0.8 * min(fits[1].losses), "what is drowned cannot be learned"


def test_whoever_watches_sees_every_look_and_can_end_it() -> None:
    seen: list[Progress] = []

    def watch(at: Progress) -> bool:
        seen.append(at)
        return len(seen) < 2

    result = fitted(made_up(), progress=watch)
    assert [at.step for at in seen] == [25, 50]
    assert [at.holdout_loss for at in seen] == list(result.losses[1:])
    assert seen[-1].best_loss == min(result.losses)
    assert seen[-1].steps == SPEC.steps


def test_a_warm_start_goes_on_from_its_parent() -> None:
    parent = good_model()
    second = fitted(made_up(seed=1), parent=parent)
    assert second.losses[0] == pytest.approx(holdout_loss(parent, made_up(seed=1), SPEC), rel=1e-5)
    assert second.losses[0] < 0.5 * fitted(made_up(seed=1)).losses[0]
    assert len(second.losses) <= 1 + SPEC.warm_start_steps // SPEC.evaluate_every
    assert second.model.card.parent == "v1"


@pytest.mark.parametrize("other", [{"hidden": 4}, {"cell": "rnn"}])
def test_a_parent_of_another_shape_is_not_started_from(other: dict[str, object]) -> None:
    shape = ModelSpec.model_validate(SHAPE.model_dump() | other)
    parent = Model(shape, model.init(shape, 0), jnp.asarray(PERIODS), Card(version="other"))
    assert not train.fits(parent, SHAPE)
    result = fitted(made_up(), SPEC.model_copy(update={"steps": 25}), parent)
    assert result.model.card.parent == ""
    assert train.fits(result.model, SHAPE)


@pytest.mark.parametrize(("cycles", "goes_on"), [(3.9, True), (4.0, False)])
def test_a_parent_that_does_not_hear_what_there_is_to_learn_is_not_started_from(
    cycles: float, goes_on: bool
) -> None:
    parent, spec = good_model(), SPEC.model_copy(update={"steps": 25})
    result = fitted(made_up()._replace(span_s=cycles * features.DAY_S), spec, parent)
    assert result.model.card.parent == ("v1" if goes_on else "")
    assert model.hears(result.model.params).sum() == model.hears(parent.params).sum() + (0 if goes_on else 6)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_whether_a_short_history_teaches_the_time_of_day_is_seen_on_the_hold_out(sign: float) -> None:
    """What is ahead follows the hour; in the hold-out it does so too, or the other way round."""
    examples = made_up(sign=sign)
    at = features.calendar_inputs([0]).recurrent[0]
    hour = examples.inputs[:, at] * np.where(examples.role == Role.HOLDOUT, sign, 1.0)
    target = examples.target + 3 * np.where(examples.known, hour[:, None], 0.0).astype(np.float32)
    found = [
        fitted(examples._replace(target=target, span_s=cycles * features.DAY_S), SPEC)
        for cycles in (1.9, 3.0, 5.0)
    ]
    heard = [bool(model.hears(fit.model.params)[at]) for fit in found]
    assert heard == [False, sign > 0, True]
    silent, chosen, loud = (min(fit.losses) for fit in found)
    assert chosen == pytest.approx(min(silent, loud), rel=1e-6)


def test_two_fits_are_watched_as_one() -> None:
    seen: list[Progress] = []

    def watch(at: Progress) -> bool:
        seen.append(at)
        return len(seen) < 4

    spec = SPEC.model_copy(update={"steps": 50})
    fitted(made_up()._replace(span_s=3 * features.DAY_S), spec, progress=watch)
    assert [(at.step, at.steps) for at in seen] == [(25, 100), (50, 100), (75, 100), (100, 100)]
    seen[:] = [seen[0]] * 3
    fitted(made_up()._replace(span_s=3 * features.DAY_S), spec, progress=watch)
    assert len(seen) == 4  # ended in the first, the second does not begin


def test_steps_without_a_finite_gradient_are_skipped() -> None:
    examples = made_up(series=16)
    poisoned = examples.inputs.copy()
    poisoned[100] = np.inf  # of one series of sixteen
    result = fitted(examples._replace(inputs=poisoned), parent=good_model())
    assert result.skipped > 0
    assert np.isfinite(result.losses).all()


def test_a_fit_that_never_has_a_finite_gradient_has_diverged() -> None:
    examples = made_up()
    early = np.tile(np.arange(200) < 140, 4)  # the hold-outs read none of it
    poisoned = np.where(early[:, None], np.nan, examples.inputs).astype(np.float32)
    assert fit(examples._replace(inputs=poisoned), PERIODS, SPEC, SHAPE, good_model()) is Failure.DIVERGED


@pytest.mark.parametrize("value", [20.0, float("nan")])
def test_a_parent_worse_than_the_last_value_is_not_started_from(value: float) -> None:
    parent = any_model()
    ruined = parent._replace(params={name: jnp.full_like(p, value) for name, p in parent.params.items()})
    result = fitted(made_up(), SPEC.model_copy(update={"steps": 25}), ruined)
    assert result.model.card.parent == ""
    assert result.losses[0] == pytest.approx(last_value_loss(made_up(), SPEC, SHAPE), rel=0.1)


@pytest.mark.parametrize("role", [Role.TRAIN, Role.HOLDOUT])
def test_without_origins_to_train_or_to_judge_on_there_is_no_data(role: Role) -> None:
    examples = made_up()
    without = np.where(examples.role == role, Role.NONE, examples.role).astype(np.int8)
    assert fit(examples._replace(role=without), PERIODS, SPEC, SHAPE) is Failure.NO_DATA


def test_the_standardisation_is_never_moved_and_biases_never_decay(monkeypatch: pytest.MonkeyPatch) -> None:
    layout = {"blend.bias": (3,), "blend.kernel": (2, 2), "norm.mean": (2,)}
    monkeypatch.setattr(descent, "layout", lambda _: layout)
    moved, decayed = descent._masks(SHAPE)
    assert moved.tolist() == [1] * 7 + [0] * 2
    assert decayed.tolist() == [0] * 3 + [1] * 4 + [0] * 2


def test_histories_of_about_the_same_size_share_a_program() -> None:
    fitted(made_up(steps=200))
    programs = descent.walk._cache_size()
    fitted(made_up(steps=210, seed=3))
    assert descent.walk._cache_size() == programs


# --- what is taught once a network has been judged ---


def test_what_was_held_out_is_learned_before_a_network_serves() -> None:
    """In the hold-out of these examples the sign is the other way round, which nothing before it tells."""
    examples = made_up(sign=-1.0)
    before = good_model()
    after = refresh(before, examples, SPEC)
    assert holdout_loss(after, examples, SPEC) < 0.9 * holdout_loss(before, examples, SPEC)
    assert after.as_judged.params is before.params
    assert holdout_loss(after.as_judged, examples, SPEC) == holdout_loss(before, examples, SPEC)


def test_a_network_that_gets_worse_by_it_or_is_given_no_steps_is_left_as_it_was() -> None:
    examples = made_up()
    wild = SPEC.model_copy(update={"learning_rate": 0.99})
    assert refresh(good_model(), examples, wild, lambda at: at.step < 100) is good_model()
    assert refresh(good_model(), examples, SPEC.model_copy(update={"refresh_steps": 0})) is good_model()


def test_whoever_watches_ends_a_refresh_too() -> None:
    seen: list[Progress] = []

    def once(at: Progress) -> bool:
        seen.append(at)
        return False

    refresh(good_model(), made_up(sign=-1.0), SPEC, once)
    assert [(at.step, at.steps) for at in seen] == [(SPEC.evaluate_every, 200)]


@pytest.mark.parametrize(
    ("taken", "most", "steps"), [(150, 200, 75), (400, 200, 200), (600, 200, 200), (0, 200, 0)]
)
def test_a_network_is_taught_for_half_as_long_as_its_fit_took(taken: int, most: int, steps: int) -> None:
    seen: list[int] = []

    def count(at: Progress) -> bool:
        seen.append(at.step)
        return True

    young = good_model()._replace(card=Card(steps_taken=taken))
    refresh(young, made_up(), SPEC.model_copy(update={"refresh_steps": most}), count)
    assert seen == list(range(SPEC.evaluate_every, steps + 1, SPEC.evaluate_every))
