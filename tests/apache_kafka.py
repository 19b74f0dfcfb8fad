"""Apache Kafka itself on loopback, for tests and benchmarks: one broker or a cluster, KRaft, Maven's jars.

In a test, ask for the session's broker (its address is a string) and use topic names of your own:

    def test_something(kafka: str) -> None: ...          # fixture of tests/conftest.py

A test that stops, kills or freezes brokers starts its own, and may have several nodes:

    with Cluster(nodes=3) as cluster:
        cluster.bootstrap_servers                        # "127.0.0.1:40001,127.0.0.1:40002,..."
        cluster.brokers[0].kill()                        # SIGKILL; its log stays
        cluster.brokers[0].start()                       # same port, same log, awaited
        cluster.brokers[1].pause(); cluster.brokers[1].resume()
        cluster.restart()                                # stop all cleanly, start all

By hand, or for a benchmark, it runs until Ctrl-C and prints the address as its first line:

    python -m tests.apache_kafka [--nodes N] [--port PORT]

Needs `java` (17 or newer) and, the first time, `mvn`: the jars of tests/broker/pom.xml are copied into
.cache/kafka/, once for each content of that file, also when several runs race. `KafkaMissingError` says what
is missing. Brokers end with the process that started them, even when it is killed. Nothing of forecaster may
be imported here.
"""

import argparse
import contextlib
import fcntl
import hashlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from base64 import urlsafe_b64encode
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Self

from kafka.admin import KafkaAdminClient
from kafka.errors import KafkaError

ROOT = Path(__file__).resolve().parent.parent
POM = ROOT / "tests" / "broker" / "pom.xml"
CACHE = ROOT / ".cache" / "kafka"
LOOPBACK = "127.0.0.1"
START_TIMEOUT_S = 90.0
STOP_TIMEOUT_S = 20.0
COPY_DEPENDENCIES = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies"
JVM = ("-Xms64m", "-Xmx384m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-XX:-UsePerfData")

# What every broker has, whatever their number: quick group joins, small buffers, nothing created by accident.
COMMON = {
    "process.roles": "broker,controller",
    "controller.listener.names": "CONTROLLER",
    "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT",
    "inter.broker.listener.name": "PLAINTEXT",
    "auto.create.topics.enable": "false",
    "group.initial.rebalance.delay.ms": "0",
    "group.min.session.timeout.ms": "500",
    "offsets.topic.num.partitions": "4",
    "transaction.state.log.num.partitions": "4",
    "num.network.threads": "2",
    "num.io.threads": "4",
    "log.cleaner.dedupe.buffer.size": str(8 << 20),
    "log.index.size.max.bytes": str(1 << 20),
    "broker.session.timeout.ms": "3000",  # a killed broker may come back after this long
    "broker.heartbeat.interval.ms": "500",
}


NO_DOORS: Mapping[str, str] = MappingProxyType({})


class KafkaMissingError(Exception):
    """Kafka cannot be run on this machine; the message says what is missing."""


