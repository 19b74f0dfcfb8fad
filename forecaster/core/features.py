"""What the network sees of a series: made here, for training and for serving alike.

In come the raw steps of a series (value, seconds since the step before, position in the week); out go the causal
running statistics (`observe`), the inputs of the recurrent cells at each step (`recurrent_inputs`) and those that go
straight to the head at an origin (`direct_inputs`). All are relative to the last value and in units of the running
scale, so that a price of 1e-5 and a sensor of 1e6 look alike. Nothing looks ahead: inputs at step t read steps <= t.

Seasons are data, never shapes: `periods` holds up to SEASONS candidate lengths in steps (0: none), and each series
ranks them by how well the value one period ago foretold the present one.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Int

SEASONS = 6  # candidate season lengths that each series ranks
# The candidates while no model brings its own, in steps: hours of a day and of a week, days of a week, months of a
# year, quarters of an hour and five minutes of a day.
COMMON_PERIODS = (24, 168, 7, 12, 96, 288)
MEMORY = 512  # values kept a series
MAX_PERIOD = 480  # steps; a longer season reaches the network through the calendar only
CYCLES = 4  # past cycles of the best season that are averaged
WAKE = (1, 2, 3, 4, 6, 8, 12, 16)  # steps over which the latest change is held against that of a season ago
HARMONICS = (2, 3)  # of day and week that the direct inputs hold; the recurrent ones have the first
LEAD = 64  # steps before the first one that the recurrent inputs look back on
LAGS = 16  # values before the origin that the direct inputs hold one by one
WINDOWS = (4, 16, 64)  # steps of the moving means among the recurrent inputs, all at most LEAD
MEANS = (6.0, 18.0, 54.0, 162.0, 486.0)  # memory, in steps, of the exponentially weighted means
FAST_MEMORY = 10.0  # steps after which the fast scale has forgotten most
SCALE_MEMORY = 50.0  # the same for the running scale
SLOW_MEMORY = 1000.0  # the same for the slow scale
WILD = 256.0  # scales; a change beyond is a bad tick or the first of a new level
GROWTH = 4.0  # times its scale that one change may make of it
OWN = 8  # changes of its own after which a series has forgotten the scale that it was lent
SLOW_SHARE = 0.1  # of the slow scale that the running scale never falls below
LEVEL_MEMORY = 512.0  # the same for the long-run level
SEASON_MEMORY = 256.0  # the same for a season's score
PRIOR_STEPS = 2.0  # steps that the scale lent to a newborn series counts for
SCALE_FLOOR = 1e-7  # of the level, relative to the base: float32 resolves no less
SQUARED_FLOOR = 1e-14  # of the value, relative to the base: the square of their ratio is finite
NAIVE_STEPS = 6  # steps ahead at which a season has to beat the last value
WEEK_DAYS = 7.0
DAY_S = 86400.0
KNEE = 8.0  # scales up to which `squash` is nearly linear

RECURRENT = 17  # number of recurrent inputs
# Where each of them is found among distances, logarithms, the calendar and the trust in the season.
ORDER = np.array([0, 1, 2, 3, 8, 9, 12, 13, 14, 15, 16, 4, 5, 6, 10, 7, 11])
CALENDAR_AT = 6  # of these, where day and week begin
HABITS, ERRORS = 7, 6  # direct inputs that tell of changes so far, and of the linear expert's errors

SCALARS = {
    "scale": (SCALE_MEMORY, PRIOR_STEPS),  # mean absolute change from step to step lately
    "slow": (SLOW_MEMORY, PRIOR_STEPS),  # the same over a long time
    "fast": (FAST_MEMORY, PRIOR_STEPS),  # the same over a few steps
    "level": (LEVEL_MEMORY, 1.0),  # long-run mean of the value
    "spread": (LEVEL_MEMORY, 1.0),  # long-run mean absolute distance from the level
    "dt_s": (2 * SCALE_MEMORY, 0.0),  # usual time between steps
    "naive": (SEASON_MEMORY, 0.0),  # mean |change| over NAIVE_STEPS beyond `climb`: what a season has to beat
    "far": (SEASON_MEMORY, 0.0),  # mean absolute change over LAGS
    "climb": (SEASON_MEMORY, 0.0),  # mean change over NAIVE_STEPS
    "still": (2 * SCALE_MEMORY, 0.0),  # share of steps without a change
    "echo": (2 * SCALE_MEMORY, 0.0),  # mean product of successive changes, in squared scales
}
"""Running means of a series: steps after which each has forgotten most, and steps that it counts for at first."""
MEMORIES, PRIORS = np.array([*SCALARS.values()], np.float32).T[..., None]
SIZES = np.array([[*SCALARS].index(name) for name in ("fast", "naive", "far")])
LENT = np.arange(len(SCALARS))[:, None] < 3  # the first of them, which others lend to a newborn series
TAME = np.isin([*SCALARS], ["level", "spread"])[:, None]  # those that a wild change leaves as they are
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

    `count` is the number of steps before this one; `past` are the LEAD values before it, newest last, `lagged` those
    one period ago (the oldest known one where the series is younger; a first step gets its own value).
    """
    n = count.astype(jnp.float32)
    usual = running_scale(running, past[:, -1])
    change, before = value - past[:, -1], past[:, -1] - past[:, -2]
    size, far = (jnp.abs(value - past[:, -k]) for k in (1, LAGS))
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
    own = _own_scale(running, count, value, past)
    moved = jnp.where(LENT & (own > 0), own, moved)
    lent = LENT & (count == 0)

    rate = 1 / jnp.clip(count[:, None] - periods + 1, 1, SEASON_MEMORY).astype(jnp.float32)
    across = jnp.clip(value[:, None] - lagged, -wildest[:, None], wildest[:, None])  # a period
    miss = jnp.abs(across - running.drift)
    seen = available(count, periods)
    towards = (value[:, None] - running.mean) / jnp.clip(n[:, None] + 1, 1.0, jnp.asarray(MEANS))
    after = Running(
        jnp.where(lent, old, moved),
        mean=running.mean + jnp.where(tame[:, None], towards, 0.0),
        season=running.season + jnp.where(seen, rate * (miss - running.season), 0.0),
        drift=running.drift + jnp.where(seen, rate * (across - running.drift), 0.0),
    )
    return after, Taken(own, tame)


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


