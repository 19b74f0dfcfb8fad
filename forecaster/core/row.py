"""A row of the table for networks of a spec: how wide its columns are, and what the one named `running` holds."""

from itertools import accumulate
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from forecaster.core import bounds, covariates, experts, grain, shift, stats, waiting
from forecaster.core.bounds import Bounds
from forecaster.core.experts import Alarm
from forecaster.core.grain import Grain
from forecaster.core.model import ModelSpec
from forecaster.core.shift import Shift
from forecaster.core.stats import Running
from forecaster.core.table import Layout

MEMORY = 512  # values kept a series, if the network needs no more
TRACE = 3  # of what the ring keeps of each step beside its value: logarithms of scale and of seconds, day of the week


def layout(spec: ModelSpec) -> Layout:
    """Widths of the table's columns for a model."""
    return Layout(
        memory=max(MEMORY, spec.context_length),
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


class Memory(NamedTuple):
    """What the column `running` holds."""

    running: Running
    level: Array  # and slope of the trend
    slope: Array
    alarm: Alarm
    bounds: Bounds
    grain: Grain
    shift: Shift
    covariates: Float[Array, "batch packed"]


# Of these in that column, in front of the covariates.
_WIDTHS = stats.RUNNING, 2 + len(Alarm._fields), bounds.STATE, grain.STATE, shift.STATE


def pack(memory: Memory) -> Array:
    """As the column."""
    trend = jnp.stack([memory.level, memory.slope, *memory.alarm], axis=1)
    more = jnp.stack([*memory.bounds, *memory.grain, *memory.shift], axis=1)
    return jnp.concatenate([stats.pack(memory.running), trend, more, memory.covariates], axis=1)


def unpack(packed: Array) -> Memory:
    """The same, read."""
    running, trend, edges, step, moves, rest = jnp.split(packed, list(accumulate(_WIDTHS)), axis=1)
    level, slope, *alarm = trend.T
    known = stats.unpack(running)
    return Memory(known, level, slope, Alarm(*alarm), Bounds(*edges.T), Grain(*step.T), Shift(*moves.T), rest)


def foretell(packed: Array, foretold: Float[Array, " batch"]) -> Array:
    """The column with what is foretold now."""
    last_of_alarm = sum(_WIDTHS[:2]) - 1
    return packed.at[:, last_of_alarm].set(foretold)


def batch_last(x: Array) -> Array:
    """The batch as the last axis instead of the first."""
    return jnp.moveaxis(x, 0, -1)


def batch_first(x: Array) -> Array:
    """The batch as the first axis instead of the last."""
    return jnp.moveaxis(x, -1, 0)
