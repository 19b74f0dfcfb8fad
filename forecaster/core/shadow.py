"""Two models side by side on a sample of the series: each goes on from copies of their rows, with the same steps.

In come a fold that has just been swapped, and the steps that it is about to take in; out go, block by block, the
losses of both models on the same forecasts. The copies lie in spare rows of the fold's own table, where the programs
that serve advance them too: nothing is compiled, and what is judged is what either would have published. Steps wait
until they are worth a call, or nothing else is to be done.
"""

import numpy as np

from forecaster.core.batch import Part, Work
from forecaster.core.fold import Fold
from forecaster.core.model import Model
from forecaster.core.trial import Losses

SAMPLE = 128  # series: what one call of the widest program takes
ROWS = 2 * SAMPLE  # spare ones that the fold has to have
MOST = 128  # steps in one turn: ticks wait for them


class Shadow:
    """A sample of the series, fixed when it is made: those with the least hashes that the new model serves."""

    def __init__(self, fold: Fold, model: Model, before: Model) -> None:
        """To be made right after `model` took over from `before`, and to be ended by `close`."""
        partitions = [p for p in fold.index.partitions if fold.version(p) == model.version]
        sample = fold.index.sample(SAMPLE, partitions)
        rows = np.array([series.row for _, series in sample], np.int32)
        self.series = len(sample)
        self._piece = min(MOST, fold.spec.horizon * max(1, self.series))  # steps, at most a block's
        self._fold, self._models = fold, (fold.serve(model), fold.serve(before))
        self._partitions = np.array([partition for partition, _ in sample], np.int32)
        self._from = frozenset(partition for partition, _ in sample)
        self._names = np.array([series.name for _, series in sample], object)
        self._place = np.full(fold.spare.start, -1, np.int32)  # of a row in the sample
        self._place[rows] = np.arange(len(rows))
        self._copies = np.array(fold.spare[:ROWS], np.int32).reshape(2, SAMPLE)[:, : len(rows)]
        for copies in self._copies:
            fold.copy(rows, copies)
        self._waiting: list[Work] = []
        self._running: list[Part] = []
        self._begin()
        fold.watch = self._see

    @property
    def here(self) -> bool:
        """Whether any partition with series of the sample is still here."""
        return any(partition in self._fold.index.partitions for partition in self._from)

    def close(self) -> None:
        """Look at no more steps."""
        self._fold.watch = None

    def turn(self, *, idle: bool) -> Losses | None:
        """Take in a piece of what waits, if that is enough or the loop is idle; the losses of a block that is complete.

        Never waits for long: what was sent to the device in one turn is looked at in the next.
        """
        done, spec = None, self._fold.spec
        if self._running:
            self._losses += Losses(*(float(part.scores(spec).pinball.sum()) for part in self._running))
            self._running = []
            if self._steps >= spec.horizon * np.count_nonzero(self._stepped):
                done = self._losses
                self._begin()
        waiting = sum(len(work.row) for work in self._waiting)
        if waiting >= self._piece or (idle and waiting):
            self._send_off()
        return done

    def _begin(self) -> None:
        self._losses, self._steps = Losses(), 0
        self._stepped = np.zeros(self.series, bool)  # series of the block

    def _see(self, work: Work) -> None:
        """Keep what is about the sample; a series that began anew, or whose row is another's now, leaves it."""
        work = work.picked(np.flatnonzero(self._place[work.row] >= 0))
        place = self._place[work.row]
        strange = work.fresh | (work.name != self._names[place]) | (work.partition != self._partitions[place])
        if strange.any():
            self._place[work.row[strange]] = -1
            work = work.picked(np.flatnonzero(self._place[work.row] >= 0))
        if len(work.row):
            self._waiting.append(work._replace(row=self._place[work.row]))

    def _send_off(self) -> None:
        waiting = Work(*map(np.concatenate, zip(*self._waiting, strict=True)))
        work, rest = waiting.picked(np.s_[: self._piece]), waiting.picked(np.s_[self._piece :])
        self._waiting = [rest]
        self._steps += len(work.row)
        self._stepped[work.row] = True
        self._running = [
            self._fold.beside(work._replace(row=copies[work.row]), served)
            for copies, served in zip(self._copies, self._models, strict=True)
        ]
