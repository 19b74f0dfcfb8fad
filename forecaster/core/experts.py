"""Simple forecasters beside the network, and the online mix of them all.

Each expert gives one point a step ahead, relative to the last value and in units of the running scale; its spread is
its own mean absolute error, kept per series and step ahead. Their quantiles are averaged level by level, with weights
that follow what each lost lately, so that the mix is hardly worse than the best of them. Everything is O(1) a tick.
The batch is the last axis of all but the linear expert: vector instructions work along the last axis.

The weights: Bernstein online aggregation (Wintenberger 2017, "Optimal learning with Bernstein online aggregation",
Machine Learning 106, arXiv:1404.1356) on the linearised pinball loss, with forgetting; regret against the best expert
O(sqrt(V log K)), V the sum of its squared excess losses.
"""

from collections.abc import Sequence
from statistics import NormalDist
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float

from forecaster.core import features
from forecaster.core.apart import apart

NAMES = ("network", "last_value", "fast_mean", "slow_mean", "holt", "drift", "seasonal", "linear")
COUNT = len(NAMES)
NETWORK = 0
FEW = 0.005  # first share of every expert but the network and the last value
LINES = 5  # numbers an origin: fast mean, slow mean, Holt's level and slope, drift
CURVES = 3  # numbers a step ahead: network, seasonal, linear
FAST, SLOW = 0, 2  # which of stats.MEANS
DRIFT_STEPS = 48
LAST = NAMES.index("last_value")
ALARM_FADE = 0.8  # of the alarm that is left after a step
CALM = 2.0  # alarm up to which nothing happens
ALARM_RATE = 2.0  # of what is beyond, in logarithms of the last value's share
ALARM_STEP = 3.0  # mean errors; a step that was better or worse by more counts as that
DOUBT_RATE = 0.1  # at which doubt follows, while there is an alarm
DOUBT_SILENCE = 8.0  # one over the doubt from which no alarm is heard

FORGET = 0.002  # of regrets, at each settled forecast
BORROW = 0.5  # share of a regret that is the mean over all steps ahead
RATE, RATE_LIMIT = 1.5, 0.2  # of learning
ERROR_RATE = 0.004  # at which an expert's mean absolute error follows
FAR = 25.0  # scales; an outcome farther off is remembered as that far: a scale may have been far too small

MISJUDGED = 2.0  # times what it should be; such an error was learned in units of a scale that did not fit

HOLT_LEVEL, HOLT_SLOPE, DAMPING = 0.5, 0.05, 0.9  # Gardner & McKenzie 1985: a damped trend


class Blend(NamedTuple):
    """What the mix remembers of each series, expert and horizon; axes (expert, horizon, batch)."""

    error: Array  # mean absolute error lately, in scales
    regret: Array  # of the mix towards each expert
    square: Array  # sum of squares of the same


class Alarm(NamedTuple):
    """Whether a series has come to a new level that the mix does not know yet; axis (batch,)."""

    height: Array  # how much better than the mix the last value has foretold the next one lately
    doubt: Array  # how wrong alarms have been, 0 to 1
    foretold: Array  # what the mix has foretold of the next value, see `centre`


def shape(levels: tuple[float, ...]) -> np.ndarray:
    """Quantiles of an error whose mean absolute value is 1: halfway between normal and Laplace tails. (level,)"""
    q = np.asarray(levels)
    laplace = -np.sign(q - 0.5) * np.log(np.maximum(1 - 2 * np.abs(q - 0.5), 1e-12))
    normal = np.array([NormalDist().inv_cdf(level) for level in levels]) * np.sqrt(np.pi / 2)
    return ((laplace + normal) / 2).astype(np.float32)


def newborn(horizon: int) -> Blend:
    """Of one series that has seen nothing, when nobody lends it anything: a random walk's errors; no batch axis."""
    walk = jnp.sqrt(jnp.arange(1, horizon + 1, dtype=jnp.float32)) * jnp.ones((COUNT, 1))
    return Blend(walk, jnp.zeros_like(walk), jnp.zeros_like(walk))


def damped(horizon: int) -> np.ndarray:
    """How many slopes a damped trend climbs by each step ahead: sum of DAMPING**i, i = 1..h."""
    return np.cumsum(DAMPING ** np.arange(1, horizon + 1)).astype(np.float32)


