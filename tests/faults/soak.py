"""`python -m tests.faults.soak`: hours of ordinary work, and whether anything of a worker grows.

Ticks come at a steady rate, from series that live for some minutes each and then make room for others. Every five
minutes a network is trained; a second worker joins, and leaves in order or is killed. Meanwhile the first one is
weighed. What it weighs after its warm-up (the first third) has to be flat, within the bounds of `MEASURES`, and the
oracle of the fault tests has to find every answer right. The figures go into docs/faults.md.
"""

import argparse
import math
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import psutil

from forecaster.demo.figures import Scrape
from tests.daemons import Worker
from tests.faults.load import Ticks
from tests.faults.report import Findings, stamp
from tests.faults.rig import Rig, Stage

SAMPLE_S = 5.0
RETRAIN_S = 300.0
GUEST_S = 120.0  # the second worker is there for so long, and away for so long
WARM_UP_RATIO = 1 / 3
PARTITIONS = 4
SERIES = 16  # of each partition, at any time
LIFE = 400  # ticks of a series before another one takes its place
IDLE_S = 5000.0  # event time, of which a tick takes half a second
SETTINGS = {
    "series": {"max_series": 256, "idle_s": IDLE_S},
    "training": {"burn_in": 4, "span": 8, "history_ticks": 20_000, "fit_s": 20, "cooldown_s": 0},
}


class Sample(NamedTuple):
    """The first worker at one moment."""

    at_s: float
    memory_mb: float
    threads: float
    descriptors: float
    compiles: float
    lag: float
    series: float


class Measure(NamedTuple):
    """One figure of a sample, how its growth is found, and the most of it."""

    what: str
    value: Callable[[Sample], float]
    growth: Callable[[Sequence[float], Sequence[float]], float]
    most: float
    unit: str


def an_hour(at_s: Sequence[float], values: Sequence[float]) -> float:
    """The slope of the line through all of them."""
    return 3600.0 * statistics.linear_regression(at_s, values).slope


def in_all(_at_s: Sequence[float], values: Sequence[float]) -> float:
    """From the least to the most."""
    return max(values) - min(values)


MEASURES = (
    Measure("resident memory, MiB", lambda s: s.memory_mb, an_hour, 30.0, "an hour"),
    Measure("threads", lambda s: s.threads, an_hour, 1.0, "an hour"),
    Measure("descriptors", lambda s: s.descriptors, an_hour, 2.0, "an hour"),
    Measure("programs compiled", lambda s: s.compiles, in_all, 0.0, "in all"),
    Measure("lag, ticks", lambda s: s.lag, an_hour, 100.0, "an hour"),
    Measure("series held", lambda s: s.series, an_hour, 20.0, "an hour"),
)


class Verdict(NamedTuple):
    """What became of one figure after the warm-up."""

    measure: Measure
    first: float  # medians of the first and the last tenth
    last: float
    most: float
    growth: float

    @property
    def flat(self) -> bool:
        """Whether it stayed within its bound."""
        return self.growth <= self.measure.most


