"""The fold over rows: one step of each touched series in, its forecast and the scores of what it settles out.

    changes, forecasts, scores = advance(spec, serving, rows, idx, steps)      reads only
    rows = table.write(rows, idx, changes)                                     writes only

Within a step: `perceive` takes the value in (scale, seasons, experts, inputs of the network), `foretell` settles what
waited for it (scores, weights, corrections), advances the carry by one cell step, forecasts, mixes and corrects. The
first half needs no network, and training scans just that. Pure, and compiled for a few fixed sizes; padding has `valid`
false. The row is the first axis of the table and of the changes; within a step the batch is the last axis of what is
short otherwise (experts, steps ahead, levels): vector instructions work along the last axis.
"""

from functools import partial
from itertools import accumulate
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Int

from forecaster.core import (
    bounds,
    calibrate,
    covariates,
    experts,
    features,
    grain,
    model,
    score,
    table,
    waiting,
)
from forecaster.core.apart import apart
from forecaster.core.bounds import Bounds
from forecaster.core.experts import Blend, Linear
from forecaster.core.features import Running, Season, Sight
from forecaster.core.grain import Grain
from forecaster.core.model import ModelSpec, Params
from forecaster.core.score import Scores
from forecaster.core.table import Layout, Rows

COLD, WARMING, OK, FALLBACK = range(4)  # status of a forecast
STATUSES = ("cold", "warming", "ok", "fallback")
MATURE = 32  # steps after which a series can lend
TRACE = 3  # of what the ring keeps of each step beside its value: logarithms of scale and of seconds, day of the week


class Serving(NamedTuple):
    """What the compiled programs need of the serving model."""

    params: Params
    periods: Int[Array, " season"]
    trained: Array  # bool (): whether there is a model at all


class Steps(NamedTuple):
    """One step of each of `batch` different series."""

    value: Float[Array, " batch"]  # relative to the series' base
    dt_s: Float[Array, " batch"]
    week: Float[Array, " batch"]  # days since the week began
    live: Bool[Array, " batch"]  # the forecast is published and will count
    valid: Bool[Array, " batch"]  # not padding
    covariates: Float[Array, "batch covariate"]  # NaN: missing


class Forecasts(NamedTuple):
    """One forecast a step."""

    offset: Float[Array, "batch horizon level"]  # quantiles minus the last value, in units of the value
    scale: Float[Array, " batch"]
    status: Int[Array, " batch"]
    anomaly: Float[Array, " batch"]  # NaN where no forecast had been made for this step


class Loan(NamedTuple):
    """What a newborn series borrows from the others of its partition until it knows itself."""

    scale: Array  # its running scale as a share of the magnitude of its value
    blend: Float[Array, "3 expert horizon"]  # a `Blend`
    offset: Float[Array, "horizon level"]


def layout(spec: ModelSpec) -> Layout:
    """Widths of the table's columns for a model."""
    return Layout(
        memory=max(features.MEMORY, spec.context_length),
        context=spec.context_length,
        trace=TRACE + covariates.SIGNALS * len(spec.covariates),
        carry=spec.carry_size,
        horizon=spec.horizon,
        levels=len(spec.levels),
        waiting=waiting.width(len(spec.levels)),
        running=sum(_WIDTHS) + covariates.STATE * len(spec.covariates),
        lines=experts.LINES,
        experts=experts.COUNT,
        regressors=experts.REGRESSORS,
    )


# --------------------------------------------------------------------------- newborn series


def unlent(spec: ModelSpec) -> Loan:
    """The loan when nobody has anything to lend: a random walk of one part in a thousand a step."""
    return Loan(
        jnp.float32(1e-3),
        jnp.stack(experts.newborn(spec.horizon)),
        jnp.zeros((spec.horizon, len(spec.levels)), jnp.float32),
    )


