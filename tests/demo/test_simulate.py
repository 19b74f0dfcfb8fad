"""The simulated stream is always the same, has the faults it promises, and something that can be learned."""

from collections import defaultdict
from itertools import islice

import numpy as np

from forecaster.demo.simulate import DAY_STEPS, PRICES, SENSORS, STEP_S, Sample, simulate

TICKS = 36_000
HORIZON = 12


def by_series(samples: list[Sample]) -> dict[str, list[Sample]]:
    grouped = defaultdict(list)
    for sample in samples:
        grouped[sample.series].append(sample)
    return grouped


def test_one_seed_gives_one_stream() -> None:
    assert list(islice(simulate(3), 500)) == list(islice(simulate(3), 500))
    assert list(islice(simulate(3), 500)) != list(islice(simulate(4), 500))


def test_sensors_fall_silent_repeat_themselves_and_come_late_but_prices_do_not() -> None:
    samples = by_series(list(islice(simulate(1), TICKS)))
    for series in (*SENSORS, *PRICES):
        steps = np.diff([sample.time_s for sample in samples[series.series]]) / STEP_S
        faulty = [(steps > 2).any(), (steps == 0).any(), (steps < 0).any()]
        assert all(faulty) if series in SENSORS else not any(faulty), series.series


def test_a_day_repeats_itself_for_sensors_only() -> None:
    """Yesterday's value beats the last value for sensors, not for prices: there is something to learn."""
    samples = by_series(list(islice(simulate(1), TICKS)))
    for series in (*SENSORS, *PRICES):
        value = {sample.time_s: sample.value for sample in samples[series.series]}
        ahead, day = HORIZON * STEP_S, DAY_STEPS * STEP_S
        known = [t for t in value if t - ahead in value and t - day in value]
        last = np.mean([abs(value[t] - value[t - ahead]) for t in known])
        yesterday = np.mean([abs(value[t] - value[t - day]) for t in known])
        assert (yesterday < 0.5 * last) == (series in SENSORS), series.series


def test_the_volatility_of_prices_bursts() -> None:
    """Tails far beyond a normal distribution's, for which the kurtosis is 3."""
    samples = by_series(list(islice(simulate(1), TICKS)))
    for price in PRICES:
        returns = np.diff(np.log([sample.value for sample in samples[price.series]]))
        assert np.mean(returns**4) / np.mean(returns**2) ** 2 > 4
