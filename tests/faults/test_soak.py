"""The judge of the soak: what is flat passes with its noise, what creeps is found."""

import random
from collections.abc import Callable

import pytest

from tests.faults.soak import SAMPLE_S, Sample, judge

HOUR = 3600.0


def grown(creep: Callable[[Sample, float], Sample]) -> set[str]:
    """The figures that grow over an hour of a worker that warms up, is noisy, and also does this."""
    chance = random.Random(1)
    samples = []
    for number in range(round(HOUR / SAMPLE_S)):
        at_s = number * SAMPLE_S
        warm_mb = 100.0 * min(1.0, at_s / 600.0)
        training = 3.0 * (at_s % 300.0 < 20.0)
        flat = Sample(
            at_s=at_s,
            memory_mb=500.0 + warm_mb + chance.gauss(0.0, 2.0),
            threads=23.0 + training,
            descriptors=30.0 + training + chance.randrange(3),
            compiles=70.0,
            lag=chance.expovariate(0.2),
            series=90.0 + chance.randrange(5),
        )
        samples.append(creep(flat, at_s / HOUR))
    return {verdict.measure.what for verdict in judge(samples) if not verdict.flat}


def test_noise_and_a_warm_up_are_flat() -> None:
    assert not grown(lambda sample, _: sample)


@pytest.mark.parametrize(
    ("what", "creep"),
    [
        ("resident memory, MiB", lambda s, h: s._replace(memory_mb=s.memory_mb + 60.0 * h)),
        ("threads", lambda s, h: s._replace(threads=s.threads + 12 * h // 1)),
        ("descriptors", lambda s, h: s._replace(descriptors=s.descriptors + 12 * h // 1)),
        ("programs compiled", lambda s, h: s._replace(compiles=s.compiles + (h > 0.99))),
        ("lag, ticks", lambda s, h: s._replace(lag=s.lag + 300.0 * h)),
        ("series held", lambda s, h: s._replace(series=s.series + 60.0 * h)),
    ],
)
def test_what_creeps_is_found(what: str, creep: Callable[[Sample, float], Sample]) -> None:
    assert grown(creep) == {what}
