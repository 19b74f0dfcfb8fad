"""Files that are played: time order, whatever the order of the rows, and every column goes along."""

import json
from pathlib import Path

import pytest

from forecaster.demo.ticks import read_file
from forecaster.errors import DataError


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


def test_what_cannot_be_played_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no column 'value'"):
        read_file(written(tmp_path, "series,ts\na,1\n"))
    with pytest.raises(DataError, match=r"none\.csv"):
        read_file(tmp_path / "none.csv")
