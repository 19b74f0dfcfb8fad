"""The step in which a series' values come: found in those that have one alone, and quantiles that keep to it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forecaster.core import grain
from forecaster.core.calls import Shape
from forecaster.core.grain import Grain
from forecaster.core.model import ModelSpec
from forecaster.core.tick import Tick
from tests.folds import make_fold

SPEC = ModelSpec(hidden=4, horizon=3, context_length=8, warm_up=4)
NEWBORN = Grain(*jnp.zeros((grain.STATE, 1)))
SURE = Grain(jnp.array([0.5]), jnp.zeros(1), jnp.ones(1))


def follow(values: np.ndarray) -> Grain:
    """The grain after each change of one series, shapes (step,)."""

    def step(before: Grain, seen: tuple[jax.Array, jax.Array]) -> tuple[Grain, Grain]:
        change, count = seen
        after = grain.observe(before, change[None], count[None])
        return after, after

    changes = jnp.asarray(np.diff(values), jnp.float32)
    seen = changes, jnp.arange(1, len(values))
    found = jax.jit(lambda c: jax.lax.scan(step, NEWBORN, c))(seen)[1]
    return Grain(*(np.asarray(x)[:, 0] for x in found))  # pyright: ignore[reportArgumentType]


def drawn(quantiles: np.ndarray, found: Grain) -> np.ndarray:
    """One forecast of one series, scale 1."""
    kept = grain.keep_to(jnp.asarray(quantiles, jnp.float32)[None, :, None], found, jnp.ones(1))
    return np.asarray(kept)[0, :, 0]


def walk(rng: np.random.Generator, steps: int = 600) -> np.ndarray:
    return np.cumsum(rng.normal(size=steps))


@pytest.mark.parametrize("size", [0.01, 0.5, 1.0, 25.0])
def test_what_is_rounded_shows_its_grain(size: float) -> None:
    rng = np.random.default_rng(0)
    found = follow(np.round(1.5 * walk(rng)) * size)
    assert found.size[-1] == pytest.approx(size, rel=1e-3)
    assert found.doubt[100:].max() < grain.FIRM


def test_a_grain_that_was_rounded_once_more_is_found() -> None:
    """A sensor counts in steps of 0.0405 and tells three places: 0.040, 0.041, 0.081, ..."""
    rng = np.random.default_rng(0)
    found = follow(np.round(np.round(walk(rng)) * 0.0405, 3))
    assert found.size[-1] == pytest.approx(0.0405, rel=0.02)
    assert found.doubt[100:].max() < grain.LOOSE


def test_noise_much_smaller_than_the_grain_does_not_hide_it() -> None:
    rng = np.random.default_rng(0)
    values = rng.integers(1, 3, 600) / 15 + rng.choice([0.0, 0.002], 600)
    found = follow(values)
    assert found.size[-1] == pytest.approx(1 / 15, rel=0.05)
    assert found.doubt[200:].max() < grain.LOOSE


@pytest.mark.parametrize("seed", range(5))
def test_what_is_not_rounded_has_none(seed: int) -> None:
    rng = np.random.default_rng(seed)
    for values in (walk(rng), rng.normal(size=600), rng.exponential(size=600)):
        assert (follow(values).doubt[50:] < grain.LOOSE).mean() < 0.01


def test_another_grain_is_found_when_a_series_changes_its_own() -> None:
    rng = np.random.default_rng(0)
    steps = np.round(1.5 * walk(rng, 2400))
    changes = np.diff(steps) * np.repeat([1.0, 0.1, 1.0], 800)[1:]
    found = follow(np.cumsum(changes))
    assert [found.size[i] for i in (700, 1500)] == pytest.approx([1.0, 0.1], rel=1e-2)
    assert found.doubt[-1] < grain.LOOSE  # what comes in steps of 1 comes in steps of 0.1, too


@settings(deadline=None)
@given(
    st.lists(st.floats(-20, 20, width=32), min_size=1, max_size=11),
    st.floats(0.25, 3.0, width=32),
    st.sampled_from([0.0, 0.04, 0.08]),
)
def test_every_outcome_stays_on_its_side(quantiles: list[float], size: float, doubt: float) -> None:
    """So whatever interval held an outcome before holds it after, and no two quantiles change places."""
    before = np.sort(np.asarray(quantiles, np.float32))
    after = drawn(before, SURE._replace(size=jnp.array([size]), doubt=jnp.array([doubt])))
    assert (np.diff(after) >= 0).all()
    places = before / np.float32(size)
    clear = np.abs(places - np.round(places)) > 1e-3  # nearer than that, float32 decides
    np.testing.assert_array_equal(np.floor(after / size)[clear], np.floor(places)[clear])
    nearest = np.round(places) * size
    assert (np.abs(after - nearest) <= np.abs(before - nearest) + 1e-4).all()


def test_rounding_errors_are_not_blown_up() -> None:
    """An answer that is given again differs by rounding; it must not lie a whole grain off."""
    before = np.linspace(-2, 2, 2001, dtype=np.float32)
    after = drawn(before, SURE)
    assert np.diff(after).max() <= 1.01 * np.diff(before).max() * 0.5 / grain.STEEP


def test_quantiles_are_drawn_to_what_can_come_and_left_alone_in_doubt() -> None:
    before = np.array([-1.3, -0.2, 0.0, 0.3, 0.7], np.float32)
    np.testing.assert_allclose(drawn(before, SURE), [-1.49, -0.01, 0.0, 0.49, 0.51], atol=1e-6)
    np.testing.assert_array_equal(drawn(before, SURE._replace(size=jnp.array([grain.FINE]))), before)
    np.testing.assert_array_equal(drawn(before, SURE._replace(doubt=jnp.array([grain.LOOSE]))), before)
    np.testing.assert_array_equal(drawn(before, NEWBORN), before)


def test_forecasts_of_a_counter_are_counts() -> None:
    rng = np.random.default_rng(0)
    values = np.round(10 + 3 * np.sin(np.arange(400) / 5) + rng.normal(size=400))
    fold = make_fold(SPEC, rows=8, shapes=[Shape(1, 64, 1, 1)])
    fold.admit(0, range(len(values)), [Tick("a", 60.0 * t, float(value)) for t, value in enumerate(values)])
    issued = fold.run()
    forecasts = issued.last[-100:, None, None] + issued.offset[-100:]
    off = np.abs(forecasts - np.round(forecasts))
    assert (off <= 0.5 * grain.LEFT).mean() > 0.85  # the others lie about the middle of two counts
