"""What a worker that answers ticks waits for before it says that it is ready; nothing is polled or compiled."""

from types import SimpleNamespace
from typing import Any

import pytest

from forecaster.config import Config
from forecaster.shell.daemon import Daemon
from forecaster.shell.kafka import Assigned
from forecaster.shell.metrics import Metrics
from forecaster.shell.signals import Signals
from tests.folds import SPEC, make_fold


class World:
    """A worker for which everything is there but what a test takes away."""

    def __init__(self) -> None:
        self.source: Any = SimpleNamespace(connected=True, notes={}, apart=set(), passed={})
        self.delivery: Any = SimpleNamespace(able=True)
        lifecycle: Any = SimpleNamespace(known=True, training=None)
        config = Config().model_copy(update={"model": SPEC})
        metrics = Metrics(horizon=SPEC.horizon, levels=SPEC.levels)
        self.daemon = Daemon(
            config, None, Signals(), metrics, make_fold(), self.source, self.delivery, lifecycle
        )
        self.daemon.compiled = True


@pytest.fixture
def world() -> World:
    return World()


def test_before_any_assignment_it_is_not_ready_and_with_one_of_nothing_it_stands_by(world: World) -> None:
    assert world.daemon.missing() == ["the group to assign partitions"]
    world.daemon.assignment.apply([Assigned(frozenset())])
    assert world.daemon.missing() == []
    world.daemon.assignment.apply([Assigned(frozenset({3}))])
    assert world.daemon.missing() == ["rows of partitions [3] to be rebuilt"]


def test_while_nothing_can_be_delivered_it_is_not_ready(world: World) -> None:
    world.daemon.assignment.apply([Assigned(frozenset())])
    world.delivery.able = False
    assert world.daemon.missing() == ["a transactional producer"]
