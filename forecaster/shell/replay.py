"""Ticks from a file, for a replay without a broker.

In comes a CSV (gzipped or not) or Parquet file, of one series or of many; out go the same `Record`s that a topic would
give, so that a backtest, a benchmark and a test take the way that every tick takes, decoding included. No file is
written here.
"""

import csv
import gzip
import json
import math
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from forecaster.core.tick import Tick, TickSpec, make_decoder
from forecaster.errors import DataError
from forecaster.shell.kafka.record import Record
from forecaster.shell.times import shown_time

_FAR_MS = 253_370_764_800_000  # the year 9999: an event time ahead of it is none
ALONE = 0.75  # share of the rows of one series that have a time of their own, at the least
TO_BLAME = 0.75  # share of what is late that one tick overtook, to be called the cause
_PER_S = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}  # of each `time_unit` that is a number
_DATES = {8: "%Y%m%d", 12: "%Y%m%d%H%M", 14: "%Y%m%d%H%M%S"}  # by the number of their digits
_YEARS = 1900, 2100  # of such dates
_JSON_NUMBER = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?", re.ASCII)


def read_ticks(
    path: Path, spec: TickSpec, topic: str = "ticks", partitions: int = 1, *, in_order: bool = True
) -> list[Record]:
    """The rows of a CSV (with a header, also as .csv.gz) or Parquet file as records in time order, offsets from 0 on.

    Columns are found by the configured field names or else as series, ts, value; all others go along under
    their own names. A file without a column of series is one series, called by the file's name. Rows of all series are
    merged by event time, each keyed by its series and with its event time as the record's. A row that is late within
    its series stays behind the row that overtook it, unless the file is said not to be in order, and what is no tick
    keeps its place too: both are for the reader of the records to judge. DataError names what the file lacks, or says
    that it is in no order at all.
    """
    decode = make_decoder(spec)
    late = Late()
    rows: list[tuple[float, str, bytes]] = []
    now_s = -math.inf
    for series, text in _rows(path, spec):
        tick = decode(series.encode(), text, _FAR_MS)
        if isinstance(tick, Tick):
            newest_s = late.take(tick)
            now_s = newest_s if in_order else tick.time_s
        rows.append((now_s, series, text))
    if not rows:
        raise DataError(f"{path}: there is a header, and no rows below it")
    if not late.ticks:
        raise DataError(f"{path}: no row is a tick; the first says: {_first_problem(rows, decode)}")
    if in_order and late.late > late.ticks / 2:
        mend = late.behind_one() or "sort the file by time"
        raise DataError(
            f"{path}: {late.late:,} of {late.ticks:,} rows are older than one of their series above them; {mend}"
        )
    rows.sort(key=lambda row: row[0])  # stable: ties keep the order of the file
    offsets: Counter[int] = Counter()
    records: list[Record] = []
    for time_s, series, text in rows:
        partition = zlib.crc32(series.encode()) % partitions
        timestamp_ms = max(0, math.ceil(time_s * 1e3)) if math.isfinite(time_s) else -1
        records.append(Record(topic, partition, offsets[partition], timestamp_ms, series.encode(), text))
        offsets[partition] += 1
    return records


class Late:
    """Which of the ticks that it takes in are older than one of their series before them, and than which."""

    def __init__(self) -> None:
        self.ticks, self.late = 0, 0
        self._newest_s: dict[str, float] = {}
        self._last_s: dict[str, float] = {}
        self._behind: Counter[tuple[str, float]] = Counter()  # late, and in order but for that tick

    def take(self, tick: Tick) -> float:
        """One more tick; the newest event time of its series by now, epoch s."""
        series, time_s = tick.series, tick.time_s
        newest_s, last_s = (known.get(series, -math.inf) for known in (self._newest_s, self._last_s))
        self.ticks += 1
        if time_s < newest_s:
            self.late += 1
            self._behind[series, newest_s] += last_s == newest_s or time_s >= last_s
        self._last_s[series] = time_s
        self._newest_s[series] = max(newest_s, time_s)
        return self._newest_s[series]

    def behind_one(self) -> str:
        """Where one tick is to blame for most that are late, as of a clock that was wrong: which, and the mend."""
        for (series, time_s), n in self._behind.most_common(1):
            if n > 1 and n > TO_BLAME * self.late:
                when = shown_time(time_s)
                return f"{n:,} of them come after the row of {series!r} at {when}: mend or remove that row"
        return ""


