"""A small file through the whole of it: warm-up, training, forecasts on disk, scores; and the order of its records."""

import json
from collections import Counter, deque
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pytest

from forecaster.config import Config
from forecaster.core import experts
from forecaster.core.promote import Decision, Reason
from forecaster.core.train import Failure, Progress
from forecaster.errors import DataError
from forecaster.shell import backtest as backtesting
from forecaster.shell import evaluate as evaluating
from forecaster.shell.backtest import CHUNK, Part, Verdict, ordered
from forecaster.shell.evaluate import Event, Study, check_names, evaluate, forecasts_path, told
from forecaster.shell.kafka import Record
from forecaster.shell.scoring import Scorer
from forecaster.shell.tally import Counts

pytestmark = pytest.mark.timeout(300)  # the first to run compiles a training and a fold

CONFIG = Config.model_validate(
    {
        "model": {"hidden": 8, "horizon": 3, "levels": [0.1, 0.5, 0.9], "context_length": 16, "warm_up": 4},
        "training": {
            "steps": 50,
            "warm_start_steps": 25,
            "batch": 8,
            "span": 16,
            "burn_in": 8,
            "every_ticks": 600,
            "every_ratio": 0,
        },
    }
)
STEPS, NAMES = 700, ("a", "b")
JUNK = f"c,{1.7e9},\nc,{1.7e9 + 60},broken\na,{1.7e9},5\n"  # no value, no number, and late
STREAMED = STEPS - (int(0.6 * STEPS) - 1)  # of each series: from the last tick of the warm-up on


def waves(steps: int = STEPS, names: Sequence[str] = NAMES) -> str:
    """CSV of noisy waves, which a network learns in a few steps."""
    rng = np.random.default_rng(3)
    rows = [
        f"{name},{1.7e9 + 60 * t + 0.125},{10 * i + np.sin(t / 3) + 0.1 * rng.normal():.4f}"
        for t in range(steps)
        for i, name in enumerate(names)
    ]
    return "series,ts,value\n" + "\n".join(rows) + "\n"


