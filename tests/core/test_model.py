"""The network as pure functions: step by step is the whole sequence, quantiles are in order, dropout needs a key."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from forecaster.core import features, model
from forecaster.core.model import ModelSpec
from tests.folds import SPEC, make_model

RNG = np.random.default_rng


def sequence(batch: int, time: int, seed: int = 0) -> jax.Array:
    return jnp.asarray(RNG(seed).normal(size=(batch, time, features.RECURRENT)), jnp.float32)


@pytest.mark.parametrize("cell", ["gru", "lstm", "rnn"])
@pytest.mark.parametrize("layers", [1, 2])
def test_a_carry_advanced_step_by_step_is_that_of_the_whole_sequence(cell: str, layers: int) -> None:
    spec = SPEC.model_copy(update={"cell": cell, "layers": layers})
    params, xs = make_model(spec=spec).params, sequence(3, 12)
    step = jax.jit(lambda carry, x: model.step(spec, params, carry, x))
    carry, ys = model.initial_carry(spec, 3), []
    assert carry.shape == (3, spec.carry_size)
    for t in range(12):
        carry, y = step(carry, xs[:, t])
        ys.append(y)
    whole, all_ys = jax.jit(lambda c, x: model.unroll(spec, params, c, x))(model.initial_carry(spec, 3), xs)
    np.testing.assert_allclose(carry, whole, atol=2e-5)
    np.testing.assert_allclose(jnp.stack(ys, 1), all_ys, atol=2e-5)
    assert float(jnp.abs(carry).max()) > 0.05


def test_steps_that_are_masked_out_do_not_touch_the_carry() -> None:
    params, xs = make_model().params, sequence(1, 10)
    mask = jnp.asarray([[False, True] * 5])
    start = model.initial_carry(SPEC, 1)
    some, _ = model.unroll(SPEC, params, start, xs, mask)
    kept, _ = model.unroll(SPEC, params, start, xs[:, 1::2])
    np.testing.assert_allclose(some, kept, atol=1e-6)


def test_outputs_depend_on_nothing_later() -> None:
    params, xs = make_model().params, sequence(1, 10)
    _, ys = model.unroll(SPEC, params, model.initial_carry(SPEC, 1), xs)
    _, other = model.unroll(SPEC, params, model.initial_carry(SPEC, 1), xs.at[:, 6:].add(3.0))
    np.testing.assert_array_equal(ys[:, :6], other[:, :6])
    assert not np.allclose(ys[:, 6:], other[:, 6:])


def test_nothing_is_dropped_without_a_key() -> None:
    spec = SPEC.model_copy(update={"dropout": 0.5})
    params, xs, start = make_model(spec=spec).params, sequence(2, 8), model.initial_carry(SPEC, 2)
    plain, again = (model.unroll(spec, params, start, xs)[1] for _ in range(2))
    np.testing.assert_array_equal(plain, again)
    carry, dropped = model.unroll(spec, params, start, xs, key=jax.random.key(1))
    zero = np.asarray(dropped) == 0
    assert 0.3 < zero.mean() < 0.7
    np.testing.assert_allclose(np.asarray(dropped)[~zero], 2 * np.asarray(plain)[~zero], rtol=1e-4)
    np.testing.assert_allclose(
        carry, model.unroll(spec, params, start, xs)[0], atol=1e-6
    )  # never the recurrent path


def test_quantiles_are_finite_and_in_order() -> None:
    served, rng = make_model(), RNG(1)
    draw = jax.jit(lambda y, x, direct: model.quantiles(SPEC, served.params, y, x, direct))
    size = features.direct_size(SPEC.horizon)
    for scale in (1.0, 1e3, 1e30):
        y, x, direct = (
            jnp.asarray(scale * rng.normal(size=(20, n)), jnp.float32) for n in (8, features.RECURRENT, size)
        )
        found = draw(jnp.tanh(y), x, direct)
        assert found.shape == (SPEC.horizon, 3, 20)
        assert bool(jnp.isfinite(found).all())
        assert bool((jnp.diff(found, axis=1) >= 0).all())


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-100, 100, width=32, allow_subnormal=False), min_size=5, max_size=5))
def test_crossing_quantiles_are_pushed_outward_from_the_median(drawn: list[float]) -> None:
    found = np.asarray(model.in_order(jnp.asarray(drawn, jnp.float32)[:, None], 2))[:, 0]
    expected = list(np.asarray(drawn, np.float32))
    for i in (3, 4):
        expected[i] = max(expected[i], expected[i - 1])
    for i in (1, 0):
        expected[i] = min(expected[i], expected[i + 1])
    np.testing.assert_array_equal(found, expected)


def test_the_seed_alone_decides_the_first_parameters() -> None:
    one, same, other = (model.init(SPEC, seed) for seed in (1, 1, 2))
    assert one.keys() == model.shapes(SPEC).keys()
    for name, p in one.items():
        np.testing.assert_array_equal(p, same[name])
        assert p.shape == model.shapes(SPEC)[name].shape
    assert any(not np.array_equal(one[name], other[name]) for name in one)


def test_fresh_parameters_are_fitted_to_what_they_will_see() -> None:
    """Where the inputs say nothing, the head starts from the quantiles of the targets, around the last value."""
    rng = RNG(0)
    size = features.direct_size(SPEC.horizon)
    inputs, direct = 5 + 3 * rng.normal(size=(500, features.RECURRENT)), rng.normal(size=(500, size))
    target = np.asarray([1.0, 2.0, 4.0]) * rng.normal(size=(500, 3))
    params = model.standardised(SPEC, model.init(SPEC, 0), inputs, direct, target)
    np.testing.assert_allclose(params["norm.input_mean"], inputs.mean(0), rtol=1e-4)
    np.testing.assert_allclose(params["norm.input_rate"], 1 / inputs.std(0), rtol=1e-4)
    silent = {name: jnp.zeros_like(p) if "kernel" in name else p for name, p in params.items()}
    zeros = jnp.zeros((1, 8)), jnp.zeros((1, features.RECURRENT)), jnp.zeros((1, size))
    found = np.asarray(model.quantiles(SPEC, silent, *zeros))[..., 0]
    expected = np.quantile(target, SPEC.levels, axis=0).T
    np.testing.assert_allclose(found, expected - expected[:, 1:2], rtol=0.05, atol=0.05)


def test_what_is_a_level_s_own_is_multiplied_by_the_width_of_its_step() -> None:
    """Nothing is shared before a network is taught: skip and gates begin as 0."""
    params, rng = model.init(SPEC, 0), RNG(3)
    y, x, direct = (
        jnp.asarray(rng.normal(size=(20, n)), jnp.float32)
        for n in (8, features.RECURRENT, features.direct_size(SPEC.horizon))
    )
    widths = np.array([0.1, 1.0, 5.0])
    wide = params | {"width.bias": jnp.asarray(np.log(widths), jnp.float32)}
    plain, found = (features.squash(model.head(SPEC, p, y, x, direct)) for p in (params, wide))
    np.testing.assert_allclose(found, widths[:, None, None] * plain, rtol=1e-3, atol=1e-5)


def test_an_input_that_hardly_varied_is_not_blown_up() -> None:
    rng = RNG(0)
    spread = np.array([0.0, 0.01, 0.05, 0.2, 1.0])
    inputs = np.zeros((500, features.RECURRENT))
    inputs[:, : len(spread)] = rng.normal(size=(500, len(spread))) * spread
    direct, target = rng.normal(size=(500, features.direct_size(SPEC.horizon))), rng.normal(size=(500, 3))
    params = model.standardised(SPEC, model.init(SPEC, 0), inputs, direct, target)
    expected = [0.0, 10.0, 10.0, *(1 / inputs.std(0)[3:5])]
    np.testing.assert_allclose(params["norm.input_rate"][: len(spread)], expected, rtol=1e-4)


def test_what_does_not_vary_or_is_to_be_left_out_is_not_heard() -> None:
    """Whatever it turns out to be later: the weights of such an input are as they were drawn."""
    rng = RNG(0)
    size = features.direct_size(SPEC.horizon)
    inputs, direct = rng.normal(size=(500, features.RECURRENT)), rng.normal(size=(500, size))
    inputs[:, 0] = direct[:, 1] = 3.0
    params = model.standardised(SPEC, model.init(SPEC, 0), inputs, direct, rng.normal(size=(500, 3)))
    params = model.without(params, features.Inputs([5], [-2]))
    deaf = np.zeros(features.RECURRENT + size, bool)
    deaf[[0, 5, features.RECURRENT + 1, -2]] = True
    np.testing.assert_array_equal(model.hears(params), ~deaf)

    def said(heard: float, unheard: float) -> np.ndarray:
        x = np.where(deaf, unheard, heard).astype(np.float32)[None]
        _, y = model.step(SPEC, params, jnp.zeros((1, 8)), x[:, : features.RECURRENT])
        return np.asarray(model.head(SPEC, params, y, x[:, : features.RECURRENT], x[:, features.RECURRENT :]))

    np.testing.assert_array_equal(said(0.5, 0.0), said(0.5, 100.0))
    assert not np.allclose(said(0.5, 0.0), said(1.5, 0.0))


def test_an_untrained_model_has_no_version_and_says_nothing() -> None:
    blank = model.untrained(SPEC)
    assert blank.version == ""
    assert not any(bool(p.any()) for p in blank.params.values())


@pytest.mark.parametrize(
    "wrong", [{"levels": (0.1, 0.9)}, {"levels": (0.5, 0.1)}, {"levels": (0.0, 0.5)}, {"warm_up": 17}]
)
def test_specs_that_make_no_sense_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        ModelSpec.model_validate({"context_length": 16, "warm_up": 4} | wrong)
