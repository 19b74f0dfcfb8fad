"""The fold over files: backtests, and models trained beside any stream."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from forecaster.cli.console import INTERRUPTED, REFUSED, ConfigPath, brief, err, load, out

if TYPE_CHECKING:
    from forecaster.shell.evaluate import Study

Files = Annotated[
    list[Path], typer.Argument(help="CSV or Parquet: series, ts, value.", exists=True, dir_okay=False)
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
    """Replay files as if they were streamed: forecasts, scores, and a report to look at."""
    settings = load(config)
    from forecaster.shell import report, results
    from forecaster.shell.evaluate import check_names, evaluate, told
    from forecaster.shell.terminal import Watch, scores_by_dataset, scores_by_horizon

    check_names(files)
    studies: list[Study] = []
    try:
        for path in files:
            with Watch(err, path.stem) as watch:
                studies.append(evaluate(path, settings, warm_up, folder, watch))
            results.write(studies, folder)
            (folder / "report.html").write_text(report.page(studies), encoding="utf-8")
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    for study in studies:
        out.print(scores_by_horizon(study))
    out.print(scores_by_dataset(studies))
    for study in studies:
        if study.unused:
            out.print(f"{escape(study.dataset)}: of {study.records:,} rows {told(study.unused)}: not used")
    out.print(
        f"forecasts, scores and report are in {escape(str(folder))}: see {escape(str(folder / 'report.html'))}"
    )


def train(
    file: Annotated[
        Path, typer.Argument(help="CSV or Parquet: series, ts, value.", exists=True, dir_okay=False)
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
    from forecaster.shell.terminal import Watch

    try:
        with Watch(err, file.stem) as watch:
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
