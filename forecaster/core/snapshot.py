"""A fold <-> pages: one bucket of a partition copied out at an offset, and taken over by another fold.

    page = take(fold, source, partition, bucket, buckets, offset)      after all ticks before `offset` were run
    load(fold, partition, page)                                        for each page, then `fold.replay`

Reading and writing go through programs of a fixed size, compiled with all others.
"""

import numpy as np

from forecaster.core import pages
from forecaster.core.fold import UNKNOWN, Fold
from forecaster.core.pages import Page
from forecaster.core.table import Rows


def layout(fold: Fold) -> str:
    """What pages have to agree in with this fold."""
    return pages.layout_of(fold.rows, fold.spec, fold.grid)


def take(fold: Fold, source: str, partition: int, bucket: int, buckets: int, offset: int) -> Page:
    """A bucket of a partition; `offset` is that of the next tick, `source` names the log."""
    series = fold.index.bucket(partition, bucket, buckets)
    rows = np.array([one.row for one in series], np.int32)
    carries = fold.carries(rows)
    versions = tuple(dict.fromkeys(carries))
    return Page(
        source=source,
        layout=layout(fold),
        offset=offset,
        bucket=bucket,
        buckets=buckets,
        version=fold.version(partition),
        watermark_s=fold.index.watermark_s.get(partition, float("-inf")),
        swept_s=fold.index.swept_s.get(partition),
        versions=versions,
        members=tuple(
            pages.to_member(one, versions.index(its)) for one, its in zip(series, carries, strict=True)
        ),
        columns=pages.to_columns(Rows._fields, fold.read(rows)),
    )


def load(fold: Fold, partition: int, page: Page) -> int:
    """Take over the series of a page of our layout; how many of them found no row."""
    arrays = {column.name: pages.to_array(column, len(page.members)) for column in page.columns}
    fits = arrays["carry"].shape[1:] == fold.rows.carry.shape[1:]
    if not fits:  # of a network of another size
        arrays["carry"] = np.zeros((len(page.members), *fold.rows.carry.shape[1:]), np.float32)
    members = page.members[: fold.index.spec.max_series - len(fold.index)]
    series = [fold.index.allot(partition, member.name, member.born) for member in members]
    placed = [one for one in series if one is not None]
    for member, one in zip(members, placed, strict=True):
        pages.restore(member, one)
    carries = [page.versions[member.carry] if fits else UNKNOWN for member in members]
    fold.restore(partition, placed, [arrays[name][: len(placed)] for name in Rows._fields], carries)
    return len(page.members) - len(placed)
