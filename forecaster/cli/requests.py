"""What is asked of the fleet through the control topic, and what holds there."""

import getpass
import socket
import time
from contextlib import closing
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from forecaster.cli.console import (
    INTERRUPTED,
    REFUSED,
    ConfigPath,
    brief,
    err,
    event_s,
    load,
    out,
    printable,
    show,
)
from forecaster.errors import BrokerError, ConfigError, DataError
from forecaster.shell.times import shown_time

if TYPE_CHECKING:
    from forecaster.config import Config
    from forecaster.core.history import Span
    from forecaster.shell.control import Answer, Request

annotations = typer.Typer(
    help="The spans that are left out of training: look at them, take one back.", no_args_is_help=True
)
LOOK_BACK_S = 60.0  # how far before a request its follower begins, so that no answer is missed


def retrain(
    config: ConfigPath = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the decision and show it.")] = False,
    timeout_s: Annotated[float, typer.Option("--timeout", min=1, help="Seconds to wait.")] = 900.0,
) -> None:
    """Ask for a retrain now; with --wait, exit 0 if the candidate was promoted or honestly refused."""
    settings = load(config)
    from forecaster.shell.control import Command, ControlFollower, Controls, Request

    _require_topic(settings, settings.topics.control)
    request = Request(command=Command.RETRAIN, trigger="cli", sender=_sender())
    follower = ControlFollower(settings.kafka, settings.topics.control, start=request.at_s - LOOK_BACK_S)
    controls = Controls(settings.kafka, settings.topics.control)
    try:
        controls.write(request)
        out.print(f"requested retrain {request.id}")
        if wait:
            deadline_s = time.monotonic() + timeout_s
            with err.status("waiting for the decision"):
                while request.id not in follower.inbox.answers:
                    if time.monotonic() > deadline_s:
                        raise BrokerError(
                            f"no decision on {request.id} within {timeout_s:g} s: does a trainer run?"
                        )
                    follower.poll(0.25)
            _show_decision(follower.inbox.answers[request.id])
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    finally:
        controls.close()
        follower.close()


def annotate(
    start: Annotated[
        str, typer.Option(help="Event time: ISO 8601 (UTC where it has no zone), or epoch seconds.")
    ],
    end: Annotated[str, typer.Option(help="The same; not included.")],
    series: Annotated[str, typer.Option(help="Only this series; without it all of them.")] = "",
    config: ConfigPath = None,
) -> None:
    """Leave a span of event time out of all training from now on: an outage, a test, a fault.

    `annotations` lists them and takes one back.
    """
    start_s, end_s = event_s("--start", start), event_s("--end", end)
    if not start_s < end_s:
        raise ConfigError(f"--start {start} is not before --end {end}")
    settings = load(config)
    from forecaster.core.history import Span
    from forecaster.shell.control import Command, Controls, Request, why_no_span

    if why := why_no_span(series, start_s, end_s):
        raise ConfigError(f"no span from --start {start} to --end {end}: {why}")
    _require_topic(settings, settings.topics.control)
    span = {"series": series, "start_s": start_s, "end_s": end_s}
    request = Request(command=Command.ANNOTATE, trigger="cli", sender=_sender(), arguments=span)
    controls = Controls(settings.kafka, settings.topics.control)
    try:
        controls.write(request)
    finally:
        controls.close()
    out.print(f"left out of training from now on: {_told(Span(series, start_s, end_s))} ({request.id})")


@annotations.command("list")
def list_annotations(
    as_json: Annotated[bool, typer.Option("--json", help="A line of JSON for each.")] = False,
    config: ConfigPath = None,
) -> None:
    """Every span that is left out of training, as `annotate` named them, oldest annotation first."""
    import orjson

    held = _annotated(load(config))
    if as_json:
        for request, span in held.values():
            told = {"id": request.id, **span._asdict(), "at_s": request.at_s, "sender": request.sender}
            typer.echo(orjson.dumps(told).decode())
        return
    table = Table()
    for name in ("id", "series", "from", "to", "annotated", "by"):
        table.add_column(name)
    for request, span in held.values():
        table.add_row(
            escape(printable(request.id)),
            escape(printable(span.series)) or "every series",
            shown_time(span.start_s),
            shown_time(span.end_s),
            shown_time(request.at_s),
            escape(printable(request.sender)),
        )
    if held:
        show(table)
    else:
        out.print("nothing is left out of training")


@annotations.command("withdraw")
def withdraw_annotations(
    ids: Annotated[list[str], typer.Argument(help="Ids of annotations, as `list` shows them.")],
    config: ConfigPath = None,
) -> None:
    """Train on annotated spans again, from the next retrain on."""
    settings = load(config)
    from forecaster.shell.control import Command, Controls, Request

    held = _annotated(settings)
    if unknown := [one for one in ids if one not in held]:
        raise DataError(f"there is no annotation {unknown[0]!r}: see forecaster annotations list")
    controls = Controls(settings.kafka, settings.topics.control)
    try:
        for one in dict.fromkeys(ids):
            request = Request(
                command=Command.WITHDRAW, trigger="cli", sender=_sender(), arguments={"id": one}
            )
            controls.write(request)
            out.print(f"trained on again from the next retrain on: {_told(held[one][1])}")
    finally:
        controls.close()


def _annotated(settings: "Config") -> "dict[str, tuple[Request, Span]]":
    """The annotations that hold, by id."""
    from forecaster.shell.control import read, span_of

    requests = read(settings.kafka, settings.topics.control).spans
    return {request.id: (request, span) for request in requests if (span := span_of(request)) is not None}


def _told(span: "Span") -> str:
    whose = escape(printable(span.series)) if span.series else "every series"
    return f"{whose} from {shown_time(span.start_s)} to {shown_time(span.end_s)}"


def _show_decision(answer: "Answer") -> None:
    out.print(f"[bold]{escape(answer.outcome)}[/bold] {escape(answer.message)}".rstrip())
    for name, value in answer.details.items():
        if value in ("", {}, None):
            continue
        out.print(f"  {escape(name)}: {escape(brief(value))}")
    if answer.outcome not in {"promoted", "rejected"}:
        raise typer.Exit(REFUSED)


def _require_topic(settings: "Config", topic: str) -> None:
    from forecaster.shell.kafka.log import Log

    with closing(Log(settings.kafka)) as log:
        log.required(topic)


def _sender() -> str:
    return f"{getpass.getuser()}@{socket.gethostname()}"
