"""The life of the serving model, as the loop sees it: models that arrive are swapped in, and lead to better ones.

The models topic says what serves. What the loop has seen is passed on to `training`, which asks for retrains.
Everything here is polled once a turn and never waits.
"""

import threading

import structlog

from forecaster.config import Config
from forecaster.core.fold import Fold
from forecaster.core.model import Model
from forecaster.core.programs import Programs
from forecaster.core.tick import Outcome
from forecaster.errors import ForecasterError
from forecaster.shell.kept import from_disk
from forecaster.shell.metrics import Metrics, Phase, compiling
from forecaster.shell.models import Models, ModelsFollower, NowServing, Refused
from forecaster.shell.models.convert import from_stored
from forecaster.shell.state import StateTopic, Target
from forecaster.shell.tally import Counts
from forecaster.shell.training import Training
from forecaster.shell.trials import Trials

_log = structlog.get_logger(__name__)


class Adapting:
    """The programs of a model of another cell or size, being compiled on a thread of their own."""

    def __init__(self, fold: Fold, model: Model, reason: str) -> None:
        self.model, self.reason = model, reason
        self.programs: Programs | None = None
        self.error = ""
        self._fold = fold
        self._thread = threading.Thread(target=self._run, name="compile", daemon=True)
        self._thread.start()

    @property
    def done(self) -> bool:
        """Whether it has come to an end, with programs or with an error."""
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            with compiling(Phase.BACKGROUND):
                self.programs = self._fold.programs(
                    self.model.spec, lambda recipe, keys: map(from_disk(recipe), keys)
                )
        except Exception as error:  # whatever it is, the model before goes on serving
            self.error = repr(error)


class Lifecycle:
    """What serves, and what leads to something better."""

    def __init__(self, config: Config, fold: Fold, metrics: Metrics, training: Training) -> None:
        self.training = training
        self._fold, self._metrics = fold, metrics
        self._topic = Models(config.kafka, config.topics.models)
        self._models = ModelsFollower(config.kafka, config.topics.models)
        self._adapting: Adapting | None = None
        self._target: Target | None = None  # what is to serve
        self._trials, self._before = Trials(fold, metrics, training), fold.model
        self._swaps = 0

    @property
    def known(self) -> bool:
        """Whether the models topic has said what serves, if anything does."""
        return self._models.caught_up

    def begin(self) -> None:
        """Take up the network of the model that serves: its programs are compiled at the start, its swaps are replayed.

        The configured network may be another one, of which a model is still to be trained. It is taken if nobody
        answers, and that of what serves is compiled when it is known.
        """
        try:
            stored = self._topic.fetch()
        except ForecasterError as error:
            _log.warning(
                "serving_model_not_known", error=str(error), mend="the configured network is compiled"
            )
            return
        model = from_stored(stored) if stored is not None else None
        if isinstance(model, Model) and model.spec != self._fold.spec and self._fold.takes(model.spec):
            _log.info("network_of_what_serves", version=model.version, spec=str(model.spec))
            self._fold.adopt(model.spec, {})

    # ------------------------------------------------------------------ from the loop

    def observe(self, counts: Counts) -> None:
        """What a batch brought: for the schedule and for drift."""
        self.training.observe(counts.outcomes[Outcome.ACCEPTED], counts.newest_s)
        if self._fold.model.version and (scores := counts.scores) is not None:
            self.training.observe_errors(float(scores.error.sum()), float(scores.count.sum()))

    def poll(self, *, decides: bool, leads: bool, remains: bool, idle: bool) -> None:
        """What has come since the last turn; see `Training.poll`. `idle`: no ticks."""
        self._trials.turn(idle=idle)
        self._follow_models()
        self._adapt()
        serving = bool(self._fold.model.version)
        self.training.poll(decides=decides, leads=leads, serving=serving, remains=remains)

    def stop(self) -> None:
        """Ask for nothing any more, and close."""
        self.training.stop()
        self._models.close()

    def status(self) -> dict[str, object]:
        """For the report: what serves, what trains, what came of the last retrain."""
        return {"model": self._fold.model.version, "swaps": self._swaps, **self.training.status()}

    # ------------------------------------------------------------------ models

    def _follow_models(self) -> None:
        for event in self._models.poll():
            match event:
                case NowServing():
                    self._serve(event)
                case Refused():
                    self._refuse(event)
                case _:
                    pass

    def _refuse(self, refused: Refused) -> None:
        self._metrics.models_refused.inc()
        _log.warning(
            "model_refused", version=refused.version, reason=refused.reason.value, message=refused.message
        )

    def _serve(self, event: NowServing) -> None:
        model = from_stored(event.stored)
        if isinstance(model, Refused):
            self._refuse(model)
            return
        self._adapting = None  # what was asked for before is not any more
        serves = self._target.model if self._target is not None else self._fold.model
        if model.version == serves.version:
            return
        if model.spec == self._fold.spec:
            self._target = Target(model, event.serving.reason)
        elif self._fold.takes(model.spec):
            _log.info("model_compiling", version=model.version, spec=str(model.spec))
            self._adapting = Adapting(self._fold, model, event.serving.reason)
        else:
            mend = (
                "restart with the [model] and tick.covariates that it was trained with, or retrain with yours"
            )
            self._metrics.models_refused.inc()
            _log.warning("model_does_not_fit", version=model.version, spec=str(model.spec), mend=mend)

    def _adapt(self) -> None:
        """A model of another cell or size is compiled beside the loop first; meanwhile the one before serves."""
        adapting = self._adapting
        if adapting is None or not adapting.done:
            return
        self._adapting = None
        if adapting.programs is None:
            _log.error("model_not_compiled", version=adapting.model.version, error=adapting.error)
            return
        self._target = Target(adapting.model, adapting.reason, adapting.programs)

    def follow(self, state: StateTopic) -> None:
        """Let the model that is to serve be written down as such, and then serve."""
        if state.follow(self._target):
            self.swapped()

    def swapped(self) -> None:
        """The model that was to serve does."""
        if self._target is None:
            return
        model = self._target.model
        card = model.card
        self.training.schedule.swapped()
        self._swaps += 1
        self._metrics.model_swaps.inc()
        made_s = card.made_s or card.created_s
        self._metrics.set_serving(model.version, model.spec.cell, made_s, card.created_s)
        _log.info("model_swapped", version=model.version, reason=self._target.reason)
        self._trials.swapped(model, self._before, self._target.reason)
        self._before = model
