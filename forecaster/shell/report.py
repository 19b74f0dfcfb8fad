"""Studies -> one HTML page that stands alone: no script, no font, no picture from anywhere.

In come the studies of one or more data sets; out goes the text of the page. What is drawn was judged elsewhere;
here is what stands where, in which words, and how it looks by day and by night.
"""

import math
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from html import escape
from itertools import pairwise

import numpy as np

from forecaster.core import experts
from forecaster.shell import results
from forecaster.shell.backtest import Verdict
from forecaster.shell.charts import Plot, percent, short, span
from forecaster.shell.evaluate import Origin, Study
from forecaster.shell.scoring import Moment, Score, known_mean

BINS = 40  # points of a curve over time
MOST_SERIES = 400  # rows of the table by series: the best and the worst
MOST_RETRAINS = 40  # of which a picture is drawn
SOON_S = 3600.0  # times less apart are told to the second
WORST_SKILL = -1.0  # the axis of skill over time goes no lower; what does is marked
LEAST_SKILL = -0.02, 0.1  # what the axis of skill always shows, or next to nothing would look like a lot


def page(studies: Sequence[Study]) -> str:
    """The whole page."""
    links = " ".join(f'<a href="#{_anchor(s)}">{escape(s.dataset)}</a>' for s in studies)
    menu = f"<nav>{links}</nav>" if len(studies) > 1 else ""
    body = "\n".join(map(_dataset, studies))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8"/>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>\n'
        '<meta name="color-scheme" content="light dark"/>\n'
        f"<title>Backtest: {escape(', '.join(s.dataset for s in studies))}</title>\n"
        f"<style>{STYLE}</style>\n</head>\n<body>\n<main>\n<header>\n<h1>Backtest</h1>\n{_lead(studies)}{menu}\n"
        f"</header>\n{_overview(studies)}\n{body}\n</main>\n</body>\n</html>\n"
    )


# --- all data sets ---


def _lead(studies: Sequence[Study]) -> str:
    forecasts = sum(study.scorer.forecasts for study in studies)
    series = sum(len(study.scorer.by_series()) for study in studies)
    sets = f" in {len(studies)} data sets" if len(studies) > 1 else ""
    total = results.summary(studies)
    gain = 1 - total.relative_sql
    than = f"{_share(abs(gain))} {'less' if gain >= 0 else 'more'} loss than the last value"
    held = f"; the {percent(0.8)} interval held <strong>{_share(total.coverage_80)}</strong> of what came"
    return (
        f'<p class="lead">{forecasts:,} forecasts of {series:,} series{sets}: <strong>{than}</strong>'
        f"{held if math.isfinite(total.coverage_80) else ''}.</p>\n"
    )


def _overview(studies: Sequence[Study]) -> str:
    head = (
        "data set",
        "series",
        "forecasts",
        "sQL",
        "last value",
        "relative",
        "MASE",
        "80 %",
        "60 %",
        "retrains",
        "seconds",
    )
    rows = []
    for study in studies:
        score = study.scorer.overall()
        kept = sum(map(results.promoted, study.verdicts))
        name = f'<a href="#{_anchor(study)}">{escape(study.dataset)}</a>'
        cells = (results.judged_of_all(study), f"{score.forecasts:,}", *_scores(score))
        rows.append(_row(name, *cells, f"{kept} of {len(study.verdicts)} kept", f"{study.seconds:.0f}"))
    if len(studies) > 1:
        total = results.summary(studies)
        means = (_number(total.relative_sql), "", _share(total.coverage_80), _share(total.coverage_60))
        rows.append(_row("<em>geometric mean; mean coverage</em>", "", "", "", "", *means, "", ""))
    return _table(head, rows) + (
        '<p class="note">sQL: twice the pinball loss, mean over levels and steps, in units of a series\u2019 mean '
        "absolute change. Relative: over that of the last value with the quantiles of its own errors; below 1 is "
        f"better. {percent(0.8)}, {percent(0.6)}: share of what came inside the interval.</p>"
    )


# --- one data set ---


