"""Which partitions are taken carefully and what is set aside: workers that die, on offsets that a list remembers."""

from collections.abc import Collection, Mapping

import pytest

from forecaster.shell.care import Care
from forecaster.shell.kafka import Record
from forecaster.shell.kafka.notes import MOST_ASIDE, Note, decode, encode
from forecaster.shell.kafka.source import Notes


class Group:
    """The committed offset of one partition, and what stands beside it: outlives its workers."""

    def __init__(self, records: int = 20) -> None:
        self.offset, self.metadata, self.records = 0, "", records


class FakeSource:
    """One worker's view of the group."""

    def __init__(self, group: Group) -> None:
        self.group = group
        self.assigned = frozenset({0})
        self.notes: dict[int, Notes] = {}
        self.last_committed: dict[int, int] = {}
        self.paused: set[int] = set()
        self.answers = True

    def committed(self, _: Collection[int]) -> dict[int, tuple[int, str]] | None:
        self.last_committed[0] = self.group.offset
        return {0: (self.group.offset, self.group.metadata)} if self.answers else None

    def commit(self, offsets: Mapping[int, int], metadata: str | None = None) -> bool:
        if self.answers:
            self.group.offset = self.last_committed[0] = offsets[0]
            self.group.metadata = self.notes[0].working if metadata is None else metadata
        return self.answers

    def pause(self, partitions: Collection[int]) -> None:
        self.paused |= set(partitions)

    def resume(self, partitions: Collection[int]) -> None:
        self.paused -= set(partitions)


class Died(Exception):  # noqa: N818 - not an error of anybody
    """A worker is no more."""


class Worker:
    """Handles records as the daemon does, and dies of some."""

    def __init__(self, group: Group, name: str, deadly: Collection[int] = (), window: int = 5) -> None:
        self.source = FakeSource(group)
        self.care = Care(self.source, window, name)  # type: ignore[arg-type]
        self.care.begin()
        self.deadly, self.handled = set(deadly), list[int]()

    def handle(self, record: Record) -> None:
        if record.offset in self.deadly and (0, record.offset) not in self.care.aside:
            raise Died
        self.handled.append(record.offset)

    def work(self) -> None:
        """Read to the end."""
        group = self.source.group
        at = group.offset
        while at < group.records:
            batch = [
                Record("ticks", 0, offset, 0, None, b"") for offset in range(at, min(at + 3, group.records))
            ]
            at += len(batch)
            if quick := self.care.sort(batch):
                for record in quick:
                    self.handle(record)
                self.source.commit({0: at})
            while record := self.care.next:
                if self.care.guilty(record):
                    self.care.sets_aside(record)
                else:
                    assert self.care.begins(record)
                self.handle(record)
                self.source.commit({0: record.offset + 1})
                self.care.done(record)
            assert not self.source.paused

    def leave(self) -> None:
        self.source.commit({0: self.source.group.offset}, self.source.notes[0].leaving)


def deaths(group: Group, deadly: Collection[int], most: int = 20) -> tuple[int, Worker]:
    """How many workers die until one comes to the end; that one."""
    for n in range(most):
        worker = Worker(group, f"w{n}", deadly)
        try:
            worker.work()
        except Died:
            continue
        return n, worker
    raise AssertionError("it never came to an end")


@pytest.mark.parametrize("deadly", [0, 1, 7, 19])
def test_a_record_that_kills_is_set_aside_and_no_other(deadly: int) -> None:
    group = Group()
    died, worker = deaths(group, [deadly])
    assert worker.care.aside == {(0, deadly)}
    assert group.offset == group.records
    assert died <= 6


def test_two_that_kill_are_both_found() -> None:
    group = Group()
    _, worker = deaths(group, [4, 11])
    assert worker.care.aside == {(0, 4), (0, 11)}


def test_who_comes_later_passes_over_what_was_set_aside() -> None:
    group = Group()
    _, worker = deaths(group, [4])
    worker.leave()
    assert Worker(group, "heir").care.aside == {(0, 4)}


def test_a_worker_that_leaves_in_order_has_not_died() -> None:
    group = Group()
    for n in range(10):
        Worker(group, f"w{n}").leave()
    assert decode(group.metadata) == Note()


def test_a_worker_that_comes_back_to_its_own_note_has_not_died() -> None:
    group = Group()
    for _ in range(10):
        Worker(group, "the same")
    assert decode(group.metadata) == Note(worker="the same")


def test_deaths_count_only_where_nothing_was_committed_in_between() -> None:
    group = Group(records=1000)
    for n in range(100):
        worker = Worker(group, f"w{n}")
        assert worker.care._until == {}
        worker.source.commit({0: group.offset + 1})


def test_deaths_before_any_record_was_begun_set_nothing_aside() -> None:
    group = Group()
    for n in range(50):  # for want of memory while starting, say
        Worker(group, f"w{n}")
    last = Worker(group, "last")
    last.work()
    assert last.care.aside == set()
    assert last.handled == list(range(20))


def test_carefulness_ends_behind_its_window() -> None:
    group = Group()
    Worker(group, "a"), Worker(group, "b")
    careful = Worker(group, "c", window=5)
    assert careful.care._until == {0: 5}
    careful.work()
    assert careful.care._until == {}


def test_without_an_answer_nothing_is_begun_and_it_is_tried_again() -> None:
    group = Group()
    worker = Worker(group, "a")
    record = Record("ticks", 0, 0, 0, None, b"")
    worker.source.answers = False
    assert not worker.care.begins(record)
    worker.source.answers = True
    assert worker.care.begins(record)
    assert decode(group.metadata).tries == 1


def test_what_is_lost_is_forgotten() -> None:
    group = Group()
    Worker(group, "a"), Worker(group, "b")
    worker = Worker(group, "c")
    worker.care.sort([Record("ticks", 0, 0, 0, None, b"")])
    worker.care.forget({0})
    assert (worker.care.next, worker.care._until, worker.source.notes) == (None, {}, {})


def test_a_note_fits_beside_an_offset_and_anything_else_is_none() -> None:
    note = Note("w" * 12, 10**6, 10**6, tuple(range(10**15, 10**15 + 500)))
    text = encode(note)
    assert len(text) <= 4096
    assert decode(text).aside == note.aside[-MOST_ASIDE:]
    for text in ("", "{", "null", "[]", '{"deaths": "many"}', "{" * 5000):
        assert decode(text) == Note()