def holt(
    level: Array, slope: Array, count: Array, value: Float[Array, " batch"]
) -> tuple[Float[Array, " batch"], Float[Array, " batch"]]:
    """Level and slope of the damped trend after one more value."""
    new = HOLT_LEVEL * value + (1 - HOLT_LEVEL) * (level + DAMPING * slope)
    moved = HOLT_SLOPE * (new - level) + (1 - HOLT_SLOPE) * DAMPING * slope
    return jnp.where(count == 0, value, new), jnp.where(count == 0, 0.0, moved)


def spread_lines(lines: Float[Array, "line at batch"], horizon: int) -> list[Array]:
    """The points of the experts of a few numbers: fast mean, slow mean, Holt, drift; each (horizon, batch).

    `lines` has them for each step ahead (as they wait), or once for all (as they are made).
    """
    h = jnp.arange(1, horizon + 1, dtype=jnp.float32)[:, None]
    fast, slow, level, slope, drift = lines
    return [fast + 0 * h, slow + 0 * h, level + slope * damped(horizon)[:, None], drift * h]


def assemble(
    lines: Float[Array, "line at batch"], curves: Sequence[Float[Array, "horizon batch"]]
) -> Float[Array, "expert horizon batch"]:
    """All experts' points, in the order of NAMES."""
    network, seasonal, linear = curves
    still = jnp.zeros_like(network)
    return jnp.stack([network, still, *spread_lines(lines, len(network)), seasonal, linear])


def weights(
    blend: Blend,
    awake: Bool[Array, "expert horizon batch"],
    first_share: Array | float,
    heard: Array | float = 0.0,
) -> Float[Array, "expert horizon batch"]:
    """Share of each expert in the mix; those that are not `awake` have nothing to say and get none.

    `first_share` is the network's before any of them was judged; most of what it leaves is the last value's. What is
    `heard` of an alarm speaks for the last value.
    """
    rest = jnp.maximum(1 - first_share - (COUNT - 2) * FEW, FEW)
    first = jnp.full(COUNT, FEW).at[NETWORK].set(first_share).at[LAST].set(rest)
    score = jnp.where(awake, jnp.log(first)[:, None, None] + _rate(blend.square) * blend.regret, -jnp.inf)
    score = score.at[LAST].add(heard)
    return jax.nn.softmax(score, axis=0)


def _rate(square: Array) -> Array:
    """RATE / sqrt(square), bounded; written so that XLA does not see a reciprocal root, which it computes slowly."""
    return jnp.minimum(RATE_LIMIT, jnp.sqrt(RATE**2 / (square + 0.2)))


def centre(
    blend: Blend,
    points: Float[Array, "expert horizon batch"],
    awake: Bool[Array, "expert horizon batch"],
    first_share: Array | float,
) -> Float[Array, " batch"]:
    """What the mix foretells of the next value while no alarm speaks, as points and `weights` have it."""
    near = weights(Blend(*(part[:, :1] for part in blend)), awake[:, :1], first_share)
    return (near * jnp.where(awake, points, 0.0)[:, :1]).sum((0, 1))


def sound(alarm: Alarm, came: Float[Array, " batch"], unit: Float[Array, " batch"]) -> Alarm:
    """The alarm after what came, in scales relative to the last value; `unit` is the last value's mean error.

    It rises with how much better than the mix's `centre` the last value has foretold. After a jump to a new level it
    does at once. Forecasts of later steps, which have to wait for their targets, would tell so only a whole horizon
    later; what comes back after one step raises none. Where the mix is right in spite of an alarm, doubt rises: such is
    a series that goes on and off, whose network errs by a step in the time, not in the level.
    """
    better = (jnp.abs(came - alarm.foretold) - jnp.abs(came)) / jnp.maximum(unit, 1e-3)
    better = jnp.clip(better, -ALARM_STEP, ALARM_STEP)
    doubt = alarm.doubt + DOUBT_RATE * (jnp.maximum(-better / ALARM_STEP, 0.0) - alarm.doubt)
    return alarm._replace(
        height=jnp.maximum(ALARM_FADE * alarm.height + better, 0.0),
        doubt=jnp.where(alarm.height > CALM, doubt, alarm.doubt),
    )


