"""Serving model and candidate on the same hold-out -> a decision: promote, or why not.

In come series, specs, a seed and the serving model; out go the candidate, the losses of candidate, serving model and
last value on the same origins, and a Decision. A candidate can only be promoted by beating both others. What promotion
does (publish, swap) lives in the shell.
"""

from collections.abc import Sequence
from enum import StrEnum
from math import isfinite
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from forecaster.core.descent import TrainSpec
from forecaster.core.history import Examples, Role, Slice, Span, find_periods, prepare
from forecaster.core.model import Model, ModelSpec
from forecaster.core.spec import Spec
from forecaster.core.stats import SEASONS
from forecaster.core.train import (
    LEAST_ORIGINS,
    SHARES,
    Failure,
    Fit,
    Watch,
    carry_on,
    first_share,
    fit,
    fits,
    holdout_loss,
    mean,
    mixed_losses,
    refresh,
)

STILL_SHARE = 0.1  # of the loss on the newest part: where less is at stake, little is forgotten


class PromoteSpec(Spec):
    """What a candidate has to show."""

    margin_ratio: float = Field(
        0.002, ge=0, lt=1, description="Share by which a candidate has to beat the serving model's loss."
    )
    forget_ratio: float = Field(
        0.3,
        ge=0,
        description="Share by which its loss on an older stretch may exceed the serving model's, beyond what it gains.",
    )


class Reason(StrEnum):
    """Why a candidate is promoted or not; also the word in the log and on the control topic."""

    BETTER = "better"
    FIRST = "first"
    """No model serves yet, and this one beats the last value."""
    REPLACES = "replaces"
    """What serves has another shape than configured and cannot go on; this one beats the last value."""
    NOT_BETTER = "not_better"
    FORGETS = "forgets"
    """Better on the newest part, and worse by more than that on the older stretch."""
    WORSE_THAN_LAST_VALUE = "worse_than_last_value"
    NON_FINITE = "non_finite"


PROMOTING = frozenset({Reason.BETTER, Reason.FIRST, Reason.REPLACES})


class Losses(NamedTuple):
    """Mean pinball losses on the hold-out, in units of each series' mean change; None where nothing was judged."""

    candidate: float
    last_value: float
    serving: float | None
    older_candidate: float | None = None  # on the older stretch, where there is one and a model serves
    older_serving: float | None = None


class Decision(NamedTuple):
    """Whether the candidate serves from now on, and why."""

    reason: Reason
    losses: Losses

    @property
    def promote(self) -> bool:
        """Whether the candidate serves from now on."""
        return self.reason in PROMOTING


class Retrained(NamedTuple):
    """What a retrain that came to a verdict found."""

    model: Model
    decision: Decision
    fit: Fit
    origins: dict[str, int]  # trained on and judged on, by role


def decide(losses: Losses, spec: PromoteSpec, *, replaces: bool = False) -> Decision:
    """Compare the losses. `replaces`: a model serves but has another shape, so that it could not be judged.

    >>> decide(Losses(0.70, 1.0, 0.71), PromoteSpec()).reason
    <Reason.BETTER: 'better'>
    >>> decide(Losses(0.709, 1.0, 0.71), PromoteSpec(margin_ratio=0.01)).reason
    <Reason.NOT_BETTER: 'not_better'>
    >>> decide(Losses(1.01, 1.0, None), PromoteSpec()).promote
    False
    """
    if not (isfinite(losses.candidate) and isfinite(losses.last_value)):
        return Decision(Reason.NON_FINITE, losses)
    if losses.candidate >= losses.last_value:
        return Decision(Reason.WORSE_THAN_LAST_VALUE, losses)
    if losses.serving is None:
        return Decision(Reason.REPLACES if replaces else Reason.FIRST, losses)
    if not isfinite(losses.serving):
        return Decision(Reason.BETTER, losses)
    if losses.candidate >= losses.serving * (1 - spec.margin_ratio):
        return Decision(Reason.NOT_BETTER, losses)
    return Decision(Reason.FORGETS if _forgets(losses, spec) else Reason.BETTER, losses)


def _forgets(losses: Losses, spec: PromoteSpec) -> bool:
    """Whether more is lost on the older stretch than gained on the newest, by more than is allowed."""
    if losses.serving is None or losses.older_candidate is None or losses.older_serving is None:
        return False
    if not isfinite(losses.older_serving):
        return False
    gain = 1 - losses.candidate / losses.serving
    worth = max(losses.older_serving, STILL_SHARE * losses.serving)
    return not (losses.older_candidate - losses.older_serving) / worth <= gain + spec.forget_ratio


