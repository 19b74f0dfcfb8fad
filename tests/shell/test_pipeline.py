"""Records in, messages out, offsets committed: the whole way of a tick, without a broker."""

import json
import random
from collections import Counter, defaultdict

import numpy as np
import pytest

from forecaster.core.grid import GridSpec
from forecaster.core.model import ModelSpec
from forecaster.core.tick import Outcome, Reason, TickSpec
from forecaster.shell.kafka import KafkaSpec, Record
from forecaster.shell.kafka.delivery import AtLeastOnce
from forecaster.shell.metrics import Metrics
from forecaster.shell.pipeline import Pipeline, mean_weights
from forecaster.shell.prediction import Prediction, decode
from tests.folds import make_fold
from tests.lists import ListSink, ListSource

MODEL = ModelSpec(hidden=8, context_length=16, warm_up=4, horizon=3, levels=(0.1, 0.5, 0.9))


def pipeline(grid: GridSpec) -> Pipeline:
    fold = make_fold(MODEL, grid)
    return Pipeline(fold, TickSpec(), grid, "ticks", Metrics(horizon=MODEL.horizon, levels=MODEL.levels))


def message(series: str, time_s: object, value: object) -> bytes:
    return json.dumps({"series": series, "ts": time_s, "value": value}).encode()


def records(messages: list[tuple[int, bytes | None]]) -> list[Record]:
    """(partition, value) -> records with offsets that have gaps, as those of a compacted or transactional
    topic.
    """
    offsets: Counter[int] = Counter()
    found: list[Record] = []
    for partition, value in messages:
        found.append(Record("ticks", partition, offsets[partition], 10**12, b"key", value))
        offsets[partition] += random.choice((1, 1, 2))
    return found


def messy(ticks: int) -> list[tuple[int, bytes | None]]:
    """Series at home in two partitions, with late ticks, duplicates and junk between them."""
    found: list[tuple[int, bytes | None]] = []
    for i in range(ticks):
        name = f"s{random.randrange(5)}"
        home = int(name[1:]) % 2
        found.append((home, message(name, i, 100 + random.gauss(0, 1))))
        if random.random() < 0.1:
            found.append(found[-1])  # the same again
        if random.random() < 0.1:
            found.append((home, message(name, i - 0.5, 1)))  # late by now
        if random.random() < 0.1:
            found.append(
                (home, random.choice([None, b"{", b"[]", message(name, i, "x"), message(name, i, None)]))
            )
    return found


def run(
    pipeline: Pipeline, log: list[Record]
) -> tuple[ListSink, ListSource, Counter[Outcome], Counter[Reason]]:
    """What the daemon's loop does with a source and a delivery."""
    source = ListSource(log, KafkaSpec(max_poll_records=50))
    sink = ListSink()
    delivery = AtLeastOnce(source, make_sink=lambda _: sink)
    outcomes: Counter[Outcome] = Counter()
    reasons: Counter[Reason] = Counter()
    source.poll(0.0)
    source.resume(source.assigned)
    while not source.finished:
        batch = delivery.begin()
        answers = pipeline.handle(source.poll(0.0))
        for text in answers.messages:
            delivery.send("predictions", text, None)
        delivery.finish(batch, answers.next_offsets)
        outcomes += answers.total.outcomes
        reasons += answers.total.reasons
    assert delivery.flush(1.0)
    return sink, source, outcomes, reasons


def test_every_tick_of_a_messy_log_has_one_outcome_and_every_accepted_one_an_answer() -> None:
    log = records(messy(300))
    sink, source, outcomes, reasons = run(pipeline(GridSpec()), log)
    assert sum(outcomes.values()) == len(log)
    assert outcomes[Outcome.LATE] > 0
    assert outcomes[Outcome.DUPLICATE] > 0
    assert outcomes[Outcome.DEAD_LETTERED] == sum(reasons.values()) > 0
    assert source.commits == {p: max(r.offset for r in log if r.partition == p) + 1 for p in (0, 1)}

    predictions = [decode(message.value or b"") for message in sink.messages]
    assert len(predictions) == outcomes[Outcome.ACCEPTED]
    by_source = {(record.partition, record.offset): record for record in log}
    seen: dict[int, int] = defaultdict(lambda: -1)
    for prediction in predictions:
        check(prediction)
        source_of = prediction.source
        tick = json.loads(by_source[source_of.partition, source_of.offset].value or b"")
        assert (prediction.series, prediction.issued_at) == (tick["series"], tick["ts"])
        assert prediction.last == tick["value"]
        assert source_of.offset > seen[source_of.partition], "answered twice, or out of order"
        seen[source_of.partition] = source_of.offset


def check(prediction: Prediction) -> None:
    quantiles = np.array(prediction.quantiles)
    assert quantiles.shape == (MODEL.horizon, len(MODEL.levels))
    assert np.isfinite(quantiles).all()
    assert (np.diff(quantiles, axis=1) >= 0).all()
    # The mean of a distribution that is straight between its quantiles and flat beyond them.
    points = np.linspace(0, 1, 20_001)
    for row, mean in zip(quantiles, prediction.mean, strict=True):
        assert mean == pytest.approx(np.interp(points, MODEL.levels, row).mean(), rel=1e-4)


def test_bars_are_answered_once_each_at_their_end() -> None:
    rows = [
        ("a", t, float(t)) for t in (1, 4, 9, 12, 31, 33, 50)
    ]  # bars of 10 s: [0, 10), [10, 20), [30, 40)
    log = records([(0, message(*row)) for row in rows])
    sink, _, outcomes, _ = run(pipeline(GridSpec(interval_s=10.0)), log)
    assert outcomes[Outcome.ACCEPTED] == len(rows)
    predictions = [decode(message.value or b"") for message in sink.messages]
    assert [(p.issued_at, p.last) for p in predictions] == [(10.0, 9.0), (20.0, 12.0), (40.0, 33.0)]
    assert predictions[1].target_times == (30.0, 40.0, 50.0)
    assert predictions[1].step_s == 10.0
    sources = [log[i].offset for i in (2, 3, 5)]  # the last tick of each bar
    assert [p.source.offset for p in predictions] == sources


def test_mean_weights_add_up_and_are_symmetric() -> None:
    weights = mean_weights((0.05, 0.3, 0.5, 0.7, 0.95))
    assert weights.sum() == pytest.approx(1.0)
    assert weights == pytest.approx(weights[::-1])