def heard(alarm: Alarm) -> Float[Array, " batch"]:
    """What an alarm adds to the logarithm of the last value's share."""
    trust = jnp.maximum(1 - DOUBT_SILENCE * alarm.doubt, 0.0)
    return ALARM_RATE * trust * jnp.maximum(alarm.height - CALM, 0.0)


def first_words(blend: Blend, speaks: Bool[Array, " batch"]) -> Bool[Array, " batch"]:
    """Where the network speaks and has never been judged: what was learned was learned of a mix without it."""
    return speaks & ~(blend.square[NETWORK] > 0).any(0)


def unbiased(blend: Blend, fresh: Bool[Array, " batch"]) -> Blend:
    """Without regrets where `fresh`."""
    return blend._replace(
        regret=jnp.where(fresh, 0.0, blend.regret), square=jnp.where(fresh, 0.0, blend.square)
    )


def mix(
    points: Float[Array, "expert horizon batch"],
    network: Float[Array, "horizon level batch"],
    blend: Blend,
    share: Float[Array, "expert horizon batch"],
    levels: tuple[float, ...],
) -> Float[Array, "horizon level batch"]:
    """Quantiles of the mix: the weighed mean of the experts' quantiles, level by level (Vincentization)."""
    others = share.at[NETWORK].set(0.0)
    centre = (others * points).sum(0)
    spread = (others * blend.error).sum(0)
    widths = jnp.asarray(shape(levels))[:, None]
    return centre[:, None] + spread[:, None] * widths + share[NETWORK][:, None] * network


def settle(
    blend: Blend,
    points: Float[Array, "expert horizon batch"],
    published: Float[Array, "horizon level batch"],
    slope: Float[Array, "horizon level batch"],
    settled: Bool[Array, "horizon batch"],
    levels: tuple[float, ...],
    first_share: Array | float,
) -> tuple[Blend, Float[Array, "horizon batch"]]:
    """Learn from what came; also the mix's own mean absolute error, the unit of the corrections.

    An expert that had nothing to say, a point that is not finite, learns nothing.

    `slope` is the derivative of the pinball loss at the published quantiles; the excess loss of an expert is the slope
    times the distance of its quantiles from the published ones. The network's are taken to be as wide as published.
    """
    awake = jnp.isfinite(points)
    points = jnp.where(awake, points, 0.0)
    share = weights(blend, awake, first_share)
    unit = jnp.maximum((share * blend.error).sum(0), 1e-3)  # the mix's own error, (horizon, batch)
    median = published[:, levels.index(0.5)]
    tilt = slope.mean(1)
    cost = (slope * published).mean(1)
    by_shape = (slope * jnp.asarray(shape(levels))[:, None]).mean(1)
    spread = (blend.error * by_shape).at[NETWORK].set(cost - tilt * median)
    excess = points * tilt + spread - cost
    keep = (settled & awake).astype(jnp.float32)
    gain = apart(-jnp.clip(excess / unit, -3.0, 3.0) * keep)
    together = gain.sum(1, keepdims=True) / jnp.maximum(keep.sum(1, keepdims=True), 1)
    gain = (1 - BORROW) * gain + BORROW * together
    fade = 1 - FORGET * keep
    square = fade * blend.square + gain**2
    regret = fade * blend.regret + gain * (1 - _rate(square) * gain)
    return Blend(blend.error, regret, square), unit


def follow(
    error: Float[Array, "expert horizon batch"],
    points: Float[Array, "expert horizon batch"],
    actual: Float[Array, "horizon batch"],
    settled: Bool[Array, "horizon batch"],
    count: Array,
) -> Float[Array, "expert horizon batch"]:
    """The experts' mean absolute errors after what came; `count` (batch,) is the number of steps before it."""
    miss = jnp.abs(jnp.clip(actual, -FAR, FAR) - jnp.clip(points, -FAR, FAR))
    miss = jnp.minimum(miss, jnp.maximum(20 * error, 1.0))
    age = jnp.maximum(count - jnp.arange(1, len(actual) + 1)[:, None], 0).astype(jnp.float32)
    rate = jnp.maximum(ERROR_RATE, 1 / (age + 5.0))
    return jnp.where(settled & jnp.isfinite(points), error + rate * (miss - error), error)


