"""A daemon's run on Apache Kafka, recorded and replayed: a backtest with its swaps gives its forecasts."""

import json
import math
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import numpy as np
import pytest
from kafka import KafkaProducer

from forecaster.config import Config, load
from forecaster.core.batch import Issued
from forecaster.core.model import Model
from forecaster.shell.backtest import Part, backtest
from forecaster.shell.kafka import Record
from forecaster.shell.models import Models
from forecaster.shell.models.convert import to_stored
from forecaster.shell.prediction import Prediction, decode
from tests.broker.workers import read_all
from tests.folds import START_S, make_model
from tests.test_process import PARTITIONS, World

pytestmark = [pytest.mark.process, pytest.mark.slow, pytest.mark.timeout(300)]

SERIES = 6
STEPS = 40  # of each series under each model


@pytest.fixture
def world(kafka: str, tmp_path: Path) -> Iterator[World]:
    made = World(kafka, tmp_path)
    yield made
    made.close()


def send(world: World, first: int) -> None:
    """STEPS more ticks of each series, from step number `first` on, keyed by series."""
    producer = KafkaProducer(bootstrap_servers=world.kafka, linger_ms=5)
    for step in range(first, first + STEPS):
        for number in range(SERIES):
            partition = number % PARTITIONS
            value = 50 + 10 * math.sin(step / 3 + number) + (step * 7919 * (number + 1)) % 13
            tick = {"series": f"s{number}", "ts": START_S + 60 * step, "value": value}
            producer.send(
                world.topics.ticks, json.dumps(tick).encode(), tick["series"].encode(), partition=partition
            )
            world.sent[partition] += 1
    producer.flush(30)
    producer.close()


def record(world: World) -> tuple[Config, list[Model]]:
    """A run under no model, then under one, then under another; its configuration and its models."""
    worker = world.start()
    worker.await_that(worker.ready)
    config = load(worker.config, {})
    trained = [make_model(f"v{n}", seed=n, spec=config.network, periods=(9, 5)) for n in (1, 2)]
    models = Models(config.kafka, config.topics.models)
    send(world, 0)
    worker.await_that(world.all_answered)
    for n, model in enumerate(trained, 1):
        models.publish(to_stored(model))
        models.serve(model.version, "a test")
        worker.await_that(lambda n=n: len(worker.events("model_swapped")) >= n)
        send(world, n * STEPS)
        worker.await_that(world.all_answered)
    assert worker.end() == 0
    return config, trained


def swaps(answers: list[Prediction], models: list[Model]) -> dict[int, Model]:
    """By whose answers they are: the offsets from which each model served."""
    by_version = {model.version: model for model in models}
    runs = groupby(sorted(answers, key=lambda a: a.source.offset), lambda a: a.model)
    return {next(run).source.offset: by_version[version] for version, run in runs if version}


def replayed(ticks: list[Record], config: Config, swapped: dict[int, Model]) -> dict[int, np.ndarray]:
    """What a backtest with these swaps forecasts, by the offset of the tick that it answers."""
    parts = backtest(ticks, config, warm_up=0.0, swaps=swapped)
    issued: list[Issued] = [part.issued for part in parts if isinstance(part, Part)]
    return {
        offset: part.last[i] + part.offset[i].astype(np.float64)
        for part in issued
        for i, offset in enumerate(part.source.tolist())
    }


def test_a_backtest_with_the_swaps_of_a_recorded_run_gives_its_forecasts(world: World) -> None:
    config, models = record(world)
    ticks = read_all(world.spec, world.topics.ticks)
    answers = [decode(message.value or b"") for message in world.predictions()]
    for partition in range(PARTITIONS):
        theirs = [answer for answer in answers if answer.source.partition == partition]
        swapped = swaps(theirs, models)
        assert list(swapped.values()) == models
        ours = replayed([tick for tick in ticks if tick.partition == partition], config, swapped)
        assert ours.keys() == {answer.source.offset for answer in theirs}
        for answer in theirs:
            quantiles = np.array(answer.quantiles)
            unit = np.ptp(quantiles)  # their batches are cut otherwise, and what waits is rounded
            np.testing.assert_allclose(ours[answer.source.offset], quantiles, rtol=0, atol=1e-3 * unit)
