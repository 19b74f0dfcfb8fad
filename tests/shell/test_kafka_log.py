"""How long a read is waited for, and what a follower says that finds nothing: without a broker, by a clock of ours."""

import logging
from collections.abc import Callable, Collection, Mapping

import pytest
from kafka import TopicPartition

from forecaster.errors import BrokerError
from forecaster.shell.kafka import KafkaSpec, Record
from forecaster.shell.kafka import log as reading
from forecaster.shell.kafka.log import Follower, Log

TICKS = TopicPartition("ticks", 0)


class FakeReader:
    """Gives a record at each poll, or whatever else `step` does; `clock` is in seconds."""

    step: Callable[..., list[Record]]
    clock: list[float]

    def __init__(self, _: object, starts: Mapping[TopicPartition, int], __: object) -> None:
        self.positions, self.last_error = dict(starts), None

    def poll(self, _: float) -> list[Record]:
        return FakeReader.step(self)

    def leave_out(self, _: Collection[TopicPartition]) -> None: ...
    def close(self) -> None: ...


def a_record(reader: FakeReader) -> list[Record]:
    reader.positions[TICKS] += 1
    return [Record("ticks", 0, reader.positions[TICKS] - 1, 0, None, b"")]


def slowly(reader: FakeReader) -> list[Record]:
    reader.clock[0] += 50.0
    return a_record(reader)


def aborted(reader: FakeReader) -> list[Record]:
    slowly(reader)
    return []


def stuck(reader: FakeReader) -> list[Record]:
    reader.clock[0] += 0.5
    return a_record(reader) if reader.positions[TICKS] < 3 else []


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    FakeReader.clock = [0.0]
    monkeypatch.setattr(reading, "_Reader", FakeReader)
    return FakeReader.clock


def test_the_time_that_the_caller_takes_is_not_the_logs(clock: list[float]) -> None:
    FakeReader.step = a_record
    found = []
    for records in Log(KafkaSpec(), now=lambda: clock[0]).read("ticks", {0: (0, 5)}, 60.0):
        found += [record.offset for record in records]
        clock[0] += 1000.0
    assert found == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(("step", "given"), [(slowly, 10), (aborted, 0)])
def test_a_read_may_take_any_time_while_it_gets_on(
    clock: list[float], step: Callable[[FakeReader], list[Record]], given: int
) -> None:
    FakeReader.step = step
    assert len(list(Log(KafkaSpec(), now=lambda: clock[0]).read("ticks", {0: (0, 10)}, 60.0))) == given
    assert clock[0] == 500.0


def test_a_read_that_stops_getting_on_is_given_up_after_its_time(clock: list[float]) -> None:
    FakeReader.step = stuck
    with pytest.raises(BrokerError, match=r"any further in 60 s: ticks/0 at 3 of 10"):
        list(Log(KafkaSpec(), now=lambda: clock[0]).read("ticks", {0: (0, 10)}, 60.0))
    assert 61.0 <= clock[0] <= 63.0


class FakeLog:
    """Answers as `answer` does."""

    answer: Callable[[], list[int]]

    def __init__(self, _: object) -> None: ...
    def partitions(self, _: str) -> list[int]:
        return FakeLog.answer()

    def close(self) -> None: ...


def nobody() -> list[int]:
    raise BrokerError("no answer from there")


@pytest.mark.parametrize(
    ("answer", "trouble", "reached"),
    [
        (list[int], "topic 'predictions' does not exist yet", True),
        (nobody, "no answer from there", False),
    ],
)
def test_a_follower_of_nothing_says_so_once_and_asks_once_a_second(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    answer: Callable[[], list[int]],
    trouble: str,
    reached: bool,
) -> None:
    now_s, asked = [0.0], list[float]()

    def asking() -> list[int]:
        asked.append(now_s[0])
        return answer()

    def sleep(seconds: float) -> None:
        now_s[0] += seconds

    FakeLog.answer = asking
    monkeypatch.setattr(reading, "Log", FakeLog)
    monkeypatch.setattr("forecaster.shell.kafka.log.time.sleep", sleep)
    follower = Follower(KafkaSpec(), {"predictions": "end"}, now=lambda: now_s[0])
    with caplog.at_level(logging.WARNING):
        while now_s[0] < 40.0:
            assert follower.poll(0.5) == []
    assert caplog.messages == [trouble]
    assert (follower.trouble, follower.reached) == (trouble, reached)
    assert asked == list(range(40))
