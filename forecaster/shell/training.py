"""Requests and what comes of them: asked for here or elsewhere, carried out by the one worker that leads.

Everything is polled once a turn and never waits. Whoever wants a retrain (signal, HTTP, command line, schedule, drift)
writes a request to the control topic, so that a fleet has one trainer and everybody sees what came of it. Spans that
are to be left out of training are read from there too, by everybody who may train one day.
"""

import os
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Sequence

import structlog

from forecaster.config import Config
from forecaster.core.history import Span
from forecaster.errors import ForecasterError
from forecaster.shell.control import (
    Answer,
    Command,
    ControlFollower,
    Message,
    Request,
    encode,
    number,
    span_of,
)
from forecaster.shell.kafka.sink import Sink
from forecaster.shell.metrics import Metrics
from forecaster.shell.models import Models
from forecaster.shell.retrain import TRAINER, Began, Ended, Event, Outcome, Retrainer, Trigger
from forecaster.shell.schedule import Schedule, Situation
from forecaster.shell.signals import Signals
from forecaster.shell.trainer import job_for

_log = structlog.get_logger(__name__)
SENDER = f"{socket.gethostname()}:{os.getpid()}"
OPEN_FOR_S = 600.0  # a request that nobody took up for so long is not carried out any more


class Training:
    """What this worker asks for, and the trainer where it leads."""

    def __init__(
        self, config: Config, metrics: Metrics, signals: Signals, trainer: Sequence[str] = TRAINER
    ) -> None:
        """`trainer` is the command of the process that trains."""
        self.config, self._metrics, self._signals = config, metrics, signals
        self.schedule = Schedule(config.training)
        self._control = ControlFollower(config.kafka, config.topics.control, start="beginning")
        self._sink = Sink(config.kafka)
        self._retrainer = Retrainer(
            config.training, lambda fit_s: job_for(self.config, fit_s, self.spans()), command=trainer
        )
        self._asked: deque[Request] = deque()  # by HTTP, on its own thread
        self._answers: deque[Answer] = deque()  # of what was done on threads of its own
        self._rolls_back = threading.Lock()  # one at a time: each reads what serves, then writes
        self._ticks, self._event_s = 0, float("-inf")
        self._coalesced = 0
        self._last: Answer | None = None

    @property
    def known(self) -> bool:
        """Whether what was asked for before is known."""
        return self._control.caught_up

    def spans(self) -> list[Span]:
        """What is to be left out of training."""
        return [span for request in self._control.inbox.spans if (span := span_of(request)) is not None]

    # ------------------------------------------------------------------ from the loop

    def observe(self, accepted: int, event_s: float) -> None:
        """What a batch brought, for the schedule."""
        self._ticks += accepted
        self._event_s = max(self._event_s, event_s)

    def observe_errors(self, total: float, count: float) -> None:
        """Scaled errors of the serving model, for drift: their sum, and how many."""
        if self.known and self.schedule.observe_errors(total, count, self._event_s):
            self._metrics.drift_detections.inc()
            _log.warning("drift", mend="the live error has risen for good: a retrain is due")

    def request_retrain(self, sender: str) -> str:
        """Leave a request for the loop; its id. Safe on any thread."""
        request = Request(command=Command.RETRAIN, trigger=Trigger.HTTP, sender=sender)
        self._asked.append(request)
        return request.id

    def request_roll_back(self, version: str, instead_of: str, reason: str) -> None:
        """Ask for an earlier model in place of one; nothing happens where another serves by then."""
        arguments = {"version": version, "instead_of": instead_of, "reason": reason}
        self._write(Request(command=Command.ROLL_BACK, trigger="trial", sender=SENDER, arguments=arguments))

    def poll(self, *, decides: bool, leads: bool, serving: bool, remains: bool = False) -> None:
        """What has come since the last turn. `decides`: the schedule is this worker's to keep; `leads`: it trains for
        the fleet; `remains`: nobody else does, though it may begin nothing just now; `serving`: there is a model.
        """
        self._listen()
        self._take_signals()
        while self._asked:
            self._ask(self._asked.popleft())
        while self._answers:
            self._write(self._answers.popleft())
        situation = Situation(decides, serving, self._ticks, self._event_s)
        if self.known:
            self._keep_the_schedule(situation)
            if leads:
                for request in self._control.inbox.take():
                    self._carry_out(request)
        self._train(leads=leads, serving=serving, remains=remains)
        self._tell(situation)
        self._sink.settle()

    def stop(self) -> None:
        """End the trainer, tell who waits for it, and close."""
        for event in self._retrainer.stop():
            self._note(event)
        self._sink.flush(2.0)
        self._sink.close(1.0)
        self._control.close()

    def status(self) -> dict[str, object]:
        """For the report: whether a trainer runs here, and what came of the last retrain of the fleet."""
        last = self._last
        told = None if last is None else {"outcome": last.outcome, "message": last.message, **last.details}
        return {"retraining": self._retrainer.running, "last_retrain": told}

    def configure(self, config: Config) -> None:
        """Take over what of a configuration may change while running."""
        self.config = config
        self._retrainer.spec = self.schedule.spec = config.training

    # ------------------------------------------------------------------ requests

    def _listen(self) -> None:
        """Everybody hears everything: when the interval begins anew, and what came of the last retrain."""
        known = (
            self.known
        )  # before: of what is there at the start nothing is asked for now, the newest included
        for message in self._control.poll():
            match message:
                case Request(command=Command.RETRAIN):
                    if message.trigger == Trigger.DRIFT and (at_s := number(message, "event_s")) is not None:
                        self.schedule.drifted(at_s)
                    if known:
                        self.schedule.asked(self._ticks, self._event_s)
                case Request(command=Command.ANNOTATE):
                    if span_of(message) is None:
                        _log.warning("annotation_refused", id=message.id, sender=message.sender)
                case Answer() if message.outcome in set(Outcome):
                    self._last = message
                    if known:
                        self.schedule.ended()
                case _:
                    pass

    def _take_signals(self) -> None:
        if came := self._signals.take(signal.SIGUSR1):
            self._metrics.signals["USR1"].inc(came)
            self._metrics.retrain_requests["signal"].inc(came - 1)
            self._metrics.retrain_requests_coalesced.inc(came - 1)
            self._ask(Request(command=Command.RETRAIN, trigger=Trigger.SIGNAL, sender=SENDER))

    def _keep_the_schedule(self, situation: Situation) -> None:
        asked = self._control.inbox.open.values()
        ages_s = [time.time() - request.at_s for request in asked if request.command is Command.RETRAIN]
        self._metrics.retrain_waiting.set(max(ages_s, default=0.0))
        alive_s = OPEN_FOR_S + self.config.training.time_limit_s  # nobody trains what has waited for longer
        if trigger := self.schedule.due(situation, waiting=any(age_s < alive_s for age_s in ages_s)):
            self.schedule.asked(self._ticks, self._event_s)
            when = {"event_s": self._event_s} if trigger is Trigger.DRIFT else {}
            self._ask(Request(command=Command.RETRAIN, trigger=trigger, sender=SENDER, arguments=when))

    def _ask(self, request: Request) -> None:
        self._metrics.retrain_requests[request.trigger].inc()
        self._write(request)

    def _write(self, message: Message) -> None:
        if self._sink.failure is not None:  # what it could not deliver is lost; the next message is not
            self._sink.close(0.0)
            self._sink = Sink(self.config.kafka)
        key, value = encode(message)
        self._sink.send(self.config.topics.control, value, key)

    def _carry_out(self, request: Request) -> None:
        if time.time() - request.at_s > OPEN_FOR_S:
            self._answer(request.id, Outcome.CANCELLED, "it came too late")
        elif request.command is Command.ROLL_BACK:
            threading.Thread(target=self._roll_back, args=(request,), name="roll-back", daemon=True).start()
        else:
            if request.trigger == Trigger.CLI:
                self._metrics.retrain_requests["cli"].inc()
            _log.info("retrain_requested", trigger=request.trigger, sender=request.sender)
            self._retrainer.request(request.trigger, request.id)

    def _answer(self, request_id: str, outcome: str, message: str = "", **details: object) -> None:
        answer = Answer(id=request_id, outcome=outcome, sender=SENDER, message=message, details=details)
        self._write(answer)

    def _roll_back(self, request: Request) -> None:
        models = Models(self.config.kafka, self.config.topics.models)
        version, instead_of, why = (
            str(request.arguments.get(name) or "") for name in ("version", "instead_of", "reason")
        )
        reason = why or f"asked by {request.sender}"
        try:
            with self._rolls_back:
                serving = models.roll_back(reason, version, instead_of)
        except (ForecasterError, ValueError) as error:
            _log.warning("roll_back_failed", id=request.id, error=str(error))
            outcome, message = "failed", str(error)
        else:
            outcome = "superseded" if version and serving.version != version else "rolled_back"
            message = serving.version
            _log.info(outcome, version=serving.version, previous=serving.previous, reason=reason)
        self._answers.append(
            Answer(id=request.id, outcome=outcome, sender=SENDER, message=message, details={"reason": reason})
        )

    # ------------------------------------------------------------------ the trainer

    def _train(self, *, leads: bool, serving: bool, remains: bool) -> None:
        for event in self._retrainer.poll(leads=leads, serving=serving, remains=remains):
            self._note(event)

    def _note(self, event: Event) -> None:
        match event:
            case Began():
                self._metrics.retrain_began(time.time())
            case Ended():
                self._metrics.retrain_ended(event.outcome, event.duration_s, time.time(), event.losses)
                message = ": ".join(part for part in (event.reason, event.message) if part)
                for request_id in event.ids:
                    self._answer(
                        request_id,
                        event.outcome,
                        message,
                        version=event.version,
                        losses=event.losses,
                        seconds=event.duration_s,
                    )
            case _:
                pass

    def _tell(self, situation: Situation) -> None:
        retrainer, metrics = self._retrainer, self._metrics
        metrics.retrain_requests_coalesced.inc(retrainer.coalesced - self._coalesced)
        self._coalesced = retrainer.coalesced
        metrics.trainer_memory.set(retrainer.memory_bytes)
        metrics.retrain_due.set(self.schedule.due_ratio(situation))
        metrics.retrain_deadline.set(retrainer.spec.time_limit_s)
        metrics.drift_statistic.set(self.schedule.drift_ratio())
