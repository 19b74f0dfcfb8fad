"""Files that are played: time order, and what is wrong with them is said with the line."""

from pathlib import Path

import pytest

from forecaster.demo.simulate import Sample
from forecaster.demo.ticks import read_csv
from forecaster.errors import DataError


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "ticks.csv"
    path.write_text(text)
    return path


def test_ticks_come_in_time_order_whatever_the_order_of_rows_and_columns(tmp_path: Path) -> None:
    path = written(tmp_path, "ts,value,series\n3,1.5,b\n1,2.5,a\n2,3.5,b\n1,4.5,b\n")
    assert read_csv(path) == [
        Sample("a", 1.0, 2.5),
        Sample("b", 1.0, 4.5),
        Sample("b", 2.0, 3.5),
        Sample("b", 3.0, 1.5),
    ]


def test_further_columns_go_along_as_far_as_they_are_filled(tmp_path: Path) -> None:
    path = written(tmp_path, "series,ts,value,load\na,1,2,3\na,2,4,\n")
    assert [sample.more for sample in read_csv(path)] == [{"load": 3.0}, {}]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("series,ts\na,1\n", r"\['value'\] missing"),
        ("series,ts,value\na,1,2\na,x,3\n", "line 3"),
        ("series,ts,value\na,1\n", "line 2"),
        ("series,ts,value\n", "no ticks"),
        ("", "missing"),
    ],
)
def test_what_is_wrong_is_said(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=said):
        read_csv(written(tmp_path, text))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.csv"):
        read_csv(tmp_path / "none.csv")
