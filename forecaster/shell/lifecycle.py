"""The life of the serving model, as the loop sees it: models that arrive are swapped in, requests lead to retrains.

Everything here is polled once a turn and never waits. The models topic says what serves; a request (signal, HTTP,
command line, schedule, drift) goes through the control topic, so that a fleet has one trainer and everybody sees it.
"""

import os
import signal
import socket
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import structlog

from forecaster.core.fold import Fold
from forecaster.shell.metrics import Metrics
from forecaster.shell.models import ModelsFollower, NowServing, Refused
from forecaster.shell.models.convert import from_stored
from forecaster.shell.signals import Signals

_log = structlog.get_logger(__name__)
SENDER = f"{socket.gethostname()}:{os.getpid()}"


class Lifecycle:
    """What serves, and what leads to something better."""

    def __init__(self, fold: Fold, models: ModelsFollower, metrics: Metrics, signals: Signals) -> None:
        self._fold, self._models, self._metrics, self._signals = fold, models, metrics, signals

    def poll(self) -> None:
        """What has come since the last turn."""
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
        self._fold.swap(model)
        _log.info("model_swapped", version=model.version, reason=event.serving.reason)

    def observe(self, answers: object) -> None:
        """Scores"""

    def request_retrain(self, sender: str) -> str:
        return ""

    def status(self) -> dict[str, object]:
        return {}

    def stop(self) -> None:
        self._models.close()
