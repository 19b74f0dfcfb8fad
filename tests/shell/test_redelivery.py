"""Dead letters as they are found: what they say, and what has become of them; without a broker."""

import pytest

from forecaster.core.tick import Reason, Reject
from forecaster.shell.dead_letters import MOST_BYTES, Kept, Place, letter, read, receipt, replay
from forecaster.shell.kafka import Record
from forecaster.shell.redelivery import Fate, Findings, Query


def tick(
    offset: int, value: bytes = b"{", partition: int = 0, topic: str = "ticks", **more: object
) -> Record:
    return Record(topic, partition, offset, 1_000, b"k", value, **more)  # type: ignore[arg-type]


def laid(*ticks: Record, reason: Reason = Reason.NOT_JSON, at: int = 0) -> list[Record]:
    """The letters of these ticks, on their topic from an offset on, one a second."""
    found = []
    for offset, one in enumerate(ticks, at):
        value, key, headers = letter(one, Reject(reason, "why"))
        found.append(Record("dead", 0, offset, 1_000 * offset, key, value, headers))
    return found


def receipts(*places: Place) -> list[Record]:
    return [Record("dead", 0, 100 + n, 10**6, None, None, receipt(place)) for n, place in enumerate(places)]


def findings(records: list[Record], query: Query | None = None, most: int | None = None) -> Findings:
    found = Findings(query or Query(), "ticks", most)
    found.feed(records)
    return found


def fates(found: Findings) -> dict[int, Fate]:
    """By the source's offset."""
    return {one.kept.offset: one.fate for one in found.all()}


def test_a_letter_says_what_was_put_into_it() -> None:
    (kept,) = map(read, laid(tick(7, b"\x00\xff", partition=3), at=5))
    assert isinstance(kept, Kept)
    assert (kept.place, kept.written_s, kept.reason, kept.message) == ((0, 5), 5.0, "not_json", "why")
    assert (kept.topic, kept.partition, kept.offset, kept.timestamp_ms) == ("ticks", 3, 7, 1_000)
    assert (kept.key, kept.value, kept.size, kept.cut, kept.came_back) == (b"k", b"\x00\xff", 3, False, False)


@pytest.mark.parametrize(
    "headers",
    [
        (),
        [("reason", b"null")],
        [("replayed.offset", b"1")],
        [("replayed.offset", b"x"), ("replayed.partition", b"0")],
    ],
)
def test_what_is_no_letter_is_passed_over(headers: list[tuple[str, bytes]]) -> None:
    found = findings([Record("dead", 0, 0, 0, b"k", b"v", headers), *laid(tick(1))])
    assert fates(found) == {1: Fate.OPEN}


def test_each_letter_has_its_fate() -> None:
    back = tick(5, headers=replay("dead", (0, 9)))
    letters = laid(tick(1), tick(2), tick(3, b"x" * (MOST_BYTES + 1)), tick(4, topic="others"), back)
    found = findings([*letters, *receipts((0, 1), (0, 77))])
    assert fates(found) == {1: Fate.OPEN, 2: Fate.REPLAYED, 3: Fate.CUT, 4: Fate.FOREIGN, 5: Fate.CAME_BACK}
    assert [kept.offset for kept in found.to_send(None, again=False)] == [1]
    assert [kept.offset for kept in found.to_send(None, again=True)] == [1, 2, 5]
    assert [kept.offset for kept in found.to_send(2, again=True)] == [1, 2]
    said = " ".join(found.staying(again=False))
    for words in (
        "1 not sent: they were sent before; ",
        "could not be used then either",
        "too large",
        "topics.ticks",
    ):
        assert words in said
    assert len(found.staying(again=True)) == 2


def test_letters_are_found_by_what_they_say() -> None:
    letters = [*laid(tick(1), tick(2, partition=4)), *laid(tick(3), reason=Reason.FUTURE, at=2)]
    assert fates(findings(letters, Query(reasons=frozenset({"future"})))).keys() == {3}
    assert fates(findings(letters, Query(since_s=1.0))).keys() == {2, 3}
    assert fates(findings(letters, Query(partition=4))).keys() == {2}


def test_of_many_the_newest_are_kept_and_all_are_counted() -> None:
    found = findings([*laid(*(tick(n) for n in range(10))), *receipts((0, 2))], most=3)
    assert list(fates(found)) == [7, 8, 9]
    assert found.fates == {Fate.OPEN: 9, Fate.REPLAYED: 1}


def test_what_programs_are_told_names_the_letter_and_its_source() -> None:
    (found,) = findings(laid(tick(7)._replace(key=b"\xff")), None).all()
    told = found.told()
    assert told["letter"] == {"partition": 0, "offset": 0}
    assert told["source"] == {"topic": "ticks", "partition": 0, "offset": 7}
    assert (told["key"], told["bytes"], told["fate"]) == ("\\xff", 2, "open")
