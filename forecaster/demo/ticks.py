"""The source process: fills the log with history at once, and from SIGUSR1 on sends ticks at a steady rate.

    python -m forecaster.demo.ticks --bootstrap HOST:PORT [--rate N] [--data FILE.csv] [--seed N]

Ticks come from `simulate`, or from a CSV file with the columns series, ts, value and any covariates, played in
time order. It knows the topic and the wire format, nothing of forecasts. What it has done is told on standard
output, a line for each stage.
"""

import argparse
import csv
import json
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import orjson

from forecaster.demo.simulate import Sample, simulate
from forecaster.errors import BrokerError, DataError
from forecaster.shell.kafka.sink import Sink
from forecaster.shell.kafka.spec import KafkaSpec, TopicsSpec

DEFAULT_RATE = 120.0
HISTORY = 36_000  # ticks: a month of each simulated series
FILE_HISTORY_SHARE = 0.5  # of a file, and never more than HISTORY
SLICE_S = 0.02  # ticks are sent in bunches, so that waiting costs nothing
FLUSH_S = 30.0
PLAY = signal.SIGUSR1  # from here on at a steady rate


def read_csv(path: Path) -> list[Sample]:
    """The ticks of a file in time order; those of one time stay in the order of the file."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = csv.DictReader(file)
            if missing := {"series", "ts", "value"} - set(rows.fieldnames or ()):
                raise DataError(f"{path}: columns series, ts and value are needed; {sorted(missing)} missing")
            samples = [_sample(path, number, row) for number, row in enumerate(rows, 2)]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    if not samples:
        raise DataError(f"{path} has no ticks")
    return sorted(samples, key=lambda sample: sample.time_s)


def _sample(path: Path, number: int, row: dict[str, str]) -> Sample:
    try:
        series, ts, value = row.pop("series"), float(row.pop("ts")), float(row.pop("value"))
        return Sample(series, ts, value, {name: float(text) for name, text in row.items() if text})
    except (KeyError, TypeError, ValueError):
        raise DataError(
            f"{path}, line {number}: all columns but series have to be numbers, got {row}"
        ) from None


class Feed:
    """Ticks -> the ticks topic: as JSON objects, keyed by series."""

    def __init__(self, bootstrap_servers: str) -> None:
        self._sink = Sink(KafkaSpec.model_validate({"bootstrap_servers": bootstrap_servers}))
        self._topic = TopicsSpec.model_validate({}).ticks
        self.sent = 0

    def fill(self, samples: Iterable[Sample]) -> None:
        """Send as fast as the broker takes them, and wait until it has them all."""
        for sample in samples:
            while not self._sink.room():
                time.sleep(0.001)
            self._send(sample)
        if not self._sink.flush(FLUSH_S):
            raise BrokerError(f"history could not be sent: {self._sink.failure}")

    def play(self, samples: Iterator[Sample], rate: float) -> None:
        """Send `rate` ticks a second until they end. Never catches up in a burst after a stall."""
        due = 0.0
        before = time.monotonic()
        while True:
            time.sleep(SLICE_S)
            now = time.monotonic()
            due += min((now - before) * rate, rate)
            before = now
            bunch = list(islice(samples, int(due)))
            for sample in bunch:
                self._send(sample)
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

    def _send(self, sample: Sample) -> None:
        tick = {"series": sample.series, "ts": sample.time_s, "value": sample.value, **sample.more}
        self._sink.send(self._topic, orjson.dumps(tick), sample.series.encode())
        self.sent += 1


def main() -> None:
    """Run as a process: until the ticks end, or SIGTERM."""
    parser = argparse.ArgumentParser(prog="python -m forecaster.demo.ticks")
    parser.add_argument("--bootstrap", required=True, metavar="HOST:PORT")
    parser.add_argument("--rate", type=float, default=DEFAULT_RATE, help="ticks a second")
    parser.add_argument("--data", type=Path, help="CSV file with the columns series, ts, value")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, _leave)
    asked = threading.Event()
    signal.signal(PLAY, lambda *_: asked.set())
    samples, history = _stream(arguments.data, arguments.seed)
    feed = Feed(arguments.bootstrap)
    feed.fill(islice(samples, history))
    _tell("history", feed.sent)
    asked.wait()
    feed.play(samples, arguments.rate)
    _tell("end", feed.sent)
    feed.close()


def _stream(data: Path | None, seed: int) -> tuple[Iterator[Sample], int]:
    """The ticks, and how many of them are history."""
    if data is None:
        return simulate(seed), HISTORY
    samples = read_csv(data)
    return iter(samples), min(HISTORY, round(len(samples) * FILE_HISTORY_SHARE))


def _tell(stage: str, ticks: int) -> None:
    sys.stdout.write(json.dumps({"stage": stage, "ticks": ticks}) + "\n")
    sys.stdout.flush()


def _leave(*_: object) -> None:
    raise SystemExit(0)


if __name__ == "__main__":
    main()
