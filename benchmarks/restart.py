"""Seconds from the start of a worker until it answers a new tick, with everything that it has to read back first.

A first worker writes the pages of all series and ends. What is then put on the log is committed as if it had been
answered, which costs a restart the same: it lies behind the pages, and is replayed.
"""

import time
from collections.abc import Iterator

from kafka import KafkaConsumer, TopicPartition
from kafka.structs import OffsetAndMetadata

from benchmarks import load
from benchmarks.report import Row
from benchmarks.stage import LEVELS, NO_TRAINING, PARTITIONS, Sections, Stage, check, ends, until
from forecaster.core.model import ModelSpec
from forecaster.shell.kafka.log import Log
from forecaster.shell.kafka.spec import TopicsSpec

NAME = "restart"
HORIZON = 12
RATE = 500  # ticks/s, for turns
LIMIT_S = 400.0
STAGES = (
    ("compiled", "start to compiled", "python and jax imported, programs read from disk or compiled"),
    ("partitions_assigned", "joined", "group joined"),
    ("partitions_rebuilt", "read back", "pages taken over, the log behind them replayed"),
)


def run(quick: bool) -> Iterator[Row]:
    """A hundred thousand series and a million ticks, or a fiftieth of both."""
    series, behind = (2_000, 20_000) if quick else (100_000, 1_000_000)
    room: Sections = {
        "model": {"horizon": HORIZON, "levels": LEVELS},
        "series": {"max_series": series + series // 10},
        "training": NO_TRAINING,
        "kafka": {"group_id": NAME},
    }
    with Stage() as stage:
        topics = stage.topics(NAME)
        stage.publish_network(topics, ModelSpec(horizon=HORIZON, levels=LEVELS))
        yield _write_pages(stage, topics, room, series, behind)
        load.backlog(stage.kafka, topics.ticks, load.uniform(behind, series))
        _commit(stage, topics)
        yield from _restart(stage, topics, room, series)


def _write_pages(stage: Stage, topics: TopicsSpec, room: Sections, series: int, behind: int) -> Row:
    """Have a worker answer a tick of each series, and put all of them on pages: one a turn, hence more ticks."""
    before_s = behind * load.TICK_S + LIMIT_S  # event times go on as the log does
    load.backlog(stage.kafka, topics.ticks, load.uniform(series, series), before_s)
    often: Sections = {
        "state": {"interval_s": 1, "bytes_per_s": 1 << 30},
        "kafka": {"group_id": NAME, "commit_interval_s": 0},  # a page waits for the commit of its offset
    }
    with stage.daemon("first", topics, room | often) as daemon:
        daemon.await_ready()
        servers, rate = stage.kafka.bootstrap_servers, str(RATE)
        source = stage.child(
            "turns", "benchmarks.load", servers, topics.ticks, rate, str(series), str(before_s)
        )
        log = Log(stage.kafka)

        def written() -> bool:
            more = (sum(ends(log, topics.ticks).values()) - series) / PARTITIONS
            return 1 < daemon.scrape().total("forecaster_state_behind_messages") < 0.9 * more

        try:
            until(written, LIMIT_S, "the pages of all series", daemon.child, source, every_s=1.0)
        finally:
            source.stop()
            log.close()
        written_bytes = daemon.scrape().total("forecaster_state_written_bytes_total")
    return Row(
        "pages on the state topic", written_bytes / 2**20, "MiB", f"{series:,} series, all that were written"
    )


def _commit(stage: Stage, topics: TopicsSpec) -> None:
    """Let the group have answered all there is."""
    log = Log(stage.kafka)
    consumer = KafkaConsumer(
        bootstrap_servers=stage.kafka.bootstrap_servers, group_id=NAME, enable_auto_commit=False
    )
    try:
        there = ends(log, topics.ticks)
        consumer.commit(
            {TopicPartition(topics.ticks, p): OffsetAndMetadata(end, "", -1) for p, end in there.items()}
        )
    finally:
        consumer.close()
        log.close()


def _restart(stage: Stage, topics: TopicsSpec, room: Sections, series: int) -> Iterator[Row]:
    log = Log(stage.kafka)
    command = ["benchmarks.load", stage.kafka.bootstrap_servers, topics.ticks, "100", str(series)]
    source = stage.child("source", *command)
    try:
        before = sum(ends(log, topics.predictions).values())
        with stage.daemon("second", topics, room) as daemon:
            until(
                lambda: sum(ends(log, topics.predictions).values()) > before,
                LIMIT_S,
                "the first new prediction",
                daemon.child,
            )
            answered_s = time.time()
            at_s, events = daemon.started_s, daemon.events()
            read = daemon.scrape().total("forecaster_rebuilt_ticks_total")
        check(source)
    finally:
        source.stop()
        log.close()
    note = f"{series:,} series on pages, {read:,.0f} ticks read back"
    yield Row("start to the first new prediction", answered_s - at_s, "s", note)
    for event, what, how in STAGES:
        yield Row(what, events[event] - at_s, "s", how)
        at_s = events[event]
