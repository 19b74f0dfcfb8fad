"""Ticks a second through a backlog: the daemon against a bare loop on the same broker, in one run, on one machine.

Both are timed from outside, by how far the topic of their answers has grown: from a tenth of all answers (joined,
warmed up) to the last one. All ticks are on the log before either starts.
"""

import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from benchmarks import load
from benchmarks.report import Row
from benchmarks.stage import LEVELS, NO_TRAINING, PARTITIONS, Sections, Stage, check, ends
from forecaster.core.model import ModelSpec
from forecaster.demo.processes import Child
from forecaster.shell.kafka.log import Log
from forecaster.shell.kafka.spec import KafkaSpec, TopicsSpec

HORIZON = 12
WARM_UP = 0.1  # of the answers, not timed
SAMPLE_S = 0.05
LIMIT_S = 90.0
SAMPLED_ANSWERS = 1000


class Scenario(NamedTuple):
    """Whose ticks they are."""

    name: str
    what: str
    choose: Callable[[int, int], np.ndarray]
    series: int


SCENARIOS = (
    Scenario("even", "1,000 series", load.uniform, 1_000),
    Scenario("hot", "1,000 series, half of the ticks from one", load.hot, 1_000),
    Scenario("zipf", "10,000 series, Zipf", load.zipf, 10_000),
)


def run(quick: bool) -> Iterator[Row]:
    """Each scenario, and how it compares with the bare loop."""
    count = 12_000 if quick else 80_000
    with Stage() as stage:
        for scenario in SCENARIOS:
            topics = written(stage, scenario, count)
            rate, size = daemon_rate(stage, scenario.name, topics, count)
            bare = {
                whose: bare_rate(
                    stage, f"{scenario.name}-bare-{whose}", topics, size, count, ours=whose == "ours"
                )
                for whose in ("library", "ours")
            }
            whose = max(bare, key=lambda key: bare[key])
            yield Row(
                f"daemon, {scenario.what}", rate, "ticks/s", f"{count:,} ticks, {size:,} bytes an answer"
            )
            yield Row(
                f"bare loop, {scenario.what}",
                bare[whose],
                "ticks/s",
                f"with {'the daemon' if whose == 'ours' else 'the library'}'s settings;"
                f" {min(bare.values()):,.0f} with the other's",
            )
            yield Row(f"daemon / bare loop, {scenario.what}", rate / bare[whose], "", "both of this run")


def written(stage: Stage, scenario: Scenario, count: int) -> TopicsSpec:
    """Topics of a scenario, with its ticks on them."""
    topics = stage.topics(scenario.name)
    load.backlog(stage.kafka, topics.ticks, scenario.choose(count, scenario.series))
    return topics


def daemon_rate(
    stage: Stage, name: str, topics: TopicsSpec, count: int, delivery: str = "at_least_once"
) -> tuple[float, int]:
    """Ticks that the daemon answers in a second; mean size of an answer."""
    stage.publish_network(topics, ModelSpec(horizon=HORIZON, levels=LEVELS))
    with stage.daemon(name, topics, promising(delivery, name)) as daemon:
        daemon.await_ready()
        rate = growth(stage.kafka, topics.predictions, count, daemon.child)
    return rate, mean_bytes(stage.kafka, topics.predictions)


def promising(delivery: str, name: str) -> Sections:
    """The configuration of a daemon that trains nothing, under one of the delivery promises."""
    identity = {"transactional_id": name} if delivery == "exactly_once" else {}
    return {
        "kafka": {"delivery": delivery, **identity},
        "model": {"horizon": HORIZON, "levels": LEVELS},
        "training": NO_TRAINING,
    }


def bare_rate(stage: Stage, name: str, topics: TopicsSpec, size: int, count: int, *, ours: bool) -> float:
    """The same of the bare loop, with the daemon's settings of the client or with the library's."""
    answers = stage.answers(name)
    command = ["benchmarks.bare", stage.kafka.bootstrap_servers, topics.ticks, answers, str(size), str(count)]
    child = stage.child(name, *command, *(["--ours"] if ours else []))
    try:
        return growth(stage.kafka, answers, count, child, may_end=True)
    finally:
        child.stop()


def growth(kafka: KafkaSpec, topic: str, count: int, child: Child, *, may_end: bool = False) -> float:
    """Messages a second, from a tenth of `count` on the topic to all of them."""
    log = Log(kafka)
    deadline_s = time.monotonic() + LIMIT_S
    first_s, first = time.monotonic(), 0
    try:
        while True:
            there = sum(ends(log, topic).values())
            now_s = time.monotonic()
            if there >= count:
                return (there - first) / (now_s - first_s)
            if first < WARM_UP * count:  # still warming up: the last look before all would be there counts
                first_s, first = now_s, there
            if not (may_end and child.exit_code == 0):
                check(child)
            if now_s > deadline_s:
                raise TimeoutError(f"{there:,} of {count:,} answers after {LIMIT_S:g} s:\n{child.tail()}")
            time.sleep(SAMPLE_S)
    finally:
        log.close()


def mean_bytes(kafka: KafkaSpec, topic: str) -> int:
    """Mean size of some messages of a topic."""
    log = Log(kafka)
    try:
        some = {p: (max(0, end - SAMPLED_ANSWERS // PARTITIONS), end) for p, end in ends(log, topic).items()}
        sizes = [len(record.value or b"") for records in log.read(topic, some, 10.0) for record in records]
    finally:
        log.close()
    return round(float(np.mean(sizes)))
