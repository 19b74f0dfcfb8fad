"""Starts broker, source and daemon as processes of their own, and shows what happens.

What it starts ends with it, and nothing is left behind: all files are in one temporary directory. On a
terminal the view is drawn in place; elsewhere plain lines are printed. No forecasting and no Kafka client
here.
"""

import argparse
import json
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from rich.console import Console
from rich.live import Live

from forecaster.demo.broker import LOOPBACK, SESSION_TIMEOUT_S, Broker, free_port
from forecaster.demo.figures import Figures
from forecaster.demo.processes import Child
from forecaster.demo.simulate import PRICES, SENSORS
from forecaster.demo.ticks import DEFAULT_RATE, PLAY, read_file
from forecaster.demo.view import Stages, State, line, screen
from forecaster.errors import ForecasterError
from forecaster.shell.kafka.admin import Admin
from forecaster.shell.kafka.log import Follower
from forecaster.shell.kafka.spec import KafkaSpec, TopicsSpec
from forecaster.shell.prediction import decode

TOPICS = {"create_partitions": 2, "create_replication": 1}
FRAME_S = 0.2
POLLS, POLL_S = 8, 0.01  # in a frame: enough for the backlog at the start, little while nothing comes
SCRAPE_S = 1.0
LINE_S = 5.0
HISTORY_TIMEOUT_S = 120.0
ROOM = 16  # series: a table that is no larger starts sooner
STOP = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

CONFIG = """\
[kafka]
bootstrap_servers = "{bootstrap_servers}"
group_id = "forecaster-demo"
start = "earliest"
session_timeout_s = {session_timeout_s}

[tick]
future_s = 1e12 # event time is in a hurry, and overtakes the clock

[series]
max_series = {most_series}

[training]
every_ticks = 15_000
fit_s = 45.0

[metrics]
series = {listed}

[http]
port = {port}
"""


