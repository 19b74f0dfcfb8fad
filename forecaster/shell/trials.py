"""The trial of a model that was just promoted, beside the loop: begun at the swap, fed, and what came of it told.

In come swaps and turns of the loop; out go, where a model loses, a request on the control topic to let the one before
serve again, and metrics. A trial ends with its worker, and with the next swap: a restart begins none.
"""

import structlog

from forecaster.core import trial
from forecaster.core.fold import Fold
from forecaster.core.model import Model
from forecaster.core.promote import Reason
from forecaster.core.shadow import Shadow
from forecaster.core.trial import Trial, Verdict
from forecaster.shell.metrics import Metrics
from forecaster.shell.training import Training

_log = structlog.get_logger(__name__)


class Trials:
    """At most one trial."""

    def __init__(self, fold: Fold, metrics: Metrics, training: Training) -> None:
        self._fold, self._metrics, self._training = fold, metrics, training
        self._shadow: Shadow | None = None
        self._model = self._before = ""
        self._trial = Trial()

    def swapped(self, model: Model, before: Model, reason: str) -> None:
        """`model` serves from now on. It is tried if it beat `before` on a hold-out; no other decision is doubted."""
        if self._shadow is not None:
            self._end(Verdict.SUPERSEDED)
        promoted = reason == Reason.BETTER and before.version and before.spec == model.spec
        if not (promoted and self._training.config.training.trial_horizons):
            return
        shadow = Shadow(self._fold, model, before)
        if not shadow.here:  # no series here to try it on
            shadow.close()
            return
        self._shadow = shadow
        self._model, self._before, self._trial = model.version, before.version, Trial()
        self._metrics.trial_began()
        _log.info("trial_began", model=self._model, before=self._before, series=shadow.series)

    def turn(self, *, idle: bool) -> None:
        """Go on with what has come; `idle`: this turn of the loop brought no ticks."""
        if self._shadow is None:
            return
        if not self._shadow.here:
            self._end(Verdict.LEFT)
            return
        spec = self._training.config.training  # as it is now: it may change while running
        if not spec.trial_horizons:
            self._end(Verdict.UNWANTED)
            return
        block = self._shadow.turn(idle=idle)
        if block is None:
            return
        self._trial, verdict = trial.observe(self._trial, block, spec)
        self._metrics.trial_went_on(self._trial.blocks / spec.trial_horizons, self._trial.losses.worse_ratio)
        if verdict is not None:
            self._end(verdict)

    def _end(self, verdict: Verdict) -> None:
        if self._shadow is not None:
            self._shadow.close()
            self._shadow = None
        worse = f"{self._trial.losses.worse_ratio:+.1%}"
        self._metrics.trial_ended(verdict)
        _log.info(
            "trial_ended", outcome=verdict.value, model=self._model, loss=worse, blocks=self._trial.blocks
        )
        if verdict is Verdict.LOST:
            reason = f"lost its trial against {self._before}: loss {worse} on the same ticks"
            self._training.request_roll_back(self._before, self._model, reason)
