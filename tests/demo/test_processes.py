"""Children end with the demo, also the stubborn ones, and the embedded broker comes up and goes."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from forecaster.demo.broker import Broker
from forecaster.demo.processes import Child
from forecaster.errors import BrokerError
from forecaster.shell.kafka import KafkaSpec, TopicsSpec
from forecaster.shell.kafka.admin import Admin

DEADLINE_S = 30.0


def await_that(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def child(tmp_path: Path, program: str) -> Child:
    """A Python program that has printed `up`."""
    started = Child(
        [sys.executable, "-c", f"{program}; print('up', flush=True); signal.pause()"], tmp_path / "child.log"
    )
    await_that(lambda: "up" in started.tail())
    return started


def runs(pid: int) -> bool:
    """Whether the process is there and not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_child_ends_when_asked(tmp_path: Path) -> None:
    polite = child(tmp_path, "import signal")
    polite.stop()
    assert polite.exit_code == -signal.SIGTERM


def test_a_child_that_does_not_listen_is_killed(tmp_path: Path) -> None:
    stubborn = child(tmp_path, "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)")
    stubborn.stop(timeout_s=0.1)
    assert stubborn.exit_code == -signal.SIGKILL


def test_another_daemons_settings_are_not_inherited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORECASTER_KAFKA__GROUP_ID", "production")
    started = child(tmp_path, "import os, signal; print(sorted(os.environ))")
    started.stop()
    assert "FORECASTER" not in started.tail()


@pytest.mark.process
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="the kernel's promise is Linux's")
def test_a_child_ends_when_the_demo_is_killed(tmp_path: Path) -> None:
    program = (
        "import sys, signal; from pathlib import Path; from forecaster.demo.processes import Child;"
        f"child = Child(['sleep', '600'], Path({str(tmp_path / 'child.log')!r}));"
        "print(child.pid, flush=True); signal.pause()"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    await_that(lambda: Path(f"/proc/{pid}/comm").read_text() == "sleep\n")
    parent.kill()
    parent.communicate()
    await_that(lambda: not runs(pid))


@pytest.mark.process
def test_the_broker_listens_and_is_gone_after_it(tmp_path: Path) -> None:
    broker = Broker(tmp_path)
    host, _, port = broker.bootstrap_servers.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=5):
        pass
    pid = broker.child.pid
    broker.stop()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.process
def test_a_broker_that_tells_neither_settings_nor_rights_is_taken_as_it_is(tmp_path: Path) -> None:
    broker, topics = Broker(tmp_path), TopicsSpec()
    try:
        admin = Admin(KafkaSpec(bootstrap_servers=broker.bootstrap_servers))
        admin.create_missing(topics)
        assert (admin.check(topics), admin.unfit(topics), admin.denied(topics)) == ([], [], {})
        admin.close()
    finally:
        broker.stop()


@pytest.mark.process
def test_a_broker_that_cannot_start_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setattr("forecaster.demo.broker.free_port", lambda: taken.getsockname()[1])
        with pytest.raises(BrokerError, match="AddrInUse"):
            Broker(tmp_path)
