"""What is asked of a worker and carried out on a thread of its own."""

import threading

import pytest

from forecaster.config import Config
from forecaster.shell import training
from forecaster.shell.control import Command, Request
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