def lend(spec: ModelSpec, rows: Rows, idx: Int[Array, " batch"], valid: Bool[Array, " batch"]) -> Loan:
    """The mean of what the grown-up ones among these rows know, or `unlent` while there are none."""

    def read(column: Array) -> Array:
        return table.whole(column, idx)

    count = read(rows.count)
    grown = valid & (count >= MATURE)
    weight = grown / jnp.maximum(grown.sum(), 1)
    newest = table.lagged(rows.value, idx, count, jnp.ones((idx.shape[0], 1), jnp.int32))[:, 0]
    size = jnp.maximum(jnp.abs(newest + read(rows.base)), 1e-30)
    ratio = jnp.log(jnp.clip(_unpack(read(rows.running)).running.of("scale") / size, 1e-7, 1.0))

    def mean(column: Array) -> Array:
        return jnp.tensordot(weight, read(column), 1)

    known = Loan(jnp.exp((weight * ratio).sum()), mean(rows.blend), mean(rows.offset))
    return jax.tree.map(lambda new, default: jnp.where(grown.any(), new, default), known, unlent(spec))


def plant(rows: Rows, idx: Int[Array, " batch"], base: Float[Array, " batch"], loan: Loan) -> Rows:
    """Start rows anew, each with what it borrows; the arrays of `loan` have a leading batch axis.

    What a row waits for needs no clearing: without steps nothing is settled.
    """
    batch = idx.shape[0]
    horizon = rows.origin.shape[1]
    scale = jnp.maximum(loan.scale * jnp.abs(base), 1e-12)
    packed = features.pack(features.newborn(scale))
    rest = jnp.zeros((batch, rows.running.shape[1] - packed.shape[1]))
    linear = experts.newborn_linear(batch, horizon)

    def whole(column: Array, value: Array | float) -> Array:
        return column.at[idx].set(value, mode="drop")

    return rows._replace(
        count=whole(rows.count, 0),
        base=whole(rows.base, base),
        running=whole(rows.running, jnp.concatenate([packed, rest], axis=1)),
        covariance=whole(rows.covariance, linear.covariance),
        weights=whole(rows.weights, linear.weights),
        blend=whole(rows.blend, loan.blend),
        carry=whole(rows.carry, 0.0),
        offset=whole(rows.offset, loan.offset),
    )


class _Memory(NamedTuple):
    """What the column `running` holds."""

    running: Running
    level: Array  # and slope of the trend
    slope: Array
    bounds: Bounds
    grain: Grain
    covariates: Float[Array, "batch packed"]


_WIDTHS = features.RUNNING, 2, bounds.STATE, grain.STATE  # in that column, in front of the covariates


def _pack(memory: _Memory) -> Array:
    trend = jnp.stack([memory.level, memory.slope], axis=1)
    more = jnp.stack([*memory.bounds, *memory.grain], axis=1)
    return jnp.concatenate([features.pack(memory.running), trend, more, memory.covariates], axis=1)


def _unpack(packed: Array) -> _Memory:
    running, trend, edges, step, rest = jnp.split(packed, list(accumulate(_WIDTHS)), axis=1)
    level, slope = trend.T
    return _Memory(features.unpack(running), level, slope, Bounds(*edges.T), Grain(*step.T), rest)


# --------------------------------------------------------------------------- before the network


