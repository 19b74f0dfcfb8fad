"""Running statistics of a series: how much it changes, around which means, and which of its seasons can be trusted.

In come its steps one by one (value, seconds since the step before), with values from before; out go statistics that
each step has moved a little (`observe`), and what is read off them: the unit of everything (`running_scale`) and the
seasons (`choose_seasons`). Nothing looks ahead.

Seasons are data, never shapes: `periods` holds up to SEASONS candidate lengths in steps (0: none), and each series
ranks them by how well the value one period ago foretold the present one.
"""

from itertools import accumulate
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Int

from forecaster.core.apart import apart

SEASONS = 6  # candidate season lengths that each series ranks
# The candidates while no model brings its own, in steps: hours of a day and of a week, days of a week, months of a
# year, quarters of an hour and five minutes of a day.
COMMON_PERIODS = (24, 168, 7, 12, 96, 288)
MAX_PERIOD = 480  # steps; a longer season reaches the network through the calendar only
NAIVE_STEPS = 6  # steps ahead at which a season has to beat the last value
FAR_STEPS = 16  # steps of the longest change whose size is kept
MEANS = (6.0, 18.0, 54.0, 162.0, 486.0)  # memory, in steps, of the exponentially weighted means
TOLD = 2  # which of them tells of the next value where no season does
FAST_MEMORY = 10.0  # steps after which the fast scale has forgotten most
SCALE_MEMORY = 50.0  # the same for the running scale
SLOW_MEMORY = 1000.0  # the same for the slow scale
LEVEL_MEMORY = 512.0  # the same for the long-run level
SEASON_MEMORY = 256.0  # the same for a season's score
PRIOR_STEPS = 2.0  # steps that the scale lent to a newborn series counts for
WILD = 256.0  # scales; a change beyond is a bad tick or the first of a new level
GROWTH = 4.0  # times its scale that one change may make of it
OWN = 8  # changes of its own after which a series has forgotten the scale that it was lent
OFTEN_STILL = 0.5  # share of steps without a change from which on standing still is nothing special
SLOW_SHARE = 0.1  # of the slow scale that the running scale never falls below
SCALE_FLOOR = 1e-7  # of the level, relative to the base: float32 resolves no less
LEAST = 1e-24  # scale of all; what is a million times as small is a float32 still
SQUARED_FLOOR = 1e-14  # of the value, relative to the base: the square of their ratio is finite

SCALARS = {
    "scale": (SCALE_MEMORY, PRIOR_STEPS),  # mean absolute change from step to step lately
    "slow": (SLOW_MEMORY, PRIOR_STEPS),  # the same over a long time
    "fast": (FAST_MEMORY, PRIOR_STEPS),  # the same over a few steps
    "level": (LEVEL_MEMORY, 1.0),  # long-run mean of the value
    "spread": (LEVEL_MEMORY, 1.0),  # long-run mean absolute distance from the level
    "dt_s": (2 * SCALE_MEMORY, 0.0),  # usual time between steps
    "naive": (SEASON_MEMORY, 0.0),  # mean |change| over NAIVE_STEPS beyond `climb`: what a season has to beat
    "far": (SEASON_MEMORY, 0.0),  # mean absolute change over FAR_STEPS
    "climb": (SEASON_MEMORY, 0.0),  # mean change over NAIVE_STEPS
    "still": (2 * SCALE_MEMORY, 0.0),  # share of steps without a change
    "echo": (2 * SCALE_MEMORY, 0.0),  # mean product of successive changes, in squared scales
}
"""Running means of a series: steps after which each has forgotten most, and steps that it counts for at first."""
MEMORIES, PRIORS = np.array([*SCALARS.values()], np.float32).T[..., None]
LENT = np.arange(len(SCALARS))[:, None] < 3  # the first of them, which others lend to a newborn series
TAME = np.isin([*SCALARS], ["level", "spread"])[:, None]  # those that a wild change leaves as they are
HELD = np.isin([*SCALARS], ["slow", "still"])[:, None]  # those that stay as they are while a series stands
RUNNING = len(SCALARS) + len(MEANS) + 2 * SEASONS  # floats of a packed `Running`


class Running(NamedTuple):
    """Running statistics of each series, float32. SCALARS are one array, since a loop for each would cost too much."""

    scalars: Float[Array, "scalar batch"]
    mean: Float[Array, "batch mean"]  # exponentially weighted means of the value
    season: Float[Array, "batch season"]  # mean |change beyond drift| over each candidate period; 0: not seen
    drift: Float[Array, "batch season"]  # mean change over each candidate period

    def of(self, name: str) -> Float[Array, " batch"]:
        """One of the SCALARS."""
        return self.scalars[[*SCALARS].index(name)]


class Taken(NamedTuple):
    """How a step's change was taken."""

    own: Float[Array, " batch"]  # scale taken instead of a lent one; 0 but at one step of its life
    tame: Bool[Array, " batch"]  # it is none of a bad tick, or the row is too young to tell


