"""The source process: fills the log with history at once, and from SIGUSR1 on sends ticks at a steady rate; with
`--live` at once, and in event times that are those of the clock, for a deployment that is watched by rules.

    python -m forecaster.demo.ticks --bootstrap HOST:PORT [--rate N] [--data FILE] [--seed N] [--live]

Ticks come from `simulate`, or from a file with the columns series, ts, value and any others, played in time
order. It knows the topic and the wire format, nothing of forecasts. What it has done is told on standard
output, a line for each stage.
"""

import argparse
import json
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import orjson

from forecaster.core.tick import TickSpec
from forecaster.demo.simulate import PRICES, SENSORS, START_S, STEP_S, Sample, simulate
from forecaster.errors import BrokerError
from forecaster.shell.kafka.sink import Sink
from forecaster.shell.kafka.spec import KafkaSpec, TopicsSpec
from forecaster.shell.replay import read_ticks

DEFAULT_RATE = 120.0
HISTORY = 36_000  # ticks: a month of each simulated series
FILE_HISTORY_SHARE = 0.5  # of a file, and never more than HISTORY
SLICE_S = 0.02  # ticks are sent in bunches, so that waiting costs nothing
FLUSH_S = 30.0
PLAY = signal.SIGUSR1  # from here on at a steady rate

Message = tuple[bytes, bytes]
"""Key and value of a tick."""


def read_file(path: Path) -> list[Message]:
    """The rows of a file in time order; those of one time stay in the order of the file. Raises DataError."""
    records = read_ticks(path, TickSpec.model_validate({}), in_order=False)
    return [(record.key or b"", record.value or b"") for record in records]


def simulated(seed: int) -> Iterator[Message]:
    """What `simulate` gives, without an end."""
    for sample in simulate(seed):
        yield _message(sample, sample.time_s)


def live(seed: int, rate: float) -> Iterator[Message]:
    """The same in event times of the clock: those of the history end now, a later step is of when it is taken."""
    step_s = (len(SENSORS) + len(PRICES)) / rate
    began_s = time.time() - HISTORY / rate
    newest, newest_s = -1.0, began_s
    for number, sample in enumerate(simulate(seed)):
        step = (sample.time_s - START_S) / STEP_S
        if step > newest:
            newest, newest_s = step, time.time()
            if number < HISTORY:
                newest_s = min(newest_s, began_s + step * step_s)
        yield _message(sample, newest_s - (newest - step) * step_s)


def _message(sample: Sample, time_s: float) -> Message:
    tick = {"series": sample.series, "ts": time_s, "value": sample.value}
    return sample.series.encode(), orjson.dumps(tick)


class Feed:
    """Ticks -> the ticks topic."""

    def __init__(self, bootstrap_servers: str) -> None:
        self._sink = Sink(KafkaSpec.model_validate({"bootstrap_servers": bootstrap_servers}))
        self._topic = TopicsSpec.model_validate({}).ticks
        self.sent = 0

    def fill(self, messages: Iterable[Message]) -> None:
        """Send as fast as the broker takes them, and wait until it has them all."""
        for message in messages:
            while not self._sink.room():
                time.sleep(0.001)
            self._send(message)
        if not self._sink.flush(FLUSH_S):
            raise BrokerError(f"history could not be sent: {self._sink.failure}")

    def play(self, messages: Iterator[Message], rate: float) -> None:
        """Send `rate` ticks a second until they end. Never catches up in a burst after a stall."""
        due = 0.0
        before = time.monotonic()
        while True:
            time.sleep(SLICE_S)
            now = time.monotonic()
            due += min((now - before) * rate, rate)
            before = now
            bunch = list(islice(messages, int(due)))
            for message in bunch:
                self._send(message)
            self._sink.settle()
            if self._sink.failure is not None:
                raise BrokerError(f"ticks could not be sent: {self._sink.failure}")
            if len(bunch) < int(due):
                self._sink.flush(FLUSH_S)
                return
            due -= len(bunch)

    def close(self) -> None:
        """Let the connection go; what is not yet sent is lost."""
        self._sink.close(1.0)

    def _send(self, message: Message) -> None:
        key, value = message
        self._sink.send(self._topic, value, key)
        self.sent += 1


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The arguments of the process; None: those that it was started with."""
    parser = argparse.ArgumentParser(prog="python -m forecaster.demo.ticks")
    parser.add_argument("--bootstrap", required=True, metavar="HOST:PORT")
    parser.add_argument("--rate", type=float, default=DEFAULT_RATE, help="ticks a second")
    parser.add_argument("--data", type=Path, help="CSV or Parquet file: series, ts, value")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--live", action="store_true", help="simulate ticks of just now, and play at once")
    return parser.parse_args(arguments)


def main() -> None:
    """Run as a process: until the ticks end, or SIGTERM."""
    arguments = parse()
    signal.signal(signal.SIGTERM, _leave)
    asked = threading.Event()
    signal.signal(PLAY, lambda *_: asked.set())
    messages, history = stream(arguments)
    feed = Feed(arguments.bootstrap)
    feed.fill(islice(messages, history))
    _tell("history", feed.sent)
    if not arguments.live:
        asked.wait()
    feed.play(messages, arguments.rate)
    _tell("end", feed.sent)
    feed.close()


def stream(arguments: argparse.Namespace) -> tuple[Iterator[Message], int]:
    """The ticks, and how many of them are history."""
    if arguments.data is None:
        seed, rate = arguments.seed, arguments.rate
        return live(seed, rate) if arguments.live else simulated(seed), HISTORY
    messages = read_file(arguments.data)
    return iter(messages), min(HISTORY, round(len(messages) * FILE_HISTORY_SHARE))


def _tell(stage: str, ticks: int) -> None:
    sys.stdout.write(json.dumps({"stage": stage, "ticks": ticks}) + "\n")
    sys.stdout.flush()


def _leave(*_: object) -> None:
    raise SystemExit(0)


if __name__ == "__main__":
    main()
