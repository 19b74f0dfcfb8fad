"""What every worker has, whatever its loop does: a start and an end in order, signals, readiness, a pulse.

A worker is told by signals and asked over HTTP; after each turn of its loop it says that it lives, to its metrics and
to systemd. What a turn is, what readiness waits for and what has to be put away at the end is the worker's own.
"""

import os
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import Future, wait
from contextlib import ExitStack
from pathlib import Path
from threading import Thread

import structlog

from forecaster.config import Config, change, load
from forecaster.errors import BrokerError, ConfigError, ForecasterError, RefusedError
from forecaster.shell import log
from forecaster.shell.http import Hooks, HttpServer
from forecaster.shell.kafka.admin import Admin
from forecaster.shell.metrics import Metrics, State
from forecaster.shell.signals import Signals
from forecaster.shell.systemd import Systemd
from forecaster.shell.training import Training
from forecaster.shell.watchdog import BrokerWatch, LoopWatch

HOUSEKEEPING_S = 1.0
CONNECT_LOOK_S = 0.1
STALLED_S = 30.0  # a loop that has not turned for so long is not healthy
_log = structlog.get_logger(__name__)


class Worker(ABC):
    """The part of a worker that is not its work."""

    def __init__(
        self,
        config: Config,
        path: Path | None,
        signals: Signals,
        metrics: Metrics,
        training: Training,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """`path` is where the configuration is read again on HUP."""
        self.config, self.path, self.signals, self.metrics = config, path, signals, metrics
        self.training = training
        self.turned_s = now()
        self.starting = True
        self.reached = False
        """Whether a broker has answered and the topics are there."""
        self.systemd = Systemd()
        self._now = now
        self._started_s = now()
        self._housekeeping_s = float("-inf")
        self._said_ready = False
        self._was_ready = False
        self._turns = 0
        self._broker_watch = BrokerWatch(config.kafka.give_up_s, now)

    # ------------------------------------------------------------------ the worker's own

    @abstractmethod
    def start(self) -> None:
        """Everything that has to be there before the first turn."""

    @abstractmethod
    def turn(self) -> None:
        """One turn of the loop; ends with `turned`."""

    @abstractmethod
    def housekeeping(self) -> None:
        """Once a second: figures that need not be fresher."""

    @abstractmethod
    def missing(self) -> list[str]:
        """What readiness still waits for, in words; empty when the work is done."""

    @property
    @abstractmethod
    def last_contact_s(self) -> float:
        """When a broker last answered (monotonic)."""

    @abstractmethod
    def about(self) -> dict[str, object]:
        """For the report: where the work stands."""

    @abstractmethod
    def drain(self) -> bool:
        """Finish what is in hand, and close; whether all of it was finished."""

    # ------------------------------------------------------------------ from start to end

    def run(self) -> None:
        """Start, turn until told to stop, end in order. An error that ends it is the last event of the log."""
        finished: list[bool] = []
        try:
            with ExitStack() as stack:
                stack.callback(lambda: finished.append(self.drain()))
                self._run(stack)
        except ForecasterError as error:
            _log.error("failed", reason=type(error).__name__, error=str(error), exit_code=error.exit_code)
            raise
        _log.info("stopped", clean=all(finished))

    def _run(self, stack: ExitStack) -> None:
        if self.config.http.enabled:
            hooks = Hooks(self.health, self.ready, self.status, self.training.request_retrain)
            server = HttpServer(self.config.http, self.metrics.registry, hooks)
            stack.callback(server.close)
            server.start()
        self.start()
        self.starting = False
        LoopWatch(lambda: self._turns, self.config.kafka.max_poll_interval_s + STALLED_S).start()
        while not self.signals.stopping:
            self.turn()
        _log.info("stopping", signal=self.signals.told_by)

    def prepare_topics(self) -> None:
        """Create what is missing (where allowed); wait for a broker that is not there yet. Raises BrokerError where
        topics are still missing or cannot be used: somebody may create them meanwhile.
        """
        config = self.config
        while not self.signals.stopping:
            self.turned_s = self._now()
            try:
                admin = self._admin()
            except RefusedError:
                raise  # there is a broker: waiting does not help
            except BrokerError as error:
                _log.warning("no_broker", error=str(error), mend="waiting for it; is the address right?")
                self._broker_watch.look(self._started_s)
                continue
            if admin is None:
                return
            try:
                if config.topics.create and (created := admin.create_missing(config.topics)):
                    _log.info("topics_created", topics=created)
                if problems := admin.check(config.topics):
                    raise BrokerError("\n".join(problems))
                for problem in admin.unfit(config.topics):
                    _log.warning("unfit_topic", problem=problem)
            finally:
                admin.close()
            self.reached = True
            return

    def _admin(self) -> Admin | None:
        """On a thread, so that nobody who says stop waits for a broker that is away: None then. Raises BrokerError."""
        found: Future[Admin] = Future()

        def connect() -> None:
            try:
                found.set_result(Admin(self.config.kafka))
            except BaseException as error:
                found.set_exception(error)

        Thread(target=connect, name="connect", daemon=True).start()
        while not self.signals.stopping:
            if wait([found], CONNECT_LOOK_S).done:
                return found.result()
        return None

    def turned(self) -> None:
        """A turn is over: take signals, do what is done once a second, and say that the loop lives."""
        self.take_signals()
        now_s = self._now()
        if now_s - self._housekeeping_s >= HOUSEKEEPING_S:
            self._housekeeping_s = now_s
            self.housekeeping()
            self._say_ready()
            silent_s = now_s - self.last_contact_s
            self.metrics.broker_last_contact.set(time.time() - silent_s)
            self._broker_watch.look(self.last_contact_s)
        self._turns += 1
        self.turned_s = self._now()
        self.metrics.loop_iterations.inc()
        self.metrics.loop_last_iteration.set(time.time())
        self.systemd.alive()

    def _say_ready(self) -> None:
        missing = self.missing()
        ready = not missing
        self.metrics.ready.set(ready)
        if ready:
            self.metrics.state.state(State.RUNNING)
        if ready and not self._said_ready:
            self._said_ready = True
            self.systemd.ready()
            _log.info("ready", seconds=round(self._now() - self._started_s, 1), **self.about())
        elif ready and not self._was_ready:
            _log.info("ready_again")
        elif self._was_ready and missing:
            _log.warning("not_ready", missing=missing)
        self._was_ready = ready

    # ------------------------------------------------------------------ signals

    def take_signals(self) -> None:
        """HUP: read the configuration again. USR2: write a report to the log."""
        if came := self.signals.take(signal.SIGHUP):
            self.metrics.signals["HUP"].inc(came)
            self.reload()
        if came := self.signals.take(signal.SIGUSR2):
            self.metrics.signals["USR2"].inc(came)
            _log.info("status", **self.status())

    def reload(self) -> None:
        """Take over what may change while running; name what may not. A broken file changes nothing."""
        self.metrics.config_reloads.inc()
        try:
            wanted = change(self.config, load(self.path, os.environ))
        except ConfigError as error:
            self.metrics.config_reload_failures.inc()
            self.metrics.config_last_reload_successful.set(0)
            _log.error("configuration_refused", error=str(error), mend="the running one stays")
            return
        self.config = wanted.config
        self.training.configure(wanted.config)
        log.configure(wanted.config.log)
        if "metrics.series" in wanted.taken:
            self.metrics.watch(wanted.config.metrics.series)
        self.metrics.config_last_reload_successful.set(1)
        _log.info("configuration_reloaded", taken=wanted.taken, need_a_restart=wanted.refused)

    # ------------------------------------------------------------------ reports

    def health(self) -> dict[str, object]:
        """Whether the loop is turning."""
        idle_s = self._now() - self.turned_s
        return {"ok": idle_s < STALLED_S or self.starting, "last_turn_s": round(idle_s, 3)}

    def ready(self) -> dict[str, object]:
        """Whether the work is done, and what that still waits for."""
        missing = self.missing()
        return {"ready": not missing, "missing": missing}

    def status(self) -> dict[str, object]:
        """What an operator wants to see at a glance; also written to the log on USR2."""
        return {**self.ready(), **self.about()}
