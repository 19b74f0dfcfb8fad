"""A file of ticks -> forecasts on disk, and a study: what a backtest came to, as scores and pictures need it.

In come a CSV or Parquet file and a configuration; out go JSON lines, one for each forecast, and a `Study`. How the
ticks are folded is `backtest`'s, how forecasts are judged `scoring`'s; nothing here draws or prints.
"""

import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import ceil
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import orjson

from forecaster.config import Config
from forecaster.core.advance import STATUSES
from forecaster.core.batch import Issued
from forecaster.core.tick import Outcome
from forecaster.core.train import Progress
from forecaster.errors import DataError
from forecaster.shell.backtest import Part, Verdict, backtest
from forecaster.shell.kafka import Record
from forecaster.shell.outputs import prepare_folder
from forecaster.shell.pipeline import mean_weights
from forecaster.shell.replay import dataset, late_in, read_ticks
from forecaster.shell.scoring import RENEWED_EVERY, Scorer, Unjudged, known_mean

FANS = 6  # series whose last forecasts are kept for the picture
FAN_SPANS = 9  # horizons of each that it shows
DIGITS = 5  # after the leading digit of a series' scale that a forecast is written with

Event = Part | Verdict | Progress
Tell = Callable[[Event], object]


class Origin(NamedTuple):
    """A step of a series and the forecast made at it."""

    time_s: float
    value: float  # NaN: a bar without a tick
    offset: np.ndarray  # (horizon, level), quantiles minus the value


class Stretch(NamedTuple):
    """Steps of a series, one after the other, and how far its medians missed there."""

    series: str
    missed: float  # mean absolute error, in units of the warm-up's mean absolute change
    origins: Sequence[Origin]


@dataclass
class Study:
    """What one data set came to."""

    dataset: str
    levels: tuple[float, ...]
    horizon: int
    scorer: Scorer
    records: int = 0
    names: list[str] = field(default_factory=list[str])
    """Of all series, sorted."""
    interval_s: float = 0.0
    """Length of a bar; 0: each tick is a step."""
    seconds: float = 0.0
    verdicts: list[Verdict] = field(default_factory=list[Verdict])
    shares: list[tuple[int, np.ndarray]] = field(default_factory=list[tuple[int, np.ndarray]])
    """Records taken in by then, and the share of each expert in the mix."""
    statuses: Counter[str] = field(default_factory=Counter[str])
    unused: Counter[str] = field(default_factory=Counter[str])
    """Rows that were no accepted ticks, by the reason why."""
    overtaken: str = ""
    """Which row most of the late ones came after, where one is to blame."""
    fans: dict[str, deque[Origin]] = field(default_factory=dict[str, deque[Origin]])
    """The newest steps of a few series."""
    taken: Counter[str] = field(default_factory=Counter[str])
    """Steps of each of these so far."""
    newest_s: dict[str, float] = field(default_factory=dict[str, float])
    """Event time of the newest bar of each series so far."""
    worst: Stretch | None = None
    """Among as many steps of each of these, those where the medians missed most."""

    @property
    def series(self) -> int:
        """How many series there are."""
        return len(self.names)

    @property
    def judged(self) -> str:
        """How many of them are judged, and why the others are not: "2 of 5 series judged: 3 too short"."""
        why = Counter(self.scorer.unjudged(name) for name in self.names)
        few = ", ".join(f"{why[reason]:,} {reason}" for reason in Unjudged if why[reason])
        return f"{why[None]:,} of {self.series:,} series judged: {few}" if few else f"{self.series:,} series"

    @property
    def not_used(self) -> str:
        """What was not used, and why: "of 41 rows 17 late: not used"; empty where all was."""
        if not self.unused:
            return ""
        behind = f"; {self.overtaken}" if self.overtaken else ""
        return f"of {self.records:,} rows {told(self.unused)}: not used{behind}"

    @property
    def train_seconds(self) -> float:
        """Seconds spent in retrains."""
        return sum(verdict.seconds for verdict in self.verdicts)


def forecasts_path(folder: Path, path: Path) -> Path:
    """Where the forecasts for an input go."""
    return folder / f"{dataset(path)}.forecasts.jsonl"


def check_names(paths: Sequence[Path]) -> None:
    """A data set is called by its file's name, so no two may share one. Raises DataError."""
    twice = [name for name, n in Counter(map(dataset, paths)).items() if n > 1]
    if twice:
        raise DataError(f"two files are called {twice[0]!r}: a data set has its file's name")


def read(path: Path, config: Config, warm_up: float) -> list[Record]:
    """The ticks of a file, if a series of it can be long enough to be judged. Raises DataError."""
    records, horizon = read_ticks(path, config.tick), config.model.horizon
    longest = max(Counter(record.key for record in records).values())
    if longest - int(warm_up * longest) < horizon:
        raise DataError(
            f"{path}: the longest series has {longest} ticks; after a warm-up of {warm_up:.0%} a forecast of"
            f" {horizon} steps can be judged from {ceil(horizon / (1 - warm_up))} on (see --warmup)"
        )
    return records