class Broker:
    """One node, broker and controller in one JVM. Its ports and its log outlive restarts."""

    def __init__(
        self,
        node_id: int,
        port: int,
        properties: Path,
        classpath: str,
        proxied: tuple[int, int] | None = None,
        doors: Mapping[str, int] | None = None,
    ) -> None:
        self.node_id = node_id
        self.port = port
        self.doors = {name: f"{LOOPBACK}:{door}" for name, door in (doors or {}).items()}
        """The addresses of its further listeners, by name."""
        self.proxied = proxied
        """Where a proxy has to listen, and where it finds this node; None without."""
        self._properties = properties
        self._classpath = classpath
        self._output = properties.with_suffix(".log")
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        """Host and port that clients use."""
        return f"{LOOPBACK}:{self.port}"

    @property
    def pid(self) -> int | None:
        """The JVM's process id while it runs."""
        return self._process.pid if self._process and self._process.poll() is None else None

    def format(self, cluster_id: str) -> None:
        """Prepare the empty log directory, as every KRaft node needs once."""
        command = ["kafka.tools.StorageTool", "format", "-t", cluster_id, "-c", str(self._properties)]
        done = subprocess.run(_java(self._classpath, *command), capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"formatting failed:\n{done.stdout}{done.stderr}")

    def launch(self) -> None:
        """Start the JVM and return at once; `start` also waits until it serves."""
        with self._output.open("ab") as output:
            self._process = subprocess.Popen(
                [*_dies_with_parent(), *_java(self._classpath, "kafka.Kafka", str(self._properties))],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # Ctrl-C at the terminal is for the runner, which stops us in order
            )

    def start(self) -> None:
        """Start and wait until this node serves clients."""
        self.launch()
        self.await_ready()

    def await_ready(self, nodes: int = 1, timeout_s: float = START_TIMEOUT_S) -> None:
        """Wait until this node answers and knows at least `nodes` live brokers."""
        deadline = time.monotonic() + timeout_s
        while _live_brokers(self.address) < nodes:
            if self.pid is None:
                raise RuntimeError(f"broker {self.node_id} ended:\n{self.tail()}")
            if time.monotonic() > deadline:
                raise TimeoutError(f"broker {self.node_id} not ready in {timeout_s:.0f} s:\n{self.tail()}")
            time.sleep(0.1)

    def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> None:
        """Shut down cleanly; after `timeout_s` by force. Nothing happens when it does not run."""
        if self._process is None:
            return
        self.resume()
        self._signal(signal.SIGTERM)
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """End at once, as in a power cut; the log directory stays as it is."""
        self._signal(signal.SIGKILL)
        if self._process is not None:
            self._process.wait()

    def pause(self) -> None:
        """Freeze the process: connections stay open, nothing is answered."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Go on after `pause`."""
        self._signal(signal.SIGCONT)

    def restart(self) -> None:
        """Stop cleanly, start again on the same port and log."""
        self.stop()
        self.start()

    def tail(self, lines: int = 30) -> str:
        """The end of what the broker wrote, for messages of failed tests."""
        return "\n".join(self._output.read_text(errors="replace").splitlines()[-lines:])

    def _signal(self, number: signal.Signals) -> None:
        if (pid := self.pid) is not None:
            os.kill(pid, number)


class Cluster:
    """`nodes` brokers in a temporary directory, which goes with them when the `with` block ends."""

    def __init__(
        self,
        nodes: int = 1,
        port: int | None = None,
        settings: dict[str, str] | None = None,
        *,
        proxied: bool = False,
        doors: Mapping[str, str] = NO_DOORS,
    ) -> None:
        """`port` is the first node's (free ones otherwise); `settings` go over each broker's properties.

        With `proxied` each node has a second listener, which advertises the address of a proxy that the caller
        provides (`Broker.proxied`): who begins at the proxies stays behind them. `doors` are further listeners of
        each node, security protocols by name; what they ask for is in `settings`, under `listener.name.<name>.`.
        """
        ports = _free_ports((4 + len(doors)) * nodes)
        if port is not None:
            ports[0] = port
        classpath = find_classpath()
        self._directory = Path(tempfile.mkdtemp(prefix="forecaster-kafka-"))
        # A first byte of zero: an id that starts with "-" would be read as an option.
        self._cluster_id = urlsafe_b64encode(b"\0" + uuid.uuid4().bytes[1:]).decode().rstrip("=")
        clients, controllers, *ends = (ports[i * nodes : (i + 1) * nodes] for i in range(4 + len(doors)))
        voters = ",".join(f"{node}@{LOOPBACK}:{port}" for node, port in enumerate(controllers, 1))
        self.brokers: list[Broker] = []
        for node, (client_port, controller_port) in enumerate(zip(clients, controllers, strict=True), 1):
            address = f"PLAINTEXT://{LOOPBACK}:{client_port}"
            properties = COMMON | _replication(nodes) | {
                "node.id": str(node),
                "controller.quorum.voters": voters,
                "listeners": f"{address},CONTROLLER://{LOOPBACK}:{controller_port}",
                "advertised.listeners": address,
                "log.dirs": str(self._directory / f"node-{node}"),
            }  # fmt: skip
            pair = (ends[0][node - 1], ends[1][node - 1]) if proxied else None
            if pair is not None:
                properties["listeners"] += f",PROXIED://{LOOPBACK}:{pair[1]}"
                properties["advertised.listeners"] += f",PROXIED://{LOOPBACK}:{pair[0]}"
                properties["listener.security.protocol.map"] += ",PROXIED:PLAINTEXT"
            opened = {name: ends[i][node - 1] for i, name in enumerate(doors, 2)}
            for name, door in opened.items():
                properties["listeners"] += f",{name}://{LOOPBACK}:{door}"
                properties["advertised.listeners"] += f",{name}://{LOOPBACK}:{door}"
                properties["listener.security.protocol.map"] += f",{name}:{doors[name]}"
            path = self._directory / f"node-{node}.properties"
            path.write_text("".join(f"{k}={v}\n" for k, v in (properties | (settings or {})).items()))
            self.brokers.append(Broker(node, client_port, path, classpath, pair, opened))

    @property
    def bootstrap_servers(self) -> str:
        """All client addresses, separated by commas."""
        return ",".join(broker.address for broker in self.brokers)

    @property
    def proxied_servers(self) -> str:
        """The addresses of the proxies, separated by commas."""
        return ",".join(f"{LOOPBACK}:{broker.proxied[0]}" for broker in self.brokers if broker.proxied)

    def start(self) -> None:
        """Start all nodes and wait until each of them knows all others."""
        for broker in self.brokers:
            broker.launch()
        for broker in self.brokers:
            broker.await_ready(len(self.brokers))

    def stop(self) -> None:
        """Stop all nodes. They are told at the same time, since the last ones alone have no quorum."""
        for broker in self.brokers:
            broker.resume()
            broker._signal(signal.SIGTERM)
        for broker in self.brokers:
            broker.stop()

    def restart(self) -> None:
        """Stop all, start all; topics, offsets and transactions stay."""
        self.stop()
        self.start()

    def close(self) -> None:
        """Stop all nodes and remove their directory."""
        self.stop()
        shutil.rmtree(self._directory, ignore_errors=True)

    def __enter__(self) -> Self:
        try:
            for broker in self.brokers:
                broker.format(self._cluster_id)
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def find_classpath() -> str:
    """Kafka's jars as a Java class path, fetched by Maven once. Raises `KafkaMissingError`."""
    if shutil.which("java") is None:
        raise KafkaMissingError("Apache Kafka needs java, version 17 or newer, which is not on PATH")
    jars = CACHE / hashlib.sha256(POM.read_bytes()).hexdigest()[:16]
    if not jars.is_dir():
        if shutil.which("mvn") is None:
            raise KafkaMissingError(
                "the jars of Apache Kafka are fetched by mvn (Maven), which is not on PATH"
            )
        CACHE.mkdir(parents=True, exist_ok=True)
        with _locked(CACHE / "lock"):
            if not jars.is_dir():
                _fetch(jars)
    return str(jars / "*")


