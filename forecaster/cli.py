"""The command line: arguments in, a few lines and an exit code out.

Heavy imports are inside the commands, so that `--help` is quick. What a command does lives in the shell; here
is only how it is asked for and how its answer looks. An error that an operator can mend is one message,
without a traceback.
"""

import getpass
import os
import re
import socket
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from enum import StrEnum
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from forecaster.errors import BrokerError, BugError, ConfigError, ForecasterError

if TYPE_CHECKING:
    from forecaster.config import Config
    from forecaster.shell.control import Answer
    from forecaster.shell.evaluate import Study
    from forecaster.shell.models import Models
    from forecaster.shell.prediction import Prediction
    from forecaster.shell.redelivery import DeadLetters, Found, Query
    from forecaster.shell.signals import Signals

app = typer.Typer(
    help="Forecasts time series from Kafka, tick by tick, with a network that retrains while it serves.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
models_app = typer.Typer(help="The models on the models topic, and which one serves.", no_args_is_help=True)
app.add_typer(models_app, name="models")
letters_app = typer.Typer(help="What could not be used: look at it, send it again.", no_args_is_help=True)
app.add_typer(letters_app, name="dead-letters")

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)

ConfigPath = Annotated[
    Path | None,
    typer.Option("--config", "-c", envvar="FORECASTER_CONFIG", help="TOML file. Without it: the defaults."),
]
LOOK_BACK_S = 60.0  # how far before a request its follower begins, so that no answer is missed
REFUSED = 1  # exit code where what was asked for was tried and did not happen


def main(signals: "Signals | None" = None) -> int:
    """Run the command that the arguments name; returns the exit code of an error, else raises SystemExit.

    `signals`: handlers that are installed already.
    """
    try:
        app(obj=signals, prog_name="forecaster")
    except BugError:
        raise  # with its traceback, which is what a report needs
    except ForecasterError as error:
        err.print(f"[red]forecaster:[/red] {escape(str(error))}")
        return error.exit_code
    return 0


