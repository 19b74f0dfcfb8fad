"""What a backtest and a training show in a terminal: a bar while they run, tables at the end.

In come the events of a run and its studies; out go rich's renderables. Nothing is computed here.
"""

import math
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from forecaster.core.train import Progress as Fitting
from forecaster.shell import results
from forecaster.shell.backtest import Part, Verdict
from forecaster.shell.evaluate import Event, Study
from forecaster.shell.scoring import Score
from forecaster.shell.trainer import Report


class Watch:
    """A bar for one run: call it with every event."""

    def __init__(self, console: Console, name: str) -> None:
        self._console = console
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("[dim]{task.fields[now]}"),
            console=console,
        )
        self._task = self._bar.add_task(escape(name), total=None, now="reading")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def __call__(self, event: Event | Report) -> None:
        """Show where the run stands."""
        match event:
            case Part():
                self._show("warm-up" if event.warm else "streaming", event.done, event.total)
            case Fitting():
                self._show(f"training: step {event.step} of {event.steps}, hold-out {event.best_loss:.4f}")
            case Report(stage="read"):
                self._show(f"{event.ticks:,} ticks of {event.series:,} series: compiling")
            case Report(stage="fit"):
                loss = event.losses["best"]
                self._show(f"training, hold-out {loss:.4f}", event.step, event.steps)
            case Verdict():
                outcome = results.outcome(event).replace("_", " ")
                self._bar.print(
                    f"[dim]tick {event.offset:,}: retrained in {event.seconds:.0f} s: {outcome}[/dim]"
                )
            case _:
                pass

    def _show(self, now: str, done: int | None = None, total: int | None = None) -> None:
        self._bar.update(self._task, now=now, completed=done, total=total)


COLUMNS = ("sQL", "last", "relative", "MASE", "80 %", "60 %")
MEANING = "sQL: quantile loss · last: that of the last value · relative: of the two · 80 %: held what came"


def scores_by_dataset(studies: Sequence[Study]) -> Table:
    """A row for each data set, and one for all of them."""
    table = _table("data set", "series", "forecasts", *COLUMNS, "s")
    for study in studies:
        score = study.scorer.overall()
        table.add_row(
            escape(study.dataset),
            results.judged_of_all(study),
            f"{score.forecasts:,}",
            *_cells(score),
            f"{study.seconds:.0f}",
        )
    table.caption = MEANING
    if len(studies) > 1:
        total = results.summary(studies)
        table.add_row(
            "geometric mean",
            *("", "", "", ""),
            *map(_cell, (total.relative_sql, math.nan, total.coverage_80, total.coverage_60)),
        )
    return table


def scores_by_horizon(study: Study) -> Table:
    """A row for each step ahead."""
    table = _table(f"{escape(study.dataset)}, steps ahead", *COLUMNS)
    for h, score in enumerate(study.scorer.by_horizon(), start=1):
        table.add_row(str(h), *_cells(score))
    return table


def _table(first: str, *others: str) -> Table:
    table = Table(first, box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for name in others:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _cells(score: Score) -> tuple[str, ...]:
    values = (score.sql, score.last_sql, score.relative_sql, score.mase, score.coverage_80, score.coverage_60)
    return tuple(map(_cell, values))


def _cell(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "\N{EN DASH}"
