"""What workers count, on Apache Kafka: taken back, in doubt or handed over, it adds up to what is committed."""

import random
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from kafka.errors import KafkaTimeoutError

from forecaster.core.tick import Outcome
from forecaster.shell.kafka import transaction
from forecaster.shell.kafka.delivery import AtLeastOnce
from forecaster.shell.metrics import Metrics
from tests.broker.test_exact_restore import PARTITIONS, Line, send
from tests.broker.workers import fresh_topics, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(200)]


@pytest.fixture
def line(kafka: str, request: pytest.FixtureRequest) -> Iterator[Line]:
    made = Line(kafka, request.param, fresh_topics(kafka, partitions=len(PARTITIONS)))
    yield made
    made.end()


def counted(*workers: Metrics) -> Counter[str]:
    return Counter({o.value: n for o in Outcome if (n := sum(int(m.ticks[o]._value.get()) for m in workers))})


@pytest.mark.parametrize("line", ["at_least_once"], indirect=True)
def test_a_tick_that_is_delivered_again_counts_once(line: Line) -> None:
    send(line, 0, 200, random.Random(1))
    for _ in range(5):
        line.turn_until_it_reads()
        assert isinstance(line.daemon.delivery, AtLeastOnce)
        line.daemon.delivery._take_back(KafkaTimeoutError("lost"))
    line.answer(200)
    line.daemon.settle()
    assert counted(line.metrics) == {"accepted": 400}


@pytest.mark.parametrize("line", ["exactly_once"], indirect=True)
def test_a_tick_of_a_transaction_in_doubt_counts_once_whatever_became_of_it(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some of the transactions are committed, and only the answer of the broker is lost."""
    wait_for: Callable[..., None] = transaction.wait_for
    calls = 0

    def forgetful(*arguments: Any) -> None:
        nonlocal calls
        wait_for(*arguments)
        calls += 1
        if calls in {2, 5, 8, 12}:
            raise transaction.Doubt("its answer is lost")

    monkeypatch.setattr(transaction, "wait_for", forgetful)
    send(line, 0, 200, random.Random(1))
    line.answer(200)
    line.daemon.settle()
    assert line.daemon.delivery.resets == 4
    assert counted(line.metrics) == {"accepted": 400}


def test_what_is_handed_over_is_counted_by_who_has_answered_it(kafka: str) -> None:
    """All of it is answered and little committed when half of it goes to another worker."""
    ticks = fresh_topics(kafka, partitions=len(PARTITIONS))
    line = Line(kafka, "at_least_once", ticks, commit_interval_s=60.0)
    first, its = line.daemon, line.metrics
    send(line, 0, 100, random.Random(1))
    until(lambda: its.predictions["cold"]._value.get() == 200, first.turn)
    assert counted(its).total() < 200
    second, others = line._worker(), line.metrics
    try:
        until(lambda: bool(second.assignment.serving), first.turn, second.turn)
        assert first.delivery.flush(5.0)
        until(lambda: counted(its) == {"accepted": 200}, first.turn, second.turn)
        assert counted(others) == {}
    finally:
        second.delivery.close(0.0)
        second.source.close(0.5)
        second.lifecycle.stop()
        second.assignment.close()
        line.daemon = first
        line.end()
