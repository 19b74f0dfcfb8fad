"""The models topic: list, show, roll back, import."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from forecaster.cli.console import ConfigPath, load, out, printable, show
from forecaster.errors import DataError
from forecaster.shell.times import shown_time

if TYPE_CHECKING:
    from forecaster.config import Config
    from forecaster.shell.models import Models, Stored

app = typer.Typer(help="The models on the models topic, and which one serves.", no_args_is_help=True)


@app.command("list")
def list_models(
    as_json: Annotated[bool, typer.Option("--json", help="A line of JSON for each, with its card.")] = False,
    config: ConfigPath = None,
) -> None:
    """Every model on the topic, oldest first."""
    import orjson

    entries = _models(load(config)).versions()
    if as_json:
        for entry in entries:
            told = {"version": entry.stored.version, "serving": entry.serving, "card": entry.stored.card}
            typer.echo(orjson.dumps(told).decode())
        return
    table = Table()
    for name in ("version", "", "made", "parent", "steps", "hold-out loss\n(candidate, serving, last value)"):
        table.add_column(name)
    for entry in entries:
        card = entry.stored.card
        table.add_row(
            escape(printable(entry.stored.version)),
            "[green]serving[/green]" if entry.serving else "",
            shown_time(entry.stored.made_s) if entry.stored.made_s else "",
            escape(printable(_parent(entry.stored))),
            str(card.get("steps_taken", "")),
            _losses(card.get("scores", {})),
        )
    if entries:
        show(table)
    else:
        out.print("no model yet")


@app.command("show")
def show_model(
    version: Annotated[str, typer.Argument(help="Without it, the one that serves.")] = "",
    config: ConfigPath = None,
) -> None:
    """What is known of a model: its card and its shape, as JSON."""
    import orjson

    stored = _models(load(config)).fetch(version)
    if stored is None:
        unknown = f"there is no model {version!r}: see forecaster models list"
        raise DataError(unknown if version else "no model serves yet")
    about = {"version": stored.version, "bytes": len(stored.data), "spec": stored.spec, "card": stored.card}
    typer.echo(orjson.dumps(about, option=orjson.OPT_INDENT_2).decode())


@app.command("rollback")
def roll_back(
    version: Annotated[str, typer.Argument(help="Without it, the one that served before.")] = "",
    reason: Annotated[str, typer.Option(help="Kept with the decision.")] = "rollback",
    config: ConfigPath = None,
) -> None:
    """Let an earlier model serve; the daemons swap it in within moments, without a pause."""
    serving = _models(load(config)).roll_back(reason, version)
    out.print(f"{serving.version} serves in place of {serving.previous or 'none'}")


@app.command("import")
def import_model(
    path: Annotated[Path, typer.Argument(help="A model file, as `forecaster train` writes it.")],
    serve: Annotated[bool, typer.Option("--serve", help="Let it serve at once.")] = False,
    config: ConfigPath = None,
) -> None:
    """Publish a model file; it serves only when told to."""
    models = _models(load(config))
    stored = models.import_file(path)
    if serve:
        models.serve(stored.version, "imported")
    out.print(f"imported {stored.version}" + (", it serves now" if serve else ""))


def _models(settings: "Config") -> "Models":
    from forecaster.shell.models import Models

    return Models(settings.kafka, settings.topics.models)


def _parent(stored: "Stored") -> str:
    return str(stored.card.get("parent", ""))


def _losses(scores: dict[str, dict[str, float]]) -> str:
    losses = (scores.get(who, {}) for who in ("candidate", "serving", "last_value"))
    return ", ".join(f"{next(iter(loss.values())):.4f}" if loss else "-" for loss in losses)
