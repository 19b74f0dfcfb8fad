"""The life of the serving model, as the loop sees it: models that arrive are swapped in, requests lead to retrains.

Everything here is polled once a turn and never waits. The models topic says what serves. Requests (signal, HTTP,
command line) go through the control topic, so that a fleet has one trainer, the owner of ticks partition 0, and
everybody sees what came of them; schedule, drift and the first model are the leader's own.
"""

import os
import signal
import socket
import threading
import time
from collections import deque

import structlog

from forecaster.config import Config
from forecaster.core import drift
from forecaster.core.fold import Fold, Issued, Programs
from forecaster.core.history import Span
from forecaster.core.model import Model
from forecaster.errors import ForecasterError
from forecaster.shell.control import Answer, Command, ControlFollower, Message, Request, encode
from forecaster.shell.kafka.sink import Sink
from forecaster.shell.metrics import Metrics, Phase, compiling
from forecaster.shell.models import Models, ModelsFollower, NowServing, Refused
from forecaster.shell.models.convert import from_stored
from forecaster.shell.retrain import Began, Ended, Retrainer, Situation
from forecaster.shell.signals import Signals
from forecaster.shell.trainer import job_for

_log = structlog.get_logger(__name__)
SENDER = f"{socket.gethostname()}:{os.getpid()}"
OPEN_FOR_S = 600.0  # a request that nobody took up for so long is not carried out any more


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
                self.programs = self._fold.programs(self.model.spec)
        except Exception as error:  # whatever it is, the model before goes on serving
            self.error = repr(error)