def _dataset(study: Study) -> str:
    score = study.scorer.overall()
    intervals = (
        ("80 % interval", score.coverage_80, score.coverage_80_ties_half),
        ("60 % interval", score.coverage_60, score.coverage_60_ties_half),
    )
    cards = (
        ("skill", _share(score.skill), "of the last value\u2019s loss is saved"),
        ("sQL", _number(score.sql), f"last value {_number(score.last_sql)}"),
        *(
            (name, _share(held), f"{_share(half)} with edges half")
            for name, held, half in intervals
            if math.isfinite(held)
        ),
    )
    shown = "".join(
        f'<div class="card"><span>{escape(name)}</span><strong>{escape(value)}</strong>'
        f"<small>{escape(more)}</small></div>"
        for name, value, more in cards
    )
    by_series = study.scorer.by_series()
    left_out = f'<p class="note">{escape(study.judged)}.</p>\n' if len(by_series) < study.series else ""
    fans = "".join(
        _figure(name, _fan(study, origins) + _in_words(study, name, by_series.get(name)))
        for name, origins in study.fans.items()
        if len(origins) > 1
    )
    if (worst := study.worst) is not None and worst.origins[-1] is not study.fans[worst.series][-1]:
        fans += _figure(f"{worst.series}, where the median missed most", _fan(study, worst.origins))
    return (
        f'<section id="{_anchor(study)}">\n<h2>{escape(study.dataset)}</h2>\n<div class="cards">{shown}</div>\n'
        f"{left_out}"
        f"<h3>What was forecast, and what came</h3>\n{_fan_key(study)}\n"
        f'<div class="grid3">{fans}</div>\n'
        f'<h3>How far ahead, how good</h3>\n<div class="grid2">{_by_horizon(study)}</div>\n'
        f'<h3>Whether the intervals keep their word</h3>\n<div class="grid2">{_reliability(study)}</div>\n'
        f'<h3>Over time</h3>\n<div class="grid2">{_over_time(study)}</div>\n'
        f'<h3>What each retrain decided</h3>\n<div class="grid2">{_losses(study)}</div>{_retrains(study)}\n'
        f"{_by_series(study)}\n</section>"
    )


def _fan_key(study: Study) -> str:
    outer = f"{percent(study.levels[0])} to {percent(study.levels[-1])}"
    return (
        '<p class="note">The last steps of a few series. Every '
        f"{study.horizon} steps one fan: the forecast for the next {study.horizon} made there, its median and its "
        f"quantiles from {outer}. The line through all of them is what came; "
        "beyond its end nothing has come yet.</p>"
    )


def _in_words(study: Study, name: str, score: Score | None) -> str:
    """What a series came to, below its fans."""
    if score is None:
        return f'<p class="ends"><span>{study.scorer.unjudged(name)}: not judged</span></p>'
    held = f"<span>the {percent(0.8)} interval held {_share(score.coverage_80)}</span>"
    return (
        f'<p class="ends"><span>skill {_share(score.skill)}</span>'
        f"{held if math.isfinite(score.coverage_80) else ''}</p>"
    )


