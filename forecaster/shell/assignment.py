"""Which partitions are ours, and how far each has come: waiting, rebuilding, serving.

A new partition is paused until its rows are here, from their pages and the log; the others go on meanwhile. What the
source says comes in; what to fold without publishing and which partitions may be read goes out.
"""

from collections.abc import Callable, Iterable

import structlog

from forecaster.core import snapshot
from forecaster.core.fold import Fold
from forecaster.core.pages import Refusal
from forecaster.shell.kafka import (
    Assigned,
    Change,
    KafkaSpec,
    Lost,
    Moved,
    MoveReason,
    Record,
    Revoked,
    TopicsSpec,
)
from forecaster.shell.kafka.source import Source
from forecaster.shell.metrics import Metrics
from forecaster.shell.rebuild import Known, Loaded, Rebuild, Short
from forecaster.shell.state import StateTopic

MENDS = {
    Short.GONE: "its series start young, or without their oldest ticks; every tick from here on is answered",
    Short.UNREAD: "its series start young, and what they had learned is lost; why is in rebuild_interrupted",
    Short.DEADLY: "its series go on from their pages, or start young; every tick from here on is answered",
}
APART = "give each group its own topics.state, else they write over each other's pages; series are rebuilt from the log"
_log = structlog.get_logger(__name__)