def _version(wanted: bool) -> None:
    if wanted:
        from forecaster import __version__  # noqa: PLC0415

        out.print(f"forecaster {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


# --- the daemon ---


class Role(StrEnum):
    """What a worker does for its fleet."""

    BOTH = "both"
    """Answers ticks; of the workers that do, the one with ticks partition 0 also trains."""
    PREDICT = "predict"
    """Answers ticks and asks for retrains, never trains."""
    TRAIN = "train"
    """Trains when asked and answers no ticks; of several one trains, the others stand by."""


@app.command()
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
    settings = _load(config)
    from forecaster.shell import daemon, trainers  # noqa: PLC0415
    from forecaster.shell.signals import Signals  # noqa: PLC0415

    signals = context.obj or Signals().install()
    if role is Role.TRAIN:
        raise typer.Exit(trainers.run(settings, signals, config))
    raise typer.Exit(daemon.run(settings, signals, config, trains=role is Role.BOTH))


@app.command("config")
def show_config(config: ConfigPath = None) -> None:
    """Print the configuration, every key explained; without a file the default one."""
    from forecaster.config import to_toml  # noqa: PLC0415

    typer.echo(to_toml(_load(config, environ=config is not None)), nl=False)


@app.command()
def check(config: ConfigPath = None) -> None:
    """Validate the configuration, connect, and list everything that is missing."""
    settings = _load(config)
    from forecaster.shell.check import problems  # noqa: PLC0415

    found = problems(settings)
    for problem in found:
        out.print(f"[red]✗[/red] {escape(problem)}")
    if found:
        raise ConfigError(f"{len(found)} problem{'s' if len(found) > 1 else ''}, see above")
    topics = "the topics are there, or will be created" if settings.topics.create else "the topics are there"
    out.print(f"[green]✓[/green] the configuration is sound, the broker answers, {topics}")


# --- predictions ---


@app.command()
def tail(
    config: ConfigPath = None,
    bootstrap_servers: Annotated[str, typer.Option("--broker", help="host:port, in place of a file.")] = "",
    topic: Annotated[str, typer.Option(help="Predictions topic, in place of the configured one.")] = "",
    series: Annotated[list[str] | None, typer.Option(help="Only this series (may be repeated).")] = None,
    earliest: Annotated[bool, typer.Option("--earliest", help="Begin with the oldest that is kept.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The messages as JSON lines.")] = False,
    count: Annotated[int | None, typer.Option("-n", min=1, help="End after so many.")] = None,
) -> None:
    """Show predictions as they are published."""
    import msgspec  # noqa: PLC0415

    from forecaster.shell.subscribe import predictions  # noqa: PLC0415

    kafka: dict[str, Any] = {}
    if not bootstrap_servers:
        settings = _load(config)
        kafka = settings.kafka.model_dump(
            exclude_unset=True, exclude={"bootstrap_servers", "group_id", "start"}
        )
        bootstrap_servers, topic = settings.kafka.bootstrap_servers, topic or settings.topics.predictions
    found = predictions(
        bootstrap_servers, topic or "predictions", start="earliest" if earliest else "latest", **kafka
    )
    wanted = (p for p in found if not series or p.series in series)
    try:
        for prediction in islice(wanted, count):
            typer.echo(msgspec.json.encode(prediction).decode() if as_json else prediction_line(prediction))
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


def prediction_line(prediction: "Prediction") -> str:
    """One prediction on one line: the last value, then the first and the last step with their band."""
    low, high = _band(prediction.levels)
    middle = min(range(len(prediction.levels)), key=lambda i: abs(prediction.levels[i] - 0.5))
    steps = [
        f"+{h + 1} {prediction.quantiles[h][middle]:.6g}"
        f" [{prediction.quantiles[h][low]:.6g}, {prediction.quantiles[h][high]:.6g}]"
        for h in sorted({0, prediction.horizon - 1})
    ]
    when = _time(prediction.issued_at)
    model = f"{prediction.status} {prediction.model}".strip()
    return f"{when}  {prediction.series}  {prediction.last:.6g}  {'  '.join(steps)}  {model}"


def _band(levels: Sequence[float]) -> tuple[int, int]:
    """Where the 80 % interval stands among the levels; the outermost levels where it is not published."""
    if 0.1 in levels and 0.9 in levels:
        return levels.index(0.1), levels.index(0.9)
    return 0, len(levels) - 1


# --- retraining ---


@app.command()
def retrain(
    config: ConfigPath = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the decision and show it.")] = False,
    timeout_s: Annotated[float, typer.Option("--timeout", min=1, help="Seconds to wait.")] = 900.0,
) -> None:
    """Ask for a retrain now; with --wait, exit 0 if the candidate was promoted or honestly refused."""
    settings = _load(config)
    from forecaster.shell.control import Command, ControlFollower, Controls, Request  # noqa: PLC0415

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
        raise typer.Exit(130) from None
    finally:
        controls.close()
        follower.close()


@app.command()
def annotate(
    start: Annotated[
        str, typer.Option(help="Event time: ISO 8601 (UTC where it has no zone), or epoch seconds.")
    ],
    end: Annotated[str, typer.Option(help="The same; not included.")],
    series: Annotated[str, typer.Option(help="Only this series; without it all of them.")] = "",
    config: ConfigPath = None,
) -> None:
    """Leave a span of event time out of all training from now on: an outage, a test, a fault."""
    start_s, end_s = _event_s("--start", start), _event_s("--end", end)
    if not start_s < end_s:
        raise ConfigError(f"--start {start} is not before --end {end}")
    settings = _load(config)
    from forecaster.shell.control import Command, Controls, Request  # noqa: PLC0415

    _require_topic(settings, settings.topics.control)
    span = {"series": series, "start_s": start_s, "end_s": end_s}
    request = Request(command=Command.ANNOTATE, trigger="cli", sender=_sender(), arguments=span)
    controls = Controls(settings.kafka, settings.topics.control)
    try:
        controls.write(request)
    finally:
        controls.close()
    whose = escape(series) if series else "every series"
    out.print(f"left out of training from now on: {whose} from {_time(start_s)} to {_time(end_s)}")


def _event_s(option: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        pass
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(f"{option} {text!r} is neither ISO 8601 nor epoch seconds") from None
    return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()


def _show_decision(answer: "Answer") -> None:
    out.print(f"[bold]{escape(answer.outcome)}[/bold] {escape(answer.message)}".rstrip())
    for name, value in answer.details.items():
        if value in ("", {}, None):
            continue
        out.print(f"  {escape(name)}: {escape(_brief(value))}")
    if answer.outcome not in {"promoted", "rejected"}:
        raise typer.Exit(REFUSED)


# --- from files ---

Files = Annotated[
    list[Path], typer.Argument(help="CSV or Parquet: series, ts, value.", exists=True, dir_okay=False)
]


@app.command()
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
    settings = _load(config)
    from forecaster.shell import report, results  # noqa: PLC0415
    from forecaster.shell.evaluate import check_names, evaluate  # noqa: PLC0415
    from forecaster.shell.terminal import Watch, scores_by_dataset, scores_by_horizon  # noqa: PLC0415

    check_names(files)
    studies: list[Study] = []
    try:
        for path in files:
            with Watch(err, path.stem) as watch:
                studies.append(evaluate(path, settings, warm_up, folder, watch))
            results.write(studies, folder)
            (folder / "report.html").write_text(report.page(studies), encoding="utf-8")
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    for study in studies:
        out.print(scores_by_horizon(study))
    out.print(scores_by_dataset(studies))
    out.print(
        f"forecasts, scores and report are in {escape(str(folder))}: see {escape(str(folder / 'report.html'))}"
    )


@app.command()
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
    settings = _load(config)
    from forecaster.shell import trainer  # noqa: PLC0415
    from forecaster.shell.terminal import Watch  # noqa: PLC0415

    try:
        with Watch(err, file.stem) as watch:
            ended = trainer.run(trainer.job_on_files(settings, file, candidate, serving), watch)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    details = f"{ended.version} on {ended.ticks:,} ticks of {ended.series:,} series, {ended.step} steps"
    out.print(f"[bold]{ended.outcome}[/bold] {escape(ended.reason or ended.message)}")
    if ended.version:
        out.print(f"  {details}\n  losses: {_brief(ended.losses)}")
    if ended.outcome != "promoted":
        raise typer.Exit(REFUSED)
    out.print(f"  written to {escape(str(candidate))}")


# --- models ---


@models_app.command("list")
def list_models(config: ConfigPath = None) -> None:
    """Every model on the topic, oldest first."""
    table = Table(
        "version", "", "created", "parent", "steps", "hold-out loss (candidate, serving, last value)"
    )
    for entry in _models(_load(config)).versions():
        card = entry.stored.card
        table.add_row(
            entry.stored.version,
            "[green]serving[/green]" if entry.serving else "",
            _time(card["created_s"]) if card.get("created_s") else "",
            str(card.get("parent", "")),
            str(card.get("steps_taken", "")),
            _losses(card.get("scores", {})),
        )
    out.print(table if table.row_count else "no model yet")


@models_app.command("show")
def show_model(
    version: Annotated[str, typer.Argument(help="Without it, the one that serves.")] = "",
    config: ConfigPath = None,
) -> None:
    """What is known of a model: its card and its shape, as JSON."""
    import orjson  # noqa: PLC0415

    stored = _models(_load(config)).fetch(version)
    if stored is None:
        raise ConfigError(f"there is no model {version!r}" if version else "no model serves yet")
    about = {"version": stored.version, "bytes": len(stored.data), "spec": stored.spec, "card": stored.card}
    typer.echo(orjson.dumps(about, option=orjson.OPT_INDENT_2).decode())


@models_app.command("rollback")
def roll_back(
    version: Annotated[str, typer.Argument(help="Without it, the one that served before.")] = "",
    reason: Annotated[str, typer.Option(help="Kept with the decision.")] = "rollback",
    config: ConfigPath = None,
) -> None:
    """Let an earlier model serve; the daemons swap it in within moments, without a pause."""
    serving = _models(_load(config)).roll_back(reason, version)
    out.print(f"{serving.version} serves in place of {serving.previous or 'none'}")


@models_app.command("import")
def import_model(
    path: Annotated[Path, typer.Argument(help="A model file, as `show` describes it.")],
    serve: Annotated[bool, typer.Option("--serve", help="Let it serve at once.")] = False,
    config: ConfigPath = None,
) -> None:
    """Publish a model file; it serves only when told to."""
    models = _models(_load(config))
    stored = models.import_file(path)
    if serve:
        models.serve(stored.version, "imported")
    out.print(f"imported {stored.version}" + (", it serves now" if serve else ""))


# --- dead letters ---

Reasons = Annotated[list[str] | None, typer.Option("--reason", help="Only these (may be repeated).")]
Since = Annotated[
    str,
    typer.Option(help="Only those set aside since then: ISO 8601, epoch seconds, or 90s, 15m, 2h, 3d ago."),
]
Partition = Annotated[int | None, typer.Option(min=0, help="Only those from this partition of the ticks.")]


@letters_app.command("list")
def list_letters(
    reason: Reasons = None,
    since: Since = "",
    partition: Partition = None,
    limit: Annotated[int, typer.Option(min=1, help="The newest so many.")] = 100,
    as_json: Annotated[bool, typer.Option("--json", help="A line of JSON for each.")] = False,
    config: ConfigPath = None,
) -> None:
    """What could not be used, and what has become of it: oldest first."""
    import msgspec  # noqa: PLC0415

    letters = _letters(_load(config))
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
    return f"{_time(kept.written_s)}  {fate_and_reason}  {source}  {found.key!r}  {kept.size:,} B  {kept.message}"


@letters_app.command("replay")
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
    from rich.progress import Progress  # noqa: PLC0415

    settings = _load(config)
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
        raise typer.Exit(130) from None
    finally:
        letters.close()


def _letters(settings: "Config") -> "DeadLetters":
    from forecaster.shell.redelivery import DeadLetters  # noqa: PLC0415

    return DeadLetters(settings)


def _query(reasons: list[str] | None, since: str, partition: int | None) -> "Query":
    from forecaster.core.tick import Reason  # noqa: PLC0415
    from forecaster.shell.redelivery import Query  # noqa: PLC0415

    known = [reason.value for reason in Reason]
    if unknown := [reason for reason in reasons or () if reason not in known]:
        raise ConfigError(f"--reason {unknown[0]!r} is none of {', '.join(known)}")
    return Query(frozenset(reasons or ()), _since_s(since) if since else 0.0, partition)


def _since_s(text: str) -> float:
    ago = re.fullmatch(r"(\d+)([smhd])", text)
    return time.time() - int(ago[1]) * _UNITS_S[ago[2]] if ago else _event_s("--since", text)


_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


# --- helpers ---


def _load(path: Path | None, *, environ: bool = True) -> "Config":
    from forecaster.config import load  # noqa: PLC0415 - brings the numeric libraries

    return load(path, os.environ if environ else {})


def _models(settings: "Config") -> "Models":
    from forecaster.shell.models import Models  # noqa: PLC0415

    return Models(settings.kafka, settings.topics.models)


def _require_topic(settings: "Config", topic: str) -> None:
    from forecaster.shell.kafka.log import Log  # noqa: PLC0415

    log = Log(settings.kafka)
    try:
        if not log.partitions(topic):
            raise BrokerError(
                f"there is no topic {topic!r} at {settings.kafka.bootstrap_servers}: see forecaster check"
            )
    finally:
        log.close()


def _sender() -> str:
    return f"{getpass.getuser()}@{socket.gethostname()}"


def _time(time_s: float) -> str:
    return (
        datetime.fromtimestamp(time_s, UTC).isoformat(sep=" ", timespec="seconds").removesuffix("+00:00")
        + "Z"
    )


def _brief(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return ", ".join(f"{name} {_brief(inner)}" for name, inner in value.items())
    return str(value)


def _losses(scores: dict[str, dict[str, float]]) -> str:
    losses = (scores.get(who, {}) for who in ("candidate", "serving", "last_value"))
    return ", ".join(f"{next(iter(loss.values())):.4f}" if loss else "-" for loss in losses)
