"""What is asked of a worker and carried out on a thread of its own."""

import threading

import pytest

from forecaster.config import Config
from forecaster.shell import training
from forecaster.shell.control import Answer, Command, Request
from forecaster.shell.metrics import Metrics
from forecaster.shell.models.codec import Serving
from forecaster.shell.signals import Signals
from forecaster.shell.training import Training


def test_models_are_rolled_back_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each reads what serves and then writes: two at once would both roll back the same."""
    both, met = threading.Barrier(2), list[bool]()

    class Models:
        def __init__(self, *_: object) -> None: ...

        def roll_back(self, *_: object) -> Serving:
            try:
                both.wait(0.2)
            except threading.BrokenBarrierError:
                met.append(False)  # nobody else came
            else:
                met.append(True)
            return Serving("v1", "v2", "test", 0.0)

    monkeypatch.setattr(training, "Models", Models)
    config = Config()
    asked = Training(config, Metrics(horizon=1, levels=(0.5,)), Signals())
    threads = [
        threading.Thread(target=asked._roll_back, args=(request,))
        for request in [Request(command=Command.ROLL_BACK, trigger="cli", sender="me") for _ in range(2)]
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert met == [False, False]
    assert [answer.outcome for answer in asked._answers] == ["rolled_back"] * 2


def test_what_was_asked_for_before_a_start_is_not_asked_for_now(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a worker without a model that restarts would wait for as much history again."""
    old: list[Request | Answer] = [
        Request(command=Command.RETRAIN, trigger="start", sender="me"),
        Answer(id="1", outcome="cancelled", sender="me"),
    ]

    class Control:
        """Gives all that is there at the first poll, and has caught up by that."""

        caught_up = False

        def poll(self) -> list[Request | Answer]:
            self.caught_up = True
            given, old[:] = list(old), []
            return given

    listens = Training(Config(), Metrics(horizon=1, levels=(0.5,)), Signals())
    monkeypatch.setattr(listens, "_control", Control())
    begun: list[str] = []
    monkeypatch.setattr(listens.schedule, "asked", lambda *_: begun.append("asked"))
    monkeypatch.setattr(listens.schedule, "ended", lambda: begun.append("ended"))
    listens._listen()
    assert not begun
    old.append(Request(command=Command.RETRAIN, trigger="signal", sender="me"))
    listens._listen()
    assert begun == ["asked"]
