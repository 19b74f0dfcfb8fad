"""The command line: arguments in, a few lines and an exit code out.

Heavy imports are inside the commands, so that `--help` is quick. What a command does lives in the shell; here
is only how it is asked for and how its answer looks. An error that an operator can mend is one message,
without a traceback.
"""

from typing import TYPE_CHECKING, Annotated

import typer

from forecaster.cli import daemon, files, letters, models, predictions, requests
from forecaster.cli.console import complain, out
from forecaster.errors import BugError, ForecasterError

if TYPE_CHECKING:
    from forecaster.shell.signals import Signals

app = typer.Typer(
    help="Forecasts time series from Kafka, tick by tick, with a network that retrains while it serves.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.command()(daemon.run)
app.command("config")(daemon.show_config)
app.command()(daemon.check)
app.command()(predictions.tail)
app.command()(requests.retrain)
app.command()(requests.annotate)
app.command()(files.backtest)
app.command()(files.train)
app.add_typer(requests.annotations, name="annotations")
app.add_typer(models.app, name="models")
app.add_typer(letters.app, name="dead-letters")


def main(signals: "Signals | None" = None) -> int:
    """Run the command that the arguments name; returns the exit code of an error, else raises SystemExit.

    `signals`: handlers that are installed already.
    """
    try:
        app(obj=signals, prog_name="forecaster")
    except BugError:
        raise  # with its traceback, which is what a report needs
    except ForecasterError as error:
        complain(error)
        return error.exit_code
    return 0


def _version(wanted: bool) -> None:
    if wanted:
        from forecaster import __version__

        out.print(f"forecaster {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass
