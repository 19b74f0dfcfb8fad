"""What a subscriber sees, as lines."""

from collections.abc import Sequence
from itertools import islice
from math import floor, log10
from typing import TYPE_CHECKING, Annotated, Any

import typer

from forecaster.cli.console import INTERRUPTED, ConfigPath, load, printable
from forecaster.shell.times import shown_time

if TYPE_CHECKING:
    from forecaster.shell.prediction import Prediction


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
    import msgspec

    from forecaster.shell.subscribe import predictions

    kafka: dict[str, Any] = {}
    if not bootstrap_servers:
        settings = load(config)
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
        raise typer.Exit(INTERRUPTED) from None


def prediction_line(prediction: "Prediction") -> str:
    """One prediction on one line: the last value, then the first and the last step, with their band if there is one."""
    low, high = _band(prediction.levels)
    middle = min(range(len(prediction.levels)), key=lambda i: abs(prediction.levels[i] - 0.5))
    ends = sorted({0, prediction.horizon - 1})
    bands = [tuple(prediction.quantiles[h][i] for i in (low, middle, high)) for h in ends]
    digits = _digits(prediction.last, [(least, most) for least, _, most in bands])
    steps = [
        f"+{h + 1} {mid:.{digits}g}" + (f" [{least:.{digits}g}, {most:.{digits}g}]" if low < high else "")
        for h, (least, mid, most) in zip(ends, bands, strict=True)
    ]
    when = shown_time(prediction.issued_at)
    model = printable(f"{prediction.status} {prediction.model}".strip())
    return (
        f"{when}  {printable(prediction.series)}  {prediction.last:.{digits}g}  {'  '.join(steps)}  {model}"
    )


def _digits(last: float, bands: Sequence[tuple[float, float]]) -> int:
    """How many show the narrowest band to a hundredth of its width: at least 6, at most as many as a float has."""
    widths = [high - low for low, high in bands if high > low]
    largest = max(abs(last), *(abs(edge) for band in bands for edge in band))
    wanted = floor(log10(largest)) - floor(log10(min(widths))) + 3 if widths and largest else 0
    return min(max(6, wanted), 15)


def _band(levels: Sequence[float]) -> tuple[int, int]:
    """Where the 80 % interval stands among the levels; the outermost levels where it is not published."""
    if 0.1 in levels and 0.9 in levels:
        return levels.index(0.1), levels.index(0.9)
    return 0, len(levels) - 1
