"""The fold over rows: one step of each touched series in, its forecast and the scores of what it settles out.

    changes, forecasts, scores = advance(spec, serving, rows, idx, steps)      reads only
    rows = table.write(rows, idx, changes)                                     writes only

The order within a step: settle the forecasts that waited for this value (scores, experts, calibration), take the value
in (scale, seasons, window), advance the recurrent carry by one cell step, forecast, mix, correct, and let the forecast
wait for its targets. Pure, and compiled for a few fixed batch sizes; padding has `valid` false.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from forecaster.core import calibrate, experts, features, model, score, table
from forecaster.core.model import ModelSpec, Params
from forecaster.core.score import Scores
from forecaster.core.table import Changes, Layout, Rows, take

COLD, WARMING, OK, FALLBACK = range(4)  # status of a forecast
STATUSES = ("cold", "warming", "ok", "fallback")
MATURE = 32  # steps after which a series can lend


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
    live: Array  # bool (batch,): the forecast is published and will count
    valid: Array  # bool (batch,): not padding


class Forecasts(NamedTuple):
    """One forecast a step."""

    offset: Float[Array, "batch horizon level"]  # quantiles minus the last value, in units of the value
    scale: Float[Array, " batch"]
    status: Int[Array, " batch"]
    anomaly: Float[Array, " batch"]  # NaN where no forecast had been made for this step


def layout(spec: ModelSpec) -> Layout:
    """Widths of the table's columns for a model."""
    return Layout(
        memory=features.MAX_PERIOD + spec.context_length,
        context=spec.context_length,
        carry=spec.carry_size,
        horizon=spec.horizon,
        levels=len(spec.levels),
        experts=experts.COUNT,
        running=6 + features.SEASONS,
        smooth=experts.SMOOTH,
    )


class Loan(NamedTuple):
    """What a newborn series borrows from the others of its partition until it knows itself."""

    scale: Array  # its running scale as a share of the magnitude of its value
    blend: Float[Array, "2 expert horizon"]
    offset: Float[Array, "horizon level"]


def unlent(spec: ModelSpec) -> Loan:
    """The loan when nobody has anything to lend: a random walk of one part in a thousand a step."""
    walk = jnp.stack(experts.newborn(spec.horizon))
    return Loan(jnp.float32(1e-3), walk, jnp.zeros((spec.horizon, len(spec.levels)), jnp.float32))


def lend(spec: ModelSpec, rows: Rows, idx: Int[Array, " batch"], valid: Array) -> Loan:
    """The mean of what the grown-up ones among these rows know, or `unlent` while there are none."""
    some = take(rows, idx)
    grown = valid & (some.count >= MATURE)
    weight = grown / jnp.maximum(grown.sum(), 1)
    size = jnp.abs(
        jnp.take_along_axis(some.value, ((some.count - 1) % some.value.shape[1])[:, None], 1)[:, 0]
        + some.base
    )
    ratio = jnp.log(jnp.clip(_unpack(some.running).scale / jnp.maximum(size, 1e-30), 1e-7, 1.0))
    known = Loan(
        jnp.exp((weight * ratio).sum()),
        jnp.einsum("b,bxkh->xkh", weight, some.blend),
        jnp.einsum("b,bhl->hl", weight, some.offset),
    )
    return jax.tree.map(lambda new, default: jnp.where(grown.any(), new, default), known, unlent(spec))


def plant(rows: Rows, idx: Int[Array, " batch"], base: Array, loan: Loan) -> Rows:
    """Start rows anew, each with what it borrows; `base` and the loan's arrays have a leading batch axis."""
    batch = idx.shape[0]
    scale = jnp.maximum(loan.scale * jnp.abs(base), 1e-12)

    def whole(column: Array, value: Array | float) -> Array:
        return column.at[idx].set(value, mode="drop")

    return rows._replace(
        count=whole(rows.count, 0),
        base=whole(rows.base, base),
        running=whole(rows.running, _pack(features.newborn(scale))),
        carry=whole(rows.carry, jnp.zeros((batch, rows.carry.shape[1]))),
        blend=whole(rows.blend, loan.blend),
        smooth=whole(rows.smooth, 0.0),
        offset=whole(rows.offset, loan.offset),
    )


def _unpack(running: Array) -> features.Running:
    return features.Running(*(running[:, i] for i in range(6)), running[:, 6:])


def _pack(running: features.Running) -> Array:
    return jnp.concatenate([jnp.stack(running[:6], axis=1), running.season], axis=1)


