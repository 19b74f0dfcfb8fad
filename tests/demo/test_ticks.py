"""What is played: files in time order, whatever that of the rows, with every column; live ticks that end now."""

import json
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import pytest

from forecaster.demo import ticks
from forecaster.demo.ticks import parse, read_file, stream
from forecaster.errors import DataError


@dataclass
class Clock:
    """What stands in for the machine's."""

    now_s: float


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "ticks.csv"
    path.write_text(text)
    return path


def test_ticks_come_in_time_order_whatever_the_order_of_rows_and_columns(tmp_path: Path) -> None:
    path = written(tmp_path, "ts,value,series\n3,1.5,b\n1,2.5,a\n2,3.5,b\n1,4.5,b\n")
    played = [(key, json.loads(value)) for key, value in read_file(path)]
    assert played == [
        (b"a", {"series": "a", "ts": 1, "value": 2.5}),
        (b"b", {"series": "b", "ts": 1, "value": 4.5}),
        (b"b", {"series": "b", "ts": 2, "value": 3.5}),
        (b"b", {"series": "b", "ts": 3, "value": 1.5}),
    ]


def test_times_and_further_columns_go_along_as_they_are(tmp_path: Path) -> None:
    path = written(tmp_path, "series,ts,value,load\na,2026-01-01T00:00:00Z,2,3\na,2026-01-02T00:00:00Z,4,\n")
    assert [json.loads(value) for _, value in read_file(path)] == [
        {"series": "a", "ts": "2026-01-01T00:00:00Z", "value": 2, "load": 3},
        {"series": "a", "ts": "2026-01-02T00:00:00Z", "value": 4, "load": None},
    ]


def test_a_file_of_one_series_is_played_under_its_name(tmp_path: Path) -> None:
    (message,) = read_file(written(tmp_path, "ts,value\n1,2.5\n"))
    assert (message[0], json.loads(message[1])) == (b"ticks", {"ts": 1, "value": 2.5, "series": "ticks"})


def test_what_cannot_be_played_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no column 'value'"):
        read_file(written(tmp_path, "series,ts\na,1\n"))
    with pytest.raises(DataError, match=r"none\.csv"):
        read_file(tmp_path / "none.csv")


def test_live_history_ends_now_and_later_ticks_are_of_when_they_are_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock(1.8e9)
    monkeypatch.setattr(ticks.time, "time", lambda: clock.now_s)
    messages, history = stream(parse(["--bootstrap", "x:1", "--rate", "60", "--live"]))
    past = [json.loads(value)["ts"] for _, value in islice(messages, history)]
    assert max(past) == 1.8e9
    assert min(past) == pytest.approx(1.8e9 - history / 60, abs=1.0)
    clock.now_s += 3600.0
    times_s = [json.loads(value)["ts"] for _, value in islice(messages, 12, 1200)]
    assert max(times_s) == clock.now_s
    assert min(times_s) >= clock.now_s - 1.0, "late by a step or two, of 0.2 s"
