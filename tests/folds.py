"""Small folds for tests: compiled once a session for each shape, fresh state each time."""

from collections.abc import Iterable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from forecaster.core import model, stats
from forecaster.core.batch import Issued
from forecaster.core.calls import Shape
from forecaster.core.fold import Fold
from forecaster.core.grid import GridSpec
from forecaster.core.model import Card, Model, ModelSpec
from forecaster.core.table import SeriesSpec
from forecaster.core.tick import Outcome, Tick

SPEC = ModelSpec(hidden=8, horizon=3, levels=(0.1, 0.5, 0.9), context_length=16, warm_up=4)
COVERED = SPEC.model_copy(update={"covariates": ("load", "wind")})
LANES, ROUNDS, ROWS = 4, 8, 16
SHAPES = Shape(8, 1, 8, 24), Shape(LANES, ROUNDS, 5, 12), Shape(1, 16, 5, 1)
START_S = 1.7e9

_programs: dict[tuple[Any, ...], dict[Any, Any]] = {}


def make_fold(
    spec: ModelSpec = SPEC,
    grid: GridSpec | None = None,
    *,
    rows: int = ROWS,
    shapes: Sequence[Shape] = SHAPES,
    idle_s: float = 7 * 86400.0,
    same_time: str = "drop_equal",
    spare: int = 0,
) -> Fold:
    """A fold with nothing in it; folds of one shape share their compiled programs."""
    series = SeriesSpec(max_series=rows, idle_s=idle_s)
    fold = Fold(spec, series, grid or GridSpec(), same_time, shapes=shapes, spare=spare)
    share_programs(fold)
    return fold


def share_programs(fold: Fold) -> None:
    """Those of all folds of the same network and size."""
    shape = (fold.spec, fold.spare.stop, fold._shapes)
    fold._programs = _programs.setdefault(shape, {})


def make_model(
    version: str = "v1", seed: int = 1, spec: ModelSpec = SPEC, periods: Sequence[int] = ()
) -> Model:
    """A network with an opinion: random parameters, so that its carry and forecasts are its own."""
    rng = np.random.default_rng(seed)
    params = {
        name: p + jnp.asarray(0.1 * rng.normal(size=p.shape), jnp.float32)
        for name, p in model.init(spec, seed).items()
    }
    seasons = np.zeros(stats.SEASONS, np.int32)
    seasons[: len(periods)] = periods
    return Model(spec, params, jnp.asarray(seasons), Card(version=version))


def broken(model: Model) -> Model:
    """The same network, with a NaN in its head: it says nothing that is finite."""
    params = dict(model.params)
    params["out.bias"] = params["out.bias"].at[0].set(jnp.nan)
    return model._replace(params=params, card=Card(version="broken"))


def walk(name: str, steps: int, seed: int = 0, start: float = 100.0, scale: float = 1.0) -> list[Tick]:
    """A random walk at uneven times."""
    rng = np.random.default_rng(seed)
    times = START_S + np.cumsum(rng.integers(1, 20, steps))
    values = start + scale * np.cumsum(rng.normal(size=steps))
    return [Tick(name, float(t), float(v)) for t, v in zip(times, values, strict=True)]


def accompanied(ticks: Sequence[Tick], spec: ModelSpec = COVERED, seed: int = 0) -> list[Tick]:
    """The same ticks with the covariates of a spec: each of another size, now and then missing."""
    rng = np.random.default_rng(seed)
    numbers = rng.normal(size=(len(ticks), len(spec.covariates))) * 10.0 ** np.arange(
        0, 4 * len(spec.covariates), 4
    )
    known = np.where(rng.random(numbers.shape) < 0.2, np.nan, numbers).tolist()
    return [
        Tick(t.series, t.time_s, t.value, t.sequence, tuple(more))
        for t, more in zip(ticks, known, strict=True)
    ]


def merged(*parts: Iterable[Tick]) -> list[Tick]:
    """Ticks of several series in the order of their times."""
    return sorted((tick for part in parts for tick in part), key=lambda tick: tick.time_s)


def play(
    fold: Fold, ticks: Sequence[Tick], batch: int = 10_000, *, first: int = 0, partition: int = 0
) -> tuple[list[Issued], list[Outcome]]:
    """Fold ticks in batches, with offsets from `first` on."""
    issued: list[Issued] = []
    outcomes: list[Outcome] = []
    for start in range(0, len(ticks), batch):
        some = ticks[start : start + batch]
        outcomes += fold.admit(partition, range(first + start, first + start + len(some)), some)
        issued.append(fold.run())
    return issued, outcomes


def by_source(issued: Iterable[Issued]) -> dict[tuple[int, int], np.ndarray]:
    """(partition, offset) -> the quantiles that answer it; fails when one is answered twice."""
    found: dict[tuple[int, int], np.ndarray] = {}
    for part in issued:
        for i, place in enumerate(zip(part.partition.tolist(), part.source.tolist(), strict=True)):
            assert place not in found
            found[place] = part.last[i] + part.offset[i].astype(np.float64)
    return found


def same_forecasts(one: Iterable[Issued], other: Iterable[Issued], rtol: float = 0.0) -> None:
    """Both answered the same ticks with the same quantiles."""
    mine, theirs = by_source(one), by_source(other)
    assert mine.keys() == theirs.keys()
    for place, quantiles in mine.items():
        np.testing.assert_allclose(quantiles, theirs[place], rtol=rtol, err_msg=str(place))


WINDOW = {"count", "base", "value", "trace"}
CLOSE = 1e-5
"""Of a series' scale, or of a number's size: what is left open by programs of other batch sizes."""


def same_column(name: str, one: np.ndarray, other: np.ndarray) -> None:
    """A column of rows: bit for bit where it is of a window, else within CLOSE of the size of its numbers."""
    if name in WINDOW:
        np.testing.assert_array_equal(one, other, err_msg=name)
    else:
        large = np.maximum(1.0, np.abs(np.nan_to_num(one.astype(np.float64))))
        np.testing.assert_allclose(one / large, other / large, rtol=0, atol=CLOSE, err_msg=name)


def row_of(fold: Fold, name: str, partition: int = 0) -> int:
    """The row of a series."""
    return fold.index.partitions[partition][name].row
