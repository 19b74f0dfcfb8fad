"""The first half of a step: the value is taken in, by everything but the network, the mix and its corrections.

Scale, seasons, experts and the inputs of the network follow it. Needs no network, so training scans just this.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Int

from forecaster.core import bounds, covariates, experts, features, grain, row, shift, stats, table, waiting
from forecaster.core.apart import apart
from forecaster.core.experts import Alarm, Blend, Linear
from forecaster.core.features import Sight
from forecaster.core.grain import Grain
from forecaster.core.model import ModelSpec
from forecaster.core.row import Memory
from forecaster.core.shift import Shift
from forecaster.core.stats import Running, Season
from forecaster.core.table import Rows

FARTHEST = 1e15  # scales that an outcome is off: the square is finite


class Steps(NamedTuple):
    """One step of each of `batch` different series."""

    value: Float[Array, " batch"]  # relative to the series' base
    dt_s: Float[Array, " batch"]
    week: Float[Array, " batch"]  # days since the week began
    live: Bool[Array, " batch"]  # the forecast is published and will count
    valid: Bool[Array, " batch"]  # not padding
    came: Bool[Array, " batch"]  # a tick did; what fills a gap, or pads, is no outcome of a forecast
    covariates: Float[Array, "batch covariate"]  # NaN: missing


class Due(NamedTuple):
    """The forecasts of 1 .. `horizon` steps ago, whose target has come; in scales, but for the first two."""

    origin: Float[Array, "horizon batch"]  # the values that they were made from
    scale: Float[Array, "horizon batch"]  # the scales of that time
    settled: Bool[Array, "horizon batch"]  # whether there is such a forecast, and a tick came for it
    live: Bool[Array, "horizon batch"]  # of these the ones that were published
    actual: Float[Array, "horizon batch"]  # what came
    quantiles: Float[Array, "horizon level batch"]
    points: Float[Array, "expert horizon batch"]  # what the experts had said; NaN: nothing


class Percept(NamedTuple):
    """What is known of a step before the network has seen it."""

    value: Array
    scale: Array
    x: Float[Array, "batch feature"]  # recurrent inputs
    direct: Float[Array, "batch feature"]  # direct inputs
    due: Due
    telling: Bool[Array, "horizon batch"]  # which of what is due teaches
    lines: Float[Array, "line batch"]  # what they say now
    seasonal: Float[Array, "horizon batch"]
    linear: Float[Array, "horizon batch"]
    has_season: Bool[Array, " batch"]
    misjudged: Bool[Array, " batch"]  # the scale that it was lent, in which it learned until now
    alarm: Alarm
    stopped: tuple[Float[Array, "horizon batch"], ...]  # how low and how high they could go, in scales
    limits: tuple[Float[Array, " batch"], ...]  # the same of those made now, in units of the value
    grain: Grain  # of those made now


def perceive(
    spec: ModelSpec, rows: Rows, idx: Int[Array, " batch"], steps: Steps, periods: Int[Array, " season"]
) -> tuple[Rows, Percept]:
    """Take in one step: everything but the network, the mix and its corrections.

    The changes hold the old carry, regrets and corrections, and the quantiles that waited; `foretell` replaces them.
    """
    batch, horizon = idx.shape[0], spec.horizon

    def read(column: Array) -> Array:
        return table.whole(column, idx)

    count, base, value = read(rows.count), read(rows.base), steps.value
    running, holt_level, holt_slope, alarm, edges, step, moves, known = row.unpack(read(rows.running))

    # what waited for this value
    due = _due(rows, idx, count, steps, horizon)
    stopped = bounds.limits(edges)
    edges = bounds.observe(edges, value, due.origin, _reached(due, spec.levels), due.settled)
    blend = Blend(*row.batch_last(read(rows.blend)))

    # the window and the statistics
    lags = jnp.broadcast_to(jnp.arange(features.LEAD, 0, -1), (batch, features.LEAD))
    came = jnp.where((count > 0)[:, None], table.lagged(rows.value, idx, count, lags), value[:, None])
    moving = ~stats.stands(running, count, came, horizon)
    one_period_ago = jnp.broadcast_to(periods, (batch, stats.SEASONS))
    lagged = shift.seen(moves, table.lagged(rows.value, idx, count, one_period_ago), one_period_ago - 1)
    past = shift.seen(moves, came, lags - 1)
    running, taken = stats.observe(running, count, value, steps.dt_s, past, lagged, periods)
    seasons = stats.choose_seasons(running, count, periods)
    told = stats.told(running, seasons[0], periods, lagged)
    moves, moved = shift.observe(moves, value - told, count)
    running = stats.move(running, moved, shift.CONFIRM)
    past = apart(shift.seen(moves, came, lags))  # read by many loops, each of which would make it anew

    # what teaches
    informed = due.settled & shift.here(moves, horizon)
    telling = informed & moving
    sounded = experts.sound(alarm, due.actual[0], blend.error[experts.LAST, 0])
    alarm = Alarm(*(jnp.where(informed[0], new, old) for new, old in zip(sounded, alarm, strict=True)))
    error, misjudged = _errors_now(blend.error, due, telling, count, taken.own)
    step = grain.observe(step, jnp.where(taken.tame, value - past[:, -1], 0.0), count)
    scale = stats.running_scale(running, value)
    holt_level, holt_slope = experts.holt(holt_level, holt_slope, count, value)
    known, signals = covariates.observe(known, steps.covariates)

    # what it looks back on, and the linear expert
    sight, ago = _look_back(spec, rows, idx, value, scale, past, running, seasons, moves)
    path = jnp.concatenate([came, value[:, None]], axis=1)[:, -horizon:]
    gone = (path - due.origin[-1][:, None]) / jnp.maximum(due.scale[-1][:, None], 1e-30)
    linear = _learned(rows, idx, gone, jnp.maximum(error[-1].mean(0), 1e-3), informed[-1])
    x_linear = experts.regressors(sight)
    said = experts.predict(linear, x_linear)

    # the network's inputs
    own = features.recurrent_inputs(
        jnp.concatenate([past, value[:, None]], axis=1),
        scale[:, None],
        steps.dt_s[:, None],
        steps.week[:, None],
        ago[:, None, :2],
        base,
        running,
        seasons[0],
    )[:, 0]
    x = jnp.concatenate([own, signals], axis=1)
    direct = features.direct_inputs(sight, running, scale, seasons, steps.week, said, _errors(error))

    lines_now = jnp.stack(
        [
            running.mean[:, experts.FAST] - value,
            running.mean[:, experts.SLOW] - value,
            holt_level - value,
            holt_slope,
            (value - past[:, -experts.DRIFT_STEPS]) / jnp.clip(count, 1, experts.DRIFT_STEPS),
        ]
    )
    percept = Percept(
        value=value,
        scale=scale,
        x=x,
        direct=direct,
        due=due,
        telling=telling,
        lines=lines_now / scale,
        seasonal=features.unsquash(sight.best[:, 1:].T)
        + seasons[0].drift / scale * features.cycles_back(seasons[0].period, horizon)[:, 1:].T,
        linear=features.unsquash(said.T),
        has_season=seasons[0].period > 0,
        misjudged=misjudged,
        alarm=alarm,
        stopped=tuple((end - due.origin) / jnp.where(due.settled, due.scale, 1.0) for end in stopped),
        limits=tuple(end - value for end in bounds.reach(edges, scale, horizon)),
        grain=step,
    )
    trace = jnp.stack([jnp.log(scale), jnp.log(steps.dt_s + 1e-6), steps.week], axis=1)
    changes = Rows(
        count=count + 1,
        base=base,
        value=value,
        trace=jnp.concatenate([trace, signals], axis=1),
        running=row.pack(Memory(running, holt_level, holt_slope, alarm, edges, step, moves, known)),
        origin=jnp.stack([value, jnp.where(steps.live, scale, -scale), *percept.lines], axis=1),
        waiting=waiting.pack(curves_now(percept, jnp.full((horizon, batch), jnp.nan)), due.quantiles),
        regressors=x_linear,
        covariance=linear.covariance,
        weights=linear.weights,
        blend=row.batch_first(jnp.stack(blend._replace(error=error))),
        carry=read(rows.carry),
        offset=read(rows.offset),
    )
    return changes, percept


def _due(
    rows: Rows, idx: Int[Array, " batch"], count: Int[Array, " batch"], steps: Steps, horizon: int
) -> Due:
    """What waited for this value, step number `count`."""
    settled = (count >= jnp.arange(1, horizon + 1)[:, None]) & steps.came
    origin = table.origins(rows.origin, idx, count, horizon)
    value, marked = origin[..., :2].T
    scale = jnp.abs(marked)
    actual = jnp.where(settled, (steps.value - value) / jnp.where(settled, scale, 1.0), 0.0)
    curves, quantiles = waiting.unpack(table.due(rows.waiting, idx, count, horizon))
    return Due(
        origin=value,
        scale=scale,
        settled=settled,
        live=settled & (marked > 0),
        actual=jnp.clip(actual, -FARTHEST, FARTHEST),
        quantiles=quantiles,
        points=experts.assemble(origin[..., 2:].T, curves),
    )


def _reached(
    due: Due, levels: tuple[float, ...]
) -> tuple[Float[Array, "horizon batch"], Float[Array, "horizon batch"]]:
    """The two quantiles that tell of a bound, in units of the value. Training keeps none, and finds no bound."""
    if not due.quantiles.shape[1]:
        return jnp.full_like(due.scale, jnp.inf), jnp.full_like(due.scale, -jnp.inf)
    low, high = bounds.outer(levels)
    return due.quantiles[:, low] * due.scale, due.quantiles[:, high] * due.scale


def _errors_now(
    error: Float[Array, "expert horizon batch"],
    due: Due,
    telling: Bool[Array, "horizon batch"],
    count: Int[Array, " batch"],
    own: Float[Array, " batch"],
) -> tuple[Float[Array, "expert horizon batch"], Bool[Array, " batch"]]:
    """The experts' mean absolute errors; begun anew where the second says that their units did not fit."""
    error = experts.follow(error, due.points, due.actual, telling, count)
    misjudged = experts.misjudged(error, own)
    return jnp.where(misjudged, experts.newborn(len(due.actual)).error[:, :, None], error), misjudged


