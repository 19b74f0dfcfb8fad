"""The fold over rows: one step of each touched series in, its forecast and the scores of what it settles out.

    changes, forecasts, scores = advance(spec, serving, rows, idx, steps)      reads only
    rows = table.write(rows, idx, changes)                                     writes only

Within a step: `perceive` takes the value in (scale, seasons, experts, inputs of the network), `foretell` settles what
waited for it (scores, weights, corrections), advances the carry by one cell step, forecasts, mixes and corrects. Pure,
compiled for a few fixed sizes; padding has `valid` false. The row is the first axis of the table and of the changes;
within a step the batch is the last axis of what is short otherwise (experts, steps ahead, levels): vector instructions
work along the last axis.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from forecaster.core import (
    bounds,
    calibrate,
    experts,
    features,
    grain,
    model,
    row,
    score,
    shift,
    table,
    waiting,
)
from forecaster.core.apart import apart
from forecaster.core.experts import Blend
from forecaster.core.model import ModelSpec, Params
from forecaster.core.perceive import Percept, Steps, curves_now, perceive
from forecaster.core.score import Scores
from forecaster.core.stats import choose_seasons, season_score
from forecaster.core.table import Rows

COLD, WARMING, OK, FALLBACK = range(4)  # status of a forecast
STATUSES = ("cold", "warming", "ok", "fallback")


class Serving(NamedTuple):
    """What the compiled programs need of the serving model."""

    params: Params
    periods: Int[Array, " season"]
    trained: Array  # bool (): whether there is a model at all
    first_share: Array  # float32 (): of the network in the mix of a series in which nothing was judged yet


class Forecasts(NamedTuple):
    """One forecast a step."""

    offset: Float[Array, "batch horizon level"]  # quantiles minus the last value, in units of the value
    scale: Float[Array, " batch"]
    status: Int[Array, " batch"]
    anomaly: Float[Array, " batch"]  # NaN where no forecast had been made for this step


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
    due, telling, actual = percept.due, percept.telling, percept.due.actual
    count = changes.count - 1

    # 1. settle
    waited = apart(jnp.where(due.settled[:, None], due.quantiles, 0.0))
    scores = score.score(waited, actual, due.live, levels)
    anomaly = jnp.where(due.settled[0], score.anomaly(waited[0], actual[0], median), jnp.nan)
    fell = bounds.settle(score.below(waited, actual), waited, actual, percept.stopped)
    slope = apart(fell - jnp.asarray(levels, jnp.float32)[:, None])
    blend = Blend(*row.batch_last(changes.blend))
    blend, unit = experts.settle(blend, due.points, waited, slope, telling, levels, serving.first_share)
    offset = calibrate.settle(row.batch_last(changes.offset), slope, unit, telling)

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
    fresh = experts.first_words(blend, speaks) | percept.misjudged
    blend, offset = experts.unbiased(blend, fresh), jnp.where(fresh, 0.0, offset)
    share = experts.weights(blend, awake, serving.first_share, experts.heard(percept.alarm))
    mixed = experts.mix(jnp.where(awake, points, 0.0), network, blend, share, levels)
    ends = tuple(end / percept.scale for end in percept.limits)
    corrected = jnp.clip(calibrate.correct(mixed, offset, median), -waiting.LIMIT, waiting.LIMIT)
    quantiles = apart(bounds.stop(grain.keep_to(corrected, percept.grain, percept.scale), ends))
    status = jnp.where(serving.trained, jnp.where(warm, jnp.where(finite, OK, FALLBACK), WARMING), COLD)

    changes = changes._replace(
        running=row.foretell(changes.running, experts.centre(blend, points, awake, serving.first_share)),
        waiting=waiting.pack(curves, quantiles),
        blend=row.batch_first(jnp.stack(blend)),
        carry=carry,
        offset=row.batch_first(offset),
    )
    # Published as they are: rounded as what waits, repeats of an answer could differ by a step of that.
    published = row.batch_first(bounds.stop(quantiles * percept.scale, percept.limits))
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
    memory = row.unpack(table.whole(rows.running, idx))
    time, batch = spec.context_length, idx.shape[0]

    def lags(length: int, ago: Array | int = 0) -> Array:
        return jnp.arange(length, 0, -1) + jnp.zeros((batch, 1), jnp.int32) + ago

    def values_of(length: int, ago: Array | int = 0) -> Array:
        steps = lags(length, ago)
        return shift.seen(memory.shift, table.lagged(rows.value, idx, count, steps), steps - 1)

    values = values_of(rows.value.shape[1])
    season, drift = jax.vmap(season_score, (None, None, 0), 1)(values, count, serving.periods)
    running = memory.running._replace(season=season, drift=drift)
    season, _ = choose_seasons(running, jnp.maximum(count - 1, 0), serving.periods)
    period = season.period[:, None]
    trace = table.lagged(rows.trace, idx, count, lags(time)).astype(jnp.float32)
    dts = jnp.exp(trace[..., 1])
    one_ago, next_ago = values_of(time, period), values_of(time, jnp.maximum(period - 1, 0))
    own = features.recurrent_inputs(
        values_of(time + features.LEAD),
        jnp.exp(trace[..., 0]),
        dts,
        trace[..., 2],
        jnp.stack([one_ago, next_ago], axis=-1),
        table.whole(rows.base, idx),
        running,
        season,
    )
    xs = jnp.concatenate([own, trace[..., row.TRACE :]], axis=2)
    known = jnp.arange(time, 0, -1) <= count[:, None]
    carry, _ = model.unroll(spec, serving.params, model.initial_carry(spec, batch), xs, known)
    carry = jnp.where(jnp.isfinite(carry).all(1)[:, None], carry, 0.0)
    return Warmed(carry, row.pack(memory._replace(running=running)))


def set_warmed(rows: Rows, idx: Int[Array, " batch"], warmed: Warmed) -> Rows:
    """Write what a swap makes anew, and nothing else."""
    return rows._replace(
        carry=rows.carry.at[idx].set(warmed.carry, mode="drop"),
        running=rows.running.at[idx].set(warmed.running, mode="drop"),
    )
