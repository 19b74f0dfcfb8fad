"""State of the demo -> what the terminal shows: figures above, a row for each series below. Draws,
decides nothing.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from forecaster.demo.figures import Figures
from forecaster.demo.scores import Band, SeriesScores
from forecaster.shell.prediction import Prediction

LEAST_CURVE = 16  # columns that a curve needs
EDGES_WIDTH = 160  # columns from which on there is room for both edges of all bands
# Share of the band by which its halves differ: beyond, its edges are shown.
ALWAYS, SKEWED, NEVER = -1.0, 1 / 3, 1.0
HEADINGS = ("last value", "next step, 80 % band", "last step, 80 % band", "covers", "skill")
NOISE = 1e-9  # of the size of a series' numbers: less is shown as 0
NAME_WIDTH = 16
FRAME_LINES = 6  # title, headings, legend, hint and two empty ones: all but the figures and the rows
LABEL_WIDTH = 15  # what stands before a figure
BARS = "▁▂▃▄▅▆▇█"
STATUS_STYLE = {"cold": "blue", "warming": "yellow", "ok": "green", "fallback": "red"}
STATUS_MEANS = {
    "cold": "no network yet",
    "warming": "warming up",
    "ok": "network",
    "fallback": "without network",
}
CLOSE = 0.02  # a skill this small is none
_PLAIN = Console()  # wrapping asks for one


@dataclass
class Stages:
    """What has been reached, and when: the first ones from the demo's start, the others from the daemon's."""

    started_s: float
    daemon_s: float | None = None
    reached: dict[str, float] = field(default_factory=dict)

    def daemon_started(self, now_s: float) -> None:
        """From here on the daemon's time counts."""
        self.daemon_s = now_s

    def reach(self, stage: str, now_s: float) -> str | None:
        """Note a stage; a sentence about it the first time, None after that."""
        if stage in self.reached:
            return None
        seconds = self.reached[stage] = now_s - (self.daemon_s or self.started_s)
        return f"{stage}: {seconds:.1f} s after {'the daemon' if self.daemon_s else 'the demo'} was started"


@dataclass
class State:
    """All that is shown."""

    source: str
    figures: Figures
    stages: Stages
    hint: str = ""
    order: Sequence[str] = ()
    series: dict[str, SeriesScores] = field(default_factory=dict)

    def add(self, prediction: Prediction) -> None:
        """Take in one message of the predictions topic."""
        self.series.setdefault(prediction.series, SeriesScores()).add(prediction)

    def rows(self) -> list[tuple[str, SeriesScores]]:
        """The series in the order that was asked for, the others by name."""
        rank = {series: position for position, series in enumerate(self.order)}
        return sorted(self.series.items(), key=lambda item: (rank.get(item[0], len(rank)), item[0]))


def screen(state: State, now_s: float, width: int, height: int | None) -> RenderableType:
    """The whole picture; `height` None shows every series."""
    rows, figures = state.rows(), _figures(state, width)
    room = len(rows) if height is None else max(height - FRAME_LINES - len(figures), 2)
    if len(rows) > room:
        room -= 1  # for the line that says so
    parts: list[RenderableType] = [_title(state, now_s, width), Text(), *figures, Text()]
    waiting = Text(f"  the daemon is {state.figures.doing}; then comes the first forecast", style="yellow")
    parts.append(_table(rows[:room], width) if rows else waiting)
    if len(rows) > room:
        parts.append(Text(f"  … and {len(rows) - room} more series", style="dim"))
    parts.append(_cut(_legend()))
    if state.hint:
        parts.append(_cut(Text(f"  {state.hint}", style="dim")))
    return Group(*parts)


def line(state: State, now_s: float) -> str:
    """The figures in one line, for a log."""
    figures = state.figures
    if not state.series:
        return f"{now_s - state.stages.started_s:6.1f} s · the daemon is {figures.doing}"
    model = figures.newest.label("forecaster_model_info", "version") or "none"
    parts = [
        f"{now_s - state.stages.started_s:6.1f} s",
        f"{figures.ticks_per_s:,.0f} ticks/s, {figures.lag:,.0f} waiting",
        f"p50 {_milliseconds(figures.latency_s(0.5))}, p99 {_milliseconds(figures.latency_s(0.99))}",
        f"80 % band covers {_share(figures.coverage)}",
        f"skill {_skill(figures.skill)}",
        f"model {model}",
        f"last retrain: {figures.retrain_outcome or 'none'}",
    ]
    return " · ".join(parts)


def _title(state: State, now_s: float, width: int) -> Table:
    minutes, seconds = divmod(int(now_s - state.stages.started_s), 60)
    title = Table.grid(expand=True)
    title.add_column()
    title.add_column(justify="right")
    title.add_row(
        Text.assemble((" forecaster ", "bold reverse"), f"  {state.source}", (_event_time(state), "dim")),
        Text(f"{minutes}:{seconds:02} ", style="dim"),
    )
    title.width = width
    return title


