"""`forecaster run` as a process, for tests: a small configuration, its log, its readiness, its end."""

import json
import re
import signal
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from forecaster.demo.broker import free_port
from forecaster.demo.processes import Child
from forecaster.shell.kafka import TopicsSpec

DEADLINE_S = 300.0
ROLES = ("ticks", "predictions", "dead_letters", "control", "models", "state")

Settings = dict[str, dict[str, Any]]
"""Section -> key -> value."""


def small(kafka: str, group: str, topics: TopicsSpec) -> Settings:
    """A small network with quick timeouts, which trains only when it is asked to. Compiled once a session."""
    return {
        "kafka": {
            "bootstrap_servers": kafka,
            "group_id": group,
            "start": "earliest",
            "session_timeout_s": 6,
            "commit_interval_s": 0.2,
        },
        "topics": {role: getattr(topics, role) for role in ROLES},
        "series": {"max_series": 64},
        "model": {
            "hidden": 8,
            "horizon": 3,
            "levels": [0.1, 0.5, 0.9],
            "context_length": 16,
            "warm_up": 4,
        },
        "training": {"on_start": False, "every_ticks": 0, "every_ratio": 0.0},
        "http": {},
        "log": {"format": "json"},
    }


def toml(settings: Settings) -> str:
    """As a configuration file."""
    lines: list[str] = []
    for section, keys in settings.items():
        lines += [f"[{section}]", *(f"{key} = {json.dumps(value)}" for key, value in keys.items()), ""]
    return "\n".join(lines)


class Worker:
    """One `forecaster run`, and what it wrote. `prefix` is a command that becomes it, as `env` does."""

    def __init__(self, path: Path, settings: Settings, prefix: Sequence[str] = ()) -> None:
        self.port = free_port()
        self.config = path.with_suffix(".toml")
        self.config.write_text(toml(settings | {"http": settings["http"] | {"port": self.port}}))
        command = [sys.executable, "-m", "forecaster", "run", "--config", str(self.config)]
        self.child = Child([*prefix, *command], path.with_suffix(".log"))

    def events(self, name: str) -> list[dict[str, Any]]:
        """What it logged under this name."""
        lines = [
            line
            for line in self.child.output.read_text(errors="replace").splitlines()
            if line.startswith("{")
        ]
        found = []
        for line in lines:
            try:
                event = json.loads(line)
            except json.JSONDecodeError:  # still being written
                continue
            if event.get("event") == name:
                found.append(event)
        return found

    def get(self, path: str) -> str | None:
        """What its HTTP server answers; None where it says no, or nothing."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5) as answer:
                return answer.read().decode()
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            return None

    def compiles(self, phase: str) -> float:
        """How many programs were compiled in this phase of its life."""
        told = re.search(
            rf'^forecaster_compiles_total\{{phase="{phase}"\}} (\S+)',
            self.get("/metrics") or "",
            re.MULTILINE,
        )
        assert told is not None
        return float(told[1])

    def ready(self) -> bool:
        """Whether /readyz says so."""
        return self.get("/readyz") is not None

    def await_that(self, holds: Callable[[], object], deadline_s: float = DEADLINE_S) -> None:
        """Wait for something that the worker is to bring about."""
        deadline = time.monotonic() + deadline_s
        while not holds():
            assert self.child.exit_code is None, f"it ended:\n{self.child.tail(30)}"
            assert time.monotonic() < deadline, f"it did not happen:\n{self.child.tail(30)}"
            time.sleep(0.05)

    def await_end(self, deadline_s: float = 30.0) -> int:
        """Wait for it to end; its exit code."""
        deadline = time.monotonic() + deadline_s
        while self.child.exit_code is None:
            assert time.monotonic() < deadline, f"it did not stop:\n{self.child.tail(30)}"
            time.sleep(0.02)
        return self.child.exit_code

    def end(self) -> int:
        """Ask it to stop; its exit code."""
        self.child.signal(signal.SIGTERM)
        return self.await_end()