class Lifecycle:
    """What serves, and what leads to something better."""

    def __init__(self, config: Config, fold: Fold, metrics: Metrics, signals: Signals) -> None:
        self.config, self._fold, self._metrics, self._signals = config, fold, metrics, signals
        kafka, topics = config.kafka, config.topics
        self._models = ModelsFollower(kafka, topics.models)
        self._control = ControlFollower(kafka, topics.control, start="beginning")
        self._sink = Sink(kafka)
        self._spans: list[Span] = []
        self._retrainer = Retrainer(config.training, lambda fit_s: job_for(self.config, fit_s, self._spans))
        self._asked: deque[Request] = deque()  # by HTTP, on its own thread
        self._ticks, self._event_s = 0, float("-inf")
        self._coalesced = 0
        self._last: Ended | None = None
        self._adapting: Adapting | None = None

    @property
    def known(self) -> bool:
        """Whether the models topic has said what serves, if anything does."""
        return self._models.caught_up

    # ------------------------------------------------------------------ from the loop

    def observe(self, accepted: int, event_s: float, issued: Issued) -> None:
        """What a batch brought: for the schedule and for drift."""
        self._ticks += accepted
        self._event_s = max(self._event_s, event_s)
        scores = issued.scores
        if self._fold.model.version and scores.count.any():
            total, count = float(scores.error.sum()), float(scores.count.sum())
            if self._retrainer.observe_errors(total, count, self._event_s):
                self._metrics.drift_detections.inc()
                self._metrics.retrain_requests["drift"].inc()
                _log.warning("drift", mend="the live error has risen for good: a retrain is due")

    def request_retrain(self, sender: str) -> str:
        """Leave a request for the loop; its id. Safe on any thread."""
        request = Request(command=Command.RETRAIN, trigger="http", sender=sender)
        self._asked.append(request)
        return request.id

    def poll(self, *, leads: bool) -> None:
        """What has come since the last turn. `leads`: this worker trains for the fleet."""
        self._follow_models()
        self._adapt()
        self._take_signals()
        while self._asked:
            self._ask(self._asked.popleft())
        for request in self._control.poll():
            if leads:
                self._carry_out(request)
        self._retrain(leads=leads)
        self._sink.settle()

    def stop(self) -> None:
        """End the trainer, tell who waits for it, and close."""
        for event in self._retrainer.stop():
            self._note(event)
        self._sink.flush(2.0)
        self._sink.close(1.0)
        self._models.close()
        self._control.close()

    def status(self) -> dict[str, object]:
        """For the report: what serves, what trains, what came of the last retrain."""
        last = self._last
        return {
            "model": self._fold.model.version,
            "retraining": self._retrainer.running,
            "last_retrain": None
            if last is None
            else {
                "outcome": last.outcome,
                "reason": last.reason,
                "version": last.version,
                "losses": last.losses,
            },
        }

    def configure(self, config: Config) -> None:
        """Take over what of a configuration may change while running."""
        self.config = config
        self._retrainer.spec = config.training

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
        if model.version == self._fold.model.version:
            return
        if model.spec == self._fold.spec:
            self._swap(model, event.serving.reason)
        elif self._fold.takes(model.spec):
            self._adapting = Adapting(self._fold, model, event.serving.reason)
        else:
            mend = "restart with the [model] section that it was trained with, or retrain with yours"
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
        self._fold.adopt(adapting.model.spec, adapting.programs)
        self._swap(adapting.model, adapting.reason)

    def _swap(self, model: Model, reason: str) -> None:
        self._fold.swap(model)
        self._retrainer.swapped()
        self._metrics.model_swaps.inc()
        self._metrics.set_serving(model.version, model.spec.cell, model.card.created_s, model.card.created_s)
        _log.info("model_swapped", version=model.version, reason=reason)

    # ------------------------------------------------------------------ requests

    def _take_signals(self) -> None:
        if came := self._signals.take(signal.SIGUSR1):
            self._metrics.signals["USR1"].inc(came)
            self._metrics.retrain_requests["signal"].inc(came)
            self._metrics.retrain_requests_coalesced.inc(came - 1)
            self._write(Request(command=Command.RETRAIN, trigger="signal", sender=SENDER))

    def _ask(self, request: Request) -> None:
        self._metrics.retrain_requests[request.trigger].inc()
        self._write(request)

    def _write(self, message: Message) -> None:
        key, value = encode(message)
        self._sink.send(self.config.topics.control, value, key)

    def _carry_out(self, request: Request) -> None:
        match request.command:
            case Command.ANNOTATE:
                self._annotate(request)
            case _ if time.time() - request.at_s > OPEN_FOR_S:
                self._write(
                    Answer(id=request.id, outcome="cancelled", sender=SENDER, message="it came too late")
                )
            case Command.RETRAIN:
                if request.trigger == "cli":
                    self._metrics.retrain_requests["cli"].inc()
                _log.info("retrain_requested", trigger=request.trigger, sender=request.sender)
                self._retrainer.request(request.trigger, request.id)
            case Command.ROLL_BACK:
                threading.Thread(
                    target=self._roll_back, args=(request,), name="roll-back", daemon=True
                ).start()

    def _annotate(self, request: Request) -> None:
        arguments = request.arguments
        try:
            span = Span(
                str(arguments.get("series", "")), float(arguments["start_s"]), float(arguments["end_s"])
            )
        except (KeyError, TypeError, ValueError) as error:
            _log.warning("annotation_refused", id=request.id, error=repr(error))
            return
        self._spans.append(span)

    def _roll_back(self, request: Request) -> None:
        models = Models(self.config.kafka, self.config.topics.models)
        try:
            serving = models.roll_back(
                f"asked by {request.sender}", str(request.arguments.get("version", ""))
            )
        except (ForecasterError, ValueError) as error:
            _log.warning("roll_back_failed", id=request.id, error=str(error))
            return
        _log.info("rolled_back", version=serving.version, previous=serving.previous)

    # ------------------------------------------------------------------ the trainer

    def _retrain(self, *, leads: bool) -> None:
        retrainer, metrics = self._retrainer, self._metrics
        situation = Situation(leads, bool(self._fold.model.version), self._ticks, self._event_s)
        for event in retrainer.poll(situation):
            self._note(event)
        metrics.retrain_requests_coalesced.inc(retrainer.coalesced - self._coalesced)
        self._coalesced = retrainer.coalesced
        metrics.trainer_memory.set(retrainer.memory_bytes)
        metrics.retrain_due.set(retrainer.due_ratio(situation))
        metrics.retrain_deadline.set(retrainer.spec.time_limit_s)
        metrics.drift_statistic.set(drift.statistic(retrainer.drift, retrainer.spec))

    def _note(self, event: object) -> None:
        match event:
            case Began():
                self._metrics.retrain_began(time.time())
                for trigger in event.triggers:
                    if trigger in {"schedule", "startup"}:
                        self._metrics.retrain_requests[trigger].inc()
            case Ended():
                self._last = event
                self._metrics.retrain_ended(event.outcome, event.duration_s, time.time(), event.losses)
                for request_id in event.ids:
                    self._write(_answer(request_id, event))
            case _:
                pass


def _answer(request_id: str, ended: Ended) -> Answer:
    details = {"version": ended.version, "losses": ended.losses, "seconds": ended.duration_s}
    message = ": ".join(part for part in (ended.reason, ended.message) if part)
    return Answer(id=request_id, outcome=ended.outcome, sender=SENDER, message=message, details=details)