class Demo:
    """The processes and what is known of them. What has to be undone goes onto `stack`."""

    def __init__(self, arguments: argparse.Namespace, console: Console, stack: ExitStack) -> None:
        self._arguments = arguments
        self._console = console
        self._stack = stack
        self._directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="forecaster-demo-")))
        self._url = f"http://{LOOPBACK}:{free_port()}"
        source, order = _described(arguments.data)
        self._topics = TopicsSpec.model_validate(TOPICS)
        self.state = State(source, Figures(self._url), Stages(time.monotonic()), order=order)

    def start(self) -> None:
        """Bring up everything, in order; what has been reached is printed."""
        self._broker = Broker(self._directory)
        self._stack.callback(self._broker.stop)
        self._kafka = KafkaSpec.model_validate({"bootstrap_servers": self._broker.bootstrap_servers})
        self._create_topics()
        self._reach("broker")
        self._source = self._start_source()
        ticks = self._await_history()
        self._reach("history")
        self._say(f"the log holds {ticks:,} ticks of history")
        self.state.stages.daemon_started(time.monotonic())
        self._daemon = self._start_daemon()
        self._follower = Follower(self._kafka, {self._topics.predictions: "beginning"})
        self._stack.callback(self._follower.close)
        self.state.hint = (
            f"Ctrl-C ends · retrain now: kill -USR1 {self._daemon.pid} · metrics: {self._url}/metrics"
        )

    def watch(self) -> None:
        """Show what happens until the time is over or KeyboardInterrupt; the last picture stays."""
        seconds = self._arguments.seconds
        until = time.monotonic() + seconds if seconds else float("inf")
        next_scrape = 0.0
        try:
            with self._canvas() as draw:
                while (now := time.monotonic()) < until:
                    if now >= next_scrape:
                        self.state.figures.read()
                        next_scrape = now + SCRAPE_S
                    self._take_predictions()
                    self._note_stages()
                    self._check_children()
                    draw()
                    time.sleep(FRAME_S)
        finally:
            self.state.hint = ""
            self._console.print(screen(self.state, time.monotonic(), self._console.width, None))

    # --- starting ----------------------------------------------------------------------------------------

    def _create_topics(self) -> None:
        admin = Admin(self._kafka)
        admin.create_missing(self._topics)
        admin.close()

    def _start_source(self) -> Child:
        arguments = ["--bootstrap", self._broker.bootstrap_servers, "--rate", str(self._arguments.rate)]
        if self._arguments.data:
            arguments += ["--data", str(self._arguments.data)]
        return self._start("ticks", [sys.executable, "-m", "forecaster.demo.ticks", *arguments])

    def _await_history(self) -> int:
        """The number of ticks that the source has filled the log with."""
        deadline = time.monotonic() + HISTORY_TIMEOUT_S
        while time.monotonic() < deadline:
            for line_ in self._source.output.read_text().splitlines():
                if line_.startswith("{"):
                    return int(json.loads(line_)["ticks"])
            self._check(self._source)
            time.sleep(0.05)
        raise ForecasterError(f"the log was not filled within {HISTORY_TIMEOUT_S:.0f} s")

    def _start_daemon(self) -> Child:
        path = self._directory / "forecaster.toml"
        path.write_text(
            CONFIG.format(
                bootstrap_servers=self._broker.bootstrap_servers,
                session_timeout_s=SESSION_TIMEOUT_S,
                most_series=max(len(self.state.order), ROOM),
                listed=json.dumps(self.state.order[:1], ensure_ascii=False),
                port=self._url.rpartition(":")[2],
            )
        )
        return self._start("daemon", [sys.executable, "-m", "forecaster", "run", "--config", str(path)])

    def _start(self, name: str, command: list[str]) -> Child:
        child = Child(command, self._directory / f"{name}.log")
        self._stack.callback(child.stop)
        return child

    # --- watching ----------------------------------------------------------------------------------------

    def _take_predictions(self) -> None:
        for _ in range(POLLS):
            records = self._follower.poll(POLL_S)
            if not records:
                return
            for record in records:
                if record.value is not None:
                    self.state.add(decode(record.value))

    def _note_stages(self) -> None:
        state = self.state
        newest = [scores.newest for scores in state.series.values()]
        if state.figures.ready:
            self._reach("ready")
        if newest and "first forecast" not in state.stages.reached:  # of any series
            self._reach("first forecast")
            # Not earlier: a short file would be over before there is anything to see.
            self._source.signal(PLAY)
        if any(prediction and prediction.model and prediction.status == "ok" for prediction in newest):
            self._reach("first trained network")

    def _check_children(self) -> None:
        self._check(self._daemon)
        self._check(self._broker.child)
        if self._source.exit_code == 0:
            self.state.source = f"{self._arguments.data.name}, played to its end"
        else:
            self._check(self._source)

    def _check(self, child: Child) -> None:
        if child.exit_code is not None:
            raise ForecasterError(f"{child.name} ended with {child.exit_code}:\n{child.tail()}")

    # --- showing -----------------------------------------------------------------------------------------

    @contextmanager
    def _canvas(self) -> Generator[Callable[[], None]]:
        """What to call when there is something new: it draws in place, or prints a line now and then."""
        console, state = self._console, self.state
        next_line = time.monotonic() + LINE_S

        def print_line() -> None:
            nonlocal next_line
            if (now := time.monotonic()) >= next_line:
                next_line += LINE_S
                self._say(line(state, now))

        if not console.is_terminal:
            yield print_line
            return
        with Live(console=console, screen=True, auto_refresh=False) as live:
            yield lambda: live.update(
                screen(state, time.monotonic(), console.width, console.height), refresh=True
            )

    def _reach(self, stage: str) -> None:
        sentence = self.state.stages.reach(stage, time.monotonic())
        if sentence is not None and not (self._console.is_terminal and self.state.hint):
            self._say(sentence)

    def _say(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)


def _described(data: Path | None) -> tuple[str, Sequence[str]]:
    """What is played, in words, and its series in the order in which they are shown. Raises DataError."""
    if data is None:
        return "simulated sensors and prices", [series.series for series in (*SENSORS, *PRICES)]
    messages = read_file(data)
    series = sorted({key.decode() for key, _ in messages})
    return f"{data.name}: {len(messages):,} ticks of {len(series)} series", series


def _positive(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return number


def main() -> None:
    """Run until Ctrl-C, SIGTERM, a closed terminal, or `--seconds`."""
    parser = argparse.ArgumentParser(prog="python -m forecaster.demo", description="forecaster, live")
    parser.add_argument(
        "--data", type=Path, help="play this CSV or Parquet file (series, ts, value) in time order"
    )
    parser.add_argument("--rate", type=_positive, default=DEFAULT_RATE, help="ticks a second")
    parser.add_argument("--seconds", type=_positive, help="end by itself, so long after the daemon's start")
    arguments = parser.parse_args()
    for number in STOP:
        signal.signal(number, signal.default_int_handler)
    console = Console()
    try:
        _run(arguments, console)
    except KeyboardInterrupt:
        pass  # the usual way to end it
    except ForecasterError as error:
        console.print(f"{type(error).__name__}: {error}", style="red", highlight=False, markup=False)
        sys.exit(error.exit_code)


def _run(arguments: argparse.Namespace, console: Console) -> None:
    with ExitStack() as stack:
        try:
            demo = Demo(arguments, console, stack)
            demo.start()
            demo.watch()
        finally:
            for number in STOP:
                signal.signal(number, signal.SIG_IGN)  # the stack is undone in peace
            console.print("ending what was started", style="dim")