class Season(NamedTuple):
    """The season chosen for each series."""

    period: Int[Array, " batch"]  # steps; 0: none
    drift: Float[Array, " batch"]  # mean change over a period
    trust: Float[Array, " batch"]  # 0 where it foretells no better than the last value, towards 1 the better


def pack(running: Running) -> Float[Array, "batch packed"]:
    """As one array: fewer columns to read and write."""
    return jnp.concatenate([running.scalars.T, *running[1:]], axis=1)


def unpack(packed: Float[Array, "batch packed"]) -> Running:
    """The inverse of `pack`."""
    ends = [*accumulate((len(SCALARS), len(MEANS), SEASONS))]
    scalars, *rest = jnp.split(packed, ends, axis=1)
    return Running(scalars.T, *rest)


def newborn(scale: Float[Array, " batch"]) -> Running:
    """Statistics of series that have seen nothing yet; `scale` is what other series lend them."""
    scalars = jnp.where(LENT, scale, 0.0)
    rest = (jnp.zeros((*scale.shape, n), scale.dtype) for n in (len(MEANS), SEASONS, SEASONS))
    return Running(scalars, *rest)


def observe(
    running: Running,
    count: Int[Array, " batch"],
    value: Float[Array, " batch"],
    dt_s: Float[Array, " batch"],
    past: Float[Array, "batch lead"],
    lagged: Float[Array, "batch season"],
    periods: Int[Array, " season"],
) -> tuple[Running, Taken]:
    """Take in one step of each series.

    `count` is the number of steps before this one; `past` are the newest values before it, newest last, `lagged` those
    one period ago (the oldest known one where the series is younger; a first step gets its own value).
    """
    n = count.astype(jnp.float32)
    usual = running_scale(running, past[:, -1])
    change, before = value - past[:, -1], past[:, -1] - past[:, -2]
    size, far = (jnp.abs(value - past[:, -k]) for k in (1, FAR_STEPS))
    tame, shock = _judge_change(value, past, usual)
    tame |= count < OWN
    wildest = WILD * usual
    climb = jnp.clip(value - past[:, -NAIVE_STEPS], -wildest, wildest)
    naive = jnp.abs(climb - running.of("climb"))
    kept = 1 - 1 / jnp.clip(n + 1, 1.0, LEVEL_MEMORY)  # of the distance from the level, which follows first
    still = (size == 0).astype(jnp.float32)
    step, step_before = jnp.clip(
        jnp.stack([change, before]) / jnp.maximum(running.of("scale"), 1e-30), -5.0, 5.0
    )
    away = kept * jnp.abs(value - running.of("level"))
    now = jnp.stack([value, away, dt_s, naive, jnp.minimum(far, wildest), climb, still, step * step_before])
    old, new = running.scalars, jnp.concatenate([jnp.broadcast_to(size, (LENT.sum(), *size.shape)), now])
    moved = old + (new - old) / jnp.clip(n + PRIORS, 1.0, MEMORIES)
    most = jnp.maximum(old, usual) * jnp.where(shock, GROWTH, 1.0)
    moved = jnp.where(LENT & ~tame, jnp.clip(moved, old, most), moved)
    moved = jnp.where(TAME & ~tame, old, moved)
    stood = stands(running, count, past, 1)[0]
    moved = jnp.where(HELD & stood & (size == 0), old, moved)
    moved = jnp.where(LENT & stood & (size > 0), jnp.maximum(moved, running.of("slow")), moved)
    own = _own_scale(running, count, value, past)
    moved = jnp.where(LENT & (own > 0), own, moved)
    lent = LENT & (count == 0)

    rate = 1 / jnp.clip(count[:, None] - periods + 1, 1, SEASON_MEMORY).astype(jnp.float32)
    across = jnp.clip(value[:, None] - lagged, -wildest[:, None], wildest[:, None])  # a period
    miss = jnp.abs(across - running.drift)
    seen = (periods > 0) & (count[:, None] >= periods)
    towards = (value[:, None] - running.mean) / jnp.clip(n[:, None] + 1, 1.0, jnp.asarray(MEANS))
    after = Running(
        jnp.where(lent, old, moved),
        mean=running.mean + jnp.where(tame[:, None], towards, 0.0),
        season=running.season + jnp.where(seen, rate * (miss - running.season), 0.0),
        drift=running.drift + jnp.where(seen, rate * (across - running.drift), 0.0),
    )
    return after, Taken(own, tame)


def stands(
    running: Running, count: Int[Array, " batch"], past: Float[Array, "batch lead"], steps: int
) -> Bool[Array, "step batch"]:
    """Whether a series that moves at most steps was standing still 1 .. `steps` steps ago: FAR_STEPS without a change.

    Such is a sensor that hangs. What it tells says nothing about how it will move when it goes on.
    """
    ago = np.minimum(np.arange(1, steps + 1), past.shape[1] - FAR_STEPS)[:, None]
    changed = (jnp.diff(past, axis=1) != 0).T
    moved = changed[-ago - np.arange(FAR_STEPS)].any(1)
    return ~moved & (count >= ago + FAR_STEPS) & (running.of("still") < OFTEN_STILL)


