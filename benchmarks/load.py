"""Ticks for the benchmarks: a backlog written at once, or a steady rate from a process of its own.

python -m benchmarks.load BOOTSTRAP_SERVERS TOPIC RATE SERIES [BEFORE_S]      # until it is told to stop
"""

import argparse
import signal
import sys
import time
from collections.abc import Iterable, Iterator
from zlib import crc32

import numpy as np

from forecaster.shell.kafka.sink import Sink
from forecaster.shell.kafka.spec import KafkaSpec

TICK_S = 0.01  # event time from one tick of a backlog to the next
FLUSH_S = 60.0
ON_TIME_S = 0.001  # how early a tick may be sent


def uniform(count: int, series: int) -> np.ndarray:
    """Every series as often as any other; the number of each tick's series."""
    return np.arange(count) % series


def hot(count: int, series: int) -> np.ndarray:
    """Every other tick belongs to one series."""
    return np.where(np.arange(count) % 2, 0, uniform(count, 2 * series) // 2)


def zipf(count: int, series: int) -> np.ndarray:
    """The n-th busiest series has 1/n of the ticks of the busiest one."""
    share = 1 / np.arange(1, series + 1)
    return np.random.default_rng(0).choice(series, count, p=share / share.sum())


def backlog(kafka: KafkaSpec, topic: str, numbers: np.ndarray, before_s: float = 0.0) -> None:
    """Write ticks with event times up to now, or so long before, random walks around 100."""
    rng = np.random.default_rng(1)
    steps = rng.normal(size=len(numbers)).tolist()
    level = dict.fromkeys(numbers.tolist(), 100.0)
    start_s = time.time() - before_s - len(numbers) * TICK_S
    _send(kafka, topic, _walks(numbers.tolist(), steps, level, start_s))


def _walks(
    numbers: list[int], steps: list[float], level: dict[int, float], start_s: float
) -> Iterator[tuple[int, float, float]]:
    for i, (number, step) in enumerate(zip(numbers, steps, strict=True)):
        level[number] += step
        yield number, start_s + i * TICK_S, level[number]


def _send(kafka: KafkaSpec, topic: str, ticks: Iterable[tuple[int, float, float]]) -> None:
    sink = Sink(kafka, linger_ms=5)
    try:
        partitions = sink.partitions(topic)
        for number, time_s, value in ticks:
            name = b"series-%05d" % number
            tick = b'{"series":"%s","ts":%.3f,"value":%.3f}' % (name, time_s, value)
            sink.send(topic, tick, name, partition=crc32(name) % partitions)
            if not sink.room():
                sink.flush(FLUSH_S)
        if not sink.flush(FLUSH_S):
            raise TimeoutError(f"the broker did not take the ticks within {FLUSH_S:g} s")
    finally:
        sink.close(1.0)


def at_rate(rate: float, series: int, before_s: float = 0.0) -> Iterator[tuple[int, float, float]]:
    """For ever, each tick when it is due, with the time at which it is sent, or so long before."""
    rng = np.random.default_rng(2)
    level = [100.0] * series
    start_s = time.monotonic()
    number = 0
    while True:
        early_s = start_s + number / rate - time.monotonic()
        if early_s > ON_TIME_S:
            time.sleep(early_s)
        at = number % series
        level[at] += rng.standard_normal()
        yield at, time.time() - before_s, level[at]
        number += 1


def main() -> None:
    """The steady rate."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.load")
    parser.add_argument("bootstrap_servers")
    parser.add_argument("topic")
    parser.add_argument("rate", type=float)
    parser.add_argument("series", type=int)
    parser.add_argument("before_s", type=float, nargs="?", default=0.0)
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    kafka = KafkaSpec(bootstrap_servers=arguments.bootstrap_servers, linger_s=0.0)
    _send(kafka, arguments.topic, at_rate(arguments.rate, arguments.series, arguments.before_s))


if __name__ == "__main__":
    main()
