"""What exactly-once delivery costs: the same backlog under both promises, and how late a committed answer is seen."""

import time
from collections.abc import Iterator

from benchmarks.latency import RATE, SETTLE_S, Subscriber, Window, steady
from benchmarks.report import Row
from benchmarks.stage import LEVELS, Stage, check
from benchmarks.throughput import HORIZON, SCENARIOS, daemon_rate, promising, written
from forecaster.core.model import ModelSpec

PROMISES = ("at_least_once", "exactly_once")
WINDOW_S, QUICK_WINDOW_S = 20.0, 8.0


def run(quick: bool) -> Iterator[Row]:
    """Throughput of each promise, their ratio; how old a tick is when its committed prediction is read."""
    count = 12_000 if quick else 80_000
    rates: dict[str, float] = {}
    with Stage() as stage:
        for promise in PROMISES:
            scenario = SCENARIOS[0]._replace(name=promise.replace("_", "-"))
            topics = written(stage, scenario, count)
            rates[promise], _ = daemon_rate(stage, scenario.name, topics, count, promise)
            yield Row(f"daemon, {promise}", rates[promise], "ticks/s", f"{scenario.what}, {count:,} ticks")
        yield Row(
            "exactly_once / at_least_once",
            rates["exactly_once"] / rates["at_least_once"],
            "",
            "both of this run",
        )
        yield from _committed(stage, QUICK_WINDOW_S if quick else WINDOW_S)


def _committed(stage: Stage, window_s: float) -> Iterator[Row]:
    """From just before a tick is sent to when a read_committed consumer has its prediction."""
    topics = stage.topics("committed")
    stage.publish_network(topics, ModelSpec(horizon=HORIZON, levels=LEVELS))
    with stage.daemon("committed", topics, promising("exactly_once", "committed")) as daemon:
        daemon.await_ready()
        source = steady(stage, topics)
        subscriber = Subscriber(stage.kafka, topics.predictions)
        try:
            time.sleep(SETTLE_S)
            window = Window(daemon)
            time.sleep(window_s)
            window.end(daemon)
            check(source)
        finally:
            subscriber.close()
            source.stop()
    for share in (0.5, 0.99):
        ms = window.seen_ms(subscriber, share)
        yield Row(f"tick to read_committed subscriber, p{100 * share:g}", ms, "ms", f"{RATE:,} ticks/s")
