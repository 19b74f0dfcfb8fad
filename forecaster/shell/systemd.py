"""Telling systemd that the service is ready, alive or stopping: one datagram each, none when unsupervised."""

import os
import socket
import time
from collections.abc import Callable, Mapping


class Systemd:
    """The supervisor that NOTIFY_SOCKET names, or none.

    `watchdog_s` is how often systemd wants to hear from the main loop (None: it does not ask). Only the loop
    may call `alive`, and only after a whole turn: a thread would go on reporting a loop that hangs.
    """

    def __init__(
        self, environ: Mapping[str, str] | None = None, now: Callable[[], float] = time.monotonic
    ) -> None:
        environ = os.environ if environ is None else environ
        address = environ.get("NOTIFY_SOCKET", "")
        # A leading @ stands for the zero byte of Linux's abstract socket names.
        self._address = "\0" + address[1:] if address.startswith("@") else address
        interval_us = environ.get("WATCHDOG_USEC", "")
        ours = environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        self.watchdog_s = int(interval_us) / 1e6 if interval_us.isdigit() and ours else None
        self._now = now
        self._alive_s = -float("inf")

    def ready(self) -> None:
        """The daemon answers ticks."""
        self._send("READY=1")

    def alive(self) -> None:
        """The main loop finished a turn; told four times an interval, not at every turn."""
        if self.watchdog_s is not None and self._now() - self._alive_s >= self.watchdog_s / 4:
            self._alive_s = self._now()
            self._send("WATCHDOG=1")

    def stopping(self) -> None:
        """The daemon is on its way out."""
        self._send("STOPPING=1")

    def extend_timeout(self, seconds: float) -> None:
        """Ask for more time to start or stop: compiling and rebuilding may outlast the unit's limit."""
        self._send(f"EXTEND_TIMEOUT_USEC={int(seconds * 1e6)}")

    def _send(self, message: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as notifier:
                notifier.sendto(message.encode(), self._address)
        except OSError:
            return  # a supervisor that is gone is no reason to stop forecasting
