"""A seed -> an endless, always equal stream of ticks: prices and sensors, with the faults of real ones.

Prices are random walks whose volatility bursts: nobody can beat their last value, and the intervals have
to widen and narrow with them. Sensors follow the day, drift, are noisy, fall silent for a while, repeat
themselves and come late: there a network can learn something. A step is a quarter of an hour of event
time, so that a day is 96 ticks of each series and passes within seconds. No clock and no broker here:
whoever reads the stream sets its pace.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from math import exp, pi, sin
from typing import NamedTuple

import numpy as np

STEP_S = 900.0
DAY_STEPS = 96
START_S = 1_704_067_200.0  # 2024-01-01T00:00:00Z

BURST_BEGINS, BURST_ENDS = 1 / 400, 1 / 40  # chance at each step
BURST = 4.0  # times the calm volatility
SILENCE_BEGINS, SILENCE_STEPS = 1 / 800, (3, 12)
DUPLICATE, LATE = 0.005, 0.003  # shares of a sensor's ticks
DRIFT = 0.002  # of the daily swing, a step


class Sample(NamedTuple):
    """One tick on its way to the log."""

    series: str
    time_s: float
    value: float


@dataclass(frozen=True)
class Price:
    """A random walk of the logarithm; `volatility` is its calm standard deviation of a step."""

    series: str
    start: float
    volatility: float
    decimals: int

    def walk(self, rng: np.random.Generator) -> Iterator[list[Sample]]:
        """The ticks of each step: one."""
        value, bursting = self.start, False
        for step in count():
            bursting = rng.random() >= BURST_ENDS if bursting else rng.random() < BURST_BEGINS
            value *= exp(self.volatility * (BURST if bursting else 1.0) * rng.standard_normal())
            yield [Sample(self.series, _time(step), round(value, self.decimals))]


@dataclass(frozen=True)
class Sensor:
    """A daily cycle of `swing` around `level`, with `noise` (a share of the swing) that lasts a few steps."""

    series: str
    level: float
    swing: float
    noise: float
    phase: float  # of the day, 0 to 1
    decimals: int
    floor: float = -np.inf

    def walk(self, rng: np.random.Generator) -> Iterator[list[Sample]]:
        """The ticks of each step as they arrive: none in a silence, one, one twice, one with an old one."""
        noise = drift = 0.0
        silent = 0
        held: list[Sample] = []
        for step in count():
            noise = 0.7 * noise + self.noise * rng.standard_normal()
            drift += DRIFT * rng.standard_normal()
            value = self.level + self.swing * (self.cycle(step) + noise + drift)
            sample = Sample(self.series, _time(step), round(max(value, self.floor), self.decimals))
            silent = silent - 1 if silent else self._silence(rng)
            fault = rng.random()
            if silent:
                yield []
            elif fault < LATE:
                held = [sample]
                yield []
            else:
                twice = fault > 1.0 - DUPLICATE
                yield [sample, *held, *([sample] if twice else [])]
                held = []

    def cycle(self, step: int) -> float:
        """The day without noise, about -1 to 1: steep in the morning, with a shoulder in the evening."""
        day = 2 * pi * (step / DAY_STEPS + self.phase)
        return (sin(day) + 0.35 * sin(2 * day + 0.6)) / 1.2

    @staticmethod
    def _silence(rng: np.random.Generator) -> int:
        return int(rng.integers(*SILENCE_STEPS)) if rng.random() < SILENCE_BEGINS else 0


SENSORS = (
    Sensor("grid.load.kw", 31_400.0, 6_200.0, 0.03, 0.62, 0),
    Sensor("roof.temperature", 14.0, 6.5, 0.04, 0.58, 2),
    Sensor("hall.humidity", 55.0, 9.0, 0.05, 0.12, 1),
    Sensor("pump.pressure.pa", 1_240_000.0, 38_000.0, 0.04, 0.35, 0),
    Sensor("solar.power.w", 900.0, 2_900.0, 0.03, 0.74, 0, floor=0.0),
    Sensor("river.flow", 18.2, 2.4, 0.06, 0.90, 2),
)
PRICES = (
    Price("EURUSD", 1.0840, 3e-4, 5),
    Price("USDJPY", 151.20, 4e-4, 3),
    Price("gold", 2_041.0, 8e-4, 2),
    Price("brent", 78.40, 1.6e-3, 2),
    Price("bitcoin", 43_250.0, 3e-3, 1),
    Price("tinycoin", 2.145e-5, 7e-3, 10),
)


def simulate(seed: int) -> Iterator[Sample]:
    """All series together, in the order of arrival. Each has a random stream of its own."""
    streams = [
        series.walk(np.random.default_rng([seed, number]))
        for number, series in enumerate((*SENSORS, *PRICES))
    ]
    for steps in zip(*streams, strict=True):
        for samples in steps:
            yield from samples


def _time(step: int) -> float:
    return START_S + step * STEP_S
