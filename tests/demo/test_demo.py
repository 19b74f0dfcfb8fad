"""The demo as its user runs it, on a pipe, not a terminal; the whole of it runs in test_monitoring.py."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from forecaster.core.programs import FEW
from forecaster.demo import live
from forecaster.demo.simulate import PRICES, SENSORS


@pytest.fixture
def demo(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[subprocess.Popen[str]]:
    """The running demo, all of whose files are in `tmp_path`."""
    command = [sys.executable, "-m", "forecaster.demo", *request.param]
    environ = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environ,
        start_new_session=True,
    ) as process:
        yield process
        process.kill()


@pytest.mark.process
@pytest.mark.parametrize(
    ("demo", "code", "reason"),
    [
        (("--data", "/nowhere/ticks.csv"), 3, "/nowhere/ticks.csv"),
        (("--rate", "many"), 2, "'many' is not a number above 0"),
    ],
    indirect=["demo"],
)
def test_what_cannot_be_played_ends_it_with_the_reason(
    demo: subprocess.Popen[str], code: int, reason: str, tmp_path: Path
) -> None:
    said, _ = demo.communicate()
    assert demo.returncode == code
    assert reason in said
    assert "Traceback" not in said
    assert list(tmp_path.iterdir()) == []


def test_its_table_is_as_large_as_one_that_starts_sooner() -> None:
    assert live.ROOM == FEW  # said twice, as the demo is not to load what the daemon needs
    assert len((*SENSORS, *PRICES)) <= live.ROOM


@pytest.mark.process
def test_ctrl_c_while_it_is_being_loaded_shows_no_traceback() -> None:
    command = [sys.executable, "-X", "importtime", "-m", "forecaster.demo"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stderr is not None
        said = next(line for line in process.stderr if "rich.console" in line)
        process.send_signal(signal.SIGINT)
        said += process.stderr.read()
    assert process.returncode == -signal.SIGINT
    assert "Traceback" not in said
