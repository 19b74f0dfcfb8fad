"""Signals are noted and counted, and nothing else happens until the loop asks; a second TERM ends the process at once.

In processes of their own: handlers are the whole process's.
"""

import signal
import subprocess
import sys
import textwrap
from collections.abc import Sequence

import pytest

from forecaster.shell.signals import AT_ONCE

PROGRAM = """
import os, signal, sys
from forecaster.shell.signals import Signals
signals = Signals().install()
def send(name): os.kill(os.getpid(), getattr(signal, name))
"""


def run(body: str, arguments: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    program = PROGRAM + textwrap.dedent(body)
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.process
def test_what_came_is_counted_until_it_is_asked_for() -> None:
    done = run("""
        for _ in range(3): send("SIGUSR1")
        send("SIGHUP")
        print([signals.take(n) for n in (signal.SIGUSR1, signal.SIGUSR1, signal.SIGHUP, signal.SIGUSR2)])
        print(signals.stopping)
    """)
    assert (done.returncode, done.stdout.split("\n")[:2]) == (0, ["[3, 0, 1, 0]", "False"])


@pytest.mark.process
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_the_first_asks_to_stop_and_the_second_stops(name: str) -> None:
    once = run(f'send("{name}"); print(signals.stopping)')
    assert (once.returncode, once.stdout.strip()) == (0, "True")
    twice = run(f'send("{name}"); send("SIGTERM"); print("still here")')
    assert (twice.returncode, twice.stdout) == (AT_ONCE, "")


@pytest.mark.process
def test_quit_shows_where_every_thread_is() -> None:
    done = run('send("SIGQUIT"); print("went on")')
    assert done.returncode in {0, -signal.SIGQUIT}
    assert "thread" in done.stderr
