"""Has a model that was just promoted lost to the one before? A paired test, block by block, that may end early.

In come losses of both on the same forecasts, a block at a time; out goes, once, that the new one has lost or passed.
Of each block only counts whether the new one lost more than the margin allows. So nothing is assumed of how losses are
distributed: neither a burst, nor a start that is worse by far than what follows, hides that a model is always worse.
Blocks are as long as forecasts reach, so they depend on each other little. Pure; where losses come from is shadow.py's.
"""

from enum import StrEnum
from math import log
from typing import NamedTuple

from pydantic import Field

from forecaster.core.spec import Spec

ALMOST_ALWAYS = 0.9  # share of blocks that a bad model loses; of a good one it is at most half
FALSE_ALARMS = 0.01  # at most this share of the good ones is taken for bad


class TrialSpec(Spec):
    """How a model that was promoted has to prove itself."""

    trial_horizons: int = Field(
        32,
        ge=0,
        description="Steps, in horizons, for which a promoted model is compared with the one before, on the same ticks "
        "of a sample of series; one that loses is rolled back. 0: never.",
    )
    trial_margin_ratio: float = Field(
        0.02,
        ge=0,
        description="Share by which the loss of a model on trial may be above that of the one before.",
    )


class Verdict(StrEnum):
    """How a trial ended; also the metric label and the word in the log."""

    PASSED = "passed"
    """It did not lose."""
    LOST = "lost"
    SUPERSEDED = "superseded"
    """Another model came to serve meanwhile."""
    LEFT = "left"
    """The partitions of its series are another worker's now."""
    UNWANTED = "unwanted"
    """Meanwhile no model is to be tried any more."""


class Losses(NamedTuple):
    """Sums over the same forecasts."""

    model: float = 0.0
    before: float = 0.0

    def __add__(self, other: "Losses") -> "Losses":  # pyright: ignore[reportIncompatibleMethodOverride]
        return Losses(self.model + other.model, self.before + other.before)

    @property
    def worse_ratio(self) -> float:
        """Share by which the model's loss is above that of the one before; negative: below."""
        return self.model / self.before - 1 if self.before else 0.0


class Trial(NamedTuple):
    """What was seen so far."""

    blocks: int = 0
    evidence: float = 0.0  # log of how much likelier the blocks are from a bad model than from a good one
    losses: Losses = Losses()  # of all blocks


def observe(state: Trial, block: Losses, spec: TrialSpec) -> tuple[Trial, Verdict | None]:
    """Take in one more block; the verdict, once there is one.

    Wald (1945), Annals of Mathematical Statistics 16: the sequential test of a share, here of the blocks that are lost.
    """
    lost = block.model > block.before * (1 + spec.trial_margin_ratio)
    likelier = (ALMOST_ALWAYS if lost else 1 - ALMOST_ALWAYS) / 0.5
    state = Trial(state.blocks + 1, state.evidence + log(likelier), state.losses + block)
    if state.evidence >= -log(FALSE_ALARMS):
        return state, Verdict.LOST
    return state, Verdict.PASSED if state.blocks >= spec.trial_horizons else None