def _fan(study: Study, origins: Sequence[Origin]) -> str:
    steps, h = list(origins), study.horizon
    came = [at for at, origin in enumerate(steps) if math.isfinite(origin.value)]
    values = [steps[at].value for at in came]
    starts = [came[-1]]
    while earlier := [at for at in came if at <= starts[-1] - h]:
        starts.append(earlier[-1])
    fans = {at: steps[at].value + steps[at].offset.astype(np.float64) for at in starts}
    edges = (study.levels.index(0.5), 0, len(study.levels) - 1)
    seen = [*values, *(float(q) for fan in fans.values() for edge in edges for q in fan[:, edge])]
    low, high = span(_tame(seen, values))
    plot = Plot((0, len(steps) - 1 + h), (low, high), width=380, height=180, bottom=10).axes(x_ticks=())
    for at in sorted(fans):
        xs = [at + i for i in range(h + 1)]
        for i in range(len(study.levels) // 2):
            edge = (i, len(study.levels) - 1 - i)
            lower, upper = ([steps[at].value, *fans[at][:, j].tolist()] for j in edge)
            plot.band(xs, lower, upper, "fan")
        plot.line(xs, [steps[at].value, *fans[at][:, edges[0]].tolist()], "median")
    plot.line(came, values, "ink")
    apart_s = steps[-1].time_s - steps[0].time_s
    return plot.svg("forecasts as fans, and what came") + (
        f'<p class="ends"><span>{_when(steps[0].time_s, apart_s)}</span>'
        f"<span>{_when(steps[-1].time_s, apart_s)}</span></p>"
    )


def _tame(seen: Sequence[float], values: Sequence[float]) -> list[float]:
    """What the axis must hold: everything, but no more than twice the range of what came to either side."""
    room = 2 * (max(values) - min(values)) or math.inf
    return [min(max(x, min(values) - room), max(values) + room) for x in seen]


def _by_horizon(study: Study) -> str:
    scores = study.scorer.by_horizon()
    steps = range(1, study.horizon + 1)
    ours, last = [s.sql for s in scores], [s.last_sql for s in scores]
    x = (0.5, study.horizon + 0.5)
    at = [float(h) for h in steps if study.horizon <= 12 or h % (study.horizon // 8) == 0]
    loss = Plot(x, (0.0, span([*ours, *last])[1])).axes("steps ahead", "sQL", x_ticks=at)
    loss.line(steps, last, "other").line(steps, ours, "main")
    loss.dots(((h, v, f"{h} ahead: {_number(v)}") for h, v in zip(steps, ours, strict=True)), "main")
    loss.dots(
        ((h, v, f"{h} ahead, last value: {_number(v)}") for h, v in zip(steps, last, strict=True)), "other"
    )
    gain = [s.skill for s in scores]
    skill = Plot(x, span([*LEAST_SKILL, *gain])).axes("steps ahead", "skill", y_format=percent, x_ticks=at)
    for h, value in zip(steps, gain, strict=True):
        skill.bar(h - 0.35, h + 0.35, value, "main" if value >= 0 else "bad", f"{h} ahead: {percent(value)}")
    return _figure(
        "Loss", loss.svg("loss by step ahead"), (("main", "forecast"), ("other", "last value"))
    ) + _figure("Skill: share of the last value\u2019s loss that is saved", skill.svg("skill by step ahead"))


def _reliability(study: Study) -> str:
    levels, below = study.levels, study.scorer.below()
    mean = known_mean(below).tolist()
    diagram = Plot((0.0, 1.0), (0.0, 1.0), height=260).axes(
        "level of the quantile", "share of what came below it", x_format=percent, y_format=percent
    )
    diagram.line((0.0, 1.0), (0.0, 1.0), "target")
    for h, css in ((0, "near"), (-1, "far")):
        diagram.line(levels, below[h].tolist(), css)
    diagram.line(levels, mean, "main")
    diagram.dots(
        (
            (q, v, f"{percent(q)} quantile: {percent(v)} came below")
            for q, v in zip(levels, mean, strict=True)
        ),
        "main",
    )
    key = (
        ("main", "all steps"),
        ("near", "1 ahead"),
        ("far", f"{study.horizon} ahead"),
        ("target", "exact"),
    )
    edges, shares = [0.0, *levels, 1.0], known_mean(study.scorer.fell()).tolist()
    density = [share / (high - low) for share, (low, high) in zip(shares, pairwise(edges), strict=True)]
    pit = Plot((0.0, 1.0), (0.0, max(1.5, span(density)[1])), height=260).axes(
        "where in its forecast what came fell", "density", x_format=percent
    )
    for (low, high), value in zip(pairwise(edges), density, strict=True):
        note = f"{percent(low)} to {percent(high)}: {percent(value * (high - low))} of what came"
        pit.bar(low + 0.002, high - 0.002, value, "main", note)
    pit.rule(1.0)
    return _figure(
        "Reliability: on the diagonal, quantiles are what they are called", diagram.svg("reliability"), key
    ) + _figure(
        "PIT histogram: flat is honest",
        pit.svg("PIT histogram"),
        (("main", "a hump: forecasts too wide, a bowl: too narrow"), ("target", "exact")),
    )


def _over_time(study: Study) -> str:
    moments = [m for m in study.scorer.moments if m.forecasts]
    picked = _bins(moments)
    at = [float(group[-1].at) for group in picked]
    x = (min(at), max(at))
    held = [
        (target, css, shares)
        for band, (target, css) in enumerate(((0.8, "main"), (0.6, "other")))
        if math.isfinite((shares := _inside(picked, band))[0])
    ]
    lowest = min((share for *_, shares in held for share in shares), default=1.0)
    coverage = Plot(x, (0.0 if lowest < 0.4 else 0.4, 1.0)).axes(
        "ticks taken in", "share inside", y_format=percent
    )
    for target, css, shares in held:
        coverage.rule(target).line(at, shares, css)
    last = [sum(m.last_loss for m in group) for group in picked]
    loss = [sum(m.loss for m in group) for group in picked]
    gain = [1 - a / b if b else math.nan for a, b in zip(loss, last, strict=True)]
    low, high = span([*LEAST_SKILL, *gain])
    skill = Plot(x, (max(low, WORST_SKILL), high)).axes("ticks taken in", "skill", y_format=percent)
    skill.rule(0.0).line(at, gain, "main")
    below = [
        (t, WORST_SKILL, percent(value)) for t, value in zip(at, gain, strict=True) if value < WORST_SKILL
    ]
    skill.dots(below, "bad")
    cut = (("bad", f"below {percent(WORST_SKILL)}"),) if below else ()
    for plot in (coverage, skill):
        for verdict in study.verdicts:
            at_tick = max(float(verdict.offset), x[0])
            plot.mark(at_tick, _fate(verdict), f"retrain: {results.outcome(verdict)}")
    marks = (("kept", "candidate serves from here on"), ("refused", "candidate refused"))
    intervals = " and ".join(percent(target) for target, *_ in held) + " interval" + "s" * (len(held) > 1)
    key = [(css, percent(target)) for target, css, _ in held]
    drawing = coverage.svg("coverage over time")
    return (
        (_figure(f"Share of what came inside the {intervals}", drawing, (*key, *marks)) if held else "")
        + _figure("Skill against the last value", skill.svg("skill over time"), (*cut, *marks))
        + _shares(study)
    )


def _inside(groups: Sequence[Sequence[Moment]], band: int) -> list[float]:
    """Share of what came inside the interval, by group; NaN: there is no such interval."""
    return [sum(float(m.inside[band]) for m in group) / sum(m.forecasts for m in group) for group in groups]


def _bins(moments: Sequence[Moment]) -> list[list[Moment]]:
    """At most BINS groups of neighbours, none of which has much fewer forecasts than the others."""
    least = sum(m.forecasts for m in moments) / BINS
    groups: list[list[Moment]] = [[]]
    for moment in moments:
        if sum(m.forecasts for m in groups[-1]) >= least:
            groups.append([])
        groups[-1].append(moment)
    if len(groups) > 1 and sum(m.forecasts for m in groups[-1]) < sum(m.forecasts for m in groups[-2]) / 2:
        few = groups.pop()
        groups[-1] += few
    return groups


def _shares(study: Study) -> str:
    if len(study.shares) < 2:
        return ""
    at = [float(where) for where, _ in study.shares]
    tops = np.cumsum([share for _, share in study.shares], axis=1)
    plot = Plot((at[0], at[-1]), (0.0, 1.0), width=1080).axes(
        "ticks taken in", "share in the mix", y_format=percent
    )
    for i in range(experts.COUNT):
        floor = tops[:, i - 1].tolist() if i else [0.0] * len(at)
        plot.band(at, floor, tops[:, i].tolist(), f"e{i}")
    key = [(f"e{i}", name.replace("_", " ")) for i, name in enumerate(experts.NAMES)]
    return _figure(
        "Whose word counted: the mean share of each expert", plot.svg("shares of the experts"), key, "across"
    )


def _losses(study: Study) -> str:
    """What was judged at each retrain, side by side; the lowest is to serve."""
    judged = [(v, results.losses(v)) for v in study.verdicts if results.losses(v)["candidate"] is not None]
    judged = judged[-MOST_RETRAINS:]
    if not judged:
        return ""
    heights = [loss for _, losses in judged for loss in losses.values() if loss is not None]
    plot = Plot((0.5, len(judged) + 0.5), (0.0, span(heights)[1]), width=1080).axes(
        "retrain, at tick",
        "loss on the hold-out",
        x_format=lambda at: f"{judged[round(at) - 1][0].offset:,}",
        x_ticks=range(1, len(judged) + 1, -(-len(judged) // 12)),
    )
    names = {"last_value": "last value", "serving": "serving model", "candidate": "candidate"}
    wide = min(0.26, 0.06 * len(judged))
    for at, (verdict, losses) in enumerate(judged, start=1):
        bars = (("last_value", "other"), ("serving", "near"), ("candidate", _fate(verdict)))
        for place, (name, css) in enumerate(bars):
            if (loss := losses[name]) is not None:
                left = at + (place - 1.5) * wide
                note = f"{names[name]}: {_number(loss)}; {results.outcome(verdict)}"
                plot.bar(left, left + 0.92 * wide, loss, css, note)
    key = (
        ("other", "last value"),
        ("near", "serving model"),
        ("kept", "candidate, serves from here on"),
        ("refused", "candidate, refused"),
    )
    return _figure(
        "Loss on the hold-out: the candidate has to beat both", plot.svg("retrains"), key, "across"
    )


def _fate(verdict: Verdict) -> str:
    return "kept" if results.promoted(verdict) else "refused"


def _retrains(study: Study) -> str:
    found = [results.losses(verdict) for verdict in study.verdicts]
    older = any(losses["older_serving"] is not None for losses in found)
    judged = ("candidate", "serving", "last_value", *(("older_candidate", "older_serving") if older else ()))
    titles = (name.replace("_", " ").replace("older", "older:") for name in judged)
    rows = []
    for verdict, losses in zip(study.verdicts, found, strict=True):
        css = "good" if results.promoted(verdict) else "meh"
        word = f'<span class="{css}">{escape(results.outcome(verdict).replace("_", " "))}</span>'
        numbers = (_number(losses[name]) for name in judged)
        rows.append(_row(f"{verdict.offset:,}", word, *numbers, f"{verdict.seconds:.0f}"))
    there = (
        " Older: on a stretch amid the history of long series, where it must not be much worse than what serves."
        if older
        else ""
    )
    return _table(("at tick", "decision", *titles, "seconds"), rows, "decisions") + (
        '<p class="note">Losses on the hold-out, the newest part of each series by then; a candidate serves only if it '
        f"beats both others there.{there}</p>"
    )


def _by_series(study: Study) -> str:
    head = ("series", "forecasts", "sQL", "last value", "relative", "MASE", "80 %", "60 %")
    scores = sorted(study.scorer.by_series().items(), key=lambda item: _last_if_none(item[1].relative_sql))
    rows = [_row(escape(name), f"{s.forecasts:,}", *_scores(s)) for name, s in scores]
    more, half = "", MOST_SERIES // 2
    if (left_out := len(rows) - MOST_SERIES) > 0:
        rows[half:-half] = [_row(f"<em>{left_out:,} more</em>", *[""] * (len(head) - 1))]
        more = f" (the best {half} and the worst {half})"
    return (
        f"<details><summary>{len(scores):,} series, best first{more}</summary>{_table(head, rows)}</details>"
    )


# --- pieces ---


def _scores(score: Score) -> tuple[str, ...]:
    return (
        _number(score.sql),
        _number(score.last_sql),
        _number(score.relative_sql),
        _number(score.mase),
        _share(score.coverage_80),
        _share(score.coverage_60),
    )


def _figure(title: str, drawing: str, key: Iterable[tuple[str, str]] = (), css: str = "") -> str:
    legend = "".join(f'<span class="key {css}">{escape(text)}</span>' for css, text in key)
    legend = f'<p class="legend">{legend}</p>' if legend else ""
    which = f' class="{css}"' if css else ""
    return f"<figure{which}><figcaption>{escape(title)}</figcaption>{drawing}{legend}</figure>"


def _table(head: Iterable[str], rows: Iterable[str], css: str = "") -> str:
    which = f' class="{css}"' if css else ""
    cells = "".join(f"<th>{escape(name)}</th>" for name in head)
    body = f"<thead><tr>{cells}</tr></thead><tbody>{''.join(rows)}</tbody>"
    return f'<div class="wide"><table{which}>{body}</table></div>'


def _row(*cells: str) -> str:
    return "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def _number(value: float | None) -> str:
    return "\N{EN DASH}" if value is None or not math.isfinite(value) else f"{value:.3f}"


def _last_if_none(value: float) -> float:
    return value if math.isfinite(value) else math.inf


def _share(value: float) -> str:
    text = f"{100 * value:.1f}\N{NO-BREAK SPACE}%".replace("-", "\N{MINUS SIGN}")
    return text if math.isfinite(value) else "\N{EN DASH}"


def _anchor(study: Study) -> str:
    return "set-" + "".join(c if c.isalnum() else "-" for c in study.dataset)


def _when(time_s: float, apart_s: float) -> str:
    """A time, to the second where the other end is near."""
    try:
        near = ":%S" if apart_s < SOON_S else ""
        return datetime.fromtimestamp(time_s, UTC).strftime(f"%Y-%m-%d %H:%M{near}")
    except (ValueError, OverflowError, OSError):
        return short(time_s)


STYLE = """
:root { --paper: #fcfcfa; --card: #ffffff; --ink: #1b1f27; --soft: #667080; --rule: #e3e5e8; --main: #1f6feb;
  --other: #b4690e; --good: #1a7f45; --bad: #c2413a; --near: #69a6f5; --far: #123f86; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #12151a; --card: #1a1e25; --ink: #e8eaee; --soft: #9aa4b2; --rule: #2c323c; --main: #5aa2ff;
    --other: #e8a14a; --good: #4cc27c; --bad: #f0766e; --near: #9cc8ff; --far: #3f6fc0; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1 { font-size: 2rem; margin: 0; letter-spacing: -0.02em; }
h2 { font-size: 1.5rem; margin: 3rem 0 0.75rem; border-top: 1px solid var(--rule); padding-top: 1.5rem; }
h3 { font-size: 1.05rem; margin: 2rem 0 0.5rem; }
a { color: var(--main); text-decoration: none; } a:hover { text-decoration: underline; }
nav { margin: 0 0 0.8rem; } nav a { margin-right: 1rem; }
.lead { font-size: 1.15rem; color: var(--soft); max-width: 46rem; margin: 0.4rem 0 1rem; }
.lead strong { color: var(--ink); }
.note { color: var(--soft); font-size: 0.85rem; max-width: 52rem; margin: 0.4rem 0 0.8rem; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: 0.8rem; }
.card, figure { background: var(--card); border: 1px solid var(--rule); border-radius: 10px; }
.card { padding: 0.8rem 1rem; } .card span, .card small { color: var(--soft); display: block; }
.card strong { font-size: 1.6rem; font-weight: 600; font-variant-numeric: tabular-nums; }
.grid2 { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(26rem, 100%), 1fr)); gap: 0.9rem; }
.grid3 { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(20rem, 100%), 1fr)); gap: 0.9rem; }
figure { margin: 0; padding: 0.8rem 0.9rem; min-width: 0; max-width: 37rem; }
.across { grid-column: 1 / -1; max-width: none; }
figcaption { font-weight: 600; font-size: 0.9rem; margin-bottom: 0.4rem; overflow-wrap: anywhere; }
svg { display: block; width: 100%; height: auto; }
.ends { display: flex; justify-content: space-between; margin: 0; color: var(--soft); font-size: 0.75rem; }
.legend { margin: 0.3rem 0 0; font-size: 0.8rem; color: var(--soft); }
.key { margin-right: 1rem; display: inline-block; }
.key::before { content: ""; display: inline-block; width: 0.8em; height: 0.8em; border-radius: 2px;
  margin-right: 0.4em; vertical-align: -0.05em; background: var(--c, var(--main)); }
.wide { overflow-x: auto; margin-top: 0.6rem; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: 0.9rem; }
th, td { text-align: right; padding: 0.35rem 0.6rem; border-bottom: 1px solid var(--rule); white-space: nowrap; }
th { color: var(--soft); font-weight: 500; } th:first-child, td:first-child { text-align: left; }
.decisions :is(th, td):nth-child(2) { text-align: left; }
.good { color: var(--good); font-weight: 600; } .meh { color: var(--soft); }
details { margin-top: 1.5rem; } summary { cursor: pointer; color: var(--main); margin-bottom: 0.5rem; }
.grid { stroke: var(--rule); fill: none; } .number { fill: var(--soft); font-size: 10.5px; }
.label { fill: var(--soft); font-size: 11px; }
.main { --c: var(--main); } .other { --c: var(--other); } .near { --c: var(--near); } .far { --c: var(--far); }
.bad { --c: var(--bad); } .kept { --c: var(--good); } .refused { --c: var(--soft); } .target { --c: var(--soft); }
.ink { --c: var(--ink); } .median { --c: var(--main); } .fan { --c: var(--main); }
.e0 { --c: #4c8df5; } .e1 { --c: #8f98a6; } .e2 { --c: #2aa198; } .e3 { --c: #7fc97f; }
.e4 { --c: #e6a23c; } .e5 { --c: #d9644a; } .e6 { --c: #a877d8; } .e7 { --c: #d86fa5; }
.line { fill: none; stroke: var(--c); stroke-width: 1.8; stroke-linejoin: round; }
.line.target { stroke-dasharray: 4 4; stroke-width: 1; } .line.ink { stroke-width: 1.4; }
.line.median { stroke-width: 1.2; } .line.near, .line.far { stroke-width: 1.2; }
.area { fill: var(--c); } .area.fan { fill-opacity: 0.13; }
.area:is(.main, .bad, .near, .other, .kept, .refused) { fill-opacity: 0.8; }
.dot { fill: var(--c); } .mark { stroke: var(--c); stroke-width: 1.2; } .mark.refused { stroke-dasharray: 2 3; }
@media (max-width: 40rem) { .grid2 .number { font-size: 15px; } .grid2 .label { font-size: 13px; }
  .across { overflow-x: auto; } .across svg { min-width: 44rem; } .across .number, .across .label { font-size: 13px; } }
@media print { figure, .card { break-inside: avoid; } }
"""
