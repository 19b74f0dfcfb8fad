"""The library's rebalance callbacks -> functions of ours, with numbers for partitions.

They run on the client's own thread while the caller waits in `poll`; whatever asks the broker and waits
for it would block that thread, and may not be called from here.
"""

from collections.abc import Callable, Collection, Iterable

from kafka import ConsumerRebalanceListener, TopicPartition


class Listener(ConsumerRebalanceListener):
    """Passes on what is gained and lost, unless its client was thrown away meanwhile."""

    def __init__(
        self,
        current: Callable[[], bool],
        gain: Callable[[frozenset[int]], None],
        hand_over: Callable[[frozenset[int]], None],
        lose: Callable[[frozenset[int]], None],
    ) -> None:
        self._current = current
        self._gain = gain
        self._hand_over = hand_over
        self._lose = lose

    def on_partitions_assigned(self, assigned: Collection[TopicPartition]) -> None:
        """New partitions; the others stay."""
        if self._current():
            self._gain(_numbers(assigned))

    def on_partitions_revoked(self, revoked: Collection[TopicPartition]) -> None:
        """Partitions to hand over; nobody else has them yet."""
        if self._current():
            self._hand_over(_numbers(revoked))

    def on_partitions_lost(self, lost: Collection[TopicPartition]) -> None:
        """Partitions that somebody else may have already."""
        if self._current():
            self._lose(_numbers(lost))


def _numbers(partitions: Iterable[TopicPartition]) -> frozenset[int]:
    return frozenset(partition.partition for partition in partitions)
