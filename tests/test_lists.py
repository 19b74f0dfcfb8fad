"""The stand-ins for topics do as a topic would."""

from forecaster.shell.kafka import Assigned, KafkaSpec, Lost, Record
from tests.lists import ListSink, ListSource


def records(*partitions: int) -> list[Record]:
    counts = dict.fromkeys(partitions, -1)
    found: list[Record] = []
    for partition in partitions:
        counts[partition] += 1
        found.append(Record("t", partition, counts[partition], 0, b"k", b"v"))
    return found


def test_a_list_source_pauses_resumes_and_ends() -> None:
    source = ListSource(records(0, 1, 0, 1, 0), KafkaSpec(max_poll_records=2))
    assert source.poll(0.0) == []
    assert source.changes() == [Assigned(frozenset({0, 1}))]
    source.resume({0})
    assert [(r.partition, r.offset) for r in source.poll(0.0)] == [(0, 0), (0, 1)]
    assert source.positions() == {0: 2, 1: 0}
    assert source.lag() == {0: 1, 1: 2}
    source.resume({1})
    assert [(r.partition, r.offset) for r in source.poll(0.0)] == [(0, 2), (1, 0)]
    assert not source.finished
    assert [(r.partition, r.offset) for r in source.poll(0.0)] == [(1, 1)]
    assert source.finished
    assert source.position(1) == 2


def test_a_rewound_list_source_gives_again_what_was_not_committed() -> None:
    source = ListSource(records(0, 0, 0))
    source.poll(0.0)
    source.changes()
    source.resume({0})
    source.poll(0.0)
    assert source.commit({0: 2})
    before = dict(source.epochs)
    source.rewind("test")
    assert source.changes() == [Lost(frozenset({0})), Assigned(frozenset({0}))]
    assert source.epochs != before
    source.resume({0})
    assert [r.offset for r in source.poll(0.0)] == [2]
    assert source.committed([0]) == {0: (2, "")}


def test_a_list_sink_keeps_what_was_sent() -> None:
    sink = ListSink()
    sink.send("a", b"1", b"k", headers=[("h", b"x")])
    sink.send("b", None, None, partition=3)
    assert [message.value for message in sink.of("a")] == [b"1"]
    assert sink.messages[1].partition == 3
    assert sink.sent == sink.acknowledged == sink.settle() == 2
