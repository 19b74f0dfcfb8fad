"""Debian's Prometheus as a test sees it: on a free port, with the rules that are shipped, asked by HTTP."""

import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import yaml

RULES = Path(__file__).parent.parent / "deploy" / "prometheus"
START_S = 30.0


class Prometheus:
    """A running server."""

    def __init__(self, port: int) -> None:
        self._client = httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=10)

    def close(self) -> None:
        self._client.close()

    def ready(self) -> bool:
        try:
            return self._client.get("/-/ready").status_code == 200
        except httpx.TransportError:
            return False

    def query(self, expression: str) -> list[float]:
        """The values that the expression has now; [] where it has no data. Fails where it does not parse."""
        answer = self._client.get("/api/v1/query", params={"query": expression}).json()
        assert answer["status"] == "success", f"{expression}: {answer.get('error')}"
        data = answer["data"]
        if data["resultType"] == "scalar":
            return [float(data["result"][1])]
        return [float(sample["value"][1]) for sample in data["result"]]

    def firing(self, *severities: str) -> set[str]:
        """Names of the alerts of these severities that fire now."""
        alerts = self._client.get("/api/v1/alerts").json()["data"]["alerts"]
        found = [alert["labels"] for alert in alerts if alert["state"] == "firing"]
        return {labels["alertname"] for labels in found if labels["severity"] in severities}


@contextmanager
def scraping(target_port: int, folder: Path) -> Iterator[Prometheus]:
    """Prometheus with the shipped configuration, each second, on what listens at the port.

    Skips the test where the program is missing (Debian: prometheus).
    """
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("prometheus is missing (Debian: prometheus)")
    for file in ("rules.yml", "alerts.yml"):
        shutil.copy(RULES / file, folder)
    config = yaml.safe_load((RULES / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["scrape_configs"][0]["static_configs"][0]["targets"] = [f"127.0.0.1:{target_port}"]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    port = free_port()
    command = [
        program,
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with (
        (folder / "log").open("wb") as log,
        subprocess.Popen(command, stdout=log, stderr=log) as process,
    ):
        server = Prometheus(port)
        try:
            await_ready(server, process, folder / "log")
            yield server
        finally:
            server.close()
            process.send_signal(signal.SIGTERM)


def await_ready(server: Prometheus, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_S
    while not server.ready():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, f"not ready after {START_S} s:\n{log.read_text()}"
        time.sleep(0.05)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
