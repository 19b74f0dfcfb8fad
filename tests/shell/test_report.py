"""The page stands alone, is well-formed, and says what the scores say; the files carry the same numbers."""

import csv
import io
import json
import re
from collections import deque
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from rich.console import Console

from forecaster.core import experts
from forecaster.core.promote import Decision, Losses, Reason
from forecaster.core.train import Failure
from forecaster.shell import charts, report, results
from forecaster.shell.backtest import Verdict
from forecaster.shell.evaluate import Origin, Stretch, Study
from forecaster.shell.scoring import Moment, Scorer
from forecaster.shell.terminal import scores_by_dataset, scores_by_horizon

LEVELS, H, STEPS = (0.1, 0.2, 0.5, 0.8, 0.9), 4, 120
NASTY = "<b>&\"series'"


def study(dataset: str = "walk", seed: int = 0) -> Study:
    """Forecasts of two random walks, about as wide as they should be."""
    rng = np.random.default_rng(seed)
    scorer = Scorer(LEVELS, H)
    made = Study(dataset, LEVELS, H, scorer, records=2 * STEPS, names=["a", NASTY], seconds=12.0)
    width = np.sqrt(np.arange(1, H + 1))[:, None] * np.array([-1.3, -0.8, 0.0, 0.8, 1.3])
    offset = np.broadcast_to(width, (STEPS, H, len(LEVELS))).astype(np.float32)
    for name in ("a", NASTY):
        values = 50 + np.cumsum(rng.normal(size=STEPS))
        scorer.warm([name] * 40, values[:40])
        for start in range(40, STEPS, 10):
            at = slice(start, start + 10)
            scorer.add(2 * start, [name] * 10, values[at], offset[at])
        made.fans[name] = deque(
            (Origin(1.7e9 + 60.0 * t, float(values[t]), offset[t]) for t in range(80, STEPS)), maxlen=33
        )
    promoted = Decision(Reason.FIRST, Losses(0.8, 1.0, None))
    made.verdicts = [Verdict(80, "v-80", promoted, 3.0), Verdict(160, "v-160", Failure.DIVERGED, 1.5)]
    made.shares = [(at, np.full(experts.COUNT, 1 / experts.COUNT)) for at in (100, 150, 200)]
    return made


@pytest.fixture(scope="module")
def studies() -> list[Study]:
    return [study(), study("a & b", 1)]


def body(page: str) -> ElementTree.Element:
    """Parsed as XML: every element is closed, every attribute quoted, every text escaped."""
    return ElementTree.fromstring(page.removeprefix("<!doctype html>\n"))  # noqa: S314 - our own


def test_the_page_is_well_formed_and_links_lead_somewhere(studies: list[Study]) -> None:
    root = body(report.page(studies))
    ids = [element.get("id") for element in root.iter() if element.get("id")]
    assert ids == ["set-walk", "set-a---b"]
    links = {element.get("href") for element in root.iter("a")}
    assert links == {f"#{name}" for name in ids}
    assert [element.text for element in root.iter("h2")] == ["walk", "a & b"]
    captions = [element.text for element in root.iter("figcaption")]
    assert captions.count(NASTY) == 2  # of a fan, in each data set


def test_the_page_needs_nothing_from_anywhere(studies: list[Study]) -> None:
    page = report.page(studies)
    root = body(page)
    tags = {element.tag for element in root.iter()}
    assert not tags & {"script", "link", "img", "iframe", "object", "embed"}
    assert not re.findall(r"https?:|url\(|@import|src=", page)
    assert "prefers-color-scheme: dark" in page


def test_every_class_that_is_drawn_has_a_style(studies: list[Study]) -> None:
    root = body(report.page(studies))
    used = {name for element in root.iter() for name in (element.get("class") or "").split()}
    for name in used:
        assert re.search(rf"\.{name}\b", report.STYLE), name


def test_nothing_is_drawn_outside_or_as_nan(studies: list[Study]) -> None:
    for svg in body(report.page(studies)).iter("svg"):
        _, _, width, height = map(float, svg.get("viewBox", "").split())
        for path in svg.iter("path"):
            drawn = path.get("d") or ""
            assert "nan" not in drawn
            for x, y in re.findall(r"[ML](-?[\d.]+) (-?[\d.]+)", drawn):
                assert 0 <= float(x) <= width
                assert 0 <= float(y) <= height


