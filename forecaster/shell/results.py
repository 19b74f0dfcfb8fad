"""Studies -> tables of scores: for people, as CSV, and as JSON.

In come studies of data sets; out go rows and the files `scores.json` and `scores.csv`. Nothing is judged here:
the numbers are the scorer's.
"""

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from math import exp, isfinite, log
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from forecaster.core import experts
from forecaster.core.promote import Decision, Losses
from forecaster.shell.backtest import Verdict
from forecaster.shell.evaluate import Study
from forecaster.shell.scoring import Score

DIGITS = 6  # significant ones in a file
COLUMNS = (*Score._fields, "relative_sql", "skill")


class Summary(NamedTuple):
    """What several data sets came to together."""

    relative_sql: float  # geometric mean
    coverage_80: float
    coverage_60: float


def summary(studies: Iterable[Study]) -> Summary:
    """Over data sets, each counting alike."""
    scores = [study.scorer.overall() for study in studies]
    ratios = [score.relative_sql for score in scores if score.relative_sql > 0]
    return Summary(
        exp(sum(map(log, ratios)) / len(ratios)) if ratios else float("nan"),
        sum(score.coverage_80 for score in scores) / len(scores),
        sum(score.coverage_60 for score in scores) / len(scores),
    )


def columns(score: Score) -> dict[str, float | int | None]:
    """A score by column; None where nothing was judged."""
    values = score._asdict() | {"relative_sql": score.relative_sql, "skill": score.skill}
    return {name: _short(values[name]) for name in COLUMNS}


def judged_of_all(study: Study) -> str:
    """How many series were judged: "5", or "2 of 5"."""
    judged = len(study.scorer.by_series())
    return f"{judged:,}" if judged == study.series else f"{judged:,} of {study.series:,}"


def outcome(verdict: Verdict) -> str:
    """The word for what came of a retrain."""
    decision = verdict.decision
    return decision.reason.value if isinstance(decision, Decision) else decision.value


def promoted(verdict: Verdict) -> bool:
    """Whether the candidate serves from there on."""
    return isinstance(verdict.decision, Decision) and verdict.decision.promote


def unserved(study: Study) -> str:
    """That no network served, and why; empty where one did, or none was asked for."""
    if not study.verdicts or any(map(promoted, study.verdicts)):
        return ""
    last = study.verdicts[-1]
    why = last.lacks or f"the last retrain ended as {outcome(last).replace('_', ' ')}"
    return f"no network served, so these are forecasts of the simple experts: {why}"


def losses(verdict: Verdict) -> dict[str, float | None]:
    """By what was judged: on the hold-out, and on the older stretch. None where nothing was."""
    decision = verdict.decision
    found: dict[str, float | None] = decision.losses._asdict() if isinstance(decision, Decision) else {}
    return {name: found.get(name) for name in Losses._fields}


def write(studies: Sequence[Study], folder: Path) -> None:
    """Write both files into the folder."""
    text = orjson.dumps(as_json(studies), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
    (folder / "scores.json").write_bytes(text)
    (folder / "scores.csv").write_text(as_csv(studies), encoding="utf-8")


def as_csv(studies: Iterable[Study]) -> str:
    """A row for each data set, step ahead and series; `horizon` and `series` are empty where all are meant."""
    out = io.StringIO()
    writer = csv.DictWriter(out, ["dataset", "series", "horizon", *COLUMNS], lineterminator="\n")
    writer.writeheader()
    writer.writerows(row for study in studies for row in _rows(study))
    return out.getvalue()


def _rows(study: Study) -> Iterator[dict[str, Any]]:
    def row(score: Score, series: str = "", horizon: int | str = "") -> dict[str, Any]:
        return {"dataset": study.dataset, "series": series, "horizon": horizon, **columns(score)}

    yield row(study.scorer.overall())
    for h, score in enumerate(study.scorer.by_horizon(), start=1):
        yield row(score, horizon=h)
    for name, score in study.scorer.by_series().items():
        yield row(score, series=name)


def as_json(studies: Sequence[Study]) -> dict[str, Any]:
    """Everything, nested by data set."""
    total = {name: _short(value) for name, value in summary(studies)._asdict().items()}
    return {"all": total, "datasets": {study.dataset: _dataset(study) for study in studies}}


def _dataset(study: Study) -> dict[str, Any]:
    scorer = study.scorer
    return {
        "scores": columns(scorer.overall()),
        "by_horizon": [columns(score) for score in scorer.by_horizon()],
        "by_series": {name: columns(score) for name, score in scorer.by_series().items()},
        "levels": study.levels,
        "below": [[_short(share) for share in row] for row in scorer.below().tolist()],
        "records": study.records,
        "series": study.series,
        "judged": len(scorer.by_series()),
        "statuses": dict(study.statuses),
        "unused": dict(study.unused),
        "retrains": [
            {
                "at": verdict.offset,
                "outcome": outcome(verdict),
                "promoted": promoted(verdict),
                "losses": {name: _short(loss) for name, loss in losses(verdict).items()},
                "seconds": _short(verdict.seconds),
            }
            for verdict in study.verdicts
        ],
        "shares": [
            {"at": at, **dict(zip(experts.NAMES, map(_short, share.tolist()), strict=True))}
            for at, share in study.shares
        ],
        "seconds": _short(study.seconds),
        "train_seconds": _short(study.train_seconds),
    }


def _short(value: float | None) -> float | int | None:
    if value is None or isinstance(value, int):
        return value
    return float(f"{value:.{DIGITS}g}") if isfinite(value) else None