class Percept(NamedTuple):
    """What is known of a step before the network has seen it."""

    value: Array
    scale: Array
    x: Float[Array, "batch feature"]  # recurrent inputs
    direct: Float[Array, "batch feature"]  # direct inputs
    actual: Float[Array, "horizon batch"]  # what came, in scales, for the forecasts of 1.. steps ago
    settled: Bool[Array, "horizon batch"]
    waited: Float[Array, "horizon level batch"]  # their quantiles
    points: Float[Array, "expert horizon batch"]  # what the experts had said; NaN: nothing
    lines: Float[Array, "line batch"]  # what they say now
    seasonal: Float[Array, "horizon batch"]
    linear: Float[Array, "horizon batch"]
    has_season: Bool[Array, " batch"]
    live: Bool[Array, "horizon batch"]  # whether those forecasts were published
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
    running, holt_level, holt_slope, edges, step, known = _unpack(read(rows.running))

    # what waited for this value
    settled = (count >= jnp.arange(1, horizon + 1)[:, None]) & steps.valid
    origin = table.origins(rows.origin, idx, count, horizon)
    had, marked = origin[..., :2].T
    scaled, live = jnp.abs(marked), settled & (marked > 0)
    actual = jnp.where(settled, (value - had) / jnp.where(settled, scaled, 1.0), 0.0)
    curves, waited = waiting.unpack(table.due(rows.waiting, idx, count, horizon))
    stopped = bounds.limits(edges)
    edges = bounds.observe(edges, value, had, _reached(waited, scaled, spec.levels), settled)
    points = experts.assemble(origin[..., 2:].T, curves)
    blend = Blend(*_last(read(rows.blend)))
    error = experts.follow(blend.error, points, actual, settled, count)

    # the window and the statistics
    past = table.lagged(
        rows.value, idx, count, jnp.broadcast_to(jnp.arange(features.LEAD, 0, -1), (batch, features.LEAD))
    )
    past = jnp.where((count > 0)[:, None], past, value[:, None])
    step = grain.observe(step, value - past[:, -1], count)
    one_period_ago = jnp.broadcast_to(periods, (batch, features.SEASONS))
    lagged = table.lagged(rows.value, idx, count, one_period_ago)
    running = features.observe(running, count, value, steps.dt_s, past, lagged, periods)
    scale = features.running_scale(running, value + base)
    holt_level, holt_slope = experts.holt(holt_level, holt_slope, count, value)
    known, signals = covariates.observe(known, steps.covariates)

    # the seasons
    seasons = features.choose_seasons(running, count, periods)
    sight, ago = _look_back(spec, rows, idx, value, scale, past, running, seasons)

    # the linear expert
    linear = Linear(read(rows.covariance), read(rows.weights))
    oldest = rows.regressors.at[idx, jnp.remainder(count, horizon)].get(mode="clip").astype(jnp.float32)
    path = (
        jnp.concatenate([past[:, -(horizon - 1) :], value[:, None]], axis=1)
        if horizon > 1
        else value[:, None]
    )
    target = features.squash((path - had[-1][:, None]) / jnp.maximum(scaled[-1][:, None], 1e-30))
    usual = jnp.maximum(error[-1].mean(0), 1e-3)
    linear = experts.learn(linear, oldest, jnp.clip(target, -30.0, 30.0), usual, settled[-1])
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

    span = jnp.clip(count, 1, experts.DRIFT_STEPS).astype(jnp.float32)
    lines_now = jnp.stack(
        [
            running.mean[:, experts.FAST] - value,
            running.mean[:, experts.SLOW] - value,
            holt_level - value,
            holt_slope,
            (value - past[:, -experts.DRIFT_STEPS]) / span,
        ]
    )
    percept = Percept(
        value=value,
        scale=scale,
        x=x,
        direct=direct,
        actual=actual,
        settled=settled,
        waited=waited,
        points=points,
        lines=lines_now / scale,
        seasonal=features.unsquash(sight.best[:, 1:].T),
        linear=features.unsquash(said.T),
        has_season=seasons[0].period > 0,
        live=live,
        stopped=tuple((end - had) / jnp.where(settled, scaled, 1.0) for end in stopped),
        limits=tuple(end - value for end in bounds.reach(edges, scale, horizon)),
        grain=step,
    )
    trace = jnp.stack([jnp.log(scale), jnp.log(steps.dt_s + 1e-6), steps.week], axis=1)
    silent = curves_now(percept, jnp.full((horizon, batch), jnp.nan))
    changes = Rows(
        count=count + 1,
        base=base,
        value=value,
        trace=jnp.concatenate([trace, signals], axis=1),
        running=_pack(_Memory(running, holt_level, holt_slope, edges, step, known)),
        origin=jnp.stack([value, jnp.where(steps.live, scale, -scale), *percept.lines], axis=1),
        waiting=waiting.pack(silent, waited),
        regressors=x_linear,
        covariance=linear.covariance,
        weights=linear.weights,
        blend=_first(jnp.stack(blend._replace(error=error))),
        carry=read(rows.carry),
        offset=read(rows.offset),
    )
    return changes, percept


def _reached(
    waited: Float[Array, "horizon level batch"],
    scale: Float[Array, "horizon batch"],
    levels: tuple[float, ...],
) -> tuple[Float[Array, "horizon batch"], Float[Array, "horizon batch"]]:
    """The two quantiles that tell of a bound, in units of the value. Training keeps none, and finds no bound."""
    if not waited.shape[1]:
        return jnp.full_like(scale, jnp.inf), jnp.full_like(scale, -jnp.inf)
    low, high = bounds.outer(levels)
    return waited[:, low] * scale, waited[:, high] * scale