def test_bars_without_a_tick_are_passed_over_in_the_picture() -> None:
    """Of 33 steps two have none, 4 and 16 before the end: there the fans begin one step earlier."""
    made = study()
    gaps = [
        Origin(o.time_s, np.nan, o.offset * np.nan) if t in {28, 15} else o
        for t, o in enumerate(made.fans["a"])
    ]
    made.fans = {"a": deque(gaps)}
    name = "forecasts as fans, and what came"
    (drawing,) = (svg for svg in body(report.page([made])).iter("svg") if svg.get("aria-label") == name)
    paths = [(path.get("class"), path.get("d") or "") for path in drawing.iter("path")]
    assert not any("nan" in drawn for _, drawn in paths)
    (line,) = (drawn for css, drawn in paths if css == "line ink")
    assert (line.count("M"), line.count("L")) == (1, 30), "one line through what came"
    x_of = [float(part.split()[0]) for part in re.split("[ML]", line)[1:]]
    came = [t for t, origin in enumerate(gaps) if np.isfinite(origin.value)]
    begun = {drawn[1:].split()[0] for css, drawn in paths if css == "line median"}
    assert begun == {f"{x_of[came.index(t)]:.1f}" for t in (32, 27, 23, 19, 14, 10, 6, 2)}


def test_the_page_tells_scores_and_decisions(studies: list[Study]) -> None:
    text = " ".join("".join(body(report.page(studies)).itertext()).split())
    score = studies[0].scorer.overall()
    for word in (f"{score.sql:.3f}", f"{score.relative_sql:.3f}", "first", "diverged", "1 of 2 kept"):
        assert word in text


def test_each_retrain_is_drawn_with_what_was_judged_and_whether_it_serves() -> None:
    made = study()
    forgot = Decision(Reason.FORGETS, Losses(0.7, 1.0, 0.8, 0.9, 0.6))
    made.verdicts.append(Verdict(200, "v-200", forgot, 2.0))
    root = body(report.page([made]))
    (drawing,) = (svg for svg in root.iter("svg") if svg.get("aria-label") == "retrains")
    bars = {bar.get("class"): [note.text or "" for note in bar] for bar in drawing.iter("rect")}
    assert bars["area kept"] == ["candidate: 0.800; first"]
    assert bars["area refused"] == ["candidate: 0.700; forgets"]
    assert bars["area near"] == ["serving model: 0.800; forgets"]
    heights = [float(bar.get("height") or 0) for bar in drawing.iter("rect")]
    assert heights[0] / heights[1] == pytest.approx(
        1.0 / 0.8, abs=0.01
    )  # last value and candidate of the first
    (table,) = (table for table in root.iter("table") if table.get("class") == "decisions")
    cells = [[cell.text or "".join(cell.itertext()) for cell in row] for row in table.iter("tr")]
    assert cells[0] == [
        *("at tick", "decision", "candidate", "serving", "last value", "older: candidate", "older: serving"),
        "seconds",
    ]
    assert cells[3] == ["200", "forgets", "0.700", "0.800", "1.000", "0.900", "0.600", "2"]


def test_skill_near_nothing_looks_like_nothing(studies: list[Study]) -> None:
    """A bar of 1 % or less is at most a tenth of the drawing."""
    gains = [score.skill for score in studies[0].scorer.by_horizon()]
    assert max(map(abs, gains)) < 0.01
    (first, _) = (
        svg
        for svg in body(report.page(studies)).iter("svg")
        if svg.get("aria-label") == "skill by step ahead"
    )
    for bar in first.iter("rect"):
        assert float(bar.get("height") or 0) < 0.1 * float((first.get("viewBox") or "").split()[3])


def test_one_short_study_with_few_levels_has_a_page_too() -> None:
    scorer = Scorer((0.25, 0.5, 0.75), 2)
    scorer.warm(["a"] * 4, np.array([1.0, 2.0, 1.0, 2.0]))
    scorer.add(8, ["a"] * 4, np.array([1.0, 2.0, 1.0, 2.0]), np.zeros((4, 2, 3), np.float32))
    small = Study("small", (0.25, 0.5, 0.75), 2, scorer, records=8, names=["a"])
    small.fans["a"] = deque([Origin(0.0, 1.0, np.zeros((2, 3))), Origin(1e18, 1.0, np.zeros((2, 3)))])
    root = body(report.page([small]))
    text = "".join(root.itertext())
    assert "small" in text
    assert "interval held" not in text, "there is no 80 % interval"
    assert "coverage over time" not in {svg.get("aria-label") for svg in root.iter("svg")}
    assert [card.find("span").text for card in root.iter("div") if card.get("class") == "card"] == [
        "skill",
        "sQL",
    ]  # type: ignore[union-attr]
    assert json.loads(json.dumps(results.as_json([small])))["all"]["coverage_80"] is None


