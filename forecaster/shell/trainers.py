"""The worker that trains for a fleet whose other workers only predict: it follows requests and models, never ticks.

Several may stand by; a consumer group of their own, on the one partition of the control topic, says which of them
leads.

start   metrics and HTTP · topics · join
turn    election · serving model · requests, trainer
stop    stop the trainer · leave the group · close
"""

import os
import time
from collections.abc import Callable
from pathlib import Path

import structlog

from forecaster.config import Config, shown
from forecaster.shell import log
from forecaster.shell.kafka import KafkaSpec
from forecaster.shell.kafka.source import Source
from forecaster.shell.kafka.transaction import is_member
from forecaster.shell.metrics import Metrics, State
from forecaster.shell.models import ModelsFollower, NowServing
from forecaster.shell.signals import Signals
from forecaster.shell.training import Training
from forecaster.shell.worker import Worker

IDLE_POLL_S = 0.05  # how long a turn waits: bounds the answer to a signal
_log = structlog.get_logger(__name__)


class Election:
    """The one of several whose turn it is: the member of a group to whom the only partition was given."""

    def __init__(self, spec: KafkaSpec, topic: str) -> None:
        candidates = spec.model_copy(update={"group_id": f"{spec.group_id}.trainers", "start": "latest"})
        self._source = Source(candidates, topic)

    @property
    def won(self) -> bool:
        """Whether it is our turn."""
        return bool(self._source.assigned)

    @property
    def joined(self) -> bool:
        """Whether we are a member, whoever leads."""
        return is_member(self._source.group_metadata())

    @property
    def connected(self) -> bool:
        """Whether a broker answers."""
        return self._source.connected

    @property
    def last_contact_s(self) -> float:
        """When a broker last answered (monotonic)."""
        return self._source.last_contact_s

    def poll(self, timeout_s: float) -> None:
        """Stay a member; nothing is ever read, since what is given stays paused."""
        self._source.poll(timeout_s)
        self._source.changes()  # `assigned` says it all

    def close(self) -> None:
        """Leave it to the others."""
        self._source.close(3.0)


class TrainingWorker(Worker):
    """Trains when asked."""

    def __init__(
        self,
        config: Config,
        path: Path | None,
        signals: Signals,
        metrics: Metrics,
        training: Training,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(config, path, signals, metrics, training, now)
        self.election = Election(config.kafka, config.topics.control)
        self.serving = ""
        """The version that serves."""
        self._models = ModelsFollower(config.kafka, config.topics.models)

    def start(self) -> None:
        """Wait for the broker, then join."""
        self.prepare_topics()
        self.metrics.state.state(State.JOINING)

    def turn(self) -> None:
        """One turn of the loop."""
        self.election.poll(IDLE_POLL_S)
        for event in self._models.poll():
            if isinstance(event, NowServing):
                self._note(event)
        self.training.poll(decides=False, leads=self.election.won, serving=bool(self.serving))
        self.turned()

    def _note(self, event: NowServing) -> None:
        self.serving = event.stored.version
        stored, cell = event.stored, str(event.stored.spec.get("cell", ""))
        data_end_s = float(stored.card.get("created_s", 0.0))
        self.metrics.set_serving(self.serving, cell, stored.made_s, data_end_s)
        _log.info("now_serving", version=self.serving, reason=event.serving.reason)

    def housekeeping(self) -> None:
        """Nothing but what every worker does."""

    @property
    def last_contact_s(self) -> float:
        """When a broker last answered (monotonic)."""
        return self.election.last_contact_s

    def missing(self) -> list[str]:
        """What readiness still waits for; empty when a request would be carried out, here or by the one that leads."""
        waits: list[str] = []
        if not self.election.connected:
            waits.append("a broker to answer")
        elif not self.election.joined:
            waits.append("the group of trainers to take it in")
        if not self._models.caught_up:
            waits.append("the models topic to say what serves")
        if not self.training.known:
            waits.append("the control topic to say what was asked for")
        return waits

    def about(self) -> dict[str, object]:
        """For the report: whether it leads, what serves, what trains."""
        return {"leads": self.election.won, "model": self.serving, **self.training.status()}

    def drain(self) -> bool:
        """End the trainer, say so to those who wait, let another one lead."""
        self.systemd.stopping()
        self.training.stop()
        self.election.close()
        self._models.close()
        return True


def run(config: Config, signals: Signals, path: Path | None = None) -> int:
    """Train for the fleet until told to stop; the exit code."""
    log.configure(config.log)
    _log.info("starting", pid=os.getpid(), role="train", configuration=shown(config))
    metrics = Metrics(config.metrics, horizon=config.model.horizon, levels=config.model.levels)
    TrainingWorker(config, path, signals, metrics, Training(config, metrics, signals)).run()
    return 0