def late_in(records: Iterable[Record], spec: TickSpec) -> Late:
    """Which of these records are late."""
    decode, late = make_decoder(spec), Late()
    for record in records:
        tick = decode(record.key, record.value, _FAR_MS)
        if isinstance(tick, Tick):
            late.take(tick)
    return late


def dataset(path: Path) -> str:
    """What the data of a file are called: by its name, without .csv, .csv.gz or .parquet."""
    return Path(path.stem).stem if path.suffix.lower() == ".gz" else path.stem


def _first_problem(rows: list[tuple[float, str, bytes]], decode: Callable[..., Any]) -> str:
    return decode(rows[0][1].encode(), rows[0][2], _FAR_MS).message


def _rows(path: Path, spec: TickSpec) -> Iterator[tuple[str, bytes]]:
    """(series, message) for each row, in the order of the file."""
    rows = _parquet(path, spec) if path.suffix.lower() in {".parquet", ".pq"} else _csv(path)
    header = next(rows)
    roles = [("value", spec.value), *((name, name) for name in spec.covariates)]
    if spec.time:
        roles.insert(0, ("ts", spec.time))
    if missing := [role for role in roles if not {*role} & {*header}]:
        raise DataError(f"{path}: {_lacking(header, missing)}")
    if not {"series", spec.series} & {*header}:
        told = {"ts", "value", spec.time, spec.value, spec.sequence, *spec.covariates}
        others = [name for name in header if name not in told]
        rows = _of_one(path, rows, _place(header, spec.time, "ts"), others)
        header = [*header, spec.series or "series"]
    names = [_field_of(column, header, spec) for column in header]
    series_at = _place(header, spec.series, "series") or 0
    keys = [orjson.dumps(name) + b":" for name in names]
    time_at = _place(header, spec.time, "ts") if spec.time_unit == "auto" else None
    if time_at is not None:
        rows = _of_times(path, rows, time_at)
    for row in rows:
        texts = [orjson.dumps(str(cell)) if i == series_at else _json(cell) for i, cell in enumerate(row)]
        yield str(row[series_at]), b"{" + b",".join(map(bytes.__add__, keys, texts)) + b"}"


def _of_times(path: Path, rows: Iterable[Sequence[Any]], time_at: int) -> Iterator[Sequence[Any]]:
    """The rows, whose times are no dates written as numbers: 20260101 would be a second of the year 1970. Raises
    DataError where all of them are.
    """
    first, dates = "", True
    for row in rows:
        text = str(row[time_at]).strip()
        first, dates = first or text, dates and (not text or _is_date(text))
        yield row
    if dates and first:
        raise DataError(
            f"{path}: all times are dates written as numbers, like {first}: write them as ISO 8601 (2026-01-31,"
            f" 2026-01-31T09:30:00); if they are epoch times after all, set tick.time_unit"
        )


def _is_date(text: str) -> bool:
    """Whether a whole number can be read as a date of our times."""
    form = _DATES.get(len(text)) if text.isdecimal() else None
    try:
        return (
            form is not None
            and _YEARS[0] <= datetime.strptime(text, form).replace(tzinfo=UTC).year < _YEARS[1]
        )
    except ValueError:
        return False


def _place(header: Sequence[str], configured: str, ours: str) -> int | None:
    """Where the column of a role is, by its configured name or else ours."""
    return next((header.index(name) for name in (configured, ours) if name in header), None)


