"""The commands that work on files, and `annotate`: what is asked for, what is shown, what they exit with."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from forecaster import cli
from forecaster.cli import requests
from forecaster.config import Config
from forecaster.core.descent import TrainSpec
from forecaster.errors import ConfigError, DataError
from forecaster.shell import control, evaluate, trainer
from forecaster.shell.control import Command, Request
from forecaster.shell.trainer import Job, OnFiles, Report
from tests.shell.test_report import study

CSV = "series,ts,value\na,1,1\n"


@pytest.fixture
def ticks(tmp_path: Path) -> Path:
    path = tmp_path / "walk.csv"
    path.write_text(CSV, encoding="utf-8")
    return path


def test_backtest_writes_scores_and_report_and_shows_the_table(
    ticks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[Path, float, Path]] = []

    def fake(path: Path, config: Config, warm_up: float, folder: Path, _: object) -> evaluate.Study:
        asked.append((path, warm_up, folder))
        folder.mkdir()
        return study(path.stem)

    monkeypatch.setattr(evaluate, "evaluate", fake)
    out = tmp_path / "out"
    ended = CliRunner().invoke(cli.app, ["backtest", str(ticks), "--warmup", "0.7", "--out", str(out)])
    assert ended.exit_code == 0, ended.output
    assert asked == [(ticks, 0.7, out)]
    assert "walk" in (out / "report.html").read_text(encoding="utf-8")
    assert set(json.loads((out / "scores.json").read_text(encoding="utf-8"))["datasets"]) == {"walk"}
    assert (out / "scores.csv").exists()


def test_backtest_refuses_what_is_not_there_or_has_two_of_a_name(ticks: Path, tmp_path: Path) -> None:
    run = CliRunner()
    assert run.invoke(cli.app, ["backtest", str(tmp_path / "none.csv")]).exit_code == 2
    assert run.invoke(cli.app, ["backtest", str(ticks), "--warmup", "1.5"]).exit_code == 2
    again = tmp_path / "more" / ticks.name
    again.parent.mkdir()
    again.write_text(CSV, encoding="utf-8")
    assert isinstance(run.invoke(cli.app, ["backtest", str(ticks), str(again)]).exception, DataError)


@pytest.mark.parametrize(
    ("report", "code"),
    [
        (Report(stage="end", outcome="promoted", reason="first", version="v1", losses={"candidate": 0.5}), 0),
        (Report(stage="end", outcome="rejected", reason="not_better", version="v1"), 1),
        (Report(stage="end", outcome="no_data", message="1 ticks of 1 series"), 1),
    ],
)
def test_train_asks_for_a_job_on_files_and_tells_what_came_of_it(
    report: Report, code: int, ticks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs: list[Job] = []

    def fake(job: Job, _: object) -> Report:
        jobs.append(job)
        return report

    monkeypatch.setattr(trainer, "run", fake)
    model = tmp_path / "model.safetensors"
    ended = CliRunner().invoke(cli.app, ["train", str(ticks), "--out", str(model)])
    assert ended.exit_code == code
    assert report.outcome in ended.output
    assert (report.reason or report.message) in ended.output
    (job,) = jobs
    assert job.source == OnFiles(ticks=str(ticks), candidate=str(model))
    assert TrainSpec.model_validate(job.train) == TrainSpec()
    assert job.model == Config().network.model_dump(mode="json")


def test_annotate_writes_the_span_as_the_daemon_reads_it(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[Request] = []

    class Topic:
        def __init__(self, *_: object) -> None: ...

        def write(self, request: Request) -> None:
            written.append(request)

        def close(self) -> None: ...

    monkeypatch.setattr(control, "Controls", Topic)
    monkeypatch.setattr(requests, "_require_topic", lambda *_: None)
    arguments = ["annotate", "--series", "s1", "--start", "2023-11-14T22:13:20", "--end", "1700000060.5"]
    ended = CliRunner().invoke(cli.app, arguments)
    assert ended.exit_code == 0, ended.output
    (request,) = written
    assert request.command is Command.ANNOTATE
    assert request.arguments == {"series": "s1", "start_s": 1_700_000_000.0, "end_s": 1_700_000_060.5}
    assert "s1 from 2023-11-14 22:13:20Z" in ended.output


@pytest.mark.parametrize(
    ("start", "end", "said"),
    [("yesterday", "5", "--start 'yesterday' is neither"), ("5", "5", "--start 5 is not before --end 5")],
)
def test_annotate_refuses_a_span_that_is_none(start: str, end: str, said: str) -> None:
    ended = CliRunner().invoke(cli.app, ["annotate", "--start", start, "--end", end])
    assert isinstance(ended.exception, ConfigError)
    assert said in str(ended.exception)