def available(count: Int[Array, " batch"], periods: Int[Array, " season"]) -> Array:
    """Whether the value one period before step number `count` is known; bool (batch, season)."""
    return (periods > 0) & (count[:, None] >= periods)


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
    floor = SCALE_FLOOR * jnp.abs(running.of("level")) + SQUARED_FLOOR * jnp.abs(value) + 1e-12
    return jnp.maximum(jnp.maximum(running.of("scale"), SLOW_SHARE * running.of("slow")), floor)


def choose_seasons(
    running: Running, count: Int[Array, " batch"], periods: Int[Array, " season"]
) -> tuple[Season, Season]:
    """The best and the second best candidate period of each series, as far as its history has shown them twice."""
    proven = (periods > 0) & (count[:, None] >= 2 * periods)
    cost = jnp.where(proven, running.season / jnp.maximum(running.of("naive"), 1e-30)[:, None], jnp.inf)
    best = jnp.argmin(cost, axis=1)
    rest = jnp.where(jnp.arange(SEASONS) == best[:, None], jnp.inf, cost)
    return _season(running, cost, best, periods), _season(running, rest, jnp.argmin(rest, axis=1), periods)


def _season(running: Running, cost: Array, chosen: Array, periods: Array) -> Season:
    ratio, drift = (jnp.take_along_axis(x, chosen[:, None], axis=1)[:, 0] for x in (cost, running.drift))
    trust = jnp.clip(1.0 - ratio, 0.0, 1.0)
    return Season(jnp.where(trust > 0, periods[chosen], 0), drift, trust)


def season_lags(
    period: Int[Array, " batch"], horizon: int, cycles: int = 1
) -> Int[Array, "batch cycle horizon_and_origin"]:
    """Steps back from the origin (lag 0) to the places one to `cycles` seasons before it and before each target.

    The first column is the origin's own, then targets 1..horizon. A season shorter than the horizon is repeated: of the
    multiples the shortest that is not in the future.
    """
    back = cycles_back(period, horizon)[:, None] + jnp.arange(cycles)[:, None]
    return jnp.maximum(period[:, None, None] * back - jnp.arange(horizon + 1), 0)


def cycles_back(period: Int[Array, " batch"], horizon: int) -> Int[Array, "batch horizon_and_origin"]:
    """How many periods before the origin and each target the newest place of the same phase is that is known."""
    h = jnp.arange(horizon + 1)
    some = jnp.broadcast_to(jnp.maximum(period, 1)[:, None], (*period.shape, horizon + 1))
    # Nothing here is negative: `//` would see to that, at twice the cost.
    return jnp.maximum(jax.lax.div(h + some - 1, some), 1)


