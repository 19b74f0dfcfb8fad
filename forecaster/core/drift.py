"""Drift: has the live error risen over its long-run level? Page-Hinkley on the logarithm of what it costs.

In come sums of scaled errors, a batch at a time; out goes, now and then, that the level has risen for good. Pure:
whether there may be an alarm now is an argument.
"""

from math import log
from typing import NamedTuple

from pydantic import Field

from forecaster.core.spec import Spec

BLOCK = 1000  # errors that make one observation: their mean is nearly normal
MEMORY = 200  # observations over which the long-run level forgets
LEAST = 20  # observations before there is a level to compare with
MOST = 1.0  # no single observation counts for more than a rise by e


class DriftSpec(Spec):
    """When a rise of the live error asks for a retrain."""

    drift: bool = Field(True, description="Retrain when the live error has risen for good.")
    drift_tolerance: float = Field(
        0.1, ge=0, description="Rise of the logarithm of the mean scaled error that is not drift."
    )
    drift_threshold: float = Field(
        4.0,
        gt=0,
        description="Sum of rises beyond the tolerance, over blocks of 1,000 errors, that is drift.",
    )
    drift_per_hour: int = Field(
        2,
        ge=1,
        description="Most retrains in an hour of event time that drift may ask for, in the whole fleet.",
    )


class Drift(NamedTuple):
    """State of the detector."""

    total: float = 0.0  # of the errors in the open block
    errors: float = 0.0  # how many
    blocks: int = 0  # observations since the start, or since the last alarm
    level: float = 0.0  # long-run mean of the logarithm
    rise: float = 0.0  # Page-Hinkley: rises beyond the tolerance since they were last made good


def statistic(state: Drift, spec: DriftSpec) -> float:
    """How near an alarm is: 1 is one."""
    return state.rise / spec.drift_threshold


def observe(
    state: Drift, total: float, count: float, spec: DriftSpec, *, allowed: bool
) -> tuple[Drift, bool]:
    """Take in `count` scaled errors that add up to `total`; whether there is an alarm now, where one is `allowed`.

    Page (1954), Biometrika 41: the sum of rises over the level less a tolerance, never below 0, against a threshold.
    """
    total, count = state.total + total, state.errors + count
    if count < BLOCK:
        return state._replace(total=total, errors=count), False
    x = log(max(total / count, 1e-9))
    blocks = state.blocks + 1
    surprise = min(x - state.level, MOST)
    level = state.level + (x - state.level if blocks == 1 else surprise) / min(blocks, MEMORY)
    rise = max(0.0, state.rise + surprise - spec.drift_tolerance) if blocks > LEAST else 0.0
    if allowed and rise > spec.drift_threshold:
        return Drift(), True
    return Drift(0.0, 0.0, blocks, level, min(rise, 2 * spec.drift_threshold)), False
