"""Once a second: what the parts of a worker know of themselves becomes metrics.

Fold, source and delivery keep plain numbers and know nothing of Prometheus; here they are read and told. Whatever
it costs is bounded: where a figure is a mean over series, a sample of them is looked at.
"""

from collections import Counter
from itertools import islice
from typing import Any

import jax
import numpy as np

from forecaster.core import experts, row
from forecaster.core.fold import Fold
from forecaster.shell.kafka.delivery import Delivery
from forecaster.shell.kafka.source import Source
from forecaster.shell.metrics import REBUILD_REASONS, Metrics

SAMPLE = 256
"""Series that are looked at for a mean over series."""


class Figures:
    """Reads the parts, tells the metrics. Make it before anything is served: it compiles one small program."""

    def __init__(self, metrics: Metrics, fold: Fold, source: Source, delivery: Delivery) -> None:
        self._metrics, self._fold, self._source, self._delivery = metrics, fold, source, delivery
        self._told: Counter[str] = Counter()
        metrics.series_capacity.set(fold.index.spec.max_series)
        metrics.table_bytes.set(sum(column.nbytes for column in fold.rows))
        self._shares(np.zeros(SAMPLE, np.int32))

    def tell(self) -> None:
        """Bring every figure up to date."""
        metrics, source = self._metrics, self._source
        lag = source.lag()
        metrics.set_lag(lag)
        metrics.lag_unreadable.set(sum(lag.values()) - sum(source.readable_lag().values()))
        metrics.outstanding_messages.set(self._delivery.outstanding)
        metrics.delivery_resets.inc(self._rise("resets", self._delivery.resets))
        for reason in REBUILD_REASONS:
            metrics.consumer_rebuilds[reason].inc(self._rise(reason, source.rebuilds[reason]))
        metrics.commits.inc(self._rise("commits", source.commits))
        metrics.commit_failures.inc(self._rise("commit_failures", source.commit_failures))
        self._tell_series()

    def _tell_series(self) -> None:
        metrics, index = self._metrics, self._fold.index
        newest_s = max(index.watermark_s.values(), default=-np.inf)
        if np.isfinite(newest_s):  # also of ticks that an earlier worker answered: a restart hides no silence
            metrics.last_tick.set(newest_s)
        metrics.series_in_two_partitions.set(len(index.split))
        metrics.series_allotted.inc(self._rise("allotted", index.allotted))
        metrics.series_evicted["idle"].inc(self._rise("evicted", index.evicted))
        rows = self._sample()
        counts = np.asarray(self._fold.rows.count)[rows]
        young = float((counts < self._fold.spec.warm_up).mean()) if len(rows) else 0.0
        metrics.series["young"].set(round(young * len(index)))
        metrics.series["active"].set(len(index) - round(young * len(index)))
        if len(rows):
            metrics.set_expert_weights(experts.NAMES, self._shares(rows).mean((1, 2)))

    def _sample(self) -> np.ndarray:
        """Rows of at most SAMPLE series, as many of each partition; int32."""
        partitions = self._fold.index.partitions
        each = SAMPLE // max(1, len(partitions))
        found = (series.row for members in partitions.values() for series in islice(members.values(), each))
        return np.fromiter(found, np.int32)

    def _shares(self, rows: np.ndarray) -> np.ndarray:
        """What each expert weighs in the forecasts of these rows; (expert, horizon, row)."""
        table, padded = self._fold.rows, np.resize(rows, SAMPLE)
        blend = np.moveaxis(np.asarray(table.blend)[padded], 0, -1)
        awake = np.ones(blend[0].shape, bool)
        warm = np.asarray(table.count)[padded] >= self._fold.spec.warm_up
        awake[experts.NETWORK] = warm & bool(self._fold.model.version)
        first_share = np.float32(self._fold.model.card.first_share)
        shares = _weigh(blend, awake, first_share, np.asarray(table.running)[padded])
        return np.asarray(shares)[..., : len(rows)]

    def _rise(self, name: str, total: int) -> int:
        """How much a total has risen since it was last told."""
        rise = total - self._told[name]
        self._told[name] = total
        return rise


@jax.jit
@jax.numpy_rank_promotion("allow")
def _weigh(blend: Any, awake: Any, first_share: Any, running: Any) -> jax.Array:
    heard = experts.heard(row.unpack(running).alarm)
    return experts.weights(experts.Blend(*blend), awake, first_share, heard)