def retrain(
    history: Sequence[Slice],
    spec: TrainSpec,
    shape: ModelSpec,
    promote: PromoteSpec | None = None,
    serving: Model | None = None,
    spans: Sequence[Span] = (),
    progress: Watch = carry_on,
) -> Retrained | Failure:
    """Fit a candidate to the history and judge it; one that is to serve is taught the hold-out too. A pure function.

    `serving` None, or a model without a version: nothing serves yet. The spans are neither trained nor judged on.
    """
    serving = serving.as_judged if serving is not None and serving.version else None
    periods = find_periods(history, spec)
    comparable = serving is not None and _comparable(serving, shape)
    if serving is not None and comparable:
        periods = in_place(periods, np.asarray(serving.periods))
    examples = prepare(history, spec, shape, periods, spans, spec.seed)
    fitted = fit(examples, periods, spec, shape, serving, progress)
    if isinstance(fitted, Failure):
        return fitted

    def seen_by(serving: Model) -> Examples:
        """The same origins, with the inputs that the serving model would have had itself."""
        theirs = np.asarray(serving.periods)
        same = np.array_equal(theirs, periods)
        return examples if same else prepare(history, spec, shape, theirs, spans, spec.seed)

    by_share = mixed_losses(
        fitted.model, examples, spec, shares=SHARES
    )  # from the last value to the network alone
    losses = Losses(candidate=mean(by_share[-1]), last_value=mean(by_share[0]), serving=None)
    origins = {role.name.lower(): examples.count(role) for role in (Role.TRAIN, Role.HOLDOUT, Role.OLDER)}
    if serving and comparable:
        theirs = seen_by(serving)
        losses = losses._replace(serving=holdout_loss(serving, theirs, spec))
        if origins["older"]:
            losses = losses._replace(
                older_candidate=holdout_loss(fitted.model, examples, spec, Role.OLDER),
                older_serving=holdout_loss(serving, theirs, spec, Role.OLDER),
            )
    decision = decide(
        losses, promote or PromoteSpec.model_validate({}), replaces=serving is not None and not comparable
    )
    card = fitted.model.card.model_copy(update={"first_share": first_share(by_share)})
    model = fitted.model._replace(card=card)
    if decision.promote:
        model = refresh(model, examples, spec, progress)
    return Retrained(model, decision, fitted, origins)


def too_short(history: Sequence[Slice], spec: TrainSpec, shape: ModelSpec) -> str:
    """What to say of a history that has too few steps to train on, in each series or in all of them; else "".

    A step is trained on where its series is warm, and knows its targets before the hold-out begins.
    """
    if not history:
        return ""
    lengths = [len(part.value) for part in history]
    before = shape.warm_up + shape.horizon
    least, longest = before, max(lengths)
    while least - round(least * spec.holdout_ratio) < before:
        least += 1
    if longest >= least:
        most = sum(max(0, steps - round(steps * spec.holdout_ratio) - before + 1) for steps in lengths)
        short = f"of {sum(lengths):,} steps at most {most} can be trained on, and {LEAST_ORIGINS} have to be"
        return short if most < LEAST_ORIGINS else ""
    return (
        f"the longest series has {longest:,} steps, and none is trained on below {least}: model.warm_up ="
        f" {shape.warm_up} and model.horizon = {shape.horizon} have to lie before its hold-out"
    )


def _comparable(serving: Model, shape: ModelSpec) -> bool:
    theirs, ours = ((spec.horizon, spec.levels, spec.covariates) for spec in (serving.spec, shape))
    return theirs == ours and fits(serving, serving.spec) and np.shape(serving.periods) == (SEASONS,)


def in_place(found: NDArray[np.int32], before: NDArray[np.int32]) -> NDArray[np.int32]:
    """The same seasons, those that the serving model knows too in the places where it has them.

    Every series keeps scores of its seasons by place; so a swap does not void those that stay.

    >>> in_place(np.array([168, 24, 48, 0], np.int32), np.array([24, 12, 168, 0], np.int32)).tolist()
    [24, 48, 168, 0]
    """
    placed = np.where(np.isin(before, found), before, 0)
    new = found[(found > 0) & ~np.isin(found, before)]
    free = np.flatnonzero(placed == 0)[: len(new)]
    placed[free] = new[: len(free)]
    return placed.astype(np.int32)