def test_series_and_forecasts_that_were_not_judged_are_counted_nowhere() -> None:
    made = study()
    made.names += ["short", "still", "unheard-of"]
    offset = np.zeros((50, H, len(LEVELS)), np.float32)
    made.scorer.warm(["still"] * 10, np.ones(10))
    made.scorer.add(2 * STEPS, ["still"] * 50, np.ones(50), offset)
    made.scorer.warm(["short"] * 2, np.array([1.0, 2.0]))
    made.scorer.add(2 * STEPS, ["short"] * H, np.arange(float(H)), offset[:H])
    for name in ("still", "short"):
        made.fans[name] = deque([Origin(60.0 * t, 1.0, offset[0]) for t in range(2)])
    judged = study().scorer.overall()
    assert judged.forecasts == 2 * (STEPS - 40 - H)
    assert sum(moment.forecasts for moment in made.scorer.moments) == judged.forecasts
    text = " ".join("".join(body(report.page([made])).itertext()).split())
    assert f"{judged.forecasts} forecasts of 2 series:" in text
    assert "2 of 5 series judged: 1 constant in its warm-up, 2 too short." in text
    assert "constant in its warm-up: not judged" in text
    assert "too short: not judged" in text
    console = Console(width=140, record=True, file=io.StringIO())
    console.print(scores_by_dataset([made]))
    assert "2 of 5" in console.export_text()
    assert results.as_json([made])["datasets"]["walk"]["judged"] == 2


def heights(drawing: ElementTree.Element, css: str) -> list[float]:
    """Of the points of the lines of a class, from the top of the drawing."""
    lines = [path.get("d") or "" for path in drawing.iter("path") if path.get("class") == css]
    return [float(y) for line in lines for _, y in re.findall(r"[ML]([\d.]+) ([\d.]+)", line)]


def test_what_is_drawn_over_time_is_not_cut_without_a_sign() -> None:
    made = study()
    moments = [
        Moment(100 * n, 10, np.array([3.0, 1.0]), loss, 10.0) for n, loss in ((1, 9.0), (2, 45.0), (3, 5.0))
    ]
    made.scorer.moments[:] = moments
    drawings = {svg.get("aria-label"): svg for svg in body(report.page([made])).iter("svg")}
    coverage, skill = drawings["coverage over time"], drawings["skill over time"]
    numbers = [text.text for text in coverage.iter("text")]
    assert "0\N{NO-BREAK SPACE}%" in numbers
    at_80, at_10 = heights(coverage, "line target")[0], heights(coverage, "line other")[0]
    assert heights(coverage, "line main") == pytest.approx([at_80 + (at_10 - at_80) * 5 / 7] * 3, abs=0.2), (
        "30 %"
    )
    (dot,) = skill.iter("circle")
    assert [note.text for note in dot] == ["\N{MINUS SIGN}350\N{NO-BREAK SPACE}%"]
    assert float(dot.get("cy") or 0) == max(heights(skill, "line main"))
    assert "below \N{MINUS SIGN}100" in "".join(body(report.page([made])).itertext())


def test_it_is_said_where_no_network_served_and_why() -> None:
    made = study()
    assert results.unserved(made) == ""
    made.verdicts = made.verdicts[1:]
    alone = "no network served, so these are forecasts of the simple experts: "
    assert results.unserved(made) == alone + "the last retrain ended as diverged"
    made.verdicts.append(Verdict(200, "v-200", Failure.NO_DATA, lacks="all too short"))
    assert results.unserved(made) == alone + "all too short"
    made.verdicts = []
    assert results.unserved(made) == ""