def squash(x: Array) -> Array:
    """Nearly linear up to KNEE, logarithmic beyond; keeps the sign. Exact to 1e-6.

    KNEE * arcsinh(x / KNEE), which XLA computes one number at a time, ten times as slowly. Not to be differentiated.
    """
    size = jnp.minimum(jnp.abs(x) / KNEE, 1e18)  # its square is finite
    return KNEE * jnp.copysign(jnp.log(size + jnp.sqrt(size * size + 1)), x)


def unsquash(x: Array) -> Array:
    """The inverse of `squash`, which stays finite: KNEE * sinh(x / KNEE)."""
    grown = jnp.exp(jnp.clip(x / KNEE, -8.0, 8.0))
    return KNEE / 2 * (grown * grown - 1) / grown


def recurrent_inputs(
    values: Float[Array, "batch lead_and_time"],
    scales: Float[Array, "batch time"],
    dts_s: Float[Array, "batch time"],
    weeks: Float[Array, "batch time"],
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

    def moving_mean(x: Array, w: int) -> Array:
        """Of the w entries up to each of the last `time`."""
        if time == 1:
            return x[:, -w:].mean(1, keepdims=True)
        sums = jnp.cumsum(jnp.pad(x, ((0, 0), (1, 0))), axis=1)
        end = sums.shape[1]
        return (sums[:, end - time :] - sums[:, end - time - w : end - w]) / w

    small = values - now[:, -1:]  # float32 keeps small numbers
    recent = moving_mean(jnp.abs(jnp.diff(values, axis=1)), 8)

    def mean(w: int) -> Array:
        return moving_mean(small, w) + now[:, -1:]

    slow, spread = (jnp.maximum(x, 1e-30)[:, None] for x in (running.of("slow"), running.of("spread")))
    usual = jnp.maximum(running.of("dt_s"), 1e-6)[:, None]
    trust = jnp.broadcast_to(season.trust[:, None], now.shape)
    squashed = squash(
        jnp.stack(
            [
                (now - ago(1)) / s,
                *((now - mean(w)) / s for w in WINDOWS),
                (seasonal[:, :, 0] - now) / s,
                (seasonal[:, :, 1] - seasonal[:, :, 0]) / s,
                (now - running.of("level")[:, None]) / spread,
                (now + base[:, None]) / s,
            ]
        )
    )
    logs = jnp.log(
        jnp.stack(
            [
                recent / s + 0.05,
                jnp.clip((dts_s + 1e-3 * usual) / usual, np.exp(-5.0), np.exp(5.0)),
                spread / s + 1e-3,
                jnp.clip(s / slow + 1e-3, np.exp(-3.0), np.exp(3.0)),
            ]
        )
    )
    one = jnp.ones_like(trust)
    share = jnp.stack([one, one, one, one, trust, trust, one, 0.25 * one])
    circles = jnp.stack([x for circle in calendar(weeks, running.of("dt_s")[:, None]) for x in circle])
    found = jnp.concatenate([share * squashed, logs, circles, trust[None]])
    return jnp.moveaxis(found[ORDER], 0, -1)


def calendar(weeks: Array, dt_s: Array) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    """Sine and cosine of the time of day and of the week; 0 where steps are too long to know it."""
    day, week = 2 * jnp.pi * weeks, 2 * jnp.pi * weeks / WEEK_DAYS
    daily, weekly = dt_s < DAY_S / 3, dt_s < WEEK_DAYS * DAY_S / 3
    return (
        (jnp.where(daily, jnp.sin(day), 0.0), jnp.where(daily, jnp.cos(day), 0.0)),
        (jnp.where(weekly, jnp.sin(week), 0.0), jnp.where(weekly, jnp.cos(week), 0.0)),
    )


class Sight(NamedTuple):
    """What an origin looks back on, relative to its value and in squashed scales."""

    lags: Float[Array, "batch lag"]  # the LAGS values before it, newest last
    means: Float[Array, "batch mean"]  # the exponentially weighted means
    best: Float[Array, "batch horizon_and_origin"]  # values one best season before it and before each target
    cycle: Float[Array, "batch horizon"]  # mean change from there over the last CYCLES cycles
    second: Float[Array, "batch horizon_and_origin"]  # as `best`, of the second best season
    wake: Float[Array, "batch wake"]  # changes over the last WAKE steps beyond those one best season before
    second_wake: Float[Array, "batch wake"]  # the same of the second best season


def look_back(
    value: Float[Array, " batch"],
    scale: Float[Array, " batch"],
    past: Float[Array, "batch lead"],
    running: Running,
    best: Float[Array, "batch cycle horizon_and_origin"],
    second: Float[Array, "batch horizon_and_origin"],
    wakes: tuple[Float[Array, "batch wake"], Float[Array, "batch wake"]],
    seen: Array,
    seasons: tuple[Season, Season],
) -> Sight:
    """What the direct inputs and the linear expert are made of; 0 where there is no season.

    `best` and `second` are the values at `season_lags`; `wakes` those WAKE steps before their origin's place; `seen`
    (batch, cycle) tells which cycles are remembered.
    """
    last, s = value[:, None], scale[:, None]
    has = [(season.period > 0)[:, None] for season in seasons]
    share = (seen / jnp.maximum(seen.sum(1, keepdims=True), 1))[:, :, None]
    latest = last - past[:, [-k for k in WAKE]]
    parts = [
        past[:, -LAGS:] - last,
        running.mean - last,
        jnp.where(has[0], best[:, 0] - last, 0.0),
        jnp.where(has[0], (share * (best[:, :, 1:] - best[:, :, :1])).sum(1), 0.0),
        jnp.where(has[1], second - last, 0.0),
        jnp.where(has[0], latest - (best[:, 0, :1] - wakes[0]), 0.0),
        jnp.where(has[1], latest - (second[:, :1] - wakes[1]), 0.0),
    ]
    squashed = squash(jnp.concatenate(parts, axis=1) / s)
    return Sight(*jnp.split(squashed, list(accumulate(part.shape[1] for part in parts[:-1])), axis=1))


def direct_inputs(
    sight: Sight,
    running: Running,
    scale: Float[Array, " batch"],
    seasons: tuple[Season, Season],
    week: Float[Array, " batch"],
    linear: Float[Array, "batch horizon"],
    errors: Float[Array, "batch error"],
) -> Float[Array, "batch feature"]:
    """Inputs of the head at an origin, beside the cells' output.

    `linear` is the linear expert's forecast in squashed scales; `errors` are how large and, against the last value, how
    good its errors were lately.
    """
    sizes = jnp.log(running.scalars[SIZES] / scale + 0.05)
    trust = jnp.stack([season.trust for season in seasons], axis=1)
    habits = jnp.concatenate([sizes.T, running.scalars[-2:].T, trust], axis=1)
    return jnp.concatenate(
        [
            sight.lags,
            sight.means,
            habits,
            sight.best[:, 1:],
            sight.cycle,
            sight.second[:, 1:],
            sight.second[:, 1:] - sight.second[:, :1],
            linear,
            errors,
            trust[:, :1] * sight.wake,
            trust[:, 1:] * sight.second_wake,
            trust[:, :1] * overtones(calendar(week, running.of("dt_s"))),
        ],
        axis=1,
    )


def overtones(circles: tuple[tuple[Array, Array], tuple[Array, Array]]) -> Float[Array, "batch overtone"]:
    """Sines and cosines of the HARMONICS of day and week; 0 where the calendar is."""
    found = []
    for sine, cosine in circles:
        s, c = sine, cosine
        for _ in HARMONICS:
            s, c = s * cosine + c * sine, c * cosine - s * sine
            found += [s, c]
    return jnp.stack(found, axis=1)


class Inputs(NamedTuple):
    """Some of the network's inputs, by index."""

    recurrent: list[int]
    direct: list[int]  # from the end


def calendar_inputs(cycles: Sequence[int]) -> Inputs:
    """Those that tell the time of the day (cycle 0) and of the week (1)."""
    each = 2 * len(HARMONICS)
    return Inputs(
        [CALENDAR_AT + 2 * cycle + k for cycle in cycles for k in range(2)],
        [(cycle - 2) * each + k for cycle in cycles for k in range(each)],
    )


CANDIDATES = 5  # forecasts among the direct inputs that the head may blend step by step


def candidates(direct: Array, horizon: int) -> Float[Array, "*batch candidate horizon"]:
    """Those forecasts: one best season ago, its mean cycle, one second season ago, its change, the linear expert."""
    start = LAGS + len(MEANS) + HABITS
    return direct[..., start : start + CANDIDATES * horizon].reshape(*direct.shape[:-1], CANDIDATES, horizon)


def direct_size(horizon: int) -> int:
    """Number of direct inputs."""
    seasonal = 2 * len(WAKE) + 4 * len(HARMONICS)
    return LAGS + len(MEANS) + HABITS + CANDIDATES * horizon + ERRORS + seasonal
