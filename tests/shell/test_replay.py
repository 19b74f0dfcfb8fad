"""A file gives the records that a topic would give: in time order, with offsets, junk and late rows too."""

import gzip
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import pyarrow as arrow
import pytest
from pyarrow import parquet

from forecaster.core.tick import Reason, Reject, Tick, TickSpec, make_decoder
from forecaster.errors import DataError
from forecaster.shell.kafka.record import Record
from forecaster.shell.replay import dataset, late_in, read_ticks

SPEC = TickSpec()
CSV = b"series,ts,value\na,10,1\nb,20,2\n"


def write(folder: Path, text: str) -> Path:
    path = folder / "ticks.csv"
    path.write_text(text, encoding="utf-8")
    return path


def decoded(records: list[Record], spec: TickSpec = SPEC) -> list[Tick | Reject]:
    decode = make_decoder(spec)
    return [decode(record.key, record.value, record.timestamp_ms) for record in records]


def test_series_are_merged_by_time(tmp_path: Path) -> None:
    path = write(tmp_path, "series,ts,value\na,10,1\na,30,2\na,40.5,3\nb,20,4\nb,30,5\n")
    records = read_ticks(path, SPEC)
    ticks = [(t.series, t.time_s, t.value) for t in decoded(records) if isinstance(t, Tick)]
    assert ticks == [("a", 10, 1), ("b", 20, 4), ("a", 30, 2), ("b", 30, 5), ("a", 40.5, 3)]
    assert [record.offset for record in records] == [0, 1, 2, 3, 4]
    assert [record.key for record in records] == [b"a", b"b", b"a", b"b", b"a"]
    assert records[-1].timestamp_ms == 40_500


def test_partitions_keep_a_series_together_and_count_their_own_offsets(tmp_path: Path) -> None:
    rows = "".join(f"s{i % 7},{i},{i}\n" for i in range(70))
    records = read_ticks(write(tmp_path, "series,ts,value\n" + rows), SPEC, partitions=3)
    homes = {record.key: record.partition for record in records}
    assert all(record.partition == homes[record.key] for record in records)
    for partition in range(3):
        offsets = [record.offset for record in records if record.partition == partition]
        assert offsets == list(range(len(offsets)))


def test_late_rows_stay_late_and_junk_keeps_its_place(tmp_path: Path) -> None:
    path = write(tmp_path, "series,ts,value\na,10,1\na,30,2\na,20,3\na,x,4\na,40,nan\na,40,\na,50,5\n")
    answers = decoded(read_ticks(path, SPEC))
    assert [a.value if isinstance(a, Tick) else a.reason for a in answers] == [
        1, 2, 3, Reason.WRONG_TYPE, Reason.NOT_FINITE, Reason.NULL, 5,
    ]  # fmt: skip


def test_junk_before_the_first_tick_is_refused_for_what_it_is(tmp_path: Path) -> None:
    path = write(tmp_path, "series,ts,value\na,1e9,nan\na,1e9,x\na,1e9,1\n")
    answers = decoded(read_ticks(path, SPEC))
    assert [a.value if isinstance(a, Tick) else a.reason for a in answers] == [
        Reason.NOT_FINITE, Reason.WRONG_TYPE, 1,
    ]  # fmt: skip


def test_a_file_that_is_said_not_to_be_in_order_is_put_in_order(tmp_path: Path) -> None:
    path = write(tmp_path, "series,ts,value\na,30,1\nb,20,2\na,10,3\nb,5,4\na,30,5\n")
    answers = decoded(read_ticks(path, SPEC, in_order=False))
    assert [(a.time_s, a.value) for a in answers if isinstance(a, Tick)] == [
        (5, 4), (10, 3), (20, 2), (30, 1), (30, 5),
    ]  # fmt: skip


@pytest.mark.parametrize("form", ["%Y%m%d", "%Y%m%d%H%M", "%Y%m%d%H%M%S"])
def test_dates_written_as_numbers_are_not_taken_for_epoch_times(tmp_path: Path, form: str) -> None:
    days = [datetime(2025, 12, day, 9, 30, tzinfo=UTC).strftime(form) for day in range(1, 32)]
    path = write(tmp_path, "ts,value\n" + "".join(f"{day},{i}\n" for i, day in enumerate(days)))
    with pytest.raises(DataError, match=f"dates written as numbers, like {days[0]}: .* tick.time_unit"):
        read_ticks(path, SPEC)
    assert len(read_ticks(path, TickSpec(time_unit="ms"))) == 31
    numbers = range(int(days[0]), int(days[0]) + 10_000, 100)  # one of them is no date
    read_ticks(write(tmp_path, "ts,value\n" + "".join(f"{n},1\n" for n in numbers)), SPEC)


