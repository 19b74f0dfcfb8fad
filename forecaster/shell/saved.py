"""Records of one partition of the state topic -> what a restart can begin with; pure, nothing is read or written.

In come the newest records by key and the offset that is committed; out go the pages that can be used, where the log has
to be read from, and the swaps, skips and loans on the way. What cannot be used is counted by reason, and its rows are
rebuilt from the log.

    page/<buckets>/<bucket>     a hash bucket of the series
    event/<offset>              another model from this tick on
    skip/<offset>/<until>       ticks that were too old to be answered
    loan/<stretch>              what newborn series borrowed in a stretch of the log
"""

import re
from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

from forecaster.core import pages
from forecaster.core.birth import Loan
from forecaster.core.pages import Page, Refusal, Skip, Swap


class Saved(NamedTuple):
    """What is known of a partition."""

    pages: list[Page]
    offsets: list[int]  # by bucket: that of its page, or where the log is read from in its stead
    swaps: list[Swap]  # at or after the first of these offsets, in their order
    skips: list[Skip]  # that end after the first of these offsets, in their order
    version: str | None  # of the model at that offset; None: nothing says it
    loans: dict[int, Loan]
    keys: set[bytes]  # of everything that is on the topic
    refused: Counter[Refusal]
    strangers: set[str]  # consumer groups, with their ticks topics, that wrote what is foreign
    whole: bool  # whether every bucket has its page

    @property
    def start(self) -> int:
        """The first offset that has to be read."""
        return min(self.offsets)


def page_key(page: Page) -> bytes:
    """The key of a page."""
    return b"page/%d/%d" % (page.buckets, page.bucket)


def swap_key(swap: Swap) -> bytes:
    """The key of a swap."""
    return b"event/%d" % swap.offset


def skip_key(skip: Skip) -> bytes:
    """The key of a skip."""
    return b"skip/%d/%d" % (skip.offset, skip.until)


def loan_key(stretch: int) -> bytes:
    """The key of a loan."""
    return b"loan/%d" % stretch


def is_past(key: bytes, buckets: int, floor: int, loan_every: int) -> bool:
    """Whether nobody needs a record any more: every page is of `buckets`, at `floor` or later."""
    match = re.fullmatch(rb"(page|event|skip|loan)/(\d+)(?:/(\d+))?", key)
    if match is None:
        return False  # not ours
    number = int(match[2])
    match match[1]:
        case b"page":
            return number != buckets
        case b"event":
            return number < floor
        case b"skip":
            return int(match[3] or number) <= floor
        case _:
            return number < floor // loan_every


def choose(
    records: Mapping[bytes, bytes], source: str, layout: str, committed: int, without_pages: int
) -> Saved:
    """What can be used of the newest records by key. `without_pages`: where the log is read from, where no page is."""
    refused: Counter[Refusal] = Counter()
    sets: dict[int, dict[int, Page]] = {}
    swaps: list[Swap] = []
    skips: list[Skip] = []
    loans: dict[int, Loan] = {}
    strangers: set[str] = set()
    for data in records.values():
        found = pages.decode(data)
        if not isinstance(found, Refusal):
            strangers |= {found.source} - {source}
            found = _refusal(found, source, layout, committed) or found
        if isinstance(found, Refusal):
            refused[found] += 1
        elif isinstance(found, Page):
            sets.setdefault(found.buckets, {})[found.bucket] = found
        elif isinstance(found, Swap):
            swaps.append(found)
        elif isinstance(found, Skip):
            skips.append(found)
        else:
            loans[found.stretch] = pages.to_loan(found)
    # A change of the number of buckets leaves the set before in place until the new one is whole.
    buckets = max(sets, key=lambda n: (len(sets[n]) / n, min(p.offset for p in sets[n].values())), default=1)
    usable = sets.get(buckets, {})
    offsets = [usable[b].offset if b in usable else without_pages for b in range(buckets)]
    swaps = _completed(sorted(swaps, key=lambda swap: swap.offset), list(usable.values()))
    return Saved(
        pages=list(usable.values()),
        offsets=offsets,
        swaps=[swap for swap in swaps if swap.offset >= min(offsets)],
        skips=[skip for skip in sorted(skips, key=lambda skip: skip.offset) if skip.until > min(offsets)],
        version=_version_at(min(offsets), swaps, list(usable.values())),
        loans=loans,
        keys=set(records),
        refused=refused,
        strangers=strangers,
        whole=len(usable) == buckets,
    )


def _refusal(found: pages.Stored, source: str, layout: str, committed: int) -> Refusal | None:
    """Why something that was read whole is not used."""
    if found.source != source:
        return Refusal.FOREIGN
    if isinstance(found, Swap | Skip):
        return None  # one ahead of what is committed is followed when its tick is answered again
    if found.layout != layout or (isinstance(found, Page) and not 0 <= found.bucket < found.buckets):
        return Refusal.LAYOUT
    if isinstance(found, Page) and found.offset > committed:
        return Refusal.AHEAD
    return None


def _version_at(offset: int, swaps: list[Swap], usable: list[Page]) -> str | None:
    """What served just before `offset`."""
    if at := [page.version for page in usable if page.offset == offset]:
        return at[0]
    if before := [swap.version for swap in swaps if swap.offset < offset]:
        return before[-1]
    return swaps[0].previous if swaps else None


def _completed(swaps: list[Swap], usable: list[Page]) -> list[Swap]:
    """With a swap wherever a page knows of one that is not there: pages say which model they were written under."""
    found = list(swaps)
    for page in sorted(usable, key=lambda page: page.offset):
        before = [swap.version for swap in found if swap.offset < page.offset]
        possible = {*before[-1:], *(swap.version for swap in found if swap.offset == page.offset)}
        if page.version not in possible and (before or any(p.offset < page.offset for p in usable)):
            found.append(Swap(page.source, page.offset, page.version, before[-1] if before else ""))
            found.sort(key=lambda swap: swap.offset)
    return found
