"""The training process, run for real on files: what it says, what it leaves behind, and its end."""

import json
import math
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from pydantic import SecretStr

from forecaster.config import Config
from forecaster.core.history import Span
from forecaster.core.model import Model, ModelSpec
from forecaster.shell.kafka import KafkaSpec
from forecaster.shell.models.codec import parse
from forecaster.shell.models.convert import from_stored
from forecaster.shell.retrain import ENVIRONMENT
from forecaster.shell.stores import OnFiles, OnTopics, newest
from forecaster.shell.trainer import Job, job_for, revealed

MODEL = {"hidden": 8, "horizon": 3, "warm_up": 8, "context_length": 32}
TRAIN = {"burn_in": 8, "span": 16, "steps": 50, "evaluate_every": 25}


def write_ticks(path: Path, steps: int = 200, series: int = 5) -> None:
    rng = random.Random(0)
    rows = [
        f"s{i},{1.7e9 + 3600 * t},{math.sin(2 * math.pi * t / 24 + i) + 0.1 * rng.gauss(0, 1)}"
        for t in range(steps)
        for i in range(series)
    ]
    path.write_text("\n".join(["series,ts,value", *rows]))


def train(job: Job | bytes) -> tuple[list[dict[str, Any]], subprocess.CompletedProcess[bytes]]:
    """Run the process on a job; its reports."""
    line = job if isinstance(job, bytes) else msgspec.json.encode(job) + b"\n"
    command = [sys.executable, "-m", "forecaster.shell.trainer"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stderr is not None
        child.stdin.write(line)
        child.stdin.flush()
        out = child.stdout.read()  # stdin stays open: its end would be the end of the child
        code = child.wait()
        done = subprocess.CompletedProcess(command, code, out, child.stderr.read())
    return [json.loads(text) for text in done.stdout.splitlines()], done


def environment() -> dict[str, str]:
    import os

    return dict(os.environ) | ENVIRONMENT


def job_on(tmp_path: Path, **more: Any) -> Job:
    source = OnFiles(
        ticks=str(tmp_path / "ticks.csv"), candidate=str(tmp_path / "candidate.safetensors"), **more
    )
    return Job(source=source, model=MODEL, train=TRAIN)


def model_in(path: Path) -> Model:
    stored = parse(path.read_bytes())
    model = from_stored(stored)  # type: ignore[arg-type]
    assert isinstance(model, Model)
    return model


@pytest.mark.process
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_first_model_and_then_one_that_has_to_beat_it(tmp_path: Path) -> None:
    write_ticks(tmp_path / "ticks.csv")
    header, *rows = (tmp_path / "ticks.csv").read_text().splitlines()
    (tmp_path / "ticks.csv").write_text("\n".join([header, *reversed(rows)]))  # as some archives have it
    began_s = time.time()
    reports, done = train(job_on(tmp_path))
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    assert reports[0] == {"stage": "read", "ticks": 1000, "series": 5}
    assert [report["step"] for report in reports if report["stage"] == "fit"] == [25, 50, 25]  # a refresh
    last = reports[-1]
    assert (last["outcome"], last["reason"]) == ("promoted", "first")
    assert last["losses"]["candidate"] < last["losses"]["last_value"]
    model = model_in(tmp_path / "candidate.safetensors")
    card = model.card
    assert model.spec == ModelSpec.model_validate(MODEL)
    assert last["version"] == card.version
    assert card.version.startswith("20231123-051320-")
    assert card.offsets == {"0": (0, 1000)}
    assert card.created_s == 1.7e9 + 3600 * 199
    assert began_s <= card.made_s <= time.time()
    assert card.scores["candidate"]["loss"] == pytest.approx(last["losses"]["candidate"])
    assert set(card.scores) == {"candidate", "last_value"}

    first = tmp_path / "first.safetensors"
    (tmp_path / "candidate.safetensors").rename(first)
    reports, done = train(job_on(tmp_path, serving=str(first)))
    last = reports[-1]
    assert done.returncode == 0
    assert last["losses"]["serving"] == pytest.approx(card.scores["candidate"]["loss"], rel=1e-4)
    promoted = last["losses"]["candidate"] < last["losses"]["serving"] * 0.998
    assert last["outcome"] == ("promoted" if promoted else "rejected")
    assert (tmp_path / "candidate.safetensors").exists() == promoted


@pytest.mark.process
@pytest.mark.slow
def test_a_job_with_as_many_spans_as_are_kept_is_read_whole(tmp_path: Path) -> None:
    write_ticks(tmp_path / "ticks.csv", steps=10)
    spans = [(f"{n:0200}", 0.0, 1.0) for n in range(5000)]
    job = msgspec.json.encode(msgspec.structs.replace(job_on(tmp_path), spans=spans)) + b"\n"
    assert len(job) > 1 << 20
    reports, done = train(job)
    assert done.returncode == 0
    assert reports[-1]["outcome"] == "no_data"


@pytest.mark.process
@pytest.mark.slow
def test_too_little_to_train_on_says_so_and_leaves_nothing(tmp_path: Path) -> None:
    write_ticks(tmp_path / "ticks.csv", steps=10)
    reports, done = train(job_on(tmp_path))
    assert done.returncode == 0
    assert reports[-1]["outcome"] == "no_data"
    assert reports[-1]["message"].startswith(
        "50 ticks of 5 series; the longest series has 10 steps, and none is"
    )
    assert not (tmp_path / "candidate.safetensors").exists()


@pytest.mark.process
@pytest.mark.slow
def test_a_file_that_is_not_there_is_reported_with_its_name(tmp_path: Path) -> None:
    reports, done = train(job_on(tmp_path))
    assert done.returncode == 3
    assert reports[-1]["outcome"] == "crashed"
    assert "ticks.csv" in reports[-1]["message"]


@pytest.mark.process
@pytest.mark.slow
@pytest.mark.parametrize("line", [b"nonsense\n", b'{"source": {"type": "elsewhere"}}\n'])
def test_a_job_that_is_none_ends_it(line: bytes) -> None:
    reports, done = train(line)
    assert reports == []
    assert done.returncode == 1


def test_the_job_of_a_configuration_holds_each_stage_s_part_and_can_be_read_back() -> None:
    config = Config.model_validate(
        {"training": {"steps": 7, "margin_ratio": 0.5, "history_ticks": 1234, "keep_models": 3}}
    )
    job = msgspec.json.decode(job_for(config, 12.0, [Span("a", 1.0, 2.0)]), type=Job)
    assert isinstance(job.source, OnTopics)
    assert (job.source.history_ticks, job.source.keep, job.fit_s) == (1234, 3, 12.0)
    assert (job.train["steps"], job.promote) == (7, {"margin_ratio": 0.5, "forget_ratio": 0.3})
    assert job.spans == [("a", 1.0, 2.0)]
    assert KafkaSpec.model_validate(job.source.kafka) == config.kafka
    assert ModelSpec.model_validate(job.model) == config.network


def test_secrets_are_revealed_to_the_pipe_alone() -> None:
    spec = KafkaSpec.model_validate(
        {
            "security_protocol": "SASL_SSL",
            "sasl_mechanism": "PLAIN",
            "sasl_plain_username": "me",
            "sasl_plain_password": SecretStr("hush"),
        }
    )
    assert revealed(spec)["sasl_plain_password"] == "hush"
    assert "hush" not in repr(spec)


@pytest.mark.parametrize(
    ("there", "most", "expected"),
    [
        ({0: (0, 10), 1: (0, 10)}, 100, {0: (0, 10), 1: (0, 10)}),
        ({0: (5, 10), 1: (0, 100)}, 45, {0: (5, 10), 1: (60, 100)}),
        ({0: (0, 9), 1: (0, 9), 2: (0, 9)}, 12, {0: (5, 9), 1: (5, 9), 2: (5, 9)}),
        ({}, 10, {}),
        ({0: (7, 7)}, 10, {0: (7, 7)}),
    ],
)
def test_the_newest_ticks_of_all_partitions_together(
    there: dict[int, tuple[int, int]], most: int, expected: dict[int, tuple[int, int]]
) -> None:
    assert newest(there, most) == expected