def misjudged(
    error: Float[Array, "expert horizon batch"], own: Float[Array, " batch"]
) -> Bool[Array, " batch"]:
    """Where errors were learned in units of a lent scale that did not fit, when a series takes its `own` (0: not now).

    In its own the last value is wrong by about 1 in the next step: the scale is the mean change.
    """
    last = error[LAST, 0]
    return (own > 0) & ((last < 1 / MISJUDGED) | (last > MISJUDGED))


# --------------------------------------------------------------------------- the linear expert

LINEAR_LAGS = (1, 2, 4, 8, 16)
LINEAR_MEANS = (1, 2, 4)  # which of stats.MEANS
LINEAR_BEST = (0, 3, 6, 9, 12)  # steps ahead, one best season ago
LINEAR_SECOND = (0, 6, 12)
REGRESSORS = len(LINEAR_LAGS) + len(LINEAR_MEANS) + len(LINEAR_BEST) + len(LINEAR_SECOND) + 1
LINEAR_FORGET = 0.999
LINEAR_PRIOR = 0.1  # of each weight's variance
UNITS = 4.0  # regressors are divided by it: they are about 1 in size

_UPPER = np.triu_indices(REGRESSORS)
# where the upper triangle has each element of a symmetric matrix
_PLACE = np.zeros((REGRESSORS, REGRESSORS), np.int32)
_PLACE[_UPPER] = _PLACE.T[_UPPER] = np.arange(len(_UPPER[0]))


class Linear(NamedTuple):
    """A direct autoregression for all steps ahead, learned by recursive least squares with one gain for all of them."""

    covariance: Float[Array, "batch pair"]  # inverse; symmetric, so the upper triangle is all of it
    weights: Float[Array, "batch regressor horizon"]


def newborn_linear(batch: int, horizon: int) -> Linear:
    """That of a series that has seen nothing: it forecasts the last value."""
    prior = LINEAR_PRIOR * jnp.eye(REGRESSORS)[_UPPER]
    covariance = jnp.broadcast_to(prior, (batch, prior.size))
    return Linear(covariance, jnp.zeros((batch, REGRESSORS, horizon)))


def regressors(sight: features.Sight) -> Float[Array, "batch regressor"]:
    """What the linear expert looks at, about 1 in size."""
    horizon = sight.cycle.shape[1]

    def within(steps: tuple[int, ...]) -> list[int]:
        return [min(step, horizon) for step in steps]

    seen = jnp.concatenate(
        [
            sight.lags[:, [features.LAGS - lag for lag in LINEAR_LAGS]],
            sight.means[:, list(LINEAR_MEANS)],
            sight.best[:, within(LINEAR_BEST)],
            sight.second[:, within(LINEAR_SECOND)],
            jnp.ones_like(sight.lags[:, :1]),
        ],
        axis=1,
    )
    return jnp.clip(seen / UNITS, -8.0, 8.0)


def predict(linear: Linear, x: Float[Array, "batch regressor"]) -> Float[Array, "batch horizon"]:
    """Its forecast, in squashed scales."""
    return jnp.clip((x[:, :, None] * linear.weights).sum(1), -30.0, 30.0)


def learn(
    linear: Linear,
    x: Float[Array, "batch regressor"],
    target: Float[Array, "batch horizon"],
    usual: Float[Array, " batch"],
    known: Array,
) -> Linear:
    """Learn what the regressors of `horizon` steps ago should have said.

    Recursive least squares with forgetting (Haykin, Adaptive Filter Theory, ch. 10). An error larger than the `usual`
    one counts by its square root only, as in least absolute deviations: one spike does not bend the weights.
    """
    e = target - (x[:, :, None] * linear.weights).sum(1)
    size = jnp.abs(e).mean(1)
    trust = jnp.minimum(1.0, usual / (size + 1e-6))
    px = jnp.einsum("bij,bj->bi", linear.covariance[:, _PLACE], x)
    shrink = trust / (LINEAR_FORGET + trust * (x * px).sum(1))
    gain = px * shrink[:, None]
    row, column = _UPPER
    covariance = (linear.covariance - shrink[:, None] * (px[:, row] * px[:, column])) / LINEAR_FORGET
    trace = covariance[:, _PLACE.diagonal()].sum(1)
    bounded = trace <= 10 * REGRESSORS * LINEAR_PRIOR
    return Linear(
        jnp.where((known & bounded)[:, None], covariance, linear.covariance),
        linear.weights + known[:, None, None] * gain[:, :, None] * e[:, None, :],
    )
