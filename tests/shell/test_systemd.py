"""Notifications to systemd, read from the other end of the socket."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from forecaster.shell.systemd import Systemd


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(tmp_path / "notify"))
        receiver.settimeout(5)
        yield receiver


def test_each_event_is_one_datagram(supervisor: socket.socket) -> None:
    systemd = Systemd({"NOTIFY_SOCKET": supervisor.getsockname(), "WATCHDOG_USEC": "1000000"})
    systemd.ready()
    systemd.alive()
    systemd.extend_timeout(1.5)
    systemd.stopping()
    received = [supervisor.recv(1024) for _ in range(4)]
    assert received == [
        b"READY=1",
        b"WATCHDOG=1",
        b"EXTEND_TIMEOUT_USEC=1500000",
        b"STOPPING=1",
    ]


def test_an_abstract_socket_is_found_by_its_at_sign() -> None:
    name = f"forecaster-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(f"\0{name}")
        receiver.settimeout(5)
        Systemd({"NOTIFY_SOCKET": f"@{name}"}).ready()
        assert receiver.recv(1024) == b"READY=1"


def test_without_a_supervisor_nothing_happens() -> None:
    systemd = Systemd({})
    systemd.ready()
    assert systemd.watchdog_s is None


def test_a_supervisor_that_is_gone_is_no_fault(tmp_path: Path) -> None:
    Systemd({"NOTIFY_SOCKET": str(tmp_path / "gone")}).ready()


def test_a_supervisor_that_does_not_read_blocks_nobody(supervisor: socket.socket) -> None:
    systemd = Systemd({"NOTIFY_SOCKET": supervisor.getsockname()})
    for _ in range(10_000):
        systemd.extend_timeout(1.0)


def test_the_watchdog_is_fed_a_few_times_an_interval_and_only_if_it_asks(supervisor: socket.socket) -> None:
    clock = SimpleNamespace(s=0.0)
    watched = {"NOTIFY_SOCKET": supervisor.getsockname(), "WATCHDOG_USEC": "8000000"}
    systemd = Systemd(watched, lambda: clock.s)
    silent = Systemd({"NOTIFY_SOCKET": supervisor.getsockname()}, lambda: clock.s)
    for clock.s in (0.0, 0.1, 1.9, 2.0, 2.1, 4.5):
        systemd.alive()
        silent.alive()
    supervisor.setblocking(False)
    assert [supervisor.recv(64) for _ in range(3)] == [b"WATCHDOG=1"] * 3
    with pytest.raises(BlockingIOError):
        supervisor.recv(64)


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "often"}, None),
    ],
)
def test_the_watchdog_interval_is_the_one_meant_for_us(
    environ: dict[str, str], expected: float | None
) -> None:
    assert Systemd(environ).watchdog_s == expected
