"""Which partitions are taken carefully and what is set aside: workers that die, on offsets that a list remembers."""

from collections.abc import Callable, Collection, Mapping, Sequence

import msgspec
import pytest

from forecaster.shell.care import Care
from forecaster.shell.kafka import Record
from forecaster.shell.kafka.notes import MOST_ASIDE, MOST_PASSED, Note, Span, decode, encode
from forecaster.shell.kafka.source import Notes


class Group:
    """The committed offset of one partition, and what stands beside it: outlives its workers."""

    def __init__(self, records: int = 20, batch: int = 4) -> None:
        """`batch`: records of a batch on the log."""
        self.offset, self.metadata, self.records, self.batch = 0, "", records, batch


class FakeSource:
    """One worker's view of the group."""

    def __init__(self, group: Group, deadly: Collection[int] = ()) -> None:
        """`deadly`: offsets of records whose batches kill who decodes them."""
        self.group, self.deadly = group, set(deadly)
        self.position, self.decoded = group.offset, group.offset
        self.moves: list[Span] = []
        self.apart: set[int] = set()
        self.passed: dict[int, Sequence[Span]] = {}
        self.before_decoding: Callable[[int, int], bool] = lambda _, __: True
        self.before_rebuilding: Callable[[int], bool] = lambda _: True
        self.assigned = frozenset({0})
        self.notes: dict[int, Notes] = {}
        self.last_committed: dict[int, int] = {}
        self.answers = True

    def committed(self, _: Collection[int]) -> dict[int, tuple[int, str]] | None:
        self.last_committed[0] = self.group.offset
        return {0: (self.group.offset, self.group.metadata)} if self.answers else None

    def commit(self, offsets: Mapping[int, int], metadata: str | None = None) -> bool:
        if self.answers:
            self.group.offset = self.last_committed[0] = offsets[0]
            self.group.metadata = self.notes[0].working if metadata is None else metadata
        return self.answers

    def resume(self, partitions: Collection[int]) -> None:
        assert not self.apart & set(partitions)

    def read(self, alone: bool = False) -> Record | None:
        """The next record, whose batch is decoded as a whole when it is the first."""
        if self.position >= self.group.records:
            return None
        if self.position >= self.decoded:
            first = self.position // self.group.batch * self.group.batch
            behind = min(first + self.group.batch, self.group.records)
            if alone and not self.before_decoding(0, behind):
                return None
            if any(first <= offset < behind for offset in self.deadly):
                raise Died
            self.decoded = behind
        self.position += 1
        return Record("ticks", 0, self.position - 1, 0, None, b"")

    def poll_alone(self, partition: int) -> Record | None:
        assert self.apart == {partition}
        return self.read(alone=True)

    def pass_over(self, partition: int, span: Span, metadata: str) -> bool:
        if done := self.commit({partition: span[1]}, metadata):
            self.position = self.decoded = span[1]
            self.moves.append(span)
        return done


class Died(Exception):  # noqa: N818 - not an error of anybody
    """A worker is no more."""


class Worker:
    """Handles records as the daemon does, and dies of some."""

    def __init__(
        self,
        group: Group,
        name: str,
        deadly: Collection[int] = (),
        window: int = 5,
        batches: Collection[int] = (),
    ) -> None:
        self.source = FakeSource(group, batches)
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
        while group.offset < group.records:
            if 0 not in self.source.apart:
                quick = [record for _ in range(3) if (record := self.source.read())]
                for record in quick:
                    self.handle(record)
                self.source.commit({0: quick[-1].offset + 1})
            while record := self.care.next({0}):
                if self.care.guilty(record):
                    self.care.sets_aside(record)
                else:
                    assert self.care.begins(record)
                self.handle(record)
                self.source.commit({0: record.offset + 1})
                self.care.done(record)

    def leave(self) -> None:
        self.source.commit({0: self.source.group.offset}, self.source.notes[0].leaving)


def deaths(
    group: Group, deadly: Collection[int], batches: Collection[int] = (), most: int = 30
) -> tuple[int, Worker]:
    """How many workers die until one comes to the end; that one."""
    for n in range(most):
        worker = Worker(group, f"w{n}", deadly, batches=batches)
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


@pytest.mark.parametrize("deadly", [0, 5, 7, 19])
def test_a_batch_that_kills_is_passed_over_and_no_other(deadly: int) -> None:
    group = Group()
    died, worker = deaths(group, [], batches=[deadly])
    first = deadly // 4 * 4
    assert worker.source.passed == {0: ((first, first + 4),)}
    assert worker.care.aside == set()
    assert group.offset == group.records
    assert died <= 6


def test_batches_and_records_that_kill_are_all_found() -> None:
    group = Group()
    _, worker = deaths(group, [2, 11], batches=[5, 13])
    assert worker.source.passed == {0: ((4, 8), (12, 16))}
    assert worker.care.aside == {(0, 2), (0, 11)}
    heir = Worker(group, "heir")
    assert heir.source.passed == worker.source.passed


def test_a_batch_that_cannot_be_noted_is_not_decoded() -> None:
    group = Group()
    Worker(group, "a"), Worker(group, "b")
    worker = Worker(group, "c", batches=[0])
    worker.source.answers = False
    assert worker.care.next({0}) is None


def test_kills_while_nothing_is_decoded_pass_nothing_over() -> None:
    group = Group()
    for n in range(50):
        worker = Worker(group, f"w{n}")
        if record := worker.care.next({0}):  # decoded, noted as begun, and killed then
            assert worker.care.begins(record)
            group.metadata = encode(msgspec.structs.replace(decode(group.metadata), tries=0))
    assert Worker(group, "last").source.passed == {0: ()}


def test_a_log_that_kills_who_reads_it_back_is_not_read_back() -> None:
    group = Group()
    group.offset = 8
    for n in range(5):
        worker = Worker(group, f"w{n}")
        assert worker.source.passed == {0: ()}, "it dies while it reads back"
        assert 0 not in worker.source.apart or worker.source.before_rebuilding(0)
    survivor = Worker(group, "survivor")
    assert survivor.source.passed == {0: ((0, 8),)}
    survivor.work()
    survivor.leave()
    assert decode(group.metadata) == Note()
    assert Worker(group, "heir").source.passed == {0: ()}


def test_deaths_after_it_was_read_back_let_the_log_be_read_back_again() -> None:
    group = Group()
    group.offset = 8
    for n in range(50):
        worker = Worker(group, f"w{n}")
        assert worker.source.passed == {0: ()}
        assert worker.source.before_rebuilding(0)
        worker.source.position = group.records  # waits for ticks
        assert worker.care.next({0}) is None
    assert decode(group.metadata).rebuilds == 0


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
    assert worker.care.next({0}) is not None
    worker.care.forget({0})
    assert worker.care.next({0}) is None
    assert (worker.care._until, worker.source.notes) == ({}, {})
    assert (worker.source.apart, worker.source.passed) == (set(), {})


def test_a_note_fits_beside_an_offset_and_anything_else_is_none() -> None:
    aside = tuple(range(10**15, 10**15 + 500))
    passed = tuple((offset, offset + 10**6) for offset in aside)
    text = encode(Note("w" * 12, 10**6, 10**6, 10**6, 10**15, aside, passed))
    assert len(text) <= 4096
    assert (decode(text).aside, decode(text).passed) == (aside[-MOST_ASIDE:], passed[-MOST_PASSED:])
    for text in ("", "{", "null", "[]", '{"deaths": "many"}', "{" * 5000):
        assert decode(text) == Note()
