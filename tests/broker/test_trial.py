"""A model that was promoted and is bad: the worker that serves it finds out, and the one before serves again."""

import json
import math
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from kafka import KafkaProducer
from prometheus_client.parser import text_string_to_metric_families

from forecaster.config import Config, load
from forecaster.core.history import Slice
from forecaster.core.model import Card, Model
from forecaster.core.promote import Retrained, retrain
from forecaster.shell.control import Answer, Command, Inbox, Request
from forecaster.shell.models import Models
from forecaster.shell.models.convert import to_stored
from tests.broker.workers import read_all
from tests.folds import START_S
from tests.test_process import PARTITIONS, World

pytestmark = [pytest.mark.process, pytest.mark.slow, pytest.mark.timeout(400)]

SERIES = 6
TRAINING = {"burn_in": 8, "span": 16, "steps": 200, "patience": 9}


@pytest.fixture
def world(kafka: str, tmp_path: Path) -> Iterator[World]:
    made = World(kafka, tmp_path)
    yield made
    made.close()


def cycle(step: int, number: int) -> float:
    """A noisy daily cycle by the hour."""
    noise = random.Random(1000 * step + number).gauss(0, 1)
    return math.sin(2 * math.pi * step / 24 + number) + 0.1 * noise


def send(world: World, steps: range) -> None:
    """Ticks of all series."""
    producer = KafkaProducer(bootstrap_servers=world.kafka, linger_ms=5)
    for step in steps:
        for number in range(SERIES):
            partition = number % PARTITIONS
            tick = {"series": f"s{number}", "ts": START_S + 3600 * step, "value": cycle(step, number)}
            producer.send(world.topics.ticks, json.dumps(tick).encode(), partition=partition)
            world.sent[partition] += 1
    producer.flush(30)
    producer.close()


def trained(config: Config, steps: int) -> Model:
    """A good model, made of the same ticks."""
    time_s = START_S + 3600.0 * np.arange(steps)
    history = [
        Slice(f"s{number}", time_s, np.array([cycle(step, number) for step in range(steps)]))
        for number in range(SERIES)
    ]
    result = retrain(history, config.training.model_copy(update=TRAINING), config.network)
    assert isinstance(result, Retrained)
    assert result.decision.promote
    return result.model._replace(card=Card(version="good"))


def test_a_promoted_model_that_loses_is_rolled_back_with_its_reason(world: World) -> None:
    worker = world.start()
    config = load(worker.config, {})
    models = Models(config.kafka, config.topics.models)
    good = trained(config, 250)
    bias = good.params["out.bias"]
    bad = good._replace(params=good.params | {"out.bias": bias + 20.0}, card=Card(version="bad"))
    send(world, range(250))
    worker.await_that(world.all_answered)
    for number, (model, reason) in enumerate([(good, "first"), (bad, "better")], 1):
        models.publish(to_stored(model))
        models.serve(model.version, reason)
        worker.await_that(lambda n=number: len(worker.events("model_swapped")) >= n)
        send(world, range(200 + 50 * number, 250 + 50 * number))
        worker.await_that(world.all_answered)
    worker.await_that(lambda: worker.events("trial_ended"))
    worker.await_that(lambda: len(worker.events("model_swapped")) >= 3)
    send(world, range(350, 400))
    worker.await_that(world.all_answered)

    assert set(world.answered().values()) == {1}, "every tick is answered, once"
    assert [event["version"] for event in worker.events("model_swapped")] == ["good", "bad", "good"]
    (began,), (ended,) = worker.events("trial_began"), worker.events("trial_ended")
    assert (began["model"], began["before"], began["series"]) == ("bad", "good", SERIES)
    assert (ended["outcome"], ended["model"]) == ("lost", "bad")
    inbox = Inbox()
    (request, answer) = inbox.feed(read_all(world.spec, world.topics.control))
    assert isinstance(request, Request)
    assert (request.command, request.trigger) == (Command.ROLL_BACK, "trial")
    assert request.arguments["reason"].startswith("lost its trial against good: loss +")
    assert isinstance(answer, Answer)
    assert (answer.id, answer.outcome, answer.message) == (request.id, "rolled_back", "good")
    assert answer.details["reason"] == request.arguments["reason"]
    serving = models.read().serving
    assert serving is not None
    assert (serving.version, serving.previous, serving.reason) == ("good", "bad", request.arguments["reason"])
    scraped = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(worker.get("/metrics") or "")
        for sample in family.samples
    }
    assert scraped["forecaster_trials_total", "lost"] == 1
    assert scraped["forecaster_compiles_total", "serving"] == 0

    assert worker.end() == 0
    restarted = world.start()
    restarted.await_that(restarted.ready)
    restarted.await_that(lambda: restarted.events("model_swapped"))
    send(world, range(400, 410))
    restarted.await_that(world.all_answered)
    assert not restarted.events("trial_began")