def test_configured_names_and_other_columns(tmp_path: Path) -> None:
    path = write(tmp_path, "ts,id,temp,v\n2020-01-01T00:00:00Z,a,21.5,.5\n")
    spec = TickSpec(series="id", value="v", covariates=("temp",))
    assert decoded(read_ticks(path, spec), spec) == [Tick("a", 1_577_836_800.0, 0.5, None, (21.5,))]
    with pytest.raises(DataError, match="no column 'wind'; there are 'ts', 'id', 'temp', 'v'"):
        read_ticks(path, spec.model_copy(update={"covariates": ("wind",)}))
    ours = write(tmp_path, "series,ts,value\n7,5,1\n")
    spec = TickSpec(series="id", value="v", time="at")
    assert decoded(read_ticks(ours, spec), spec) == [Tick("7", 5.0, 1.0)]


def test_key_and_record_time_take_the_place_of_fields(tmp_path: Path) -> None:
    spec = TickSpec(series="", time="ts")
    assert decoded(read_ticks(write(tmp_path, "series,ts,value\na,5,1\n"), spec), spec) == [
        Tick("a", 5.0, 1.0)
    ]


def test_a_gzipped_csv_reads_like_a_plain_one(tmp_path: Path) -> None:
    (plain := tmp_path / "ticks.csv").write_bytes(CSV)
    (packed := tmp_path / "ticks.csv.gz").write_bytes(gzip.compress(CSV))
    assert read_ticks(packed, SPEC) == read_ticks(plain, SPEC)


def test_parquet_reads_like_csv(tmp_path: Path) -> None:
    path = tmp_path / "ticks.parquet"
    times = arrow.array([1_000_500, 2_000_000], arrow.timestamp("ms"))
    parquet.write_table(arrow.table({"series": ["b", "a"], "ts": times, "value": [1.5, None]}), path)
    first, second = read_ticks(path, SPEC)
    assert decoded([first]) == [Tick("b", 1000.5, 1.5)]
    assert json.loads(second.value or b"") == {
        "series": "a",
        "ts": "1970-01-01T00:33:20.000000",
        "value": None,
    }


@pytest.mark.parametrize("unit", ["auto", "s", "ms", "us", "ns", "iso"])
@pytest.mark.parametrize("kind", ["s", "ms", "us", "ns", "zone", "day"])
def test_a_timestamp_of_parquet_is_taken_for_what_it_is_whatever_the_unit(
    tmp_path: Path, unit: Literal["auto", "s", "ms", "us", "ns", "iso"], kind: str
) -> None:
    days = [-4 * 365, 0, 20_000]  # 1966, 1970, 2024
    when = [86_400.0 * day for day in days]
    types = {"zone": arrow.timestamp("ms", "Asia/Tokyo"), "day": arrow.date32()}
    type_ = types.get(kind) or arrow.timestamp(kind)
    times = arrow.array([datetime.fromtimestamp(s, UTC) for s in when], arrow.timestamp("us", "UTC"))
    times = times.cast(type_) if kind != "day" else arrow.array(days, arrow.int32()).cast(type_)
    path = tmp_path / "ticks.parquet"
    parquet.write_table(arrow.table({"series": ["a"] * 3, "at": times, "value": [1.0, 2.0, 3.0]}), path)
    spec = TickSpec(time="at", time_unit=unit)
    ticks = [tick for tick in decoded(read_ticks(path, spec), spec) if isinstance(tick, Tick)]
    assert [tick.time_s for tick in ticks] == when


def test_old_dates_of_parquet_are_dates_and_impossible_ones_are_said(tmp_path: Path) -> None:
    path = tmp_path / "ticks.parquet"

    def read(moment_ms: int) -> list[Tick | Reject]:
        times = arrow.array([moment_ms], arrow.timestamp("ms"))
        parquet.write_table(arrow.table({"series": ["a"], "ts": times, "value": [1.0]}), path)
        return decoded(read_ticks(path, SPEC))

    assert read(-11_676_096_000_000) == [Tick("a", -11_676_096_000.0, 1.0)], "the year 1600"
    with pytest.raises(DataError, match=r"cannot be read: .*out of bounds"):
        read(2**62)