def _figures(state: State, width: int) -> list[Text]:
    """A line for each, and further ones where the width asks for them."""
    figures = state.figures
    texts = {
        "ticks": _ticks(figures),
        "latency": _latency(figures),
        "live scores": _scores(figures),
        "model": _model(figures),
        "last retrain": _retrain(figures),
        "reached": _stages(state.stages),
    }
    lines: list[Text] = []
    for name, text in texts.items():
        for position, part in enumerate(text.wrap(_PLAIN, max(width - LABEL_WIDTH, LABEL_WIDTH))):
            label = f" {name if position == 0 else '':{LABEL_WIDTH - 1}}"
            lines.append(_cut(Text.assemble((label, "dim"), part)))
    return lines


def _cut(text: Text) -> Text:
    """One line, whatever the width."""
    text.no_wrap, text.overflow = True, "ellipsis"
    return text


def _ticks(figures: Figures) -> Text:
    outcomes = figures.newest.by_label("forecaster_ticks_total", "outcome")
    total = sum(outcomes.values())
    others = " · ".join(
        f"{count:,.0f} {outcome.replace('_', '-')}"
        for outcome, count in outcomes.items()
        if outcome != "accepted" and count
    )
    return Text.assemble(
        (f"{figures.ticks_per_s:,.0f}/s", "bold"),
        f"   {total:,.0f} in all",
        (f" ({others})" if others else "", "dim"),
        (f"   {figures.lag:,.0f} waiting", "yellow" if figures.lag > figures.ticks_per_s else "dim"),
    )


def _latency(figures: Figures) -> Text:
    return Text.assemble(
        "p50 ",
        (_milliseconds(figures.latency_s(0.5)), "bold"),
        "   p99 ",
        (_milliseconds(figures.latency_s(0.99)), "bold"),
        ("   from poll to acknowledged prediction", "dim"),
    )


def _scores(figures: Figures) -> Text:
    return Text.assemble(
        "80 % band covers ",
        (_share(figures.coverage), f"bold {_coverage_style(figures.coverage)}"),
        "   skill ",
        (_skill(figures.skill), f"bold {_skill_style(figures.skill)}"),
        ("   last minute, all series and steps", "dim"),
    )


def _model(figures: Figures) -> Text:
    scrape = figures.newest
    version = scrape.label("forecaster_model_info", "version")
    if not version:
        return Text("none yet: the simple experts answer alone", style="dim")
    cell = scrape.label("forecaster_model_info", "cell")
    return Text.assemble((version, "bold"), f"  {cell}", ("   serving", "dim"))


def _retrain(figures: Figures) -> Text:
    scrape = figures.newest
    text = Text()
    if outcome := figures.retrain_outcome:
        text.append(outcome, style="bold green" if outcome == "promoted" else "bold")
        losses = scrape.by_label("forecaster_retrain_holdout_loss_ratio", "model")
        said = [f"{name.replace('_', ' ')} {loss:.3f}" for name, loss in losses.items() if loss > 0]
        text.append(f"   loss on the hold-out: {', '.join(said)}" if said else "", style="dim")
    if scrape.total("forecaster_retrain_in_progress"):
        text.append("   training now" if text else "first training now", style="yellow")
    return text or Text("none yet", style="dim")


def _stages(stages: Stages) -> Text:
    reached = (f"{stage} {seconds:.1f} s" for stage, seconds in stages.reached.items())
    return Text(" · ".join(reached) or "nothing yet", style="dim")


def _table(rows: Iterable[tuple[str, SeriesScores]], width: int) -> Table:
    """A row for each series; the curves get what room the numbers leave."""
    shown = [(name, scores, newest) for name, scores in rows if (newest := scores.newest) is not None]
    names = [Text(_short(name)) for name, _, _ in shown]  # brackets in a name are no markup
    gap, headings, most_skew = 2, HEADINGS, ALWAYS if width >= EDGES_WIDTH else SKEWED
    numbers = [_numbers(scores, newest, most_skew) for _, scores, newest in shown]
    curve_width = width - _taken(names, numbers, headings, gap) - gap
    if curve_width < LEAST_CURVE:
        curve_width, gap = 0, 1
        headings = tuple(heading.removesuffix(", 80 % band") for heading in headings)
        if _taken(names, numbers, headings, gap) > width:
            numbers = [_numbers(scores, newest, NEVER) for _, scores, newest in shown]
    table = Table(box=None, header_style="bold", padding=(0, 0, 0, gap))
    table.add_column("")
    table.add_column("series", no_wrap=True, overflow="ellipsis", max_width=NAME_WIDTH)
    if curve_width:
        table.add_column("lately, and the forecast"[:curve_width], no_wrap=True)
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for name, cells, (_, scores, newest) in zip(names, numbers, shown, strict=True):
        curve = [_curve(scores, curve_width)] if curve_width else []
        table.add_row(Text("●", style=STATUS_STYLE[newest.status]), name, *curve, *cells)
    return table


