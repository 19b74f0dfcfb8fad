"""The fold over files: backtests, and models trained beside any stream."""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from forecaster.cli.console import INTERRUPTED, REFUSED, ConfigPath, brief, complain, err, load, out
from forecaster.errors import DataError

if TYPE_CHECKING:
    from forecaster.shell.evaluate import Study

Files = Annotated[
    list[Path],
    typer.Argument(
        help="CSV or Parquet: ts, value, and series if there are several.", exists=True, dir_okay=False
    ),
]


def backtest(
    files: Files,
    warm_up: Annotated[
        float, typer.Option("--warmup", min=0.05, max=0.95, help="Share of each series that comes first.")
    ] = 0.6,
    config: ConfigPath = None,
    folder: Annotated[Path, typer.Option("--out", help="Folder for forecasts, scores and report.")] = Path(
        "backtest"
    ),
) -> None:
    """Replay files as if they were streamed: forecasts, scores, and a report to look at.

    A file that cannot be judged does not keep the others from it; the exit code tells of it.
    """
    settings = load(config)
    from forecaster.shell import report, results
    from forecaster.shell.evaluate import check_names, evaluate, read
    from forecaster.shell.outputs import prepare_folder, written_to
    from forecaster.shell.replay import dataset
    from forecaster.shell.terminal import Watch

    check_names(files)
    good: list[Path] = []
    studies: list[Study] = []
    try:
        for path in files:  # all of them, before the first takes its time
            with err.status(f"reading {escape(str(path))}"), _told_of():
                read(path, settings, warm_up)
                good.append(path)
        if good:
            prepare_folder(folder)
        for path in good:
            with _told_of(), written_to(folder), Watch(err, dataset(path)) as watch:
                written = [*studies, evaluate(path, settings, warm_up, folder, watch)]
                results.write(written, folder)
                (folder / "report.html").write_text(report.page(written), encoding="utf-8")
                studies = written  # now that all of it is
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    if studies:
        _show(studies)
        out.print(
            f"forecasts, scores and report are in {escape(str(folder))}: see {escape(str(folder / 'report.html'))}"
        )
    if failed := len(files) - len(studies):
        if len(files) > 1:
            done = {study.dataset for study in studies}
            names = ", ".join(str(path) for path in files if dataset(path) not in done)
            err.print(f"{failed:,} of {len(files):,} files could not be judged: {escape(names)}")
        raise typer.Exit(DataError.exit_code)


@contextmanager
def _told_of() -> Generator[None]:
    """A file that cannot be used is told of; the others are not kept from what they are read for."""
    try:
        yield
    except DataError as error:
        complain(error)


def _show(studies: Sequence["Study"]) -> None:
    from forecaster.shell import results
    from forecaster.shell.terminal import scores_by_dataset, scores_by_horizon

    for study in studies:
        out.print(scores_by_horizon(study))
    out.print(scores_by_dataset(studies))
    for study in studies:
        if len(study.scorer.by_series()) < study.series:
            out.print(f"{escape(study.dataset)}: {study.judged}")
        if alone := results.unserved(study):
            out.print(f"{escape(study.dataset)}: {escape(alone)}")
        if study.unused:
            out.print(f"{escape(study.dataset)}: {escape(study.not_used)}")


def train(
    file: Annotated[
        Path,
        typer.Argument(
            help="CSV or Parquet: ts, value, and series if there are several.", exists=True, dir_okay=False
        ),
    ],
    candidate: Annotated[Path, typer.Option("--out", help="Where the model goes, if it is good.")],
    serving: Annotated[
        Path | None,
        typer.Option(help="A model file to start from, and to beat.", exists=True, dir_okay=False),
    ] = None,
    config: ConfigPath = None,
) -> None:
    """Train on a file; the model can be taken over with `forecaster models import`."""
    settings = load(config)
    from forecaster.shell import trainer
    from forecaster.shell.replay import dataset
    from forecaster.shell.terminal import Watch

    try:
        with Watch(err, dataset(file)) as watch:
            ended = trainer.run(trainer.job_on_files(settings, file, candidate, serving), watch)
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    details = f"{ended.version} on {ended.ticks:,} ticks of {ended.series:,} series, {ended.step} steps"
    out.print(f"[bold]{ended.outcome}[/bold] {escape(ended.reason or ended.message)}")
    if ended.version:
        out.print(f"  {details}\n  losses: {brief(ended.losses)}")
    if ended.outcome != "promoted":
        raise typer.Exit(REFUSED)
    out.print(f"  written to {escape(str(candidate))}")
