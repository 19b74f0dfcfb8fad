"""Records in, messages out, replayed twice: every record has one outcome, every prediction decodes, and the bytes are
the same whether the log is read in large pieces or small, or again from the start. No broker.
"""

import json
import random
from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np
import orjson
import pytest

from forecaster.core.grid import GridSpec
from forecaster.core.tick import Outcome, Reason, TickSpec
from forecaster.shell.dead_letters import letter
from forecaster.shell.kafka import Record
from forecaster.shell.metrics import Metrics
from forecaster.shell.pipeline import Answers, Pipeline
from forecaster.shell.prediction import Prediction, decode
from tests.folds import SPEC, START_S, make_fold, make_model

JUNK: list[bytes | None] = [
    None,
    b"",
    b"{",
    b"[]",
    b"\xff\xfe",
    b'{"series": "s1", "ts": 1700000000}',
    b'{"series": "s1", "ts": 1700000000, "value": NaN}',
    b'{"series": "s1", "ts": 1700000000, "value": "x"}',
    b'{"series": "s1", "ts": 1700000000, "value": 1e300}',
    b'{"series": "s1", "ts": 17000000000, "value": 1}',
    b"[" * 50_000,
    b'{"series": "' + b"x" * 100_000 + b'"}',
]
FAR_MS = int(START_S * 1000) + 3_600_000


def pipeline(grid: GridSpec | None = None, rows: int = 16, **changes: float) -> Pipeline:
    grid = grid or GridSpec()
    fold = make_fold(grid=grid, rows=rows, **changes)  # type: ignore[arg-type]
    fold.swap(make_model())
    return Pipeline(fold, TickSpec(), grid, "ticks", Metrics(horizon=SPEC.horizon, levels=SPEC.levels))


def log(ticks: int, seed: int, names: int = 6) -> list[Record]:
    """Two partitions; series, late ticks, duplicates and junk."""
    rng, offsets, found = random.Random(seed), Counter[int](), []
    levels = [100 * 10.0 ** (i - 2) for i in range(names)]
    for i in range(ticks):
        which = rng.randrange(names)
        levels[which] *= 1 + 0.01 * rng.gauss(0, 1)
        body = {"series": f"s{which}", "ts": START_S + i, "value": levels[which]}
        texts: list[bytes | None] = [orjson.dumps(body)]
        if rng.random() < 0.1:
            texts.append(texts[0])
        if rng.random() < 0.1:
            texts.append(orjson.dumps(body | {"ts": START_S + i - 50}))
        if rng.random() < 0.1:
            texts.append(rng.choice(JUNK))
        for text in texts:
            partition = which % 2
            found.append(Record("ticks", partition, offsets[partition], FAR_MS, b"key", text))
            offsets[partition] += 1
    return found


def replay(ours: Pipeline, records: Sequence[Record], batch: int) -> list[Answers]:
    """As the source gives them: in pieces, each grouped by partition."""
    found = []
    for start in range(0, len(records), batch):
        some = sorted(records[start : start + batch], key=lambda r: r.partition)
        found.append(ours.handle(some))
    return found


def messages(answers: Sequence[Answers]) -> list[bytes]:
    return [text for part in answers for text in part.messages]


def test_every_record_has_one_outcome_and_every_accepted_one_an_answer() -> None:
    records = log(400, 1)
    answers = replay(pipeline(), records, 64)
    outcomes = sum((part.total.outcomes for part in answers), Counter[Outcome]())
    reasons = sum((part.total.reasons for part in answers), Counter[Reason]())
    dead = [one for part in answers for one in part.dead]
    assert sum(outcomes.values()) == len(records)
    assert all(
        outcomes[o] for o in (Outcome.ACCEPTED, Outcome.LATE, Outcome.DUPLICATE, Outcome.DEAD_LETTERED)
    )
    assert outcomes[Outcome.DEAD_LETTERED] == len(dead) == reasons.total()
    told = [decode(text) for text in messages(answers)]
    assert len(told) == outcomes[Outcome.ACCEPTED]
    sources = Counter((p.source.partition, p.source.offset) for p in told)
    assert set(sources.values()) == {1}
    refused = {(one.record.partition, one.record.offset) for one in dead}
    assert not refused & sources.keys()
    reached: dict[int, int] = {}
    for part in answers:
        reached |= part.next_offsets
    assert reached == {p: 1 + max(r.offset for r in records if r.partition == p) for p in (0, 1)}


