"""The daemon's /metrics -> what the view shows above the table: rates, latencies, live scores, the last
retrain.

Two scrapes some seconds apart are compared, as Prometheus would. The only place of the demo that knows
metric names.
"""

import http.client
import time
import urllib.request
from collections import deque
from dataclasses import dataclass, field
from math import inf

from prometheus_client.parser import text_string_to_metric_families

RECENT_S = 10.0  # span of rates and latencies
SCORES_S = 60.0  # span of coverage and skill
RETRAIN_OUTCOMES = "forecaster_retrains_total"

Labels = frozenset[tuple[str, str]]


class Scrape:
    """The samples of one reading, by name and labels."""

    def __init__(self, text: str, time_s: float) -> None:
        self.time_s = time_s
        self._samples: dict[str, dict[Labels, float]] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                self._samples.setdefault(sample.name, {})[frozenset(sample.labels.items())] = sample.value

    def total(self, name: str, **labels: str) -> float:
        """Sum of the samples that have these labels; 0 when there are none."""
        wanted = labels.items()
        return sum(value for have, value in self._samples.get(name, {}).items() if wanted <= have)

    def by_label(self, name: str, label: str) -> dict[str, float]:
        """Samples by the value of one of their labels."""
        return {dict(labels)[label]: value for labels, value in self._samples.get(name, {}).items()}

    def label(self, name: str, label: str) -> str:
        """The label of an info metric; empty when there is none."""
        return next((dict(labels).get(label, "") for labels in self._samples.get(name, {})), "")


EMPTY = Scrape("", 0.0)


def scrape(url: str) -> Scrape:
    """Read /metrics now."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=1.0) as answer:  # noqa: S310 - our own loopback
        return Scrape(answer.read().decode(), time.monotonic())


@dataclass
class Figures:
    """What the newest scrapes say. Reads /metrics at `url` when told to."""

    url: str
    retrain_outcome: str = ""
    newest: Scrape = EMPTY
    _scrapes: deque[Scrape] = field(default_factory=deque)

    def read(self) -> None:
        """Scrape once; a daemon that does not answer changes nothing."""
        try:
            newest = scrape(self.url)
        except (OSError, http.client.HTTPException):
            return
        for outcome, times in newest.by_label(RETRAIN_OUTCOMES, "outcome").items():
            if times > self.newest.total(RETRAIN_OUTCOMES, outcome=outcome):
                self.retrain_outcome = outcome
        self.newest = newest
        self._scrapes.append(newest)
        while self._scrapes[0].time_s < newest.time_s - SCORES_S:
            self._scrapes.popleft()

    @property
    def doing(self) -> str:
        """Where the daemon is in its life, in its own word."""
        states = self.newest.by_label("forecaster_state", "forecaster_state")
        return next((state for state, on in states.items() if on), "starting")

    @property
    def ready(self) -> bool:
        """Whether the daemon says that it answers ticks."""
        return self.newest.total("forecaster_ready") > 0

    @property
    def ticks_per_s(self) -> float:
        """Consumed ticks a second."""
        before = self._before(RECENT_S)
        seconds = self.newest.time_s - before.time_s
        return self._rise("forecaster_ticks_total", before) / seconds if seconds > 0 else 0.0

    @property
    def lag(self) -> float:
        """Ticks on the log that are not yet consumed."""
        return self.newest.total("forecaster_consumer_lag_messages")

    def latency_s(self, share: float) -> float | None:
        """The quantile `share` of poll to acknowledged prediction, interpolated inside its bucket."""
        before = self._before(RECENT_S)
        name = "forecaster_prediction_latency_seconds_bucket"
        counts = {
            float(edge): count - before.total(name, le=edge)
            for edge, count in self.newest.by_label(name, "le").items()
        }
        return bucket_quantile(share, counts)

    @property
    def coverage(self) -> float | None:
        """Share of what came inside the 80 % band, as the daemon counts it."""
        before = self._before(SCORES_S)
        scored = self._rise("forecaster_quantile_scored_total", before, level="0.9")
        covered = "forecaster_quantile_covered_total"
        inside = self._rise(covered, before, level="0.9") - self._rise(covered, before, level="0.1")
        return inside / scored if scored else None

    @property
    def skill(self) -> float | None:
        """1 - error / error of the last value, in scaled terms, over all series and steps."""
        before = self._before(SCORES_S)
        last = self._rise("forecaster_last_value_scaled_absolute_error_total", before)
        return 1.0 - self._rise("forecaster_scaled_absolute_error_total", before) / last if last else None

    def _before(self, span_s: float) -> Scrape:
        """The oldest scrape within the span."""
        within = (past for past in self._scrapes if past.time_s >= self.newest.time_s - span_s)
        return next(within, self.newest)

    def _rise(self, name: str, before: Scrape, **labels: str) -> float:
        return self.newest.total(name, **labels) - before.total(name, **labels)


def bucket_quantile(share: float, counts: dict[float, float]) -> float | None:
    """A quantile from cumulative counts by upper bucket edge; None when they are empty."""
    total = counts.get(inf, 0.0)
    if total <= 0:
        return None
    below_edge, below_count = 0.0, 0.0
    for edge, count in sorted(counts.items()):
        if count >= share * total:
            if edge == inf:
                return below_edge
            return below_edge + (edge - below_edge) * (share * total - below_count) / (count - below_count)
        below_edge, below_count = edge, count
    return below_edge
