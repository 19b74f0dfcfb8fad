"""`make accuracy DATA=folder [OUT=folder]`: backtest every CSV of a folder and keep the scores in docs/accuracy.md.

One configuration for all of them: the default one, or that of `--config`. The page is written anew after each data
set, between two marks, so that what else it says stays. `peers.csv` has the sQL of others on known data sets: direct
LightGBM (refitted), NHITS, Holt-Winters, AutoETS, and of the last value on the same origins.
"""

import argparse
import csv
import os
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from math import exp, log
from pathlib import Path

from rich.console import Console

from benchmarks.report import machine
from forecaster.config import Config, load
from forecaster.errors import ForecasterError
from forecaster.shell import report, results
from forecaster.shell.evaluate import Study, evaluate
from forecaster.shell.replay import dataset
from forecaster.shell.terminal import Watch, scores_by_dataset

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "accuracy.md"
PEERS = Path(__file__).parent / "peers.csv"
BEGIN, END = "<!-- scores: begin; written by make accuracy -->", "<!-- scores: end -->"
HEAD = f"""# Accuracy

How good the forecasts are on data that nobody here has made, tick by tick, with the code that serves: the first 60 %
of each series is the warm-up, then every tick is answered before the next one is seen, and the network is retrained as
it goes. One configuration for all data sets, the default one. `make accuracy DATA=folder` makes the tables again from
a folder of CSV files (`series,ts,value`), with a report to look at in `OUT`.

{BEGIN}
{END}
"""
NOTE = """\
sQL: twice the pinball loss, mean over the levels 0.1 to 0.9, all steps ahead and all ticks, in units of the warm-up's
mean absolute change, mean of the series. Relative: over the sQL of the last value with the quantiles of its last 500
known errors. Coverage: edges count as inside; in brackets they count half. Training: seconds in all retrains together.\
"""
PEERS_NOTE = """\
Relative sQL beside others', lower is better. Each is over the last value's on the same origins: ours are all ticks,
theirs about 900 of each data set, evenly spaced.\
"""


def main() -> int:
    """Run all; the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.accuracy", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("data", type=Path, help="folder of CSV files, or one file")
    parser.add_argument("--out", type=Path, default=Path("backtest"), help="for forecasts, scores and report")
    parser.add_argument("--config", type=Path, help="TOML file, in place of the defaults")
    parser.add_argument("--page", type=Path, default=PAGE, help="where the tables go")
    arguments = parser.parse_args()
    paths = sorted(arguments.data.glob("*.csv")) if arguments.data.is_dir() else [arguments.data]
    if not paths:
        parser.error(f"there is no CSV file in {arguments.data}")
    console = Console(stderr=True)
    try:
        config = load(arguments.config, os.environ) if arguments.config else Config()
        studies: list[Study] = []
        for path in paths:
            with Watch(console, dataset(path)) as watch:
                studies.append(evaluate(path, config, 0.6, arguments.out, watch))
            results.write(studies, arguments.out)
            (arguments.out / "report.html").write_text(report.page(studies), encoding="utf-8")
            save(studies, arguments.page)
    except ForecasterError as error:
        console.print(f"[red]{error}[/red]")
        return error.exit_code
    Console().print(scores_by_dataset(studies))
    return 0


def save(studies: Sequence[Study], page: Path) -> None:
    """Put the tables between the marks of the page."""
    text = page.read_text(encoding="utf-8") if page.exists() else HEAD
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    page.write_text(f"{before}{BEGIN}\n{tables(studies)}\n{END}{after}", encoding="utf-8")


def tables(studies: Sequence[Study]) -> str:
    """The scores, the peers' beside them where they are known, and what it was run on."""
    about = ", ".join(f"{name} {value}" for name, value in machine().items())
    parts = [
        f"{datetime.now(UTC):%Y-%m-%d}. {about}.",
        _scores(studies),
        NOTE,
    ]
    if peers := _peers(studies):
        parts += [
            PEERS_NOTE,
            peers,
        ]
    return "\n\n".join(parts)


def _scores(studies: Sequence[Study]) -> str:
    head = (
        "data set",
        "series",
        "forecasts",
        "sQL",
        "last value",
        "relative",
        "MASE",
        "RMSSE",
        "80 %",
        "60 %",
    )
    rows = []
    for study in studies:
        s = study.scorer.overall()
        kept = sum(map(results.promoted, study.verdicts))
        rows.append(
            (
                study.dataset,
                results.judged_of_all(study),
                f"{s.forecasts:,}",
                *(f"{value:.3f}" for value in (s.sql, s.last_sql, s.relative_sql, s.mase, s.rmsse)),
                f"{s.coverage_80:.3f} ({s.coverage_80_ties_half:.3f})",
                f"{s.coverage_60:.3f} ({s.coverage_60_ties_half:.3f})",
                f"{kept} of {len(study.verdicts)}",
                f"{study.train_seconds:.0f}",
                f"{study.seconds:.0f}",
            )
        )
    total = results.summary(studies)
    means = (
        f"**{total.relative_sql:.3f}**",
        "",
        "",
        f"**{total.coverage_80:.3f}**",
        f"**{total.coverage_60:.3f}**",
    )
    rows.append(("geometric mean, mean coverage", "", "", "", "", *means, "", "", ""))
    return _markdown((*head, "retrains kept", "training s", "all s"), rows)


def _peers(studies: Sequence[Study]) -> str:
    with PEERS.open(encoding="utf-8", newline="") as file:
        known = {row["dataset"]: row for row in csv.DictReader(file)}
    ours = {s.dataset: s.scorer.overall().relative_sql for s in studies if s.dataset in known}
    if not ours:
        return ""
    names = [name for name in next(iter(known.values())) if name not in {"dataset", "last_value"}]
    columns = {"forecaster": ours} | {
        name: {d: float(known[d][name]) / float(known[d]["last_value"]) for d in ours} for name in names
    }
    rows = [(d, *(f"{column[d]:.3f}" for column in columns.values())) for d in ours]
    means = (exp(sum(map(log, column.values())) / len(column)) for column in columns.values())
    rows.append(("geometric mean", *(f"**{mean:.3f}**" for mean in means)))
    return _markdown(("data set", *columns), rows)


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ("---", *["---:"] * (len(head) - 1)), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


if __name__ == "__main__":
    sys.exit(main())
