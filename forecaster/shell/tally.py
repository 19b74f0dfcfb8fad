"""What ticks came to, told once it is final: when their offsets are committed.

In come the counts of each batch, by partition, and what is committed; out go counts that nothing takes back any more.
What is taken back, or was left to another worker, is counted by whoever does it again. Knows neither metrics nor clock.
"""

from collections import Counter, deque
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from forecaster.core.score import Scores
from forecaster.core.tick import Outcome, Reason

MOST = 1000  # batches of a partition that wait; what comes behind them is told together


class Counts(NamedTuple):
    """What ticks came to."""

    outcomes: Counter[Outcome]
    reasons: Counter[Reason]  # of those that are dead letters
    missing: int = 0  # covariates that they came without
    newest_s: float = float("-inf")  # newest event time
    scores: Scores | None = None  # of the forecasts that they settled, if any

    def plus(self, other: "Counts") -> "Counts":
        """Of both."""
        scores = self.scores or other.scores
        if self.scores and other.scores:
            scores = Scores(*(a + b for a, b in zip(self.scores, other.scores, strict=True)))
        return Counts(
            self.outcomes + other.outcomes,
            self.reasons + other.reasons,
            self.missing + other.missing,
            max(self.newest_s, other.newest_s),
            scores,
        )


class _Part(NamedTuple):
    """Of a batch, in one partition."""

    epoch: int | None  # the assignment that it was read under
    behind: int  # the offset that it came to
    counts: Counts


class Tally:
    """Counts that wait for the commit of their offsets."""

    def __init__(self) -> None:
        self._waiting: dict[int, deque[_Part]] = {}

    def add(
        self, epochs: Mapping[int, int], offsets: Mapping[int, int], counts: Mapping[int, Counts]
    ) -> None:
        """A batch was handled: it came to these offsets, and to these counts. What waits from before an assignment of
        its partition is void: it is read again by now, here or elsewhere.
        """
        for partition, behind in offsets.items():
            waiting = self._waiting.setdefault(partition, deque())
            epoch, its = epochs.get(partition), counts[partition]
            if waiting and waiting[-1].epoch != epoch:
                waiting.clear()
            if len(waiting) >= MOST:
                its = waiting.pop().counts.plus(its)
            waiting.append(_Part(epoch, behind, its))

    def take(self, committed: Mapping[int, int]) -> Iterator[Counts]:
        """What is final, once; `committed` are offsets that this worker has committed, by partition."""
        for partition, waiting in self._waiting.items():
            while waiting and waiting[0].behind <= committed.get(partition, -1):
                yield waiting.popleft().counts