def _taken(
    names: Sequence[Text], numbers: Sequence[Sequence[Text]], headings: Sequence[str], gap: int
) -> int:
    """Columns of the terminal that a table without curves takes."""
    texts = [names, *zip(*numbers, strict=True)]
    widths = [
        max(len(head), *(t.cell_len for t in column))
        for head, column in zip(("series", *headings), texts, strict=True)
    ]
    return 1 + gap + sum(widths) + gap * len(widths)


def _numbers(scores: SeriesScores, newest: Prediction, most_skew: float) -> list[Text]:
    noise = NOISE * max(map(abs, (*scores.values, *scores.bands[-1])))
    first, last = (_without(noise, band) for band in (scores.bands[0], scores.bands[-1]))
    value = newest.last if abs(newest.last) > noise else 0.0
    places = _decimals(last, value)
    return [
        Text(_number(value, places), style="bold"),
        _band(first, places, most_skew),
        _band(last, places, most_skew),
        Text(_share(scores.coverage), style=_coverage_style(scores.coverage)),
        Text(_skill(scores.skill), style=_skill_style(scores.skill)),
    ]


def _without(noise: float, band: Band) -> Band:
    """The band, to what numbers of its series' size can tell: edges that near to the median are on it."""
    median = band.median if abs(band.median) > noise else 0.0
    low, high = (edge if abs(edge - band.median) > noise else median for edge in (band.low, band.high))
    return Band(low, median, high)


def _short(name: str) -> str:
    """Cut in the middle: names of one kind begin alike, and often end with a number."""
    if len(name) <= NAME_WIDTH:
        return name
    end = NAME_WIDTH // 2
    return f"{name[: NAME_WIDTH - end - 1]}…{name[-end:]}"


def _legend() -> Text:
    text = Text(" ")
    for status, style in STATUS_STYLE.items():
        text.append("  ●", style=style).append(f" {STATUS_MEANS[status]}", style="dim")
    return text


def _band(band: Band, places: int | None, most_skew: float) -> Text:
    """The median and how far the band goes to either side; both edges where those differ by more of the band."""
    skew = abs(band.low + band.high - 2 * band.median)
    if skew <= most_skew * (band.high - band.low):
        return Text.assemble(_number(band.median, places), (f" ±{_half(band, places)}", "dim"))
    low, high = _number(band.low, places), _number(band.high, places)
    return Text.assemble(_number(band.median, places), (f" [{low}, {high}]", "dim"))


def _curve(scores: SeriesScores, width: int) -> Text:
    """The last values and, in colour, the medians of the forecast, over their common range."""
    ahead = [band.median for band in scores.bands[: width // 2]]
    past = list(scores.values)[-(width - len(ahead)) :]
    low, high = min(past + ahead), max(past + ahead)
    height = (len(BARS) - 1) / (high - low) if high > low else 0.0
    bars = "".join(BARS[round((value - low) * height)] for value in past + ahead)
    return Text.assemble((bars[: len(past)].rjust(width - len(ahead)), "dim"), (bars[len(past) :], "cyan"))


def _event_time(state: State) -> str:
    """When it is in the world of the ticks."""
    newest = max((s.newest.issued_at for s in state.series.values() if s.newest is not None), default=None)
    if newest is None:
        return ""
    return datetime.fromtimestamp(newest, UTC).strftime("   %Y-%m-%d %H:%M, event time")


def _decimals(band: Band, last: float) -> int | None:
    """Places after the point that tell the band's edges apart; None where that asks for an exponent."""
    width = band.high - band.low or abs(last) or 1.0
    places = max(0, 1 - math.floor(math.log10(width)))
    return places if places <= 6 else None


def _number(value: float, places: int | None) -> str:
    return f"{value:.4g}" if places is None else f"{value:,.{places}f}"


def _half(band: Band, places: int | None) -> str:
    """Half of the band's width; short where an exponent would be long."""
    half = (band.high - band.low) / 2
    return f"{half:.1g}" if places is None else _number(half, places)


def _share(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}".replace("%", " %")


def _skill(skill: float | None) -> str:
    return "-" if skill is None else f"{max(skill, -9.99):+.2f}"


def _milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1000 * seconds:.1f} ms"


def _skill_style(skill: float | None) -> str:
    if skill is None or abs(skill) < CLOSE:
        return "dim"
    return "green" if skill > 0 else "red"


def _coverage_style(coverage: float | None) -> str:
    if coverage is None:
        return "dim"
    return "green" if abs(coverage - 0.8) <= 0.06 else "yellow"
