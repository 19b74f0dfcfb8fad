"""What the network sees of a series: made here, for training and for serving alike.

In come the raw steps of a series (value, seconds since the step before, position in the week); out go the causal
running statistics (`observe`), the inputs of the recurrent cells at each step (`recurrent_inputs`) and the inputs that go
straight to the head at an origin (`direct_inputs`). All are relative to the last value and in units of the running
scale, so that a price of 1e-5 and a sensor of 1e6 look alike. Nothing looks ahead: inputs at step t read steps <= t.

Seasons are data, never shapes: `periods` holds up to SEASONS candidate lengths in steps (0: none), and each series
ranks them by how well the value one period ago foretold the present one.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

SEASONS = 6  # candidate season lengths that each series ranks
MAX_PERIOD = 512  # steps; a longer season reaches the network through the calendar only
LEAD = 64  # steps before the first one that the recurrent inputs look back on
LAGS = 16  # values before the origin that the direct inputs hold one by one
MEANS = (4, 16, 64)  # steps of the moving means, all at most LEAD
SCALE_MEMORY = 64.0  # steps after which the running scale has forgotten most
LEVEL_MEMORY = 512.0  # the same for the long-run level
SEASON_MEMORY = 256.0  # the same for a season's score
PRIOR_STEPS = 2.0  # steps that the scale lent to a newborn series counts for
SCALE_FLOOR = 1e-7  # of the value itself: float32 resolves no less
WEEK_DAYS = 7.0
DAY_S = 86400.0

RECURRENT = 17  # number of recurrent inputs
MINIMUM_MEMORY = MAX_PERIOD + 128


class Running(NamedTuple):
    """Running statistics, float32, one a series; shape (batch,), but `season` (batch, SEASONS)."""

    scale: Array  # mean absolute change from step to step, in units of the value
    level: Array  # long-run mean of the value
    spread: Array  # long-run mean absolute distance from the level
    age_s: Array  # event time since the first step
    dt_s: Array  # usual time between steps
    naive: Array  # mean absolute change over NAIVE_STEPS: what a season has to beat
    season: Array  # mean absolute change over each candidate period; 0 until it has been seen


NAIVE_STEPS = 6


class Season(NamedTuple):
    """The season chosen for each series."""

    period: Int[Array, " batch"]  # steps; 0: none
    trust: Float[Array, " batch"]  # 0 where it foretells no better than the last value, towards 1 the better


def newborn(scale: Float[Array, " batch"]) -> Running:
    """Statistics of series that have seen nothing yet; `scale` is what other series lend them."""
    zero = jnp.zeros_like(scale)
    return Running(scale, zero, zero, zero, zero, zero, jnp.zeros((*scale.shape, SEASONS), scale.dtype))


def observe(
    running: Running,
    count: Int[Array, " batch"],
    value: Float[Array, " batch"],
    dt_s: Float[Array, " batch"],
    previous: Float[Array, " batch"],
    earlier: Float[Array, " batch"],
    lagged: Float[Array, "batch season"],
    periods: Int[Array, " season"],
) -> Running:
    """Take in one step of each series.

    `count` is the number of steps before this one; `previous`, `earlier` and `lagged` are the values 1, NAIVE_STEPS and
    one period ago (the oldest known one where the series is younger; a first step gets its own value).
    """
    n = count.astype(jnp.float32)
    first = count == 0

    def toward(old: Array, new: Array, memory: float, prior: float) -> Array:
        return old + (new - old) / jnp.clip(n + prior, 1.0, memory)

    age = jnp.maximum(count[:, None] - periods + 1, 1).astype(jnp.float32)
    score = running.season + (jnp.abs(value[:, None] - lagged) - running.season) / jnp.minimum(
        age, SEASON_MEMORY
    )
    level = toward(running.level, value, LEVEL_MEMORY, 1.0)
    return Running(
        scale=jnp.where(
            first, running.scale, toward(running.scale, jnp.abs(value - previous), SCALE_MEMORY, PRIOR_STEPS)
        ),
        level=level,
        spread=toward(running.spread, jnp.abs(value - level), LEVEL_MEMORY, 1.0),
        age_s=running.age_s + dt_s,
        dt_s=toward(running.dt_s, dt_s, SCALE_MEMORY, 0.0),
        naive=toward(running.naive, jnp.abs(value - earlier), SEASON_MEMORY, 0.0),
        season=jnp.where(available(count, periods), score, running.season),
    )


def available(count: Int[Array, " batch"], periods: Int[Array, " season"]) -> Array:
    """Whether the value one period before step number `count` is known; bool (batch, season)."""
    return (periods > 0) & (count[:, None] >= periods)


def floored(scale: Array, magnitude: Array) -> Array:
    """The scale, but never below what float32 resolves at this magnitude of the value."""
    return jnp.maximum(scale, SCALE_FLOOR * jnp.abs(magnitude) + 1e-12)


def choose_seasons(
    running: Running, count: Int[Array, " batch"], periods: Int[Array, " season"]
) -> tuple[Season, Season]:
    """The best and the second best candidate period of each series, as far as its history has shown them twice."""
    proven = (periods > 0) & (count[:, None] >= 2 * periods)
    cost = jnp.where(proven, running.season / jnp.maximum(running.naive, 1e-30)[:, None], jnp.inf)
    best = jnp.argmin(cost, axis=1)
    rest = jnp.where(jnp.arange(SEASONS) == best[:, None], jnp.inf, cost)
    return _season(cost, best, periods), _season(rest, jnp.argmin(rest, axis=1), periods)


def _season(cost: Array, chosen: Array, periods: Array) -> Season:
    ratio = jnp.take_along_axis(cost, chosen[:, None], axis=1)[:, 0]
    trust = jnp.clip(1.0 - ratio, 0.0, 1.0)
    return Season(jnp.where(trust > 0, periods[chosen], 0), trust)


def squash(x: Array) -> Array:
    """Compress large values, keep small ones and the sign: asinh."""
    return jnp.arcsinh(x)


def recurrent_inputs(
    values: Float[Array, "batch lead_and_time"],
    scales: Float[Array, "batch time"],
    dts_s: Float[Array, "batch time"],
    weeks: Float[Array, "batch time"],
    ages_s: Float[Array, "batch time"],
    seasonal: Float[Array, "batch time 2"],
    base: Float[Array, " batch"],
    running: Running,
    season: Season,
) -> Float[Array, "batch time feature"]:
    """Inputs of the recurrent cells for `time` consecutive steps.

    `values` holds LEAD earlier values, then those of the steps (relative to the series' `base`); `seasonal` the values
    one period before each step, and one after that; `weeks` days since the week began.
    """
    time = scales.shape[1]
    now = values[:, LEAD:]
    s = scales

    def ago(k: int) -> Array:
        return values[:, LEAD - k : LEAD - k + time]

    sums = jnp.cumsum(values - now[:, -1:], axis=1)  # of small numbers: float32 keeps them

    def mean(w: int) -> Array:
        head = jnp.pad(sums, ((0, 0), (1, 0)))
        return (head[:, LEAD + 1 :] - head[:, LEAD + 1 - w : LEAD + 1 - w + time]) / w + now[:, -1:]

    changes = jnp.abs(jnp.diff(values, axis=1))
    steps = jnp.cumsum(jnp.pad(changes, ((0, 0), (1, 0))), axis=1)
    recent = (steps[:, LEAD:] - steps[:, LEAD - 8 : LEAD - 8 + time]) / 8
    level, spread = running.level[:, None], jnp.maximum(running.spread, 1e-30)[:, None]
    usual = jnp.maximum(running.dt_s, 1e-6)[:, None]
    trust = season.trust[:, None]
    day, week = 2 * jnp.pi * weeks, 2 * jnp.pi * weeks / WEEK_DAYS
    daily = (ages_s >= 2 * DAY_S) & (usual < DAY_S / 3)
    weekly = (ages_s >= 2 * WEEK_DAYS * DAY_S) & (usual < WEEK_DAYS * DAY_S / 3)
    zero = jnp.zeros_like(now)
    return jnp.stack(
        [
            squash((now - ago(1)) / s),
            *(squash((now - mean(w)) / s) for w in MEANS),
            jnp.log(recent / s + 0.05),
            jnp.clip(jnp.log((dts_s + 1e-3 * usual) / usual), -5.0, 5.0),
            jnp.where(daily, jnp.sin(day), zero),
            jnp.where(daily, jnp.cos(day), zero),
            jnp.where(weekly, jnp.sin(week), zero),
            jnp.where(weekly, jnp.cos(week), zero),
            trust + zero,
            trust * squash((seasonal[:, :, 0] - now) / s),
            trust * squash((seasonal[:, :, 1] - seasonal[:, :, 0]) / s),
            squash((now - level) / spread),
            jnp.log(spread / s + 1e-3),
            0.25 * squash((now + base[:, None]) / s),
            jnp.clip(jnp.log(s / running.scale[:, None] + 1e-3), -3.0, 3.0),
        ],
        axis=-1,
    )


def direct_inputs(
    recent: Float[Array, "batch lag"],
    ahead: Float[Array, "batch horizon"],
    ahead_second: Float[Array, "batch horizon"],
    scale: Float[Array, " batch"],
    seasons: tuple[Season, Season],
) -> Float[Array, "batch feature"]:
    """Inputs of the head at an origin, beside the cells' output.

    `recent` holds the LAGS values before the origin, newest last, then the origin's own; `ahead` the values one period
    before each target, of the best and of the second best season.
    """
    last, s = recent[:, -1:], scale[:, None]
    return jnp.concatenate(
        [
            squash((recent[:, :-1] - last) / s),
            seasons[0].trust[:, None] * squash((ahead - last) / s),
            seasons[1].trust[:, None] * squash((ahead_second - last) / s),
        ],
        axis=1,
    )


def direct_size(horizon: int) -> int:
    """Number of direct inputs."""
    return LAGS + 2 * horizon
