"""Points at which a test may have this process killed, as a power cut would: nothing is flushed, nothing is closed.

`FORECASTER_FAULT_AT=point:count` makes a process kill itself when it passes `point` for the count-th time. Without the
variable nothing happens. Whatever else the process does at that moment (the client's threads) it does not finish.
"""

import os
import signal
from collections import Counter
from enum import StrEnum

VARIABLE = "FORECASTER_FAULT_AT"


class Point(StrEnum):
    """Where a process may be killed, in the order in which work passes."""

    POLLED = "polled"  # ticks were read, nothing was done with them
    FOLDED = "folded"  # they were decoded and answered, these answers were not sent
    SENDING = "sending"  # some messages of a batch are on their way
    ACKNOWLEDGED = "acknowledged"  # all messages are on the log, nothing is committed
    OFFSETS_ASKED = "offsets_asked"  # the client was told to send the offsets
    OFFSETS_SENT = "offsets_sent"  # exactly once: they are in the transaction
    END_ASKED = "end_asked"  # exactly once: the client was told to commit it
    COMMITTED = "committed"  # the broker has said so, and nobody has been told
    MODEL_PUBLISHED = "model_published"  # a trainer has written a model, and not yet that it serves


_armed, _, _count = os.environ.get(VARIABLE, "").partition(":")
_passed: Counter[Point] = Counter()


def passing(point: Point) -> None:
    """Die here if this is where we were told to."""
    if point != _armed:
        return
    _passed[point] += 1
    if _passed[point] == int(_count or 1):
        os.kill(os.getpid(), signal.SIGKILL)
