"""A fold that was killed and goes on from pages is the fold that never was: rows, clocks and forecasts."""

import random
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pytest

from forecaster.core import pages, snapshot
from forecaster.core.batch import Issued
from forecaster.core.birth import Loan
from forecaster.core.calls import Shape
from forecaster.core.fold import LOAN_EVERY, Fold
from forecaster.core.grid import GridSpec
from forecaster.core.model import Model
from forecaster.core.pages import Page, Replay
from forecaster.core.table import KINDS, Rows, Series
from forecaster.core.tick import Tick
from tests.folds import (
    CLOSE,
    COVERED,
    ROWS,
    SPEC,
    START_S,
    accompanied,
    by_source,
    make_fold,
    make_model,
    same_column,
    walk,
)


class Swap(NamedTuple):
    """From `offset` on, `model` serves."""

    offset: int
    model: Model


def drive(
    fold: Fold, log: Sequence[Tick], first: int, last: int, swaps: Sequence[Swap], batch: int
) -> list[Issued]:
    """Fold the ticks first..last-1 of partition 0, each batch cut where a swap is due."""
    edges = {first, last, *range(first, last, batch), *(s.offset for s in swaps if first < s.offset < last)}
    issued: list[Issued] = []
    for start, end in pairwise(sorted(edges)):
        for swap in swaps:
            if swap.offset == start:
                fold.swap(swap.model, 0)
        fold.admit(0, range(start, end), log[start:end])
        issued.append(fold.run())
    return issued


def model_at(offset: int, swaps: Sequence[Swap]) -> Model:
    """What serves at an offset."""
    return [swap.model for swap in swaps if swap.offset <= offset][-1]


class Kept(NamedTuple):
    """What the state topic would hold."""

    pages: dict[int, bytes]
    loans: dict[int, bytes]


def snapshots(
    fold: Fold, log: Sequence[Tick], last: int, swaps: Sequence[Swap], buckets: int, batch: int, kept: Kept
) -> None:
    """Run a fold from 0 to `last` and write a page, of one bucket after the other, after each batch."""
    for number, start in enumerate(range(0, last, batch)):
        end = min(start + batch, last)
        drive(fold, log, start, end, swaps, batch)
        while fold.lent:
            _, stretch, loan = fold.lent.popleft()
            kept.loans[stretch] = pages.encode(pages.to_lent("g:t", snapshot.layout(fold), stretch, loan))
        page = snapshot.take(fold, "g:t", 0, number % buckets, buckets, end)
        kept.pages[page.bucket] = pages.encode(page)


def decoded(kept: Kept) -> tuple[list[Page], Mapping[int, Loan]]:
    found = [pages.decode(data) for data in kept.pages.values()]
    loans = {stretch: pages.decode(data) for stretch, data in kept.loans.items()}
    return (
        [page for page in found if isinstance(page, Page)],
        {stretch: pages.to_loan(lent) for stretch, lent in loans.items() if isinstance(lent, pages.Lent)},
    )


def revive(fold: Fold, log: Sequence[Tick], last: int, swaps: Sequence[Swap], kept: Kept, batch: int) -> None:
    """Load all pages into an empty fold and replay the log up to `last`."""
    found, loans = decoded(kept)
    assert all(snapshot.load(fold, 0, page) == 0 for page in found)
    offsets = [page.offset for page in sorted(found, key=lambda page: page.bucket)]
    fold.replay(0, Replay(offsets, found), loans)
    fold.swap(model_at(min(offsets), swaps), 0)
    drive(fold, log, min(offsets), last, [s for s in swaps if s.offset > min(offsets)], batch)
    fold.replayed(0)


def same(one: Fold, other: Fold) -> None:
    """Both hold the same series, bit for bit what is a window, closely what is a number."""
    mine, theirs = one.index.partitions[0], other.index.partitions[0]
    assert list(mine) == list(theirs)
    assert one.index.watermark_s == other.index.watermark_s
    assert one.index.swept_s == other.index.swept_s
    rows = [np.array([s.row for s in index.values()], np.int32) for index in (mine, theirs)]
    for a, b in zip(mine.values(), theirs.values(), strict=True):
        assert host(a) == host(b)
    count = one.read(rows[0])[0]
    for name, *columns in zip(Rows._fields, one.read(rows[0]), other.read(rows[1]), strict=True):
        same_column(name, *(written(name, column, count) for column in columns))


