"""The start and the end of any worker: who says stop waits for no broker, and an error is the log's last event."""

import signal
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from structlog.testing import capture_logs

from forecaster.config import Config
from forecaster.errors import BrokerError
from forecaster.shell import worker
from forecaster.shell.metrics import Metrics
from forecaster.shell.signals import Signals
from forecaster.shell.training import Training
from forecaster.shell.worker import Worker

CONFIG = Config.model_validate({"http": {"enabled": False}})


@pytest.fixture(autouse=True)
def unwatched(monkeypatch: pytest.MonkeyPatch) -> None:
    """The watch over a loop lives as long as its process, which is the tests' here: minutes later it would end them."""
    monkeypatch.setattr(worker.LoopWatch, "start", lambda _: None)


class Idle(Worker):
    """A worker without work."""

    drained = False
    finishes = True
    waits_for = ""

    def __init__(self) -> None:
        metrics, signals = Metrics(CONFIG.metrics, horizon=1, levels=(0.5,)), Signals()
        self.clock_s = 0.0
        super().__init__(
            CONFIG, None, signals, metrics, Training(CONFIG, metrics, signals), lambda: self.clock_s
        )

    def start(self) -> None:
        self.prepare_topics()

    def turn(self) -> None:
        raise AssertionError("it was told to stop before")

    def housekeeping(self) -> None: ...

    def missing(self) -> list[str]:
        return [self.waits_for] if self.waits_for else []

    @property
    def last_contact_s(self) -> float:
        return self.clock_s

    def about(self) -> dict[str, object]:
        return {}

    def drain(self) -> bool:
        self.drained = True
        return self.finishes


class Broker:
    """Stands in for the admin client: connecting takes as long as `wait` does."""

    def __init__(self, wait: Callable[[], object], problems: list[str], *unfit: str) -> None:
        self._wait, self._problems, self._unfit = wait, problems, unfit

    def __call__(self, _: object) -> "Broker":
        self._wait()
        return self

    def check(self, _: object) -> list[str]:
        return self._problems

    def unfit(self, _: object) -> list[str]:
        return list(self._unfit)

    def close(self) -> None: ...


def test_who_says_stop_does_not_wait_for_a_broker_that_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    idle, over = Idle(), threading.Event()

    def told_meanwhile() -> None:
        idle.signals.stopping = True
        over.wait()

    monkeypatch.setattr(worker, "Admin", Broker(told_meanwhile, []))
    idle.run()
    over.set()
    assert idle.drained
    assert not idle.reached


def test_what_ends_it_is_the_last_event_of_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    idle = Idle()
    monkeypatch.setattr(worker, "Admin", Broker(lambda: None, ["topics.ticks = 'x': there is no such topic"]))
    with capture_logs() as events, pytest.raises(BrokerError):
        idle.run()
    assert idle.drained
    last = events[-1]
    assert "stopped" not in [event["event"] for event in events]
    assert (last["event"], last["reason"], last["exit_code"]) == ("failed", "BrokerError", 4)
    assert "topics.ticks = 'x'" in last["error"]


def test_settings_of_topics_that_lose_records_are_warned_of_and_end_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    idle = Idle()
    monkeypatch.setattr(
        worker, "Admin", Broker(lambda: None, [], "topics.state = 'x': cleanup.policy = 'delete'")
    )
    with capture_logs() as events:
        idle.prepare_topics()
    assert idle.reached
    assert [(event["event"], event["log_level"], event["problem"]) for event in events] == [
        ("unfit_topic", "warning", "topics.state = 'x': cleanup.policy = 'delete'")
    ]


@pytest.mark.parametrize("finishes", [True, False])
def test_the_log_says_which_signal_ended_it_and_whether_all_was_finished(
    monkeypatch: pytest.MonkeyPatch, finishes: bool
) -> None:
    idle = Idle()
    idle.finishes = finishes
    monkeypatch.setattr(idle, "start", lambda: None)
    monkeypatch.setattr(idle, "turn", lambda: idle.signals._note(signal.SIGTERM, None))
    with capture_logs() as events:
        idle.run()
    assert [event["event"] for event in events] == ["stopping", "stopped"]
    assert events[0]["signal"] == "SIGTERM"
    assert events[1]["clean"] is finishes


def test_series_that_are_watched_change_with_the_configuration_and_keep_their_values_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker.log, "configure", lambda _: None)
    idle = Idle()
    idle.path = tmp_path / "forecaster.toml"
    shown = []
    for series in ("a", "a", "b"):
        idle.path.write_text(f"[metrics]\nseries = ['{series}']\n[http]\nenabled = false\n")
        with capture_logs() as events:
            idle.reload()
        shown.append((events[-1]["taken"], idle.metrics.watched, value_of_a(idle)))
        idle.metrics.observe_series("a", 5.0, np.zeros((1, 1)))
    taken = ("metrics.series",)
    assert shown == [(taken, {"a"}, None), ((), {"a"}, 5.0), (taken, {"b"}, None)]


def value_of_a(idle: Idle) -> float | None:
    return idle.metrics.registry.get_sample_value("forecaster_series_last_value", {"series": "a"})


def test_the_log_says_when_ticks_are_no_longer_answered_and_when_they_are_again() -> None:
    idle = Idle()
    with capture_logs() as events:
        for waits_for in ("the group", "", "", "a broker", "a broker", ""):
            idle.waits_for = waits_for
            idle.clock_s += 1.0
            idle.turned()
    assert [event["event"] for event in events] == ["ready", "not_ready", "ready_again"]
    assert events[1]["missing"] == ["a broker"]
