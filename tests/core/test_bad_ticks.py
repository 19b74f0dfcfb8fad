"""What a level, a loan that does not fit, or a single bad tick does to forecasts: nothing that lasts."""

from collections.abc import Mapping

import numpy as np
import pytest

from forecaster.core import stats
from forecaster.core.fold import Fold
from forecaster.core.grid import GridSpec
from forecaster.core.model import ModelSpec
from forecaster.core.table import YOUNG, Series, SeriesSpec
from forecaster.core.tick import Tick
from tests.folds import make_fold, make_model, play, walk

STEPS, BAD_AT = 700, 300
STEP = 2.0**-6  # spread of the changes; a power of two, so that a level takes nothing away from them
WALK = np.cumsum(np.round(np.random.default_rng(0).normal(size=STEPS) * 2**10) / 2**10) * STEP
SPEC = ModelSpec(horizon=3, levels=(0.1, 0.5, 0.9), context_length=16, warm_up=4, hidden=8)


def bands(series: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The quantiles one step ahead of each series at each step, minus its value there, in STEPs; no network serves."""
    fold = Fold(SPEC, SeriesSpec(max_series=len(series) + 8), GridSpec())
    log = [Tick(name, 1.7e9 + i, float(values[i])) for i in range(STEPS) for name, values in series.items()]
    issued, _ = play(fold, log, 50 * len(series))
    found: dict[str, list[np.ndarray]] = {name: [] for name in series}
    for part in issued:
        for name, offset in zip(part.series, part.offset, strict=True):
            found[name].append(offset[0] / STEP)
    return {name: np.array(rows) for name, rows in found.items()}


def with_one(value: float, at: int = BAD_AT) -> np.ndarray:
    values = 20 + WALK
    values[at] = value
    return values


LEVELS = {f"level {level:g}": level + WALK for level in (0.0, 1e3, 1e5, 2.0**22, 2.0**27)}
NOISE = np.random.default_rng(1).normal(size=STEPS) * STEP
JUMP = {"noise around a new level": 20 + NOISE + 20 * STEP * (np.arange(STEPS) >= BAD_AT)}
BAD = {f"a tick of {value:g}": with_one(value) for value in (-9999.0, 0.0, 65535.0, 1e9)}
FIRST = {f"first {value:g}": with_one(value, 0) for value in (-9999.0, 0.0, 2.0**31)} | {
    "zeros, then a meter": np.r_[np.zeros(5), 2.0**22 + WALK[5:]],
    "third 1e6": with_one(1e6, 2),
}
MOVED = {"a new level": 20 + WALK + 16.0 * (np.arange(STEPS) >= BAD_AT)}


@pytest.fixture(scope="module")
def found() -> dict[str, np.ndarray]:
    return bands({"plain": 20 + WALK} | LEVELS | BAD | FIRST | MOVED | JUMP)


@pytest.mark.parametrize("name", LEVELS)
def test_a_level_changes_nothing_once_the_series_knows_its_own_scale(
    found: dict[str, np.ndarray], name: str
) -> None:
    width, usual = (band[:, -1] - band[:, 0] for band in (found[name], found["plain"]))
    settled = slice(10 * stats.OWN, None)
    np.testing.assert_allclose(width[settled], usual[settled], rtol=0.15)


@pytest.mark.parametrize("name", [*BAD, *MOVED])
def test_a_bad_tick_or_a_new_level_is_over_soon(found: dict[str, np.ndarray], name: str) -> None:
    after = slice(BAD_AT + 50, None)
    width, usual = (band[after, -1] - band[after, 0] for band in (found[name], found["plain"]))
    assert 0.75 < width.mean() / usual.mean() < 1.35
    assert np.abs(found[name][after, 1] - found["plain"][after, 1]).max() < 1.0


def test_a_jump_is_followed_from_its_third_tick_on(found: dict[str, np.ndarray]) -> None:
    (name, values), third = *JUMP.items(), BAD_AT + 2
    centre = found[name][:, 1] + (values - 20) / STEP
    assert np.abs(centre[BAD_AT - 50 : BAD_AT]).max() < 2
    assert np.abs(centre[third : third + 50] - 20).max() < 5


@pytest.mark.parametrize("name", FIRST)
def test_a_bad_tick_at_the_start_is_over_soon(found: dict[str, np.ndarray], name: str) -> None:
    after = slice(100, None)
    width, usual = (band[after, -1] - band[after, 0] for band in (found[name], found["plain"]))
    assert 0.75 < width.mean() / usual.mean() < 1.35


def test_a_row_that_began_with_a_bad_tick_begins_anew_and_one_that_grows_does_not() -> None:
    def starts(values: list[float]) -> list[int]:
        series = Series("a", 0)
        return [i for i, value in enumerate(values) if series.step(value, float(i), fresh=False)]

    assert starts([-9999.0, 20.0, 20.1, 20.0, 20.2]) == [0, 2]
    assert starts([0.0, 0.0, 0.0, 4e6, 4e6 + 0.1, 4e6]) == [0, 4]
    assert starts([20.0, 20.0, -9999.0, 20.0, 20.1]) == [0, 4]
    assert starts([5.0] * 6) == starts([float(i) for i in range(20)]) == [0]
    assert starts([float(2**i) for i in range(20)]) == [0]
    late = [20.0] * (YOUNG + 1) + [-9999.0, 20.0, 20.1, 20.0]
    assert starts(late) == [0]  # it knows itself by then, and forgets nothing for one bad tick


@pytest.mark.parametrize("around", ["a level", "nothing"])
def test_intervals_hold_after_a_sensor_hung(around: str) -> None:
    """They are narrow while it stands still, and as wide as before from the first tick that moves on."""
    steps, end = 12, STEPS - 100
    rng = np.random.default_rng(3)
    free = rng.normal(size=(steps, STEPS)) * STEP
    values = 20 + (free if around == "a level" else np.cumsum(free, 1))
    values[:, BAD_AT:end] = values[:, [BAD_AT - 1]]
    found = bands({f"sensor {i}": row for i, row in enumerate(values)})
    quantiles = np.stack([found[f"sensor {i}"] for i in range(steps)])
    width = quantiles[..., -1] - quantiles[..., 0]
    came = np.diff(values, axis=1) / STEP
    held = (quantiles[:, :-1, 0] < came) & (came < quantiles[:, :-1, -1])
    usual = width[:, BAD_AT - 100 : BAD_AT].mean()
    assert width[:, end - 200 : end].mean() < 0.2 * usual
    assert held[:, end : STEPS - 1].mean() > 0.72
    assert 0.75 < width[:, end:].mean() / usual < 1.35


@pytest.mark.parametrize("power", [-60, -20, 20, 60])
def test_the_unit_of_a_series_does_not_matter(power: int) -> None:
    """Powers of two, so that floats are the same but for their exponent: 1e-18, 1e-6, 1e6, 1e18."""
    unit = 2.0**power
    found = []
    for by in (1.0, unit):
        fold = make_fold()
        fold.swap(make_model())
        (issued,), _ = play(fold, walk("a", 60, start=100.0 * by, scale=by))
        found.append(issued.offset / by)
    np.testing.assert_allclose(found[1], found[0], rtol=1e-3, atol=1e-3)