def _judge_change(
    value: Float[Array, " batch"], past: Float[Array, "batch lead"], usual: Float[Array, " batch"]
) -> tuple[Bool[Array, " batch"], Bool[Array, " batch"]]:
    """Whether a change is tame, and whether a wild one tells of more to come.

    One wild change is a new level, a second one that takes it back was a bad tick; neither says that changes have
    grown. A second one that does not, or a third, does.
    """
    path = jnp.concatenate([past[:, -4:], value[:, None]], axis=1)
    wild = jnp.abs(jnp.diff(path, axis=1)) > WILD * usual[:, None]
    back = jnp.abs(path[:, -1] - path[:, -3]) <= WILD * usual
    return ~wild[:, -1], wild[:, -2] & (~back | wild[:, -3])


def _own_scale(
    running: Running,
    count: Int[Array, " batch"],
    value: Float[Array, " batch"],
    past: Float[Array, "batch lead"],
) -> Float[Array, " batch"]:
    """The mean size of a series' changes so far at the step at which it forgets what it was lent; else 0.

    That is after OWN changes, or with its first one if that comes later. A single wild one among them does not count.
    """
    sizes = jnp.abs(jnp.diff(jnp.concatenate([past[:, -OWN:], value[:, None]], axis=1), axis=1))
    total, most = sizes.sum(1), sizes.max(1)
    rest = (total - most) / (OWN - 1)
    first = jnp.where((rest > 0) & (most > WILD * rest), rest, total / OWN)
    late = (count > OWN) & (running.of("still") == 1)
    return jnp.where(count == OWN, first, jnp.where(late, sizes[:, -1] / jnp.maximum(count, 1), 0.0))


def season_score(
    values: Float[Array, "batch memory"], count: Int[Array, " batch"], period: Int[Array, ""]
) -> tuple[Float[Array, " batch"], Float[Array, " batch"]]:
    """What `Running` holds of a period, `season` and `drift`, from the newest values alone (newest last); 0 where it
    was not seen.

    A period that a new model brings has no score yet: one that grew from 0 would be trusted blindly for hundreds of
    steps.
    """
    length = values.shape[1]
    lag = jnp.arange(length, 0, -1)
    known = (period > 0) & (lag + period <= jnp.minimum(count, length)[:, None]) & (lag <= int(SEASON_MEMORY))
    across = values - jnp.roll(values, period, axis=1)

    def mean(x: Array) -> Array:
        return jnp.where(known, x, 0.0).sum(1) / jnp.maximum(known.sum(1), 1)

    drift = mean(across)
    return mean(jnp.abs(across - drift[:, None])), drift


def running_scale(running: Running, value: Array) -> Array:
    """The unit of everything: the running scale, never far below the slow one nor what float32 resolves.

    The level, which a bad tick does not move, tells what that is; the newest value only what float32 can square.
    """
    floor = SCALE_FLOOR * jnp.abs(running.of("level")) + SQUARED_FLOOR * jnp.abs(value) + LEAST
    return apart(jnp.maximum(jnp.maximum(running.of("scale"), SLOW_SHARE * running.of("slow")), floor))


def choose_seasons(
    running: Running, count: Int[Array, " batch"], periods: Int[Array, " season"]
) -> tuple[Season, Season]:
    """The best and the second best candidate period of each series, as far as its history has shown them twice."""
    proven = (periods > 0) & (count[:, None] >= 2 * periods)
    cost = jnp.where(proven, running.season / jnp.maximum(running.of("naive"), 1e-30)[:, None], jnp.inf)
    best = jnp.argmin(cost, axis=1)
    rest = jnp.where(jnp.arange(SEASONS) == best[:, None], jnp.inf, cost)
    return _season(running, cost, best, periods), _season(running, rest, jnp.argmin(rest, axis=1), periods)


def told(
    running: Running, season: Season, periods: Int[Array, " season"], lagged: Float[Array, "batch season"]
) -> Float[Array, " batch"]:
    """What the past tells of the newest value: the one a best season ago with the drift since, else a mean."""
    of_best = (periods == season.period[:, None]) & (periods > 0)
    ago = jnp.where(of_best, lagged, -jnp.inf).max(1)
    return jnp.where(season.period > 0, ago + season.drift, running.mean[:, TOLD])


def move(running: Running, by: Float[Array, " batch"], since: int) -> Running:
    """As if what came before the last `since` steps had been higher by so much."""
    kept = (1 - 1 / jnp.asarray(MEANS)) ** since
    level = (np.array([*SCALARS]) == "level")[:, None]
    return running._replace(
        scalars=running.scalars + jnp.where(level, by, 0.0), mean=running.mean + by[:, None] * kept
    )


def _season(running: Running, cost: Array, chosen: Array, periods: Array) -> Season:
    of_chosen = jnp.arange(SEASONS) == chosen[:, None]
    ratio, drift = apart(jnp.where(of_chosen, jnp.stack([cost, running.drift]), -jnp.inf).max(2))
    trust = jnp.clip(1.0 - ratio, 0.0, 1.0)
    return Season(jnp.where(trust > 0, periods[chosen], 0), drift, trust)