def _fetch(jars: Path) -> None:
    """Copy the dependencies beside `jars`, then rename: a directory that exists is complete."""
    partial = jars.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    command = ["mvn", "-q", "-B", "-f", str(POM), COPY_DEPENDENCIES, f"-DoutputDirectory={partial}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise KafkaMissingError(
            f"mvn could not fetch the jars of Apache Kafka:\n{done.stdout[-2000:]}{done.stderr[-500:]}"
        )
    partial.rename(jars)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _java(classpath: str, *command: str) -> list[str]:
    return ["java", *JVM, "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-cp", classpath, *command]


def _dies_with_parent() -> list[str]:
    """The prefix of a command which the kernel ends with this process (util-linux), where there is one."""
    return ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []


def _replication(nodes: int) -> dict[str, str]:
    """Internal topics survive the loss of one node of three; on a single node there is one copy."""
    copies, in_sync = str(min(nodes, 3)), str(2 if nodes >= 3 else 1)
    return {
        "default.replication.factor": copies,
        "min.insync.replicas": in_sync,
        "offsets.topic.replication.factor": copies,
        "transaction.state.log.replication.factor": copies,
        "transaction.state.log.min.isr": in_sync,
        "share.coordinator.state.topic.replication.factor": copies,
        "share.coordinator.state.topic.min.isr": in_sync,
    }


def _free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now. All are held until the last is found, so they differ."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for free in sockets:
            free.bind((LOOPBACK, 0))
        return [free.getsockname()[1] for free in sockets]


def _live_brokers(address: str) -> int:
    """How many brokers the one at `address` knows; 0 while it does not answer."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=1).close()  # cheap while nobody listens
        admin = KafkaAdminClient(bootstrap_servers=address, request_timeout_ms=2_000)
    except (OSError, KafkaError):
        return 0
    try:
        return len(admin.describe_cluster()["brokers"])
    except KafkaError:
        return 0
    finally:
        admin.close()


def main() -> None:
    """Run brokers until Ctrl-C or SIGTERM; the first line printed is their address."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.apache_kafka", description="Apache Kafka on loopback."
    )
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--port", type=int, help="of the first node; a free one otherwise")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with contextlib.suppress(KeyboardInterrupt), Cluster(arguments.nodes, arguments.port) as cluster:
        print(cluster.bootstrap_servers, flush=True)
        signal.pause()


if __name__ == "__main__":
    main()
