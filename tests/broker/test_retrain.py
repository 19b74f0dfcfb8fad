"""Retrains on Apache Kafka: the real trainer reads the log, and what it promotes serves."""

import json
import math
import random
import time

import jax.numpy as jnp
import numpy as np
import pytest
from kafka import KafkaProducer

from forecaster.config import Config
from forecaster.core import model
from forecaster.core.model import Card, Model, ModelSpec
from forecaster.shell.kafka import TopicsSpec
from forecaster.shell.kafka.log import Log
from forecaster.shell.models import Models, ModelsFollower, NowServing
from forecaster.shell.models.convert import from_stored, to_stored
from forecaster.shell.retrain import Ended, Outcome, Retrainer
from forecaster.shell.trainer import job_for
from tests.broker.workers import fresh_topics, spec_for, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

SHAPE = ModelSpec(hidden=8, horizon=3, warm_up=8, context_length=32)
TRAINING = {"burn_in": 8, "span": 16, "steps": 50, "patience": 9, "history_ticks": 2000, "on_start": False}


@pytest.fixture
def topics(kafka: str) -> TopicsSpec:
    return fresh_topics(kafka, partitions=2)


@pytest.fixture
def config(kafka: str, topics: TopicsSpec) -> Config:
    return Config(
        kafka=spec_for(kafka),
        topics=topics,
        model=SHAPE,
        training=Config().training.model_copy(update=TRAINING),
    )


def send_cycles(config: Config, steps: int = 250, series: int = 6, rubbish: int = 20) -> None:
    """Noisy daily cycles by the hour, and messages that nobody can use."""
    producer = KafkaProducer(bootstrap_servers=config.kafka.bootstrap_servers, linger_ms=5)
    rng = random.Random(0)
    for t in range(steps):
        for i in range(series):
            value = math.sin(2 * math.pi * t / 24 + i) + 0.1 * rng.gauss(0, 1)
            tick = {"series": f"s{i}", "ts": 1.7e9 + 3600 * t, "value": value}
            producer.send(config.topics.ticks, json.dumps(tick).encode(), partition=i % 2)
    for _ in range(rubbish):
        producer.send(config.topics.ticks, b"{", partition=0)
    producer.flush(30)
    producer.close()


def retrained(config: Config) -> Ended:
    """Ask for one retrain and wait for its end."""
    made = Retrainer(config.training, lambda fit_s: job_for(config, fit_s))
    made.request("cli", "the-request")
    ended: list[Ended] = []

    def turn() -> None:
        ended.extend(event for event in made.poll(leads=True, serving=True) if isinstance(event, Ended))
        time.sleep(0.02)

    try:
        until(lambda: bool(ended), turn, deadline_s=300.0)
    finally:
        made.stop()
    assert ended[0].ids == ("the-request",)
    return ended[0]


def planted(config: Config) -> str:
    """Let a model serve whose every forecast is far too high."""
    params = model.init(SHAPE, 0) | {"out.bias": jnp.full(3 * len(SHAPE.levels), 20.0)}
    worse = Model(SHAPE, params, jnp.zeros(6, jnp.int32), Card(version="planted"))
    models = Models(config.kafka, config.topics.models)
    models.publish(to_stored(worse))
    models.serve("planted", "first")
    return "planted"


def test_what_is_trained_from_the_log_serves_and_says_where_it_comes_from(config: Config) -> None:
    send_cycles(config)
    ended = retrained(config)
    assert (ended.outcome, ended.reason) == (Outcome.PROMOTED, "first"), ended.message
    assert ended.losses["candidate"] < ended.losses["last_value"]

    follower = ModelsFollower(config.kafka, config.topics.models)
    events: list[object] = []
    until(lambda: any(isinstance(e, NowServing) for e in events), lambda: events.extend(follower.poll(0.1)))
    follower.close()
    serving = next(event for event in events if isinstance(event, NowServing))
    trained = from_stored(serving.stored)
    assert isinstance(trained, Model)
    assert (trained.version, serving.serving.reason) == (ended.version, "first")
    assert all(np.isfinite(param).all() for param in trained.params.values())
    log = Log(config.kafka)
    ends = log.end_offsets(config.topics.ticks, [0, 1])
    log.close()
    assert trained.card.offsets == {str(p): (0, end) for p, end in ends.items()}
    assert trained.card.created_s == 1.7e9 + 3600 * 249


def test_a_worse_model_is_replaced_and_a_candidate_that_is_no_better_is_refused(config: Config) -> None:
    send_cycles(config)
    planted(config)
    first = retrained(config)
    assert (first.outcome, first.reason) == (Outcome.PROMOTED, "better"), first.message
    assert first.losses["candidate"] < first.losses["serving"]

    hard_to_please = config.training.model_copy(update={"margin_ratio": 0.9})
    second = retrained(config.model_copy(update={"training": hard_to_please}))
    assert (second.outcome, second.reason) == (Outcome.REJECTED, "not_better"), second.message
    assert second.losses["serving"] == pytest.approx(first.losses["candidate"], rel=1e-4)
    served = Models(config.kafka, config.topics.models).fetch()
    assert served is not None
    assert served.version == first.version
    assert served.card["parent"] == "", "nothing is built on a model that is worse than the last value"


def test_an_empty_log_gives_no_data_and_changes_nothing(config: Config) -> None:
    assert retrained(config).outcome is Outcome.NO_DATA
    assert Models(config.kafka, config.topics.models).fetch() is None


def test_a_broker_that_is_away_is_a_crash_with_its_name(config: Config) -> None:
    away = config.kafka.model_copy(update={"bootstrap_servers": "127.0.0.1:9", "connect_timeout_s": 2})
    ended = retrained(config.model_copy(update={"kafka": away}))
    assert ended.outcome is Outcome.CRASHED
    assert "127.0.0.1:9" in ended.message