def _look_back(
    spec: ModelSpec,
    rows: Rows,
    idx: Int[Array, " batch"],
    value: Array,
    scale: Array,
    past: Float[Array, "batch lead"],
    running: Running,
    seasons: tuple[Season, Season],
) -> tuple[Sight, Float[Array, "batch horizon_and_origin"]]:
    """What the window and the seasons tell at a step that is not written yet, and the values one best season ago."""
    count = table.whole(rows.count, idx)

    def seasons_ago(season: Season, cycles: int) -> Array:
        lags = features.season_lags(season.period, spec.horizon, cycles)
        found = table.lagged(rows.value, idx, count, lags.reshape(len(idx), -1)).reshape(lags.shape)
        return jnp.where((lags > 0) & (count > 0)[:, None, None], found, value[:, None, None])

    def before(season: Season) -> Array:
        """Values WAKE steps before those one season ago."""
        return table.lagged(rows.value, idx, count, season.period[:, None] + jnp.asarray(features.WAKE))

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


def _last(x: Array) -> Array:
    """The batch as the last axis instead of the first."""
    return jnp.moveaxis(x, 0, -1)


def _first(x: Array) -> Array:
    """The batch as the first axis instead of the last."""
    return jnp.moveaxis(x, -1, 0)


# --------------------------------------------------------------------------- the network and after


def advance(
    spec: ModelSpec, serving: Serving, rows: Rows, idx: Int[Array, " batch"], steps: Steps
) -> tuple[Rows, Forecasts, Scores]:
    """One step of each series in `idx`. Reads the table; what to write is returned (see `table.write`)."""
    changes, percept = perceive(spec, rows, idx, steps, serving.periods)
    return foretell(spec, serving, changes, percept)


def foretell(
    spec: ModelSpec, serving: Serving, changes: Rows, percept: Percept
) -> tuple[Rows, Forecasts, Scores]:
    """Settle what waited, and forecast. The changes hold what `perceive` left as it was until here."""
    levels, median = spec.levels, spec.median
    settled, actual = percept.settled, percept.actual
    count = changes.count - 1

    # 1. settle
    waited = apart(jnp.where(settled[:, None], percept.waited, 0.0))
    scores = score.score(waited, actual, percept.live, levels)
    anomaly = jnp.where(settled[0], score.anomaly(waited[0], actual[0], median), jnp.nan)
    fell = bounds.settle(score.below(waited, actual), waited, actual, percept.stopped)
    slope = apart(fell - jnp.asarray(levels, jnp.float32)[:, None])
    blend = Blend(*_last(changes.blend))
    blend, unit = experts.settle(blend, percept.points, waited, slope, settled, levels)
    offset = calibrate.settle(_last(changes.offset), slope, unit, settled)

    # 2. one cell step, and the head
    moved, y = model.step(spec, serving.params, changes.carry, percept.x)
    network = apart(model.head(spec, serving.params, y, percept.x, percept.direct))  # put in order once mixed
    finite = jnp.isfinite(network.sum((0, 1)) + moved.sum(1))  # all of them are bounded, so no sum overflows
    carry = jnp.where(finite[:, None], moved, 0.0)
    network = jnp.where(finite, network, 0.0)

    # 3. mix and correct
    warm = count + 1 >= spec.warm_up
    speaks = serving.trained & warm & finite
    curves = curves_now(percept, jnp.where(speaks, network[:, median], jnp.nan))
    points = experts.assemble(percept.lines[:, None], curves)
    awake = jnp.isfinite(points)
    fresh = experts.first_words(blend, speaks)
    blend, offset = experts.unbiased(blend, fresh), jnp.where(fresh, 0.0, offset)
    share = experts.weights(blend, awake)
    mixed = experts.mix(jnp.where(awake, points, 0.0), network, blend, share, levels)
    ends = tuple(end / percept.scale for end in percept.limits)
    corrected = jnp.clip(calibrate.correct(mixed, offset, median), -waiting.LIMIT, waiting.LIMIT)
    quantiles = apart(bounds.stop(grain.keep_to(corrected, percept.grain, percept.scale), ends))
    status = jnp.where(serving.trained, jnp.where(warm, jnp.where(finite, OK, FALLBACK), WARMING), COLD)

    changes = changes._replace(
        waiting=waiting.pack(curves, quantiles),
        blend=_first(jnp.stack(blend)),
        carry=carry,
        offset=_first(offset),
    )
    # Published as they are: rounded as what waits, repeats of an answer could differ by a step of that.
    published = _first(bounds.stop(quantiles * percept.scale, percept.limits))
    return changes, Forecasts(published, percept.scale, status.astype(jnp.int32), anomaly), scores


