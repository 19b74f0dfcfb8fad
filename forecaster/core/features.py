"""What the network sees of a series: made here, for training and for serving alike.

In come values, the running statistics, and position in the week; out go the inputs of the recurrent cells at each step
(`recurrent_inputs`) and those that go straight to the head at an origin (`direct_inputs`). All are relative to the last
value and in units of the running scale, so that a price of 1e-5 and a sensor of 1e6 look alike. Nothing looks ahead:
inputs at step t read steps <= t.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from forecaster.core.stats import FAR_STEPS, MEANS, SCALARS, Running, Season

CYCLES = 4  # past cycles of the best season that are averaged
WAKE = (1, 2, 3, 4, 6, 8, 12, 16)  # steps over which the latest change is held against that of a season ago
HARMONICS = (2, 3)  # of day and week that the direct inputs hold; the recurrent ones have the first
LEAD = 64  # steps before the first one that the recurrent inputs look back on
LAGS = FAR_STEPS  # values before the origin that the direct inputs hold one by one
WINDOWS = (4, 16, 64)  # steps of the moving means among the recurrent inputs, all at most LEAD
WEEK_DAYS = 7.0
DAY_S = 86400.0
KNEE = 8.0  # scales up to which `squash` is nearly linear

RECURRENT = 17  # number of recurrent inputs
# Where each of them is found among distances, logarithms, the calendar and the trust in the season.
ORDER = np.array([0, 1, 2, 3, 8, 9, 12, 13, 14, 15, 16, 4, 5, 6, 10, 7, 11])
CALENDAR_AT = 6  # of these, where day and week begin
HABITS, ERRORS = 7, 6  # direct inputs that tell of changes so far, and of the linear expert's errors
SIZES = np.array([[*SCALARS].index(name) for name in ("fast", "naive", "far")])  # of the changes so far


def season_lags(
    period: Int[Array, " batch"], horizon: int, cycles: int
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
