"""Ticks at a steady rate, of contents that a seed decides: mostly good, some late, some twice, some no ticks at all.

Each series is a noisy cycle, so that a network that was trained on a few hundred ticks beats the last value.
"""

import json
import math
import random
from collections import Counter
from collections.abc import Callable

from kafka import KafkaProducer

from tests.faults.background import Background
from tests.folds import START_S

SERIES = 3  # of each partition
BAD = (b"", b"{", b'{"series": "bad"}', b'{"series": "bad", "ts": 1, "value": NaN}', b"\xff\xfe")
CYCLE = 12  # steps
SLICE_S = 0.05

Message = tuple[int, bytes | None]
"""Partition and value."""


class Ticks:
    """An endless sequence of messages; the same for the same seed.

    Each of the `series` of a partition makes room for another one after `life` ticks, where that is not 0.
    """

    def __init__(self, seed: int, partitions: int, series: int = SERIES, life: int = 0) -> None:
        self._random = random.Random(seed)
        self._partitions, self._series, self._life = partitions, series, life
        self._time_s = START_S
        self._steps: Counter[str] = Counter()
        self._last: dict[int, bytes] = {}

    @property
    def born(self) -> int:
        """Series so far."""
        return sum(1 + (steps // self._life if self._life else 0) for steps in self._steps.values())

    def next(self) -> Message:
        """One more."""
        draw, partition = self._random.random(), self._random.randrange(self._partitions)
        if draw < 0.02 and partition in self._last:
            return partition, self._last[partition]
        if draw < 0.03:
            return partition, self._random.choice(BAD)
        self._time_s += self._random.uniform(0.01, 1.0)
        place = self._random.randrange(self._series)
        series = f"s{partition}{place}"
        step = self._steps[series]
        self._steps[series] += 1
        cycle = math.sin(2 * math.pi * self._steps[series] / CYCLE)
        if self._life:  # staggered, so that they do not all change at once
            series += f".{(step + place * self._life // self._series) // self._life}"
        value = 100.0 + 10.0 * cycle + self._random.gauss(0.0, 0.5)
        late_s = 1000.0 if draw > 0.98 else 0.0
        tick = json.dumps({"series": series, "ts": self._time_s - late_s, "value": value}).encode()
        self._last[partition] = tick
        return partition, tick


class Load(Background):
    """A producer that sends until it is stopped; it waits for a broker that is away."""

    def __init__(
        self, servers: str, topic: str, next_tick: Callable[[], Message], ticks_per_s: float
    ) -> None:
        super().__init__("load")
        self.sent = 0
        self._producer = KafkaProducer(bootstrap_servers=servers.split(","), linger_ms=5, acks="all")
        self._topic, self._next, self._rate = topic, next_tick, ticks_per_s

    def _close(self) -> None:
        self._producer.flush(30)
        self._producer.close()

    def _run(self) -> None:
        due = 0.0
        while not self._stop.wait(SLICE_S):
            due += self._rate * SLICE_S
            while due >= 1.0 and not self._stop.is_set():
                partition, value = self._next()
                self._producer.send(self._topic, value, partition=partition)
                self.sent, due = self.sent + 1, due - 1.0
