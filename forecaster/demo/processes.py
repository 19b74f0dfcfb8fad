"""Child processes that end with the demo: in order when it ends, and at its death even when it is killed."""

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

STOP_TIMEOUT_S = 15.0
FOREIGN = "FORECASTER_"  # variables that configure another daemon


class Child:
    """A running program whose output goes to a file."""

    def __init__(self, command: Sequence[str], output: Path) -> None:
        self.output = output
        self.name = output.stem
        with output.open("ab") as file:
            self._process = subprocess.Popen(
                [*_dies_with_parent(), *command],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for the demo, which stops its children in order
                env={name: text for name, text in os.environ.items() if not name.startswith(FOREIGN)},
            )

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        return self._process.poll()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, if it still runs."""
        if self.exit_code is None:
            self._process.send_signal(number)

    def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> None:
        """Ask it to end, wait, and end it by force, with all that it started, when it does not."""
        self.signal(signal.SIGTERM)
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            self._process.wait()

    def tail(self, lines: int = 15) -> str:
        """The end of what it wrote."""
        return "\n".join(self.output.read_text(errors="replace").splitlines()[-lines:])


def _dies_with_parent() -> list[str]:
    """A prefix (util-linux, where there is one) with which the kernel ends the program at our death."""
    return ["setpriv", "--pdeathsig", "TERM"] if shutil.which("setpriv") else []
