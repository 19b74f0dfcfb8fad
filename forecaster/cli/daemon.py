"""The daemon, its configuration, and whether what it needs is there."""

from enum import StrEnum
from typing import Annotated

import typer
from rich.markup import escape

from forecaster.cli.console import ConfigPath, err, load, out


class Role(StrEnum):
    """What a worker does for its fleet."""

    BOTH = "both"
    """Answers ticks; of the workers that do, the one with ticks partition 0 also trains."""
    PREDICT = "predict"
    """Answers ticks and asks for retrains, never trains."""
    TRAIN = "train"
    """Trains when asked and answers no ticks; of several one trains, the others stand by."""


def run(
    context: typer.Context,
    config: ConfigPath = None,
    role: Annotated[
        Role,
        typer.Option(
            envvar="FORECASTER_ROLE",
            help="predict: answer ticks, never train. train: train when asked, answer none.",
        ),
    ] = Role.BOTH,
) -> None:
    """Work until told to stop (SIGTERM); USR1 retrains, HUP re-reads the file, USR2 reports."""
    settings = load(config)
    from forecaster.shell import daemon, trainers
    from forecaster.shell.signals import Signals

    signals = context.obj or Signals().install()
    if role is Role.TRAIN:
        raise typer.Exit(trainers.run(settings, signals, config))
    raise typer.Exit(daemon.run(settings, signals, config, trains=role is Role.BOTH))


def show_config(config: ConfigPath = None) -> None:
    """Print the configuration, every key explained; without a file the default one."""
    from forecaster.config import to_toml

    typer.echo(to_toml(load(config, environ=config is not None)), nl=False)


def check(config: ConfigPath = None) -> None:
    """Validate the configuration, connect, and list everything that is missing."""
    settings = load(config)
    from forecaster.shell.check import problems

    asking = f"asking {escape(settings.kafka.bootstrap_servers)}"
    if not err.is_terminal:  # where no status is shown
        err.print(asking)
    with err.status(asking):
        found = problems(settings)
    for problem in found:
        out.print(f"[red]✗[/red] {escape(str(problem))}")
    if found:
        first = min(found, key=lambda problem: problem.exit_code)  # what no restart mends
        raise type(first)(f"{len(found)} problem{'s' if len(found) > 1 else ''}, see above")
    topics = "the topics are there, or will be created" if settings.topics.create else "the topics are there"
    out.print(f"[green]✓[/green] the configuration is sound, the broker answers, {topics}")