def _of_one(
    path: Path, rows: Iterable[Sequence[Any]], time_at: int | None, others: Sequence[str]
) -> Iterator[Sequence[Any]]:
    """The rows of a file without a column of series, each with the name of the file for it. Raises DataError where they
    look like rows of several: times come again, and one of the `others`, columns with no role, may tell series apart.
    """
    n, times = 0, set[Any]()
    for row in rows:
        n += 1
        times.add(n if time_at is None else row[time_at])
        yield (*row, dataset(path))
    if others and len(times) < ALONE * n:
        raise DataError(
            f"{path}: no column 'series', and {n - len(times):,} of {n:,} rows have the time of another: is one of"
            f" {', '.join(map(repr, others[:10]))} the series? name it under [tick] of the configuration, or drop them"
        )


def _csv(path: Path) -> Iterator[Sequence[str]]:
    try:
        opened = gzip.open if path.suffix.lower() == ".gz" else open
        with opened(path, "rt", encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)
            header = next(reader, None)
            if header is None:
                raise DataError(f"{path}: the file is empty; expected a header with series, ts, value")
            yield [name.strip() for name in header]
            for row in filter(None, reader):
                if len(row) != len(header):
                    raise DataError(
                        f"{path}, line {reader.line_num}: there are {len(row)} columns, {len(header)} in the header:"
                        f" {row[:5]!r}"
                    )
                yield row
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: is not a CSV file in UTF-8: {error}") from error


def _parquet(path: Path, spec: TickSpec) -> Iterator[Sequence[Any]]:
    try:
        import pyarrow as arrow  # noqa: PLC0415 - an extra
        from pyarrow import parquet  # noqa: PLC0415
    except ImportError as error:
        raise DataError(
            f"{path}: reading Parquet needs the extra: pip install 'forecaster[parquet]'"
        ) from error
    try:
        table = parquet.read_table(path)
        time_at = _place(table.column_names, spec.time, "ts")
        units = (spec.time_unit if at == time_at else "s" for at in range(table.num_columns))
        columns = [_cells(column, unit) for column, unit in zip(table.columns, units, strict=True)]
    except (OSError, arrow.ArrowException) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    yield table.column_names
    yield from zip(*columns, strict=True)


def _cells(column: Any, unit: str) -> list[Any]:
    """The values of an Arrow column; instants and days as the decoder takes a time of this unit, to the microsecond."""
    import pyarrow as arrow  # noqa: PLC0415
    from pyarrow import compute  # noqa: PLC0415

    if not (arrow.types.is_timestamp(column.type) or arrow.types.is_date(column.type)):
        return column.to_pylist()
    options = compute.CastOptions(arrow.timestamp("us"), allow_time_truncate=True)
    instants = column.cast(options=options)
    if unit in _PER_S:
        micros = instants.cast(arrow.int64()).to_pylist()
        return [None if us is None else us * _PER_S[unit] / 10**6 for us in micros]
    texts = np.datetime_as_string(instants.to_numpy()).tolist()
    return [None if text == "NaT" else text for text in texts]


def _lacking(header: Sequence[str], missing: Iterable[tuple[str, str]]) -> str:
    """What is said of a header without the columns for these (our name, configured name)."""
    names = (repr(ours) if name in {"", ours} else f"{name!r} or {ours!r}" for ours, name in missing)
    mend = (
        "separate the columns by commas"
        if len(header) == 1
        else "rename them, or name yours under [tick] of the configuration"
    )
    return f"no column {', no column '.join(names)}; there are {', '.join(map(repr, header[:10]))}: {mend}"


def _field_of(column: str, header: Sequence[str], spec: TickSpec) -> str:
    """The field name of a column: the configured one where the file uses ours."""
    roles = {"series": spec.series, "ts": spec.time, "value": spec.value}
    configured = roles.get(column, "")
    return configured if configured and configured not in header else column


def _json(cell: object) -> bytes:
    """A cell as JSON: numbers as they are written, nothing as null, the rest as text."""
    text = str(cell).strip()
    if cell is None or not text:
        return b"null"
    if _JSON_NUMBER.fullmatch(text):
        return text.encode()
    try:
        number = float(text)
    except ValueError:
        return orjson.dumps(text)
    return json.dumps(number).encode()  # NaN and Infinity too: the decoder judges them
