"""Signals in, counts out: handlers only note what came, the loop asks when it has time.

Installed before anything heavy is imported, because the default of USR1 and HUP is to end the process. A second TERM
or INT ends it at once.
"""

import faulthandler
import os
import signal
from types import FrameType

STOP = (signal.SIGTERM, signal.SIGINT)
ASKED = (signal.SIGUSR1, signal.SIGHUP, signal.SIGUSR2)
AT_ONCE = 130  # exit code of a process that was told twice


class Signals:
    """What has come and has not been asked for yet."""

    def __init__(self) -> None:
        self.stopping = False
        self._came: dict[int, int] = dict.fromkeys((*STOP, *ASKED), 0)

    def install(self) -> "Signals":
        """Take over the handlers; on the main thread only."""
        for number in self._came:
            signal.signal(number, self._note)
        faulthandler.enable()
        faulthandler.register(signal.SIGQUIT, all_threads=True)
        return self

    def _note(self, number: int, _: FrameType | None) -> None:
        if number in STOP:
            if self.stopping:
                os._exit(AT_ONCE)
            self.stopping = True
        self._came[number] += 1

    @property
    def told_by(self) -> str:
        """The name of the signal that said stop; "" before one has."""
        return next((number.name for number in STOP if self._came[number]), "")

    def take(self, number: int) -> int:
        """How often it came since it was last asked for."""
        came, self._came[number] = self._came[number], 0
        return came