def test_predictions_answer_their_ticks() -> None:
    records = log(200, 2)
    by_place = {(r.partition, r.offset): r for r in records}
    for text in messages(replay(pipeline(), records, 50)):
        told: Prediction = decode(text)
        tick = json.loads(by_place[told.source.partition, told.source.offset].value or b"")
        assert (told.series, told.issued_at, told.last) == (tick["series"], tick["ts"], tick["value"])
        assert (told.horizon, told.levels, told.model) == (SPEC.horizon, SPEC.levels, "v1")
        quantiles = np.asarray(told.quantiles)
        assert quantiles.shape == (SPEC.horizon, len(SPEC.levels))
        assert np.isfinite(quantiles).all()
        assert (np.diff(quantiles, axis=1) >= 0).all()
        assert told.status in {"warming", "ok"}


@pytest.mark.parametrize(
    "grid", [GridSpec(), GridSpec(interval_s=20.0, close_by="partition", lateness_s=10.0)]
)
def test_a_replay_gives_the_same_bytes(grid: GridSpec) -> None:
    records = log(300, 3)
    first, again = (messages(replay(pipeline(grid), records, 64)) for _ in range(2))
    assert first == again
    assert len(first) > 50


def test_a_restart_that_reads_back_goes_on_as_if_there_had_been_none() -> None:
    """What a rebuild folds without publishing leaves the same state: the same bytes come after it."""
    records = log(300, 4)
    steady, restarted = pipeline(), pipeline()
    replay(steady, records[:192], 64)
    expected = messages(replay(steady, records[192:], 64))
    for start in range(0, 192, 64):
        back = restarted.handle(sorted(records[start : start + 64], key=lambda r: r.partition), live=False)
        assert back.messages == []
    assert messages(replay(restarted, records[192:], 64)) == expected


def test_the_cap_is_an_outcome_and_not_a_silence() -> None:
    records = log(200, 5, names=40)
    answers = replay(pipeline(), records, 200)
    outcomes = sum((part.total.outcomes for part in answers), Counter[Outcome]())
    assert outcomes[Outcome.OVER_CAP] > 0
    assert sum(outcomes.values()) == len(records)
    assert len(messages(answers)) == outcomes[Outcome.ACCEPTED]


def test_each_closed_bar_is_answered_once_with_times_ahead() -> None:
    grid = GridSpec(interval_s=20.0)
    told = [decode(text) for text in messages(replay(pipeline(grid), log(400, 6), 64))]
    bars: dict[str, list[float]] = defaultdict(list)
    for one in told:
        bars[one.series].append(one.issued_at)
        assert one.issued_at % 20.0 == 0
        assert one.target_times == tuple(one.issued_at + 20.0 * h for h in range(1, SPEC.horizon + 1))
    for ends in bars.values():
        assert ends == sorted(set(ends))


def test_a_dead_letter_carries_the_bytes_and_says_why() -> None:
    records = [Record("ticks", 3, i, FAR_MS, b"key", text) for i, text in enumerate(JUNK)]
    answers = pipeline().handle(records)
    assert len(answers.dead) == len(JUNK)
    assert set(answers.total.reasons) == set(Reason) - {Reason.POISON}  # which only a death can tell
    for record, dead in zip(records, answers.dead, strict=True):
        value, key, headers = letter(dead.record, dead.reject)
        said = dict(headers)
        assert said["source.offset"] == str(record.offset).encode()
        assert (said["source.topic"], said["source.partition"]) == (b"ticks", b"3")
        assert said["reason"].decode() == dead.reject.reason
        assert key == b"key"
        if len(record.value or b"") > 70_000:
            assert (record.value or b"").startswith(value or b"-")
            assert int(said["cut.from_bytes"]) == len(record.value or b"") + 3
        else:
            assert value == record.value
            assert "cut.from_bytes" not in said