def _learned(
    rows: Rows,
    idx: Int[Array, " batch"],
    gone: Float[Array, "batch horizon"],
    usual: Float[Array, " batch"],
    known: Bool[Array, " batch"],
) -> Linear:
    """The linear expert, once it knows how far a series has gone since the oldest origin that waits, in scales."""
    count, horizon = table.whole(rows.count, idx), gone.shape[1]
    oldest = rows.regressors.at[idx, jnp.remainder(count, horizon)].get(mode="clip").astype(jnp.float32)
    linear = Linear(table.whole(rows.covariance, idx), table.whole(rows.weights, idx))
    return experts.learn(linear, oldest, jnp.clip(features.squash(gone), -30.0, 30.0), usual, known)


def _look_back(
    spec: ModelSpec,
    rows: Rows,
    idx: Int[Array, " batch"],
    value: Array,
    scale: Array,
    past: Float[Array, "batch lead"],
    running: Running,
    seasons: tuple[Season, Season],
    moves: Shift,
) -> tuple[Sight, Float[Array, "batch horizon_and_origin"]]:
    """What the window and the seasons tell at a step that is not written yet, and the values one best season ago."""
    count = table.whole(rows.count, idx)

    def ago(lags: Int[Array, "batch lag"]) -> Array:
        return shift.seen(moves, table.lagged(rows.value, idx, count, lags), lags)

    def seasons_ago(season: Season, cycles: int) -> Array:
        lags = features.season_lags(season.period, spec.horizon, cycles)
        found = ago(lags.reshape(len(idx), -1)).reshape(lags.shape)
        return jnp.where((lags > 0) & (count > 0)[:, None, None], found, value[:, None, None])

    def before(season: Season) -> Array:
        """Values WAKE steps before those one season ago."""
        return ago(season.period[:, None] + jnp.asarray(features.WAKE))

    best, second = seasons_ago(seasons[0], features.CYCLES), seasons_ago(seasons[1], 1)[:, 0]
    wakes = before(seasons[0]), before(seasons[1])
    reach = jnp.minimum(count, rows.value.shape[1])
    seen = seasons[0].period[:, None] * jnp.arange(1, features.CYCLES + 1) <= reach[:, None]
    return features.look_back(value, scale, past, running, best, second, wakes, seen, seasons), best[:, 0]


def curves_now(
    percept: Percept, network: Float[Array, "horizon batch"]
) -> list[Float[Array, "horizon batch"]]:
    """The points that wait for their targets one by one; NaN from an expert that has nothing to say."""
    seasonal = jnp.where(percept.has_season, percept.seasonal, jnp.nan)
    return [network, seasonal, percept.linear]


def _errors(error: Float[Array, "expert horizon batch"]) -> Float[Array, "batch error"]:
    """How large the linear expert's errors are, near and far, and how they compare with the last value's."""
    horizon = error.shape[1]
    near_and_far = np.array([0, min(3, horizon - 1), horizon - 1])
    linear, last = error[-1, near_and_far], error[1, near_and_far]
    return jnp.concatenate([jnp.log(linear + 0.05), jnp.log((linear + 0.05) / (last + 0.05))]).T
