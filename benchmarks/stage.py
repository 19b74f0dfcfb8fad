"""A broker, topics, a network and the real daemon, for the benchmarks that need all of them.

Everything that is started ends with the `with` block. Waits have limits, and a process that ends early is an error
with the last lines that it wrote.
"""

import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import jax.numpy as jnp
import psutil

from forecaster.core.model import Card, Model, ModelSpec, init
from forecaster.core.stats import SEASONS
from forecaster.demo.broker import free_port
from forecaster.demo.figures import Scrape, scrape
from forecaster.demo.processes import Child
from forecaster.shell.kafka.admin import Admin
from forecaster.shell.kafka.log import Log
from forecaster.shell.kafka.spec import KafkaSpec, TopicsSpec
from forecaster.shell.models import Models
from forecaster.shell.models.convert import to_stored
from tests.apache_kafka import Cluster

LEVELS = (0.1, 0.25, 0.5, 0.75, 0.9)
READY_S = 150.0
PARTITIONS = 4
ROWS = 20_000  # of every table, so that all daemons run the same programs
ROLES = ("ticks", "predictions", "dead_letters", "control", "models", "state")

Sections = dict[str, dict[str, object]]


class Stage:
    """One broker on the loopback and a directory, for all that a benchmark runs after another."""

    def __init__(self) -> None:
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self.directory = Path(
                stack.enter_context(tempfile.TemporaryDirectory(prefix="forecaster-bench-"))
            )
            cluster = stack.enter_context(Cluster())
            self.kafka = KafkaSpec(bootstrap_servers=cluster.bootstrap_servers)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def topics(self, name: str) -> TopicsSpec:
        """New, empty topics."""
        topics = TopicsSpec.model_validate(
            {role: f"{name}.{role}" for role in ROLES}
            | {"create_partitions": PARTITIONS, "create_replication": 1}
        )
        admin = Admin(self.kafka)
        try:
            admin.create_missing(topics)
        finally:
            admin.close()
        return topics

    def answers(self, name: str) -> str:
        """A new topic for what the bare loop answers; the others that come with it stay empty."""
        return self.topics(name).predictions

    def publish_network(self, topics: TopicsSpec, spec: ModelSpec) -> None:
        """A network with weights as they are drawn: what it says is poor, what it costs is not."""
        model = Model(
            spec,
            init(spec, 0),
            jnp.zeros(SEASONS, jnp.int32),
            Card(version="drawn", notes={"for": "benchmarks"}),
        )
        models = Models(self.kafka, topics.models)
        models.publish(to_stored(model))
        models.serve("drawn", "benchmark")

    def child(self, name: str, *command: str, **environ: str) -> Child:
        """A process that ends with this one."""
        variables = [f"{key}={text}" for key, text in environ.items()]
        return Child(["env", *variables, sys.executable, "-m", *command], self.directory / f"{name}.log")

    def daemon(
        self, name: str, topics: TopicsSpec, sections: Sections, cache: Path | None = None
    ) -> "Daemon":
        """The real one, as an operator starts it."""
        port = free_port()
        config: Sections = {
            "kafka": {"bootstrap_servers": self.kafka.bootstrap_servers, "group_id": name},
            "topics": {role: getattr(topics, role) for role in ROLES},
            "http": {"port": port},
            "series": {"max_series": ROWS},
        }
        for section, keys in sections.items():
            config[section] = config.get(section, {}) | keys
        path = self.directory / f"{name}.toml"
        path.write_text(_toml(config))
        command = ["forecaster", "run", "--config", str(path)]
        cache_variables = {"JAX_COMPILATION_CACHE_DIR": str(cache or CACHE)}
        return Daemon(lambda: self.child(name, *command, **cache_variables, **CACHE_ALL), port)


CACHE = Path(__file__).parent.parent / ".cache" / "compiled"
"""What one daemon compiles, the next one finds: only start-up is about compiling, and it has a cache of its own."""
CACHE_ALL = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
NO_TRAINING: dict[str, object] = {"on_start": False, "every_ticks": 0, "every_ratio": 0, "drift": False}


class Daemon:
    """A running daemon: in a `with` block, stopped at its end."""

    def __init__(self, start: Callable[[], Child], port: int) -> None:
        self._start = start
        self.url = f"http://127.0.0.1:{port}"

    def __enter__(self) -> Self:
        self.started_s = time.time()
        self.child = self._start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.child.stop()

    def scrape(self) -> Scrape:
        """Its metrics now."""
        self.check()
        return scrape(self.url)

    def await_ready(self) -> None:
        """Until it answers ticks."""
        until(lambda: "ready" in self.events(), READY_S, "the daemon to be ready", self.child)

    def check(self) -> None:
        """Raise when it has ended."""
        check(self.child)

    def events(self) -> dict[str, float]:
        """When it first logged each kind of event, epoch seconds."""
        found: dict[str, float] = {}
        for line in self.child.output.read_text(errors="replace").splitlines():
            try:
                event: dict[str, Any] = json.loads(line)
                found.setdefault(event["event"], datetime.fromisoformat(event["timestamp"]).timestamp())
            except (ValueError, KeyError, TypeError):
                continue  # not a line of the log
        return found

    def resident_bytes(self) -> int:
        """What it takes of the machine's memory now."""
        return psutil.Process(self.child.pid).memory_info().rss


def until(
    done: Callable[[], bool], timeout_s: float, what: str, *children: Child, every_s: float = 0.1
) -> None:
    """Wait; raise when it takes too long, or when one of the processes ends meanwhile."""
    deadline_s = time.monotonic() + timeout_s
    while not done():
        for child in children:
            check(child)
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"waited {timeout_s:g} s for {what}")
        time.sleep(every_s)


def check(child: Child) -> None:
    """Raise when a process has ended that should run."""
    if child.exit_code is not None:
        raise RuntimeError(f"{child.name} ended with {child.exit_code}:\n{child.tail()}")


def ends(log: Log, topic: str) -> dict[int, int]:
    """The end of each partition."""
    return log.end_offsets(topic, range(PARTITIONS))


def _toml(config: Sections) -> str:
    lines: list[str] = []
    for section, keys in config.items():
        lines += [f"[{section}]", *(f"{key} = {_literal(value)}" for key, value in keys.items()), ""]
    return "\n".join(lines)


def _literal(value: object) -> str:
    """JSON's literals of these types are TOML's."""
    return json.dumps(list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value)