def evaluate(path: Path, config: Config, warm_up: float, folder: Path, tell: Tell = lambda _: None) -> Study:
    """Backtest a file; its forecasts go into the folder, what happens meanwhile to `tell`. Raises DataError."""
    began_s = time.monotonic()
    prepare_folder(folder)
    records = read(path, config, warm_up)
    model = config.model
    study = Study(dataset(path), model.levels, model.horizon, Scorer(model.levels, model.horizon))
    study.records, study.interval_s = len(records), config.grid.interval_s
    names = study.names = sorted({record.key.decode() for record in records if record.key})
    shown = {names[i] for i in np.linspace(0, len(names) - 1, min(FANS, len(names)), dtype=int)}
    study.fans = {name: deque(maxlen=FAN_SPANS * model.horizon + 1) for name in sorted(shown)}

    def watch(at: Progress) -> bool:
        tell(at)
        return True

    with forecasts_path(folder, path).open("wb") as out:
        for event in backtest(records, config, warm_up, watch):
            if isinstance(event, Part):
                study.unused += event.unused
            match event:
                case Verdict():
                    study.verdicts.append(event)
                case Part(warm=True):
                    steps = _steps(study, event.issued, slice(None))
                    study.scorer.warm(steps.series, steps.value)
                case Part():
                    _take(study, event)
                    _write(out, study, event.issued)
            tell(event)
    study.seconds = time.monotonic() - began_s
    if study.unused[Outcome.LATE]:
        study.overtaken = late_in(records, config.tick).behind_one()
    if not study.scorer.by_series():
        rule = f"a series has to move in its warm-up and to go on for {model.horizon} steps after it"
        raise DataError("; ".join(filter(None, (f"{path}: {study.judged} ({rule})", study.not_used))))
    return study


def told(unused: Counter[str]) -> str:
    """Rows that were no accepted ticks, in words: "3 late, 1 not json"."""
    most_first = sorted(unused.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{n:,} {reason.replace('_', ' ')}" for reason, n in most_first)


class Steps(NamedTuple):
    """Steps with their forecasts, and the bars between them that had no tick."""

    series: list[str]
    time_s: np.ndarray  # float64
    value: np.ndarray  # float64, NaN: a bar without a tick
    offset: np.ndarray  # float32 (n, horizon, level), quantiles minus the value


def _take(study: Study, part: Part) -> None:
    issued, total = part.issued, len(part.issued.series)
    piece = RENEWED_EVERY * study.series
    for start in range(0, total, piece):
        some = slice(start, start + piece)
        at = part.done - max(total - some.stop, 0)
        steps = _steps(study, issued, some)
        study.scorer.add(at, steps.series, steps.value, steps.offset)
        for i, name in enumerate(steps.series):
            if name in study.fans:
                origin = Origin(float(steps.time_s[i]), float(steps.value[i]), steps.offset[i].copy())
                study.fans[name].append(origin)
                _note_worst(study, name)
    if part.shares is not None:
        study.shares.append((part.done, part.shares))
    for status, n in enumerate(np.bincount(issued.status, minlength=len(STATUSES)).tolist()):
        study.statuses[STATUSES[status]] += n


def _steps(study: Study, issued: Issued, some: slice) -> Steps:
    """Some of the steps, with the bars before each that had no tick; of a gap across which no forecast reaches, a
    horizon of them.

    A forecast is of bars: one that is three ahead is of the third from then on, whether a tick came meanwhile or not.
    """
    steps = Steps(issued.series[some], issued.time_s[some], issued.last[some], issued.offset[some])
    if not study.interval_s:
        return steps
    empty, interval_s = np.zeros(len(steps.series), int), study.interval_s
    for i, (name, time_s) in enumerate(zip(steps.series, steps.time_s.tolist(), strict=True)):
        passed = round((time_s - study.newest_s.get(name, time_s - interval_s)) / interval_s)
        empty[i] = min(passed - 1, study.horizon)
        study.newest_s[name] = time_s
    at = np.repeat(np.arange(len(empty)), empty + 1)
    ahead = np.cumsum(empty + 1)[at] - 1 - np.arange(len(at))  # bars from here to the step
    value, offset = steps.value[at], steps.offset[at]
    value[ahead > 0], offset[ahead > 0] = np.nan, np.nan
    return Steps([steps.series[i] for i in at], steps.time_s[at] - ahead * interval_s, value, offset)


def _note_worst(study: Study, name: str) -> None:
    """Keep the last steps of a series if nowhere the medians missed more; they are looked at once a horizon."""
    origins, h = study.fans[name], study.horizon
    study.taken[name] += 1
    if len(origins) < (origins.maxlen or 0) or study.taken[name] % h or not (unit := study.scorer.unit(name)):
        return
    values = np.array([origin.value for origin in origins])
    middle = study.levels.index(0.5)
    medians = values[:-h, None] + np.array([origin.offset[:, middle] for origin in origins][:-h])
    came = np.lib.stride_tricks.sliding_window_view(values[1:], h)
    missed = float(known_mean(np.abs(came - medians).ravel())) / unit
    if missed > (study.worst.missed if study.worst else -1.0):  # NaN is not: nothing came that was forecast
        study.worst = Stretch(name, missed, tuple(origins))


def _write(out: IO[bytes], study: Study, issued: Issued) -> None:
    """One JSON object a line: a forecast, its lists in the order of `steps`."""
    weights, steps = mean_weights(study.levels), list(range(1, study.horizon + 1))
    names = [f"{level:g}" for level in study.levels]
    quantiles = issued.last[:, None, None] + issued.offset.astype(np.float64)
    digits = DIGITS - np.floor(np.log10(np.maximum(issued.scale, 1e-30))).astype(int)
    for i, series in enumerate(issued.series):
        by_level = np.round(quantiles[i].T, digits[i])
        line = {
            "dataset": study.dataset,
            "series": series,
            "issued_at": round(float(issued.time_s[i]), 3),
            "steps": steps,
            "mean": np.round(quantiles[i] @ weights, digits[i]).tolist(),
            "quantiles": dict(zip(names, by_level.tolist(), strict=True)),
        }
        out.write(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))
