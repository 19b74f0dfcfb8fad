"""Once a second: what the parts of a worker know of themselves becomes metrics.

Fold, source and delivery keep plain numbers and know nothing of Prometheus; here they are read and told. Whatever
it costs is bounded: where a figure is a mean over series, a sample of them is looked at.
"""

from collections import Counter

import numpy as np

from forecaster.core import experts
from forecaster.core.fold import Fold
from forecaster.core.shares import shares
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
            metrics.set_expert_weights(experts.NAMES, self._shares(rows))

    def _sample(self) -> np.ndarray:
        """Rows of at most SAMPLE series, as many of each partition; int32."""
        index = self._fold.index
        each = SAMPLE // max(1, len(index.partitions))
        found = [index.stepped(partition, each) for partition in index.partitions]
        return np.concatenate([np.zeros(0, np.int32), *found])

    def _shares(self, rows: np.ndarray) -> np.ndarray:
        """Mean weight of each expert in the newest forecasts of these rows, over rows and steps ahead."""
        fold = self._fold
        padded, first_share = np.resize(rows, SAMPLE), np.float32(fold.model.card.first_share)
        weights = shares(fold.rows, padded, first_share, horizon=fold.spec.horizon)
        return np.asarray(weights)[..., : len(rows)].mean((1, 2))

    def _rise(self, name: str, total: int) -> int:
        """How much a total has risen since it was last told."""
        rise = total - self._told[name]
        self._told[name] = total
        return rise
