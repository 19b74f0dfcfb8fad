"""What all commands share: the terminal, the configuration, how times and values are read and shown."""

import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table

from forecaster.errors import ConfigError, ForecasterError

if TYPE_CHECKING:
    from forecaster.config import Config

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)

ConfigPath = Annotated[
    Path | None,
    typer.Option("--config", "-c", envvar="FORECASTER_CONFIG", help="TOML file. Without it: the defaults."),
]
REFUSED = 1  # exit code where what was asked for was tried and did not happen
WIDEST = 1000  # columns of a table
INTERRUPTED = 130  # exit code after Ctrl-C, as shells have it


def load(path: Path | None, *, environ: bool = True) -> "Config":
    """The configuration from a file and, with `environ`, from the variables that override it.

    From here on, events of the log go to stderr, also before the log is configured: stdout is for what was asked for.
    """
    import structlog

    from forecaster import config

    structlog.configure(logger_factory=lambda *_: structlog.PrintLogger(sys.stderr))
    return config.load(path, os.environ if environ else {})


def event_s(option: str, text: str) -> float:
    """Seconds since the epoch that an option names: ISO 8601 (UTC where it has no zone), or the number itself."""
    try:
        return float(text)
    except ValueError:
        pass
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(f"{option} {text!r} is neither ISO 8601 nor epoch seconds") from None
    return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()


def printable(text: str) -> str:
    """Text from elsewhere, with what a terminal would act on escaped."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def show(table: Table) -> None:
    """A table as wide as what is in it, however narrow the terminal: other commands ask for names in it."""
    table.width = Measurement.get(out, out.options.update(max_width=WIDEST), table).maximum
    out.print(table)


def complain(error: ForecasterError) -> None:
    """One message, without a traceback."""
    err.print(f"[red]forecaster:[/red] {escape(str(error))}")


def brief(value: object) -> str:
    """A value of an answer or a card on one line, numbers to four digits."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return ", ".join(f"{name} {brief(inner)}" for name, inner in value.items())
    return str(value)