def ahead_lags(period: Int[Array, " batch"], horizon: int) -> Int[Array, "batch horizon"]:
    """Steps back from the next step's place to the values one season (or as many as needed) before each target.

    Lag 1 is the origin itself. For target h: the smallest k * period - h that is not in the future, plus 1.
    """
    h = jnp.arange(1, horizon + 1)
    p = jnp.maximum(period, 1)[:, None]
    return p * ((h + p - 1) // p) - h + 1


def advance(
    spec: ModelSpec, serving: Serving, rows: Rows, idx: Int[Array, " batch"], steps: Steps
) -> tuple[Changes, Forecasts, Scores]:
    """One step of each series in `idx`. Reads the table; what to write is returned."""
    h_count = spec.horizon

    def read(column: Array) -> Array:
        return column.at[idx].get(mode="clip")

    count, base, value = read(rows.count), read(rows.base), steps.value
    blend = experts.Blend(*jnp.moveaxis(read(rows.blend), 1, 0))
    offset, running, carry = read(rows.offset), _unpack(read(rows.running)), read(rows.carry)

    # 1. settle what waited for this value
    h = jnp.arange(1, h_count + 1)
    slot = jnp.remainder(count[:, None] - h, h_count)
    at = idx[:, None]
    origin = rows.origin.at[at, slot].get(mode="clip")
    waiting = rows.pending.at[at, slot, h - 1].get(mode="clip").astype(jnp.float32)
    guesses = rows.points.at[at, slot, h - 1].get(mode="clip").astype(jnp.float32)
    settled = (count[:, None] >= h) & steps.valid[:, None]
    actual = (value[:, None] - origin[..., 0]) / jnp.where(settled, origin[..., 1], 1.0)
    scores = score.score(waiting, actual, settled & (origin[..., 2] > 0), spec.levels)
    anomaly = jnp.where(settled[:, 0], _anomaly(waiting[:, 0], actual[:, 0], spec.median), jnp.nan)
    spread = blend.error.min(1)
    offset = calibrate.settle(offset, waiting, actual, spread, settled, spec.levels)
    blend = experts.settle(blend, guesses, actual, settled, spec.levels, count)

    # 2. take the value in
    lags = jnp.arange(features.LEAD, 0, -1)
    past = table.lagged(rows.value, idx, count, jnp.broadcast_to(lags, (idx.shape[0], features.LEAD)))
    past = jnp.where((count > 0)[:, None], past, value[:, None])
    old = table.lagged(
        rows.value, idx, count, jnp.broadcast_to(serving.periods, (idx.shape[0], features.SEASONS))
    )
    running = features.observe(
        running, count, value, steps.dt_s, past[:, -1], past[:, -features.NAIVE_STEPS], old, serving.periods
    )
    scale = features.floored(running.scale, value + base)
    seasons = features.choose_seasons(running, count, serving.periods)

    def ahead(season: features.Season, first: int) -> Array:
        """Values one season before the steps `first`, first + 1, ... after the origin; lag 0 is the origin."""
        lag = ahead_lags(season.period, h_count) - 1
        lag = jnp.concatenate([season.period[:, None], lag], axis=1)[:, first:]
        found = table.lagged(rows.value, idx, count, lag)
        return jnp.where((lag > 0) & (count > 0)[:, None], found, value[:, None])

    best, second = ahead(seasons[0], 0), ahead(seasons[1], 1)

    # 3. one cell step, and the head
    window = jnp.concatenate([past, value[:, None]], axis=1)
    x = features.recurrent_inputs(
        window,
        scale[:, None],
        steps.dt_s[:, None],
        steps.week[:, None],
        running.age_s[:, None],
        best[:, None, :2],
        base,
        running,
        seasons[0],
    )[:, 0]
    direct = features.direct_inputs(window[:, -features.LAGS - 1 :], best[:, 1:], second, scale, seasons)
    moved, y = model.step(spec, serving.params, carry, x)
    network = model.head(spec, serving.params, y, x, direct)
    finite = jnp.isfinite(network).all((1, 2)) & jnp.isfinite(moved).all(1)
    carry = jnp.where(finite[:, None], moved, 0.0)
    network = jnp.where(finite[:, None, None], network, 0.0)

    # 4. mix, correct
    warm = count + 1 >= spec.warm_up
    speaks = serving.trained & warm & finite
    mean = experts.smooth(read(rows.smooth)[:, 0], count, value)
    span = jnp.minimum(count, experts.DRIFT_STEPS).astype(jnp.float32)
    guess = experts.points(
        value, scale, past[:, -experts.DRIFT_STEPS], span, mean, best[:, 1:], network[..., spec.median]
    )
    one = jnp.ones_like(speaks)
    awake = jnp.stack([one, count > 16, count > 4, seasons[0].period > 0, speaks], axis=1)
    mixed = experts.mix(guess, network, blend, awake, spec.levels)
    limit = 60_000.0  # what float16 holds
    quantiles = jnp.clip(calibrate.correct(mixed, offset), -limit, limit).astype(jnp.float16)
    status = jnp.where(
        serving.trained, jnp.where(warm, jnp.where(finite, OK, FALLBACK), WARMING), COLD
    ).astype(jnp.int32)

    changes = Changes(
        count=count + 1,
        base=base,
        value=value,
        scale=scale,
        dt_s=steps.dt_s,
        week=steps.week,
        running=_pack(running),
        carry=carry,
        origin=jnp.stack([value, scale, steps.live.astype(jnp.float32)], axis=1),
        pending=quantiles,
        points=jnp.clip(guess, -limit, limit).astype(jnp.float16),
        blend=jnp.stack(blend, axis=1),
        smooth=mean[:, None],
        offset=offset,
    )
    # What is published is what waits: rounded to half precision relative to the last value.
    published = quantiles.astype(jnp.float32) * scale[:, None, None]
    return changes, Forecasts(published, scale, status, anomaly), scores


def _anomaly(quantiles: Float[Array, "batch level"], actual: Array, median: int) -> Array:
    """Where the value fell in the forecast made for it: 0 at the median, 1 at the outermost quantile of its side."""
    off = actual - quantiles[:, median]
    side = jnp.where(off > 0, quantiles[:, -1] - quantiles[:, median], quantiles[:, median] - quantiles[:, 0])
    return jnp.abs(off) / jnp.maximum(side, 1e-6)


def rewarm(spec: ModelSpec, serving: Serving, rows: Rows, idx: Int[Array, " batch"]) -> Array:
    """The carry of each row after re-running its window with the serving model; (batch, carry).

    A carry belongs to a model: after a swap a row is warmed up again by this, in the batch that next touches it.
    """
    count = rows.count.at[idx].get(mode="clip")
    running = _unpack(rows.running.at[idx].get(mode="clip"))
    time = spec.context_length
    batch = idx.shape[0]

    def ring(column: Array, length: int, ago: Array | int = 0) -> Array:
        lags = jnp.arange(length, 0, -1) + jnp.zeros((batch, 1), jnp.int32) + ago
        return table.lagged(column, idx, count, lags)

    best, _ = features.choose_seasons(running, jnp.maximum(count - 1, 0), serving.periods)
    dts = ring(rows.dt_s, time)
    later = jnp.flip(jnp.cumsum(jnp.flip(dts, 1), 1), 1) - dts  # seconds from each step to the newest
    period = best.period[:, None]
    # The value one after a season ago is the step's own where there is no season: lag 0 of it.
    xs = features.recurrent_inputs(
        ring(rows.value, time + features.LEAD),
        ring(rows.scale, time),
        dts,
        ring(rows.week, time),
        running.age_s[:, None] - later,
        jnp.stack(
            [ring(rows.value, time, period), ring(rows.value, time, jnp.maximum(period - 1, 0))], axis=-1
        ),
        rows.base.at[idx].get(mode="clip"),
        running,
        best,
    )
    known = jnp.arange(time, 0, -1) <= count[:, None]
    carry, _ = model.unroll(spec, serving.params, model.initial_carry(spec, batch), xs, known)
    return jnp.where(jnp.isfinite(carry).all(1)[:, None], carry, 0.0)


def advance_rounds(
    spec: ModelSpec, serving: Serving, rows: Rows, idx: Int[Array, " batch"], steps: Steps
) -> tuple[Rows, Forecasts, Scores]:
    """Several steps of each series, one round after the other: `steps` has a leading axis of rounds.

    Returns the rows as they are after the last round; to write back, `table.put`. A step that is not valid leaves its
    row alone.
    """
    own = jnp.arange(idx.shape[0])

    def once(local: Rows, now: Steps) -> tuple[Rows, tuple[Forecasts, Scores]]:
        changes, forecasts, scores = advance(spec, serving, local, own, now)
        past_end = jnp.where(now.valid, own, own.size)
        return table.write(local, past_end, changes), (forecasts, scores)

    local, (forecasts, scores) = jax.lax.scan(once, take(rows, idx), steps)
    return local, forecasts, jax.tree.map(lambda x: x.sum(0), scores)


def set_carry(rows: Rows, idx: Int[Array, " batch"], carry: Array) -> Rows:
    """Write carries only."""
    return rows._replace(carry=rows.carry.at[idx].set(carry, mode="drop"))
