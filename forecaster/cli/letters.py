"""The dead-letter topic: list what could not be used, send it again."""

import re
import time
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from forecaster.cli.console import INTERRUPTED, ConfigPath, err, event_s, load, out
from forecaster.errors import ConfigError
from forecaster.shell.times import shown_time

if TYPE_CHECKING:
    from forecaster.config import Config
    from forecaster.shell.redelivery import DeadLetters, Found, Query

app = typer.Typer(help="What could not be used: look at it, send it again.", no_args_is_help=True)

Reasons = Annotated[list[str] | None, typer.Option("--reason", help="Only these (may be repeated).")]
Since = Annotated[
    str,
    typer.Option(help="Only those set aside since then: ISO 8601, epoch seconds, or 90s, 15m, 2h, 3d ago."),
]
Partition = Annotated[int | None, typer.Option(min=0, help="Only those from this partition of the ticks.")]


@app.command("list")
def list_letters(
    reason: Reasons = None,
    since: Since = "",
    partition: Partition = None,
    limit: Annotated[int, typer.Option(min=1, help="The newest so many.")] = 100,
    as_json: Annotated[bool, typer.Option("--json", help="A line of JSON for each.")] = False,
    config: ConfigPath = None,
) -> None:
    """What could not be used, and what has become of it: oldest first."""
    import msgspec

    letters = _letters(load(config))
    try:
        findings = letters.find(_query(reason, since, partition), limit)
    finally:
        letters.close()
    if as_json:
        for found in findings.all():
            typer.echo(msgspec.json.encode(found.told()).decode())
        return
    shown = findings.all()
    for found in shown:
        out.print(letter_line(found), markup=False)
    total = findings.fates.total()
    if total > len(shown):
        err.print(f"the newest {len(shown):,} of {total:,}: see --limit")
    elif not total:
        err.print("no dead letters")


def letter_line(found: "Found") -> str:
    """A dead letter on one line: when, what became of it, why, where it came from, its key and size, the message."""
    kept = found.kept
    source = f"{kept.topic}/{kept.partition}@{kept.offset}"
    fate_and_reason = f"{found.fate.value:<9}  {kept.reason:<13}"
    return f"{shown_time(kept.written_s)}  {fate_and_reason}  {source}  {found.key!r}  {kept.size:,} B  {kept.message}"


@app.command("replay")
def replay_letters(
    reason: Reasons = None,
    since: Since = "",
    partition: Partition = None,
    limit: Annotated[int | None, typer.Option(min=1, help="The oldest so many.")] = None,
    again: Annotated[bool, typer.Option("--again", help="Those too that were sent back before.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be sent.")] = False,
    config: ConfigPath = None,
) -> None:
    """Send dead letters back to the ticks, each once; what comes late is learned from at the next retrain."""
    from rich.progress import Progress

    settings = load(config)
    letters, query = _letters(settings), _query(reason, since, partition)
    try:
        findings = letters.find(query)
        for sentence in findings.staying(again=again):
            err.print(sentence)
        chosen, gone = len(findings.to_send(limit, again=again)), 0
        if not chosen:
            out.print("nothing to send")
        elif dry_run:
            out.print(f"{chosen:,} would be sent to {escape(settings.topics.ticks)}")
        else:
            with Progress(console=err, transient=True) as progress:
                task = progress.add_task("sending", total=chosen)
                for gone in letters.send_back(query, limit, again=again):
                    progress.update(task, completed=gone)
            out.print(f"{gone:,} sent to {escape(settings.topics.ticks)}")
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    finally:
        letters.close()


def _letters(settings: "Config") -> "DeadLetters":
    from forecaster.shell.redelivery import DeadLetters

    return DeadLetters(settings)


def _query(reasons: list[str] | None, since: str, partition: int | None) -> "Query":
    from forecaster.core.tick import Reason
    from forecaster.shell.redelivery import Query

    known = [reason.value for reason in Reason]
    if unknown := [reason for reason in reasons or () if reason not in known]:
        raise ConfigError(f"--reason {unknown[0]!r} is none of {', '.join(known)}")
    return Query(frozenset(reasons or ()), _since_s(since) if since else 0.0, partition)


def _since_s(text: str) -> float:
    ago = re.fullmatch(r"(\d+)([smhd])", text)
    return time.time() - int(ago[1]) * _UNITS_S[ago[2]] if ago else event_s("--since", text)


_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