def written(name: str, column: np.ndarray, count: np.ndarray) -> np.ndarray:
    """A column without what an earlier owner of the row has left in it."""
    if KINDS[name] == "whole":
        return column
    horizon = make_fold().spec.horizon
    triangle = [place for h in range(1, horizon + 1) for place in range(h)]
    step = np.array(triangle) if KINDS[name] == "triangle" else np.arange(column.shape[1])
    known = (step < count[:, None]).reshape(*column.shape[:2], *[1] * (column.ndim - 2))
    return np.where(known, column, 0)


def host(series: Series) -> pages.Member:
    return pages.to_member(series, 0)


def lively(ticks: int, seed: int, series: int = 8) -> list[Tick]:
    """Series that come one by one, some of which fall silent for long, with late ticks and duplicates."""
    rng = random.Random(seed)
    log: list[Tick] = []
    for i in range(ticks):
        now_s = START_S + 7.0 * i
        known = max(2, min(series, 1 + i * series * 2 // ticks))
        name = f"s{rng.randrange(known)}"
        if name == "s1" and ticks // 3 < i < ticks * 2 // 3:
            name = "s0"  # evicted meanwhile, and born anew later
        late_s = 60.0 if rng.random() < 0.05 else 0.0
        log.append(Tick(name, now_s - late_s, 100.0 + 10 * int(name[1:]) + rng.gauss(0, 1)))
        if rng.random() < 0.05:
            log[-1] = log[max(0, i - 1)]
    return log


CASES = {
    "ticks": (GridSpec(), SPEC),
    "ticks with covariates": (GridSpec(), COVERED),
    "bars": (GridSpec(interval_s=40.0, lateness_s=20.0), COVERED),
    "bars of the partition": (GridSpec(interval_s=40.0, close_by="partition"), SPEC),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("batches", [(7, 7), (5, 300)])
def test_from_pages_and_the_log_comes_the_state_of_a_run_that_was_never_interrupted(
    case: str, batches: tuple[int, int]
) -> None:
    """Three models, pages of four buckets at different offsets, and two deaths."""
    grid, spec = CASES[case]
    log = accompanied(lively(900, seed=3), spec)
    swaps = [Swap(at, make_model(f"v{n}", n, spec)) for n, at in enumerate((0, 390, 640), 1)]

    def fresh() -> Fold:
        one = [Shape(ROWS, 8, 1, 1)]  # all batches run in one program
        return make_fold(spec, grid, idle_s=1000.0, shapes=one)

    never, kept = fresh(), Kept({}, {})
    expected = drive(never, log, 0, len(log), swaps, batches[0])
    assert never.index.evicted > 0

    snapshots(fresh(), log, 415, swaps, 4, batches[0], kept)
    assert len({page.offset for page in decoded(kept)[0]}) == 4
    second = fresh()
    revive(second, log, 420, swaps, kept, batches[1])
    drive(second, log, 420, 655, swaps, batches[1])
    for bucket in range(4):  # the second life writes pages too, then dies
        page = snapshot.take(second, "g:t", 0, bucket, 4, 655)
        kept.pages[bucket] = pages.encode(page)
    third = fresh()
    revive(third, log, 655, swaps, kept, batches[1])
    found = drive(third, log, 655, len(log), swaps, batches[1])

    same(never, third)
    answers, wanted = by_source(found), by_source(expected)
    assert len(answers) > 100
    for place, quantiles in answers.items():
        scale = float(np.abs(wanted[place] - np.median(wanted[place])).max())
        np.testing.assert_allclose(quantiles, wanted[place], atol=CLOSE * scale, rtol=0, err_msg=str(place))


@pytest.mark.slow
def test_a_newborn_borrows_what_it_would_have_borrowed() -> None:
    """Loans of a stretch between two pages cannot be made again from rows that are ahead."""
    old = [walk(f"old{i}", 3 * LOAN_EVERY, i, 1000.0, 1.0 + i) for i in range(4)]
    log = [part[t] for t in range(len(old[0])) for part in old][: 3 * LOAN_EVERY]
    born = 2 * LOAN_EVERY - 100
    log[born:] = [
        Tick("new", tick.time_s, tick.value) if i % 50 == 0 else tick for i, tick in enumerate(log[born:])
    ]
    swaps = [Swap(0, make_model("v1"))]
    never = make_fold()
    drive(never, log, 0, len(log), swaps, 512)

    first, kept = make_fold(), Kept({}, {})
    last = born + 900
    batch = LOAN_EVERY // 4
    snapshots(first, log, last, swaps, 4, batch, kept)
    offsets = [page.offset for page in decoded(kept)[0]]
    bucket = pages.slot_of("new") % 4
    assert min(offsets) < born < max(offsets)
    again = make_fold()
    revive(again, log, last, swaps, kept, 512)
    drive(again, log, last, len(log), swaps, 512)
    assert bucket in kept.pages
    same(never, again)


def test_a_carry_of_an_earlier_model_is_warmed_up_again_after_a_restore_too() -> None:
    """A row that nobody touches between two swaps, with a page between them."""
    log = walk("a", 40) + walk("b", 40, 1)
    log.sort(key=lambda tick: tick.time_s)
    quiet = [t for t in log if t.series == "a"][:20] + [t for t in log if t.series == "b"]
    quiet += [Tick("a", quiet[-1].time_s + 1.0 + i, 100.0 + i) for i in range(5)]
    swaps = [Swap(0, make_model("v1")), Swap(25, make_model("v2", 2)), Swap(35, make_model("v1"))]
    never, again, kept = make_fold(), make_fold(), Kept({}, {})
    expected = drive(never, quiet, 0, len(quiet), swaps, 10)
    snapshots(make_fold(), quiet, 30, swaps, 1, 10, kept)
    revive(again, quiet, 40, swaps, kept, 10)
    found = drive(again, quiet, 40, len(quiet), swaps, 10)
    same(never, again)
    wanted = by_source(expected)
    for place, quantiles in by_source(found).items():
        np.testing.assert_array_equal(quantiles, wanted[place])


def test_pages_of_a_network_of_another_size_are_taken_over_without_their_carries() -> None:
    log = walk("a", 30)
    kept = Kept({}, {})
    snapshots(make_fold(), log, 30, [Swap(0, make_model("v1"))], 1, 10, kept)
    wider = make_fold(make_fold().spec.model_copy(update={"hidden": 12}))
    (page,), _ = decoded(kept)
    assert page.layout == snapshot.layout(wider)
    others = [COVERED, COVERED.model_copy(update={"covariates": ("wind", "load")})]
    assert len({page.layout, *(snapshot.layout(make_fold(spec)) for spec in others)}) == 3
    snapshot.load(wider, 0, page)
    (row,) = wider.read(np.array([wider.index.partitions[0]["a"].row], np.int32))[0]
    assert row == 30
    assert wider.carries(np.array([wider.index.partitions[0]["a"].row])) == ["?"]


def test_series_that_find_no_row_are_left_out() -> None:
    log = [Tick(f"s{i}", START_S + i, 1.0 * i) for i in range(12)]
    kept = Kept({}, {})
    snapshots(make_fold(), log, 12, [Swap(0, make_model("v1"))], 1, 12, kept)
    small = make_fold(rows=8)
    (page,), _ = decoded(kept)
    assert snapshot.load(small, 0, page) == 4
    assert list(small.index.partitions[0]) == [f"s{i}" for i in range(8)]


def test_an_empty_bucket_is_a_page_too() -> None:
    page = snapshot.take(make_fold(), "g:t", 0, 3, 4, 17)
    assert page.members == ()
    assert pages.decode(pages.encode(page)) == page
    fold = make_fold()
    assert snapshot.load(fold, 0, page) == 0
    assert len(fold.index) == 0