class Assignment:
    """The partitions of this worker."""

    def __init__(
        self,
        source: Source,
        fold: Fold,
        state: StateTopic,
        metrics: Metrics,
        spec: KafkaSpec,
        topics: TopicsSpec,
        rebuild_ticks: int,
        now: Callable[[], float],
    ) -> None:
        self.serving: set[int] = set()
        """Partitions whose ticks are answered."""
        self.waiting: set[int] = set()
        """Partitions that are ours and not yet rebuilt."""
        self.ever = False
        """Whether the group has ever decided, be it that there is nothing for us."""
        self.whole: set[int] = set()
        """Partitions that are being rebuilt from all their pages: what they replay was published before."""
        self._source, self._fold, self._state, self._metrics = source, fold, state, metrics
        self._spec, self._topics, self._rebuild_ticks, self._now = spec, topics, rebuild_ticks, now
        self._rebuild: Rebuild | None = None
        self._began_s = 0.0
        self._standby = False
        self._held = False

    @property
    def rebuilding(self) -> bool:
        """Whether the log is being read back right now."""
        return self._rebuild is not None

    def apply(self, changes: Iterable[Change]) -> None:
        """Take note of what the group decided; rows of partitions that left are dropped."""
        for change in changes:
            match change:
                case Assigned(partitions) if not partitions:
                    if not self._standby:
                        _log.info("standby", reason="the group has no partition for this worker")
                    self.ever = self._standby = True
                case Assigned(partitions):
                    self.ever, self._standby = True, False
                    self.waiting |= partitions
                    self._metrics.rebalances["assigned"].inc()
                    _log.info("partitions_assigned", partitions=sorted(partitions))
                case Revoked(partitions) | Lost(partitions):
                    event = "revoked" if isinstance(change, Revoked) else "lost"
                    self._leave(partitions)
                    self._metrics.rebalances[event].inc()
                    _log.info(f"partitions_{event}", partitions=sorted(partitions))
                case Moved():
                    self._metrics.position_moves[change.reason].inc()
                    if change.from_offset is not None:
                        lost = max(0, change.to_offset - change.from_offset)
                        self._metrics.offsets_lost[change.reason].inc(lost)
                    log = _log.info if change.reason == MoveReason.START else _log.warning
                    log(
                        "position_moved",
                        partition=change.partition,
                        reason=change.reason,
                        from_offset=change.from_offset,
                        to_offset=change.to_offset,
                    )
        self._metrics.assigned_partitions.set(len(self.waiting | self.serving))

    def _leave(self, partitions: frozenset[int]) -> None:
        self.waiting -= partitions
        self.serving -= partitions
        if self._rebuild is not None and self._rebuild.partitions & partitions:
            self._rebuild.cancel()
            self._rebuild = None
            for partition in self.waiting:  # half rebuilt together with what left: they start over
                self._fold.drop(partition)
            self._state.forget(self.waiting)
        self._state.forget(partitions)
        for partition in partitions:
            evicted = self._fold.drop(partition)
            self._metrics.series_evicted["revoked"].inc(evicted)
        self._metrics.forget_partitions(partitions)

    def rebuild(self) -> list[Record]:
        """Records to be folded without publishing; moves partitions on to serving when theirs are through."""
        if not self.waiting:
            return []
        if self._rebuild is None:
            if ends := self._next_ends():
                self._began_s = self._now()
                layout = snapshot.layout(self._fold)
                self._rebuild = Rebuild(
                    self._spec,
                    self._topics,
                    ends,
                    self._rebuild_ticks,
                    self._state.source,
                    layout,
                    self._fold.spec,
                    {p: self._source.passed[p] for p in ends},
                )
            return []
        if self._rebuild.done:
            self._serve(self._rebuild)
            return []
        match self._rebuild.poll():
            case Loaded(partition, page):
                self._metrics.state_pages["read"].inc()
                left_out = snapshot.load(self._fold, partition, page)
                self._metrics.state_series_left_out.inc(left_out)
            case Known() as known:
                self._know(known)
            case records:
                return records
        return []

    def _next_ends(self) -> dict[int, int]:
        """What is rebuilt next, with where serving goes on; nothing while that is not known.

        Partitions on which workers died come last and one by one, so that another death belongs to one of them.
        """
        ends = {p: self._source.position(p) for p in self.waiting if p in self._source.passed}
        known = {p: end for p, end in ends.items() if end is not None}
        if len(known) < len(self.waiting):
            return {}
        if together := {p: end for p, end in known.items() if p not in self._source.apart}:
            return together
        partition = min(known)
        return {partition: known[partition]} if self._source.before_rebuilding(partition) else {}

    def _know(self, known: Known) -> None:
        """All pages of a partition are here; its log comes next."""
        partition, saved = known.partition, known.saved
        model = known.model if known.model is not None else self._fold.model
        self._fold.swap(model if model.spec == self._fold.spec else self._fold.model, partition)
        self._fold.replay(partition, known.replay, saved.loans)
        self._state.restored(partition, saved, known.due)
        if saved.whole:
            self.whole.add(partition)
        for refusal, count in saved.refused.items():
            self._metrics.state_refused[refusal].inc(count)
            about: dict[str, object] = {"mend": "their series are rebuilt from the log"}
            if refusal is Refusal.FOREIGN:
                about = {"written_by": sorted(saved.strangers), "mend": APART}
            _log.warning(
                "state_refused",
                topic=self._topics.state,
                partition=partition,
                reason=refusal.value,
                records=count,
                **about,
            )
        self._metrics.state_models_missing.inc(known.models_missing)

    def _serve(self, rebuild: Rebuild) -> None:
        took_s = self._now() - self._began_s
        self._metrics.rebuilds.observe(took_s)
        for partition, why in rebuild.short.items():
            self._metrics.rebuild_shortfalls[why].inc()
            _log.warning("rebuilt_in_part", partition=partition, reason=why.value, mend=MENDS[why])
        for partition, end in rebuild.ends.items():
            self._fold.replayed(partition)
            self._state.serve(partition, end)
        self.whole.clear()
        self.serving |= rebuild.partitions
        self.waiting -= rebuild.partitions
        self._rebuild = None
        if not self._held:
            self._source.resume(rebuild.partitions)
        series = sum(len(self._fold.index.partitions.get(p, ())) for p in rebuild.partitions)
        self._metrics.rebuilt_series.inc(series)
        _log.info(
            "partitions_rebuilt",
            partitions=sorted(rebuild.partitions),
            series=series,
            seconds=round(took_s, 2),
        )

    def hold(self, full: bool) -> None:
        """Back-pressure: read nothing while the broker does not take what was sent."""
        if full and not self._held:
            self._source.pause(self.serving)
        elif self._held and not full:
            self._source.resume(self.serving)
        self._held = full
        self._metrics.paused_partitions.set(len(self.waiting) + (len(self.serving) if full else 0))

    def close(self) -> None:
        """Stop reading back."""
        if self._rebuild is not None:
            self._rebuild.cancel()