def test_of_many_series_the_best_and_the_worst_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "MOST_SERIES", 4)
    made = study()
    one = made.scorer.overall()
    by_series = {f"s{n}": one._replace(sql=float(n), last_sql=10.0) for n in range(9)}
    monkeypatch.setattr(made.scorer, "by_series", lambda: by_series)
    table = ElementTree.fromstring(report._by_series(made))  # noqa: S314 - our own
    assert ["".join(row[0].itertext()) for row in table.iter("tr")] == [
        "series",
        "s0",
        "s1",
        "5 more",
        "s7",
        "s8",
    ]


def test_the_stretch_where_medians_missed_most_is_shown_unless_it_is_the_last() -> None:
    made = study()
    made.worst = Stretch("a", 3.0, list(made.fans["a"])[:20])
    captions = [element.text for element in body(report.page([made])).iter("figcaption")]
    assert "a, where the median missed most" in captions
    made.worst = Stretch("a", 3.0, list(made.fans["a"]))
    captions = [element.text for element in body(report.page([made])).iter("figcaption")]
    assert "a, where the median missed most" not in captions


@pytest.mark.parametrize("number", ["\N{MINUS SIGN}100\N{NO-BREAK SPACE}%", "\N{MINUS SIGN}1.12142", "7"])
def test_numbers_of_an_axis_have_room_to_its_left(number: str) -> None:
    drawing = charts.Plot((0.0, 1.0), (0.0, 1.0)).axes("x", "y", y_format=lambda _: number).svg("axes")
    for text in ElementTree.fromstring(drawing).iter("text"):  # noqa: S314 - our own
        if text.text == number:
            assert float(text.get("x") or 0) >= 8 * len(number), "as wide as a digit of 15 px is"
        assert text.get("transform") is None


def test_files_carry_the_scores(studies: list[Study], tmp_path: Path) -> None:
    results.write(studies, tmp_path)
    written = json.loads((tmp_path / "scores.json").read_text(encoding="utf-8"))
    overall = studies[0].scorer.overall()
    assert written["datasets"]["walk"]["scores"]["sql"] == pytest.approx(overall.sql, rel=1e-5)
    assert written["datasets"]["walk"]["retrains"][1] == {
        "at": 160,
        "outcome": "diverged",
        "promoted": False,
        "losses": dict.fromkeys(Losses._fields),
        "seconds": 1.5,
    }
    ratios = [s.scorer.overall().relative_sql for s in studies]
    assert written["all"]["relative_sql"] == pytest.approx(np.sqrt(np.prod(ratios)), rel=1e-5)
    rows = list(csv.DictReader(io.StringIO((tmp_path / "scores.csv").read_text(encoding="utf-8"))))
    assert len(rows) == 2 * (1 + H + 2)
    assert float(rows[0]["coverage_80"]) == pytest.approx(overall.coverage_80, rel=1e-5)
    by_series = {row["series"]: row for row in rows if row["dataset"] == "walk" and row["series"]}
    assert float(by_series[NASTY]["mase"]) == pytest.approx(
        studies[0].scorer.by_series()[NASTY].mase, rel=1e-5
    )


def test_the_terminal_shows_all_of_it(studies: list[Study]) -> None:
    console = Console(width=140, record=True, file=io.StringIO())
    console.print(scores_by_dataset(studies), scores_by_horizon(studies[0]))
    shown = console.export_text()
    for word in ("walk", "a & b", "geometric mean", f"{studies[1].scorer.overall().mase:.3f}"):
        assert word in shown


def test_ticks_are_round_and_within() -> None:
    assert charts.ticks(0.0, 1.0) == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert charts.ticks(-3.0, 12.0, 3) == [0.0, 5.0, 10.0]
    assert charts.ticks(1.12141, 1.12149) == [1.12142, 1.12144, 1.12146, 1.12148]
    assert charts.ticks(5.0, 5.0) == [5.0]


@pytest.mark.parametrize(
    ("forecasts", "groups"),
    [([99, 1], [100]), ([60, 40, 1], [60, 41]), ([50, 40, 30], [50, 40, 30])],
)
def test_points_over_time_hold_every_forecast_once(forecasts: list[int], groups: list[int]) -> None:
    moments = [Moment(at, n, np.zeros(2), 0.0, 0.0) for at, n in enumerate(forecasts)]
    picked = report._bins(moments)
    assert [moment for group in picked for moment in group] == moments
    assert [sum(moment.forecasts for moment in group) for group in picked] == groups