@pytest.mark.parametrize(
    ("name", "called"),
    [("load.csv", "load"), ("load.csv.gz", "load"), ("load.2024.csv", "load.2024"), ("load.parquet", "load")],
)
def test_a_file_without_a_column_of_series_is_one_series_of_the_files_name(
    tmp_path: Path, name: str, called: str
) -> None:
    path = tmp_path / name
    assert dataset(path) == called
    if path.suffix == ".parquet":
        parquet.write_table(arrow.table({"ts": [10, 20], "value": [1.0, 2.0]}), path)
    else:
        text = b"ts,value\n10,1\n20,2\n"
        path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    for spec in (SPEC, TickSpec(series="id"), TickSpec(series="")):
        records = read_ticks(path, spec)
        assert decoded(records, spec) == [Tick(called, 10.0, 1.0), Tick(called, 20.0, 2.0)]
        assert {record.key for record in records} == {called.encode()}


def test_several_series_are_not_taken_for_one(tmp_path: Path) -> None:
    rows = [f"{name},{t},{t}" for t in range(9) for name in ("a", "b")]
    path = write(tmp_path, "\n".join(["id,ts,value", *rows]))
    with pytest.raises(DataError, match="9 of 18 rows have the time of another: is one of 'id' the series"):
        read_ticks(path, SPEC)
    assert len(read_ticks(path, TickSpec(series="id"))) == 18
    more = write(tmp_path, "\n".join(["load,ts,value", *(f"{t % 3},{t},{t}" for t in range(9))]))
    assert len(read_ticks(more, SPEC)) == 9, "a further column of one series"


def test_a_row_of_a_wrong_clock_is_told_from_a_file_in_no_order(tmp_path: Path) -> None:
    times = [*range(5), 4_070_908_800, *range(5, 20)]  # 2099
    path = write(tmp_path, "\n".join(["ts,value", *(f"{t},{t}" for t in times)]))
    with pytest.raises(DataError, match="15 of them come after the row of 'ticks' at 2099-01-01 00:00:00Z"):
        read_ticks(path, SPEC)
    few = write(tmp_path, "\n".join(["ts,value", *(f"{t},{t}" for t in [*range(30), 10**9, 30, 31])]))
    late = late_in(read_ticks(few, SPEC), SPEC)
    assert (late.ticks, late.late) == (33, 2)
    assert late.behind_one().startswith("2 of them come after the row of 'ticks' at 2001-09-09 01:46:40Z")
    backwards = write(tmp_path, "\n".join(["ts,value", *(f"{t},{t}" for t in range(20, 0, -1))]))
    with pytest.raises(DataError, match=r"19 of 20 rows .*; sort the file by time"):
        read_ticks(backwards, SPEC)


def test_a_time_that_no_calendar_has_is_no_tick(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"expected at most future_s = 300; is tick\.time_unit = s right"):
        read_ticks(write(tmp_path, "ts,value\n1.7e12,1\n"), TickSpec(time_unit="s"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty"),
        ("series,ts,value\n", "no rows"),
        ("series,time,value\na,1,2\n", "no column 'ts'; there are 'series', 'time', 'value': rename them"),
        ("Series,TS,Value\na,1,2\n", "no column 'ts', no column 'value'; there are"),
        ("series;ts;value\na;1;2\n", "there are 'series;ts;value': separate the columns by commas"),
        ("series,ts,value\na,1,2\n\na,1\n", "line 4: there are 2 columns, 3 in the header"),
        (
            "series,ts,value\na,3,0\nb,9,0\na,2,0\na,1,0\nb,8,0\n",
            "3 of 5 rows are older than one .* sort the file",
        ),
        ("series,ts,value\na,noon,2\n", "'ts' is 'noon'"),
    ],
)
def test_files_that_cannot_be_used_say_why(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_ticks(write(tmp_path, text), SPEC)


def test_missing_and_undecodable_files_say_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such file"):
        read_ticks(tmp_path / "none.csv", SPEC)
    (tmp_path / "none.parquet").write_bytes(b"no")
    with pytest.raises(DataError, match="cannot be read"):
        read_ticks(tmp_path / "none.parquet", SPEC)
    (tmp_path / "short.csv.gz").write_bytes(gzip.compress(CSV)[:-9])
    with pytest.raises(DataError, match="cannot be read: Compressed file ended"):
        read_ticks(tmp_path / "short.csv.gz", SPEC)
    (tmp_path / "odd.csv").write_bytes(b"series,ts,value\n\xff,1,2\n")
    with pytest.raises(DataError, match="UTF-8"):
        read_ticks(tmp_path / "odd.csv", SPEC)
