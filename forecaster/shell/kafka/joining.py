"""Mends for the way in which the library joins a group over several polls, and learns that it is out.

A join goes on by itself between polls, but the library takes note of its result only inside a poll that is waiting
for it. If it ends between two polls, it is thrown away and begun again, which makes every other member join again
too: members that are busy between their polls may chase each other for ever. And if the join began because the topic
changed, it is forgotten altogether: the member then sends no heartbeats and commits nothing, for good.

A static member whose identity another one has taken learns so from a heartbeat. The library then sends no more of them
and tells nobody; with nothing to commit, it would be thought silent, join anew, and take the identity back.

Its listener hears of partitions that come and go, and so nothing of an assignment that gives none.
"""

from collections.abc import Callable
from typing import Any

from kafka import KafkaConsumer
from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor
from kafka.errors import FencedInstanceIdError
from kafka.structs import MemberState


class Assignor(CooperativeStickyAssignor):
    """The library's, which tells also of assignments that give nothing."""

    def __init__(self, given: Callable[[bool], None]) -> None:
        """`given(anything)` is called at each assignment, inside a poll."""
        super().__init__()
        self._given = given

    def on_assignment(self, assignment: Any, generation: int) -> None:
        """Called by the library: the group has decided."""
        super().on_assignment(assignment, generation)
        self._given(bool(assignment.partitions()))

    def forget(self) -> None:
        """What was ours is not any more: else we would claim it when we join again."""
        self.member_assignment = None


class FinishedJoin:
    """A join that ended between two polls, in the shape of one that is still going on: so its result is used."""

    is_done = False

    def __init__(self, future: Any) -> None:
        self.add_callback = future.add_callback
        self.add_errback = future.add_errback


def before_poll(consumer: KafkaConsumer) -> None:
    """Have the result of a join that ended meanwhile used."""
    coordinator = consumer._coordinator  # noqa: SLF001
    join = coordinator._join_task  # noqa: SLF001
    if join is not None and join.is_done:
        coordinator._join_task = FinishedJoin(join)  # noqa: SLF001


def after_poll(consumer: KafkaConsumer) -> None:
    """Have a join that is still going on waited for by the next poll; raise what a heartbeat was told."""
    if is_joining(consumer):
        consumer._coordinator.request_rejoin()  # noqa: SLF001
    elif _is_fenced(consumer):
        raise FencedInstanceIdError(consumer._coordinator.group_instance_id)  # noqa: SLF001


def is_joining(consumer: KafkaConsumer) -> bool:
    """Whether a join is going on, or has ended without being taken note of."""
    return consumer._coordinator.state == MemberState.REBALANCING  # noqa: SLF001


def _is_fenced(consumer: KafkaConsumer) -> bool:
    """Whether a static member that is neither out of its group nor joining has stopped its heartbeats."""
    coordinator = consumer._coordinator  # noqa: SLF001
    if coordinator.group_instance_id is None:
        return False
    with coordinator._lock:  # noqa: SLF001 - a join that ends sets state and heartbeats together
        return is_at_rest(consumer) and not coordinator._heartbeat_enabled  # noqa: SLF001


def is_at_rest(consumer: KafkaConsumer) -> bool:
    """Whether we are in the group, and it knows of no reason to share the partitions out anew."""
    coordinator = consumer._coordinator  # noqa: SLF001
    stable = coordinator.state == MemberState.STABLE
    return stable and not coordinator.rejoin_needed and not coordinator.rejoining
