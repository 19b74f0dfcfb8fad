"""In which calls of the compiled programs the steps of a batch run: the longest chains first, so that little idles.

In comes how many steps each series has, a chain that runs in order; out go calls. A program has so many lanes, each
for another series, and does up to so many rounds in one call. A batch of many series with a step each fills a wide
program; one busy series among them would leave it all but empty, and goes on in a narrow one.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np


class Shape(NamedTuple):
    """A program's size, and what it costs: only how the costs of several compare matters."""

    lanes: int
    rounds: int  # most of one call
    call_us: float  # of a call, whatever its rounds: dispatch, reading rows and writing them
    round_us: float


class Call(NamedTuple):
    """One call of a program: the series numbered `chains` take up to `rounds` steps each, from step `first` of each."""

    shape: Shape
    rounds: int
    chains: np.ndarray  # int64 (lane,)
    first: np.ndarray  # int64 (lane,), steps of the chain that ran before
    steps: np.ndarray  # int64 (lane,), steps that run now; at most `rounds`


def plan(lengths: np.ndarray, shapes: Sequence[Shape]) -> Iterator[Call]:
    """Calls that run every chain to its end; `lengths` int64 (chain,), in steps.

    Greedy: the call that does most steps for its cost comes first, with the chains that have most left in its lanes.

    >>> shapes = Shape(4, 1, 4, 4), Shape(1, 8, 10, 1)
    >>> [(call.shape.lanes, call.rounds, call.chains.tolist()) for call in plan(np.array([1, 6, 1, 1]), shapes)]
    [(4, 1, [1, 0, 2, 3]), (1, 5, [1])]
    """
    left = lengths.copy()
    while len(order := np.argsort(-left, kind="stable")[: np.count_nonzero(left)]):
        shape, rounds = _best(left[order], shapes)
        chains = order[: shape.lanes]
        steps = np.minimum(left[chains], rounds)
        yield Call(shape, rounds, chains, lengths[chains] - left[chains], steps)
        left[chains] -= steps


def _best(left: np.ndarray, shapes: Sequence[Shape]) -> tuple[Shape, int]:
    """The shape and the number of rounds that do most steps for their cost; `left` falls from chain to chain."""
    found: tuple[float, Shape, int] | None = None
    for shape in shapes:
        most = min(shape.rounds, int(left[0]))
        rounds = np.array([*(1 << k for k in range(most.bit_length() - 1)), most])
        done = np.minimum(left[: shape.lanes, None], rounds).sum(0)
        worth = done / (shape.call_us + rounds * shape.round_us)
        at = int(worth.argmax())
        if found is None or worth[at] > found[0]:
            found = worth[at], shape, int(rounds[at])
    if found is None:
        raise ValueError("no shapes to choose from")
    return found[1:]