def judge(samples: Sequence[Sample]) -> list[Verdict]:
    """Every figure, of what comes after the warm-up."""
    kept = samples[math.ceil(len(samples) * WARM_UP_RATIO) :]
    tenth = max(1, len(kept) // 10)
    verdicts = []
    for measure in MEASURES:
        values = [measure.value(sample) for sample in kept]
        verdicts.append(
            Verdict(
                measure,
                statistics.median(values[:tenth]),
                statistics.median(values[-tenth:]),
                max(values),
                measure.growth([sample.at_s for sample in kept], values),
            )
        )
    return verdicts


def table(verdicts: Sequence[Verdict]) -> list[str]:
    """As Markdown."""
    lines = ["| | first | last | most | growth | bound | result |", "|---|---:|---:|---:|---:|---:|---|"]
    for verdict in verdicts:
        measure, *figures, growth = verdict
        numbers = " | ".join(f"{number:,.4g}" for number in figures)
        bounds = f"{growth:+.2f} {measure.unit} | {measure.most:g} {measure.unit}"
        result = "flat" if verdict.flat else "GROWS"
        lines.append(f"| {measure.what} | {numbers} | {bounds} | {result} |")
    return lines


def weigh(worker: Worker, at_s: float) -> Sample | None:
    """The worker now; None when it is too busy to say."""
    process = psutil.Process(worker.child.pid)
    text = worker.get("/metrics")
    if text is None:
        return None
    figures = Scrape(text, at_s)
    return Sample(
        at_s,
        process.memory_info().rss / 2**20,
        process.num_threads(),
        process.num_fds(),
        figures.total("forecaster_compiles_total"),
        figures.total("forecaster_consumer_lag_messages"),
        figures.total("forecaster_series"),
    )


def work(rig: Rig, seconds: float, rate: float) -> Iterator[Sample]:
    """Everything that goes on, for so long; a sample at each look."""
    resident = rig.start("resident")
    rig.load(rate)
    began_s = time.monotonic()
    retrain_s, guest_s = RETRAIN_S, GUEST_S
    guest: Worker | None = None
    while (now_s := time.monotonic() - began_s) < seconds:
        if now_s >= retrain_s:
            resident.child.signal(signal.SIGUSR1)
            retrain_s += RETRAIN_S
        if now_s >= guest_s:
            guest = _come_or_go(rig, guest)
            guest_s += GUEST_S
        if sample := weigh(resident, now_s):
            yield sample
        time.sleep(SAMPLE_S)


def _come_or_go(rig: Rig, guest: Worker | None) -> Worker | None:
    """The second worker joins; or leaves, in order and by force in turns."""
    if guest is None:
        return rig.start("guest", ready=False)
    if rig.tried % 2:
        assert guest.end() == 0, guest.child.tail(30)
        rig.tried += 1
    else:
        rig.kill(guest)
    return None


def about(rig: Rig, samples: Sequence[Sample], seconds: float, rate: float, delivery: str) -> str:
    """What was done, for docs/faults.md."""
    outcomes = [event["outcome"] for worker in rig.workers for event in worker.events("retrain_ended")]
    kinds = ", ".join(f"{outcomes.count(kind)} {kind}" for kind in sorted(set(outcomes)))
    return (
        f"{stamp()}: {seconds / 60:.0f} minutes at {rate:g} ticks/s, `{delivery}`, {PARTITIONS} partitions with"
        f" {SERIES} series each, of which each lives for {LIFE} ticks ({rig.ticks.born:,} in all). A second worker"
        f" joined {len(rig.workers) - 1} times, and left in order or was killed; {len(outcomes)} retrains ({kinds})."
        f" {len(samples)} looks at the first worker, of which the first third is warm-up. The oracle found"
        f" {rig.reader.count:,} answers as they should be."
    )


def main() -> int:
    """Soak, write, and say by the exit code whether all was flat."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.soak")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--rate", type=float, default=80.0, help="ticks a second")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--delivery", default="exactly_once", choices=["at_least_once", "exactly_once"])
    given = parser.parse_args()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    seconds = 60.0 * given.minutes
    samples: list[Sample] = []
    with ExitStack() as stack:
        path = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="forecaster-soak-")))
        stage = Stage.enter(stack)
        ticks = Ticks(given.seed, PARTITIONS, SERIES, LIFE)
        rig = stack.enter_context(
            Rig(stage, path, given.seed, given.delivery, SETTINGS, PARTITIONS, ticks=ticks)
        )
        for sample in work(rig, seconds, given.rate):
            samples.append(sample)
            if len(samples) % 12 == 1:
                print(*(f"{name} {value:,.0f}" for name, value in sample._asdict().items()), flush=True)
        rig.verify()
        verdicts = judge(samples)
        lines = [about(rig, samples, seconds, given.rate, given.delivery), "", *table(verdicts)]
    findings = Findings.kept()
    findings.soak = lines
    findings.tried["T46"] = 1
    findings.failed["T46"] = [verdict.measure.what for verdict in verdicts if not verdict.flat]
    findings.keep()
    print("\n".join(lines))
    return 0 if all(verdict.flat for verdict in verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