class Run(NamedTuple):
    """A file, and what came of it."""

    ticks: Path
    forecasts: Path
    study: Study
    events: list[Event]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Run once, looked at by many."""
    folder = tmp_path_factory.mktemp("backtest")
    path = folder / "waves.csv"
    path.write_text(waves() + JUNK, encoding="utf-8")
    events: list[Event] = []
    study = evaluate(path, CONFIG, 0.6, folder / "out", events.append)
    return Run(path, forecasts_path(folder / "out", path), study, events)


def record(series: str, at_s: float) -> Record:
    return Record("ticks", 5, 17, int(at_s * 1e3), series.encode(), b"{}")


def tick(series: str, at_s: float) -> Record:
    value = json.dumps({"series": series, "ts": at_s, "value": 1.0}).encode()
    return record(series, at_s)._replace(value=value)


def test_warm_ups_come_first_and_order_is_kept() -> None:
    merged = [record("a", t) for t in range(10)] + [record("b", t + 0.5) for t in range(5)]
    merged.sort(key=lambda r: r.timestamp_ms)
    got, warm = ordered(merged, 0.6)
    assert warm == 5 + 2  # the last tick of a warm-up is the first that is answered
    assert [(r.partition, r.offset) for r in got] == [(0, i) for i in range(15)]
    assert [r.timestamp_ms for r in got[:warm]] == sorted(r.timestamp_ms for r in got[:warm])
    assert [r.timestamp_ms for r in got[warm:]] == sorted(r.timestamp_ms for r in got[warm:])
    for name in (b"a", b"b"):
        own = [r.timestamp_ms for r in got if r.key == name]
        assert own == sorted(own)
    assert ordered(merged, 0.0)[1] == 0


def test_everything_is_forecast_once_from_the_last_tick_of_the_warm_up_on(run: Run) -> None:
    study, path = run.study, run.forecasts
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert len(lines) == len(NAMES) * STREAMED
    issued = [line["issued_at"] for line in lines if line["series"] == "a"]
    assert issued == [1.7e9 + 60 * t + 0.125 for t in range(STEPS - STREAMED, STEPS)]
    for line in lines:
        assert line["dataset"] == "waves"
        assert line["steps"] == [1, 2, 3]
        assert list(line["quantiles"]) == ["0.1", "0.5", "0.9"]
        columns = np.array([line["quantiles"][level] for level in ("0.1", "0.5", "0.9")])
        assert columns.shape == (3, 3)
        assert np.isfinite(columns).all()
        assert (np.diff(columns, axis=0) >= 0).all()
        mean = np.array(line["mean"])
        assert ((columns[0] <= mean) & (mean <= columns[2])).all()
    assert study.statuses == {"ok": len(lines), "cold": 0, "warming": 0, "fallback": 0}


def test_scores_are_those_of_the_forecasts_on_disk(run: Run) -> None:
    study, path = run.study, run.forecasts
    values = {name: [] for name in NAMES}
    for row in waves().splitlines()[1:]:
        name, _, value = row.split(",")
        values[name].append(float(value))
    errors: dict[str, list[float]] = {name: [] for name in NAMES}
    seen = dict.fromkeys(NAMES, STEPS - STREAMED)
    for text in path.read_text(encoding="utf-8").splitlines():
        line = json.loads(text)
        name, at = line["series"], seen[line["series"]]
        seen[name] += 1
        if at + 3 < STEPS:
            errors[name] += [abs(values[name][at + h] - line["quantiles"]["0.5"][h - 1]) for h in (1, 2, 3)]
    for name, score in study.scorer.by_series().items():
        unit = np.abs(np.diff(values[name][: int(0.6 * STEPS)])).mean()
        assert score.mase == pytest.approx(np.mean(errors[name]) / unit, rel=1e-4)
        assert score.mase < score.last_mase  # waves can be learned
    assert study.scorer.overall().skill > 0.2


def test_the_first_retrain_is_after_the_warm_up_and_every_record_is_told_of(run: Run) -> None:
    study, events = run.study, run.events
    (verdict,) = study.verdicts
    assert verdict.offset == len(NAMES) * (STEPS - STREAMED)
    assert isinstance(verdict.decision, Decision)
    assert verdict.decision.reason is Reason.FIRST
    assert 0 < study.train_seconds < study.seconds
    parts = [event for event in events if isinstance(event, Part)]
    assert sum(len(part.issued) for part in parts) == len(NAMES) * STEPS
    assert parts[-1].done == parts[-1].total == study.records
    assert any(isinstance(event, Progress) for event in events)
    assert study.unused == {"late": 1, "null": 1, "wrong_type": 1}
    assert told(study.unused) == "1 late, 1 null, 1 wrong type"
    assert study.not_used == f"of {study.records:,} rows 1 late, 1 null, 1 wrong type: not used"
    assert study.judged == "2 of 3 series judged: 1 too short"


class NoPipeline:
    """Notes how many records it is given at a time, and answers nothing."""

    given: ClassVar[list[int]] = []

    def __init__(self, *_: object) -> None:
        self.given.clear()

    def handle(self, records: list[Record], **_: bool) -> SimpleNamespace:
        self.given.append(len(records))
        return SimpleNamespace(issued=(), total=Counts(Counter(), Counter()))


@pytest.mark.parametrize(
    ("schedule", "starts"),
    [
        ({"every_ticks": 1000, "every_ratio": 0}, [1798, 2798, 3798]),
        ({"every_ticks": 700, "every_ratio": 0.5}, [1798, 2498, 3198, 3898]),
        ({"every_ticks": 0, "every_ratio": 0.5}, [1798, 2697]),  # and at 4045.5
        ({"every_ticks": 0, "every_ratio": 0, "every_s": 60 * 600.5}, [1798, 2399, 3000, 3601]),
        ({"every_ticks": 1000, "every_ratio": 0, "every_s": 60 * 1500}, [1798, 2798, 3798]),
        ({"every_ticks": 0, "every_ratio": 0}, [1798]),
    ],
)
def test_retrains_come_as_configured(
    monkeypatch: pytest.MonkeyPatch, schedule: dict[str, float], starts: list[int]
) -> None:
    monkeypatch.setattr(backtesting, "Pipeline", NoPipeline)
    monkeypatch.setattr(backtesting, "retrain", lambda *_, **__: Failure.NO_DATA)
    monkeypatch.setattr(backtesting, "_shares_of", lambda _: None)
    training = CONFIG.training.model_copy(update=schedule)
    config = CONFIG.model_copy(update={"training": training})
    records = [tick("ab"[t % 2], t * 60.0) for t in range(4000)]
    events = list(backtesting.backtest(records, config, 0.45))
    assert [event.offset for event in events if isinstance(event, Verdict)] == starts
    warm = 1798
    cuts = {*range(0, warm, CHUNK), *range(warm, 4000, CHUNK), *starts, 4000}
    assert list(np.cumsum(NoPipeline.given)) == sorted(cuts - {0}), "cut nowhere else: chunks stay large"


def test_without_a_warm_up_every_record_is_taken_in_and_retrains_do_not_stand_still(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(backtesting, "Pipeline", NoPipeline)
    monkeypatch.setattr(backtesting, "retrain", lambda *_, **__: Failure.NO_DATA)
    monkeypatch.setattr(backtesting, "_shares_of", lambda _: None)
    training = CONFIG.training.model_copy(update={"every_ticks": 0, "every_ratio": 1.0, "every_s": 1e9})
    config = CONFIG.model_copy(update={"training": training})
    events = list(backtesting.backtest([tick("a", t) for t in range(9)], config, 0.0))
    assert [event.offset for event in events if isinstance(event, Verdict)] == [0, 1, 2, 4, 8]
    assert sum(NoPipeline.given) == 9


def test_the_shares_of_the_experts_are_noted_now_and_then(run: Run) -> None:
    study = run.study
    assert study.shares
    for at, share in study.shares:
        assert at <= study.records
        assert share.shape == (experts.COUNT,)
        assert share.sum() == pytest.approx(1.0, abs=1e-5)
        assert share[experts.NAMES.index("seasonal")] >= 0


def test_the_stretch_is_kept_where_medians_missed_most() -> None:
    """A forecast of the last value misses a walk most where it is steepest."""
    rng = np.random.default_rng(5)
    h, shown, name = 3, 27 + 1, "a"
    steps = 0.1 * rng.normal(size=200) + 5.0 * ((np.arange(200) >= 60) & (np.arange(200) < 80))
    values = np.cumsum(steps)
    study = Study("walk", (0.1, 0.5, 0.9), h, Scorer((0.1, 0.5, 0.9), h), names=[name])
    study.fans = {name: deque(maxlen=shown)}
    study.scorer.warm([name] * 20, values[:20])
    for t in range(20, 200):
        issued: Any = SimpleNamespace(
            series=[name],
            time_s=np.array([60.0 * t]),
            last=values[t : t + 1],
            offset=np.zeros((1, h, 3), np.float32),
            status=np.zeros(1, int),
        )
        evaluating._take(study, Part(issued, t, 200))
    assert study.worst is not None
    misses = {
        end: np.mean([abs(values[t + k] - values[t]) for t in range(end - shown, end - h) for k in (1, 2, 3)])
        for end in range(20 + shown, 201)
        if (end - 20) % h == 0
    }
    end = max(misses, key=lambda at: misses[at])
    assert study.worst.series == name
    assert [origin.time_s for origin in study.worst.origins] == [60.0 * t for t in range(end - shown, end)]
    assert study.worst.missed == pytest.approx(misses[end] / np.abs(steps[1:21]).mean(), rel=1e-6)


def test_a_forecast_is_judged_by_the_bar_that_it_was_for() -> None:
    """A clock on bars of which some had no tick: one that foretells each bar by its number is right wherever a tick
    came, in the scores and in the picture; counted by ticks it would be wrong behind every gap.
    """
    rng = np.random.default_rng(2)
    h, name, interval_s = 3, "a", 600.0
    bars = np.cumsum(
        1 + (rng.random(300) < 0.3) + 60 * (rng.random(300) < 0.01)
    )  # numbers of those with a tick
    ahead = np.arange(1, h + 1)
    offset = np.broadcast_to(ahead[:, None] + np.array([-0.1, 0.0, 0.1]), (300, h, 3)).astype(np.float32)
    study = Study(
        "clock", (0.1, 0.5, 0.9), h, Scorer((0.1, 0.5, 0.9), h), names=[name], interval_s=interval_s
    )
    study.fans = {name: deque(maxlen=28)}

    def issued(at: slice) -> Any:
        value = bars[at].astype(float)
        n = len(value)
        return SimpleNamespace(
            series=[name] * n,
            time_s=value * interval_s,
            last=value,
            offset=offset[at],
            status=np.zeros(n, int),
        )

    steps = evaluating._steps(study, issued(slice(0, 99)), slice(None))
    study.scorer.warm(steps.series, steps.value)
    for start in range(99, 300, 40):
        evaluating._take(study, Part(issued(slice(start, start + 40)), start, 300))
    score = study.scorer.overall()
    assert score.mase == pytest.approx(0.0, abs=1e-6)
    assert score.coverage_80 == 1.0
    assert study.scorer.unit(name) == pytest.approx(np.diff(bars[:100]).mean())
    settled = [at for at in bars[99:] if at <= bars[-1] - h]
    for step, got in zip(ahead, study.scorer.by_horizon(), strict=True):
        assert got.forecasts == sum(at + step in bars for at in settled)
        assert got.last_mase == pytest.approx(step / study.scorer.unit(name))
    shown = study.fans[name]
    assert np.diff([origin.time_s for origin in shown]) == pytest.approx(interval_s)
    for origin in shown:
        number = origin.time_s / interval_s
        assert origin.value == number if number in bars else np.isnan(origin.value)


def test_where_nothing_could_be_judged_it_is_said_why_and_which_row_was_in_the_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [*range(24), 4_070_908_800, *range(24, 41)]  # one of 2099
    path = tmp_path / "clock.csv"
    path.write_text("ts,value\n" + "".join(f"{t},{t}\n" for t in rows), encoding="utf-8")
    issued: Any = SimpleNamespace(series=[], time_s=np.zeros(0), last=np.zeros(0), offset=np.zeros((0, 3, 3)))
    late = Part(issued, 42, 42, warm=True, unused=Counter(late=17))
    monkeypatch.setattr(evaluating, "backtest", lambda *_: iter([late]))
    with pytest.raises(DataError) as raised:
        evaluate(path, CONFIG, 0.6, tmp_path / "out")
    assert str(raised.value) == (
        f"{path}: 0 of 1 series judged: 1 too short (a series has to move in its warm-up and to go on for 3 steps"
        " after it); of 42 rows 17 late: not used; 17 of them come after the row of 'clock' at 2099-01-01 00:00:00Z:"
        " mend or remove that row"
    )


def test_two_files_of_one_name_are_refused() -> None:
    with pytest.raises(DataError, match="'x'"):
        check_names([Path("a/x.csv"), Path("b/x.csv.gz"), Path("b/y.csv")])
    assert forecasts_path(Path("out"), Path("b/x.csv.gz")) == Path("out/x.forecasts.jsonl")


def test_a_file_too_short_to_judge_is_refused_at_once(tmp_path: Path) -> None:
    path = tmp_path / "short.csv"
    path.write_text("series,ts,value\n" + "".join(f"a,{t},{t % 2}\n" for t in range(5)), encoding="utf-8")
    with pytest.raises(DataError, match=r"short\.csv: the longest series has 5 ticks; .* from 8 on"):
        evaluate(path, CONFIG, 0.6, tmp_path / "out")
