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
from forecaster.shell import control, evaluate, results, stores, trainer
from forecaster.shell.control import Command, Request
from forecaster.shell.outputs import prepare_file
from forecaster.shell.stores import OnFiles
from forecaster.shell.trainer import Job, Report
from tests.folds import make_model
from tests.shell.test_report import study

CSV = "series,ts,value\n" + "".join(f"a,{t},{t % 3}\n" for t in range(50))


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
        return study(path.stem)

    monkeypatch.setattr(evaluate, "evaluate", fake)
    out = tmp_path / "out"
    ended = CliRunner().invoke(cli.app, ["backtest", str(ticks), "--warmup", "0.7", "--out", str(out)])
    assert ended.exit_code == 0, ended.output
    assert asked == [(ticks, 0.7, out)]
    assert "walk" in (out / "report.html").read_text(encoding="utf-8")
    assert set(json.loads((out / "scores.json").read_text(encoding="utf-8"))["datasets"]) == {"walk"}
    assert (out / "scores.csv").exists()


def test_one_bad_file_does_not_keep_the_others_from_being_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("good", "odd", "fine"):
        (tmp_path / f"{name}.csv").write_text(CSV, encoding="utf-8")
    (tmp_path / "bad.csv").write_text("series,value\na,1\n", encoding="utf-8")
    begun: list[str] = []

    def fake(path: Path, *_: object) -> evaluate.Study:
        begun.append(path.stem)
        if path.stem == "odd":
            raise DataError(f"{path}: 0 of 1 series judged")
        return study(path.stem)

    monkeypatch.setattr(evaluate, "evaluate", fake)
    out, paths = tmp_path / "out", [str(tmp_path / f"{name}.csv") for name in ("good", "odd", "bad", "fine")]
    ended = CliRunner().invoke(cli.app, ["backtest", *paths, "--out", str(out)])
    assert ended.exit_code == 3
    assert begun == ["good", "odd", "fine"]
    said = " ".join(ended.output.split())
    assert said.index("bad.csv: no column 'ts'") < said.index("odd.csv: 0 of 1 series judged"), (
        "before all work"
    )
    assert f"2 of 4 files could not be judged: {paths[1]}, {paths[2]}" in said
    assert set(json.loads((out / "scores.json").read_text(encoding="utf-8"))["datasets"]) == {"good", "fine"}
    begun.clear()
    ended = CliRunner().invoke(cli.app, ["backtest", paths[2], "--out", str(tmp_path / "none")])
    assert (ended.exit_code, begun) == (3, [])
    assert not (tmp_path / "none").exists()


def test_where_nothing_can_be_written_is_said_before_the_work(
    ticks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worked: list[object] = []
    monkeypatch.setattr(evaluate, "evaluate", lambda *_: worked.append(_))
    monkeypatch.setattr(stores, "read_ticks", lambda *_, **__: worked.append(_))
    for arguments, said in (
        (["backtest", str(ticks), "--out", str(ticks)], f"{ticks}: cannot be written to: File exists"),
        (["backtest", str(ticks), "--out", "/proc/out"], "/proc/out: cannot be written to: No such file"),
        (["train", str(ticks), "--out", "/proc/out/m"], "/proc/out: cannot be written to: No such file"),
        (["train", str(ticks), "--out", str(tmp_path)], f"{tmp_path}: cannot be written to: it is a folder"),
    ):
        ended = CliRunner().invoke(cli.app, arguments)
        assert isinstance(ended.exception, DataError)
        assert said in str(ended.exception)
    assert worked == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no disk that is always full")
def test_a_disk_that_is_full_at_the_end_is_said_and_nothing_half_written_stays(
    ticks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tmp_path / "m.bin"
    (tmp_path / "m.bin.part").symlink_to("/dev/full")
    with pytest.raises(DataError, match=r"m\.bin: cannot be written to: No space left"):
        stores.Files(OnFiles(ticks=str(ticks), candidate=str(model))).publish(make_model(), "first")
    assert [path.name for path in tmp_path.iterdir() if path.suffix in {".bin", ".part"}] == []

    def fill(*_: object) -> None:
        with open("/dev/full", "w", encoding="utf-8") as full:
            full.write("x")

    for module, fills in ((evaluate, "evaluate"), (results, "write")):
        monkeypatch.setattr(evaluate, "evaluate", lambda *_: study("ticks"))
        monkeypatch.setattr(module, fills, fill)
        ended = CliRunner().invoke(cli.app, ["backtest", str(ticks), "--out", str(tmp_path / "out")])
        assert ended.exit_code == 3
        assert f"{tmp_path / 'out'}: cannot be written to: No space left" in " ".join(ended.output.split())


def test_the_folder_of_a_model_is_made(tmp_path: Path) -> None:
    prepare_file(tmp_path / "a" / "b" / "m.bin")
    assert list((tmp_path / "a" / "b").iterdir()) == []


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
    [
        ("yesterday", "5", "--start 'yesterday' is neither"),
        ("5", "5", "--start 5 is not before --end 5"),
        ("nan", "5", "--start nan is not before --end 5"),
        ("5", "inf", "inf is not within the years 1 to 9999"),
        ("-inf", "5", "-inf is not within the years 1 to 9999"),
        ("1767225600", "1767225600000", "1767225600000 is not within the years 1 to 9999, as epoch seconds"),
    ],
)
def test_annotate_refuses_a_span_that_is_none_before_it_asks_the_broker(
    start: str, end: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requests, "_require_topic", lambda *_: pytest.fail("it was asked"))
    ended = CliRunner().invoke(cli.app, ["annotate", "--start", start, "--end", end])
    assert isinstance(ended.exception, ConfigError)
    assert said in str(ended.exception)
