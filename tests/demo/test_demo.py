"""The whole demo as its user runs it, on a pipe, not a terminal: all stages are reached, Ctrl-C leaves nothing."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

STAGES = ("broker", "history", "first forecast", "ready", "first trained network")


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
@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("demo", [()], indirect=True)
def test_every_stage_is_told_and_ctrl_c_leaves_nothing_behind(
    demo: subprocess.Popen[str], tmp_path: Path
) -> None:
    assert demo.stdout is not None
    reached: list[str] = []
    said: list[str] = []
    for line in demo.stdout:
        said.append(line)
        reached += [stage for stage in STAGES if line.startswith(f"{stage}: ")]
        if STAGES[-1] in reached:
            break
    assert sorted(reached) == sorted(STAGES), "".join(said)
    children = psutil.Process(demo.pid).children(recursive=True)
    assert len(children) >= 3  # broker, source, daemon
    demo.send_signal(signal.SIGINT)
    rest, _ = demo.communicate()
    assert demo.returncode == 0
    assert "grid.load.kw" in rest  # the last picture stays on the screen
    assert not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.process
@pytest.mark.parametrize("demo", [("--data", "/nowhere/ticks.csv")], indirect=True)
def test_a_file_that_cannot_be_played_ends_it_with_the_reason(
    demo: subprocess.Popen[str], tmp_path: Path
) -> None:
    said, _ = demo.communicate()
    assert demo.returncode == 3
    assert "/nowhere/ticks.csv" in said
    assert "Traceback" not in said
    assert list(tmp_path.iterdir()) == []
