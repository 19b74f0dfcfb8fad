"""What exactly-once delivery costs: the same backlog under both promises, one after the other."""

from collections.abc import Iterator

from benchmarks.report import Row
from benchmarks.stage import Stage
from benchmarks.throughput import SCENARIOS, daemon_rate, written

PROMISES = ("at_least_once", "exactly_once")


def run(quick: bool) -> Iterator[Row]:
    """Throughput of each promise, and their ratio."""
    count = 12_000 if quick else 80_000
    rates: dict[str, float] = {}
    with Stage() as stage:
        for promise in PROMISES:
            scenario = SCENARIOS[0]._replace(name=promise.replace("_", "-"))
            topics = written(stage, scenario, count)
            rates[promise], _ = daemon_rate(stage, scenario.name, topics, count, promise)
            yield Row(f"daemon, {promise}", rates[promise], "ticks/s", f"{scenario.what}, {count:,} ticks")
    yield Row(
        "exactly_once / at_least_once", rates["exactly_once"] / rates["at_least_once"], "", "both of this run"
    )