def advance_rounds(
    spec: ModelSpec,
    serving: Serving,
    rows: Rows,
    idx: Int[Array, " batch"],
    steps: Steps,
    rounds: Int[Array, ""],
) -> tuple[Rows, Forecasts, Scores]:
    """Several steps of each series, one round after the other: `steps` has a leading axis of rounds, `rounds` are used.

    Returns the rows as they are after the last round; to write back, `table.put`. A step that is not valid leaves its
    row alone.
    """
    own = jnp.arange(idx.shape[0])
    step = jax.jit(partial(advance, spec), inline=True)  # so that it is traced once

    def once(r: Array, state: tuple[Rows, Forecasts, Scores]) -> tuple[Rows, Forecasts, Scores]:
        local, all_forecasts, total = state
        now = jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, r, keepdims=False), steps)
        changes, forecasts, scores = step(serving, local, own, now)
        local = table.step(local, now.valid, changes)
        all_forecasts = jax.tree.map(
            lambda kept, new: jax.lax.dynamic_update_index_in_dim(kept, new, r, 0), all_forecasts, forecasts
        )
        return local, all_forecasts, jax.tree.map(jnp.add, total, scores)

    local = table.take(rows, idx)
    first = jax.tree.map(lambda x: x[0], steps)
    _, forecasts, scores = jax.eval_shape(step, serving, local, own, first)
    kept = jax.tree.map(lambda x: jnp.zeros((steps.value.shape[0], *x.shape), x.dtype), forecasts)
    total = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), scores)
    return jax.lax.fori_loop(0, rounds, once, (local, kept, total))


# --------------------------------------------------------------------------- after a swap


class Warmed(NamedTuple):
    """What a swap makes anew of each row."""

    carry: Float[Array, "batch unit"]
    running: Float[Array, "batch running"]  # as the column of the table


def rewarm(spec: ModelSpec, serving: Serving, rows: Rows, idx: Int[Array, " batch"]) -> Warmed:
    """The carry of each row after re-running its window with the serving model, and how its seasons have done.

    Both belong to a model: after a swap a row is warmed up again by this, in the batch that next touches it.
    """
    count = table.whole(rows.count, idx)
    memory = _unpack(table.whole(rows.running, idx))
    time, batch = spec.context_length, idx.shape[0]

    def ring(column: Array, length: int, ago: Array | int = 0) -> Array:
        lags = jnp.arange(length, 0, -1) + jnp.zeros((batch, 1), jnp.int32) + ago
        return table.lagged(column, idx, count, lags).astype(jnp.float32)

    values = ring(rows.value, rows.value.shape[1])
    scores = [features.season_score(values, count, serving.periods[i]) for i in range(features.SEASONS)]
    running = memory.running._replace(season=jnp.stack(scores, axis=1))
    season, _ = features.choose_seasons(running, jnp.maximum(count - 1, 0), serving.periods)
    period = season.period[:, None]
    trace = ring(rows.trace, time)
    dts = jnp.exp(trace[..., 1])
    one_ago, next_ago = ring(rows.value, time, period), ring(rows.value, time, jnp.maximum(period - 1, 0))
    own = features.recurrent_inputs(
        ring(rows.value, time + features.LEAD),
        jnp.exp(trace[..., 0]),
        dts,
        trace[..., 2],
        jnp.stack([one_ago, next_ago], axis=-1),
        table.whole(rows.base, idx),
        running,
        season,
    )
    xs = jnp.concatenate([own, trace[..., TRACE:]], axis=2)
    known = jnp.arange(time, 0, -1) <= count[:, None]
    carry, _ = model.unroll(spec, serving.params, model.initial_carry(spec, batch), xs, known)
    carry = jnp.where(jnp.isfinite(carry).all(1)[:, None], carry, 0.0)
    return Warmed(carry, _pack(memory._replace(running=running)))


def set_warmed(rows: Rows, idx: Int[Array, " batch"], warmed: Warmed) -> Rows:
    """Write what a swap makes anew, and nothing else."""
    return rows._replace(
        carry=rows.carry.at[idx].set(warmed.carry, mode="drop"),
        running=rows.running.at[idx].set(warmed.running, mode="drop"),
    )
