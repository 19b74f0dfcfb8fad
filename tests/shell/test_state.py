"""Pages, swaps and restarts through the real loop of the daemon, with lists in place of topics.

`Broker` keeps what a worker has written. A worker is killed by letting go of it; the next one begins with what is
committed. What is expected is told by a single fold that is never interrupted, driven by the swaps on the state topic.
"""

import json
import random
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from kafka.errors import KafkaTimeoutError
from structlog.testing import capture_logs

from forecaster.config import Config, load
from forecaster.core import pages
from forecaster.core.calls import Shape
from forecaster.core.fold import Fold
from forecaster.core.model import Model
from forecaster.core.pages import Page, Refusal, Skip, Swap
from forecaster.core.table import Rows
from forecaster.core.tick import Outcome
from forecaster.errors import BrokerError, BugError
from forecaster.shell import rebuild
from forecaster.shell.daemon import Daemon
from forecaster.shell.figures import Figures
from forecaster.shell.kafka import Assigned, Lost, Record
from forecaster.shell.kafka.delivery import AtLeastOnce
from forecaster.shell.kafka.sink import Sink
from forecaster.shell.kafka.source import Source
from forecaster.shell.lifecycle import Lifecycle
from forecaster.shell.metrics import Metrics
from forecaster.shell.models.codec import encode
from forecaster.shell.models.convert import to_stored
from forecaster.shell.models.registry import Registry
from forecaster.shell.pipeline import Pipeline
from forecaster.shell.prediction import Prediction, decode
from forecaster.shell.signals import Signals
from forecaster.shell.skips import Skips
from forecaster.shell.state import StateTopic, Target
from tests.folds import CLOSE, ROWS, SPEC, START_S, make_fold, make_model, same_column
from tests.lists import ListSink, ListSource, Message

pytestmark = pytest.mark.slow
TURN_S = 0.1
ONE = [Shape(ROWS, 8, 1, 1)]  # all batches run in one program


class Broker:
    """What is on the topics."""

    def __init__(self, ticks: Sequence[Record]) -> None:
        self.ticks = list(ticks)
        self.committed: dict[int, int] = {}
        self.state: dict[int, list[Record]] = defaultdict(list)
        self.predictions: list[Prediction] = []
        self.models: dict[str, Model] = {}
        self.serving = ""

    def write(self, message: Message) -> None:
        if message.topic == "forecaster.state":
            assert message.partition is not None
            log = self.state[message.partition]
            record = Record(message.topic, message.partition, len(log), 0, message.key, message.value)
            log.append(record)
        elif message.topic == "predictions":
            self.predictions.append(decode(message.value or b""))

    def newest(self, partition: int = 0) -> dict[bytes, bytes]:
        """What compaction would leave."""
        found = {record.key or b"": record.value for record in self.state[partition]}
        return {key: value for key, value in found.items() if value is not None}

    def swaps(self) -> dict[int, list[Swap]]:
        """All swaps that were ever written."""
        found = {
            p: [s for r in log if r.value and isinstance(s := pages.decode(r.value), Swap)]
            for p, log in self.state.items()
        }
        return {p: sorted(swaps, key=lambda swap: swap.offset) for p, swaps in found.items()}

    def skips(self) -> dict[int, list[Skip]]:
        """All skips that were ever written."""
        return {
            p: [s for r in log if r.value and isinstance(s := pages.decode(r.value), Skip)]
            for p, log in self.state.items()
        }

    def spoil(self, change: Callable[[bytes], bytes], partition: int = 0) -> None:
        """Change every page of a partition."""
        for i, record in enumerate(self.state[partition]):
            if record.value and (record.key or b"").startswith(b"page/"):
                self.state[partition][i] = record._replace(value=change(record.value))


class FakeLog:
    """`Log`, over lists."""

    broker: Broker

    def __init__(self, _: object) -> None: ...

    def partitions(self, _: str) -> list[int]:
        return [0, 1]

    def beginning_offsets(self, _: str, partitions: Collection[int]) -> dict[int, int]:
        return dict.fromkeys(partitions, 0)

    def spans(self, _: str, partitions: Collection[int]) -> dict[int, tuple[int, int]]:
        return {p: (0, len(self.broker.state[p])) for p in partitions}

    def read(self, topic: str, ranges: Mapping[int, tuple[int, int]], *_: object) -> Iterator[list[Record]]:
        for partition, (start, end) in ranges.items():
            log = self.broker.state[partition] if topic == "forecaster.state" else self.broker.ticks
            found = [r for r in log if r.partition == partition and start <= r.offset < end]
            for first in range(0, len(found), 70):
                yield found[first : first + 70]

    def close(self) -> None: ...


class FakeModels:
    """`Models`, over a dictionary."""

    broker: Broker

    def __init__(self, *_: object) -> None: ...

    def read(self, pinned: Collection[str] = ()) -> Registry:
        registry = Registry(pinned=pinned)
        for model in self.broker.models.values():
            for i, (key, value, headers) in enumerate(encode(to_stored(model))):
                registry.feed([Record("models", 0, i, 0, key, value, headers)])
        if self.broker.serving:
            order = json.dumps({"version": self.broker.serving}).encode()
            registry.feed([Record("models", 0, 99, 0, b"serving", order)])
        return registry


class BrokerSink(ListSink):
    """Messages to the broker."""

    def __init__(self, broker: Broker) -> None:
        super().__init__()
        self._broker = broker

    def send(self, topic: str, value: bytes | None, key: bytes | None, **more: Any) -> None:
        super().send(topic, value, key, **more)
        self._broker.write(self.messages[-1])


class Life:
    """`Lifecycle` without topics: serves what the test says."""

    known, training = True, None

    def __init__(self) -> None:
        self.target: Target | None = None
        self.swaps = 0
        self.polled: dict[str, bool] = {}

    def poll(self, **situation: bool) -> None:
        self.polled = situation

    def observe(self, *_: object) -> None: ...
    def status(self) -> dict[str, object]:
        return {}

    def follow(self, state: StateTopic) -> None:
        self.swaps += state.follow(self.target)

    def swapped(self) -> None:
        self.swaps += 1


class NoFigures:
    """Of a broker that is a list there are none."""

    def tell(self) -> None: ...


class Worker:
    """A daemon between lists, whose clock goes on by a tenth of a second a turn."""

    def __init__(self, broker: Broker, config: Config) -> None:
        self.now_s, self.broker, self.life = 1000.0, broker, Life()
        self.source = ListSource(broker.ticks, config.kafka)
        self.source.commits = broker.committed  # shared: what is committed outlives the worker
        self.source.rewind("start")
        self.source.notes, self.source.apart, self.source.passed = {}, set(), {}  # type: ignore[attr-defined]
        self.metrics = Metrics(horizon=SPEC.horizon, levels=SPEC.levels)
        self.fold = make_fold(shapes=ONE)
        source = cast("Source", self.source)
        sink = cast("Sink", BrokerSink(broker))
        delivery = AtLeastOnce(source, make_sink=lambda _: sink, now=lambda: self.now_s)
        self.daemon = Daemon(
            config,
            None,
            Signals(),
            self.metrics,
            self.fold,
            source,
            delivery,
            cast("Lifecycle", self.life),
            now=lambda: self.now_s,
        )
        self.daemon.compiled = True
        self.daemon.figures = cast("Figures", NoFigures())

    @property
    def ready(self) -> bool:
        return self.daemon.assignment.serving == {0, 1}

    def turn(self) -> None:
        self.now_s += TURN_S
        self.source.last_contact_s = self.now_s
        self.daemon.turn()

    def until(self, done: Callable[[], bool]) -> None:
        for _ in range(100_000):
            if done():
                return
            self.turn()
        raise AssertionError("it did not come to that")

    def come_to(self, offset: int) -> None:
        """Go on until so many ticks of partition 0 were answered."""
        self.until(lambda: self.ready and (self.source.position(0) or 0) >= offset)

    def serve(self, model: Model) -> None:
        self.broker.models[model.version] = model
        self.broker.serving = model.version
        self.life.target = Target(model, "test")
        self.until(lambda: self.fold.model is model and not self.daemon.state.holds)

    def counted(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, labels) or 0.0


def config(**sections: dict[str, Any]) -> Config:
    tables = {
        "kafka": {"max_poll_records": 23, "commit_interval_s": 1.0, "group_id": "g"},
        "state": {"interval_s": 2.0},
        "series": {"max_series": ROWS, "rebuild_ticks": 500},
    }
    base = load(cast("Path | None", None), {})
    changes = {name: getattr(base, name).model_copy(update=t) for name, t in (tables | sections).items()}
    return base.model_copy(update={**changes, "model": SPEC})


def ticks(count: int, seed: int = 1) -> list[Record]:
    """Two partitions, four series in each, some of which come late."""
    rng, offsets, found = random.Random(seed), defaultdict[int, int](int), []
    for i in range(count):
        which = rng.randrange(2 + 6 * i // count)
        value = 50.0 * (1 + which) + rng.gauss(0, 1)
        body = {"series": f"s{which}", "ts": START_S + 5 * i, "value": value}
        partition = which % 2
        found.append(Record("ticks", partition, offsets[partition], 10**13, b"k", json.dumps(body).encode()))
        offsets[partition] += 1
    return found


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch) -> Broker:
    made = Broker(ticks(2400))
    FakeLog.broker = FakeModels.broker = made
    monkeypatch.setattr(rebuild, "Log", FakeLog)
    monkeypatch.setattr(rebuild, "Models", FakeModels)
    return made


def told(broker: Broker) -> tuple[Fold, dict[tuple[int, int], Prediction]]:
    """The whole log in one run, with the swaps and skips that are on the state topic at their offsets."""
    fold = make_fold(shapes=ONE)
    cfg = config()
    pipeline = Pipeline(fold, cfg.tick, cfg.grid, "ticks", Metrics(horizon=SPEC.horizon, levels=SPEC.levels))
    pipeline.skipped = skips = Skips(0.0, "g:ticks")
    for partition, found in broker.skips().items():
        skips.follow(partition, found)
    answers: list[bytes] = []
    for partition in (0, 1):
        due = broker.swaps()[partition]
        fold.swap(fold.model, partition)
        log = [r for r in broker.ticks if r.partition == partition]
        edges = sorted({0, len(log), *range(0, len(log), 17), *(s.offset for s in due)})
        for start, end in pairwise(edges):
            for swap in due:
                if swap.offset == start:
                    fold.swap(broker.models[swap.version], partition)
            answers += pipeline.handle(log[start:end]).messages
    predictions = [decode(answer) for answer in answers]
    return fold, {(p.source.partition, p.source.offset): p for p in predictions}


def agree(broker: Broker, upto: int | None = None) -> None:
    """Every tick was answered, and each of its answers is that of the run that was never interrupted."""
    _, expected = told(broker)
    seen = {(p.source.partition, p.source.offset) for p in broker.predictions}
    assert seen == expected.keys()
    for found in broker.predictions:
        wanted = expected[found.source.partition, found.source.offset]
        assert (found.model, found.status) == (wanted.model, wanted.status)
        a, b = np.array(found.quantiles), np.array(wanted.quantiles)
        scale = float(b[-1, -1] - b[-1, 0])
        np.testing.assert_allclose(a, b, rtol=0, atol=CLOSE * scale, err_msg=str(found.source))


def test_while_nothing_is_served_a_turn_reads_back_more_than_one_chunk(broker: Broker) -> None:
    cfg = config(state={"interval_s": 1e6})  # no pages: all is read back
    Worker(broker, cfg).come_to(300)
    second = Worker(broker, cfg)
    for _ in range(3):
        second.turn()
    assert second.ready
    assert second.counted("forecaster_rebuilt_ticks_total") > 3 * cfg.kafka.max_poll_records


def test_killed_again_and_again_the_answers_are_those_of_a_run_that_was_never_interrupted(
    broker: Broker,
) -> None:
    """Three swaps, four lives; what was answered and not committed is answered again with the same numbers."""
    cfg = config()
    first = Worker(broker, cfg)
    first.come_to(100)
    first.serve(make_model("v1", 1))
    first.come_to(300)
    first.serve(make_model("v2", 2))
    first.come_to(420)

    second = Worker(broker, cfg)
    second.life.target = Target(broker.models["v2"], "start")
    second.come_to(500)
    assert second.counted("forecaster_state_pages_total", event="read") > 0
    second.serve(make_model("v3", 3))  # dies before anything after the swap is committed

    third = Worker(broker, cfg)
    third.life.target = Target(broker.models["v3"], "start")
    third.come_to(800)
    assert len(broker.swaps()[0]) == 3, "a swap that is on the log is not written again"

    fourth = Worker(broker, cfg)
    fourth.life.target = Target(broker.models["v3"], "start")
    fourth.until(lambda: fourth.source.finished and fourth.ready)
    fourth.turn()
    assert len(broker.predictions) > len(broker.ticks), "something was answered twice"
    agree(broker)
    same_state(broker, fourth.fold)


def same_state(broker: Broker, fold: Fold) -> None:
    """The fold has come to the state of a run that was never interrupted."""
    never, _ = told(broker)
    for partition in (0, 1):
        mine, theirs = (f.index.partitions[partition] for f in (fold, never))
        assert list(mine) == list(theirs)
        rows = [np.array([s.row for s in its.values()], np.int32) for its in (mine, theirs)]
        for name, a, b in zip(Rows._fields, fold.read(rows[0]), never.read(rows[1]), strict=True):
            same_column(name, b, a)


YOUNG_MS = round(1000 * START_S) + 20_000_000
IMPATIENT = {"max_poll_records": 23, "max_staleness_s": 60.0, "commit_interval_s": 1.0, "group_id": "g"}


def age(broker: Broker, *stretches: range) -> None:
    """Let these offsets of both partitions be too old, and the others new."""
    broker.ticks = [
        record._replace(timestamp_ms=YOUNG_MS - 61_000 * any(record.offset in some for some in stretches))
        for record in broker.ticks
    ]


def test_what_is_too_old_is_skipped_and_whoever_goes_on_skips_the_same(broker: Broker) -> None:
    """Killed in the middle of a skip and behind another; every tick is answered or skipped, by whoever does it."""
    age(broker, range(300), range(700, 800))

    def worker() -> Worker:
        made = Worker(broker, config(kafka=IMPATIENT))
        made.daemon.skips._now = lambda: YOUNG_MS / 1e3
        return made

    first = worker()
    first.come_to(200)
    second = worker()
    second.come_to(600)
    assert second.counted("forecaster_ticks_total", outcome="skipped") > 0
    third = worker()
    third.come_to(1000)
    fourth = worker()
    fourth.until(lambda: fourth.source.finished and fourth.ready)
    fourth.turn()

    skipped = {(p, o) for p, found in broker.skips().items() for s in found for o in range(s.offset, s.until)}
    assert sum(s.ticks for found in broker.skips().values() for s in found) == len(skipped)
    answered = {(p.source.partition, p.source.offset) for p in broker.predictions}
    places = {(record.partition, record.offset) for record in broker.ticks}
    assert answered | skipped == places
    assert not answered & skipped
    old = {(r.partition, r.offset) for r in broker.ticks if r.timestamp_ms < YOUNG_MS}
    assert skipped <= old
    assert len(old - skipped) < 2 * 4 * 23, "only what came together with young ones"
    agree(broker)
    same_state(broker, fourth.fold)
    for _ in range(200):
        fourth.turn()
    assert not [key for key in broker.newest() if key.startswith(b"skip/")], "every page is past them"


def test_nothing_is_removed_that_a_page_on_the_topic_needs(broker: Broker) -> None:
    """Pages wait for the commit of their offsets: what is captured is not yet written."""
    age(broker, *(range(at, at + 50) for at in range(0, 1200, 100)))
    worker = Worker(broker, config(kafka=IMPATIENT, state={"interval_s": 0.1}))
    worker.daemon.skips._now = lambda: YOUNG_MS / 1e3
    removed = False
    while not worker.source.finished:
        worker.turn()
        kept = {key: pages.decode(data) for key, data in broker.newest().items()}
        floor = min((page.offset for page in kept.values() if isinstance(page, Page)), default=0)
        ever = broker.skips().get(0, [])
        removed = removed or len(ever) > sum(isinstance(one, Skip) for one in kept.values())
        assert {skip for skip in ever if skip.until > floor} <= set(kept.values())
    assert removed


def test_nothing_is_read_until_a_skip_is_on_the_log(broker: Broker) -> None:
    worker = Worker(broker, config())
    worker.come_to(50)
    state, skip = worker.daemon.state, Skip("g:ticks", 50, 60, 10)
    state.skip({0: skip, 1: skip}, token := object())
    state.settled(object())
    assert state.holds
    state.settled(token)
    assert not state.holds
    state.skip({0: skip, 1: skip}, token)
    state.forget([0])
    assert state.holds
    state.forget([1])
    assert not state.holds, "nobody waits for partitions that moved away"


def test_pages_are_written_only_for_what_is_committed_and_only_while_ticks_come(broker: Broker) -> None:
    worker = Worker(broker, config())
    for _ in range(200):
        worker.turn()
        found = [pages.decode(r.value) for log in broker.state.values() for r in log if r.value]
        for partition, log in broker.state.items():
            for record in log:
                page = pages.decode(record.value) if record.value else None
                if isinstance(page, Page):
                    assert page.offset <= broker.committed.get(partition, 0)
        assert found or broker.committed == {}
    worker.until(lambda: worker.source.finished)
    for _ in range(100):
        worker.turn()
    settled = sum(map(len, broker.state.values()))
    for _ in range(200):
        worker.turn()
    assert sum(map(len, broker.state.values())) == settled
    assert worker.counted("forecaster_state_behind_messages") == 0


def test_a_page_that_grows_too_large_is_split_and_the_pages_before_it_removed(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = Worker(broker, config())
    worker.daemon.state._most_members = 2
    worker.until(lambda: worker.source.finished)
    for _ in range(400):
        worker.turn()
    kept = [p for data in broker.newest().values() if isinstance(p := pages.decode(data), Page)]
    assert len({page.buckets for page in kept}) == 1
    assert sorted(page.bucket for page in kept) == list(range(kept[0].buckets))
    assert kept[0].buckets > 1
    assert sum(len(page.members) for page in kept) == 4
    assert any(r.value is None for r in broker.state[0])


def test_swaps_and_loans_go_when_every_page_is_past_them(broker: Broker) -> None:
    worker = Worker(broker, config())
    worker.come_to(50)
    worker.serve(make_model("v1", 1))
    assert any(key.startswith(b"event/") for key in broker.newest())
    worker.until(lambda: worker.source.finished)
    for _ in range(200):
        worker.turn()
    assert not [key for key in broker.newest() if key.startswith(b"event/")]
    assert [key for key in broker.newest() if key.startswith(b"loan/")] == [b"loan/0"]


def newer(data: bytes) -> bytes:
    return data[:4] + bytes([pages.SCHEMA + 1]) + data[5:]


def damaged(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


def changed(**fields: Any) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        page = pages.decode(data)
        assert isinstance(page, Page)
        return pages.encode(
            type(page)(**{name: getattr(page, name) for name in page.__struct_fields__} | fields)
        )

    return change


@pytest.mark.parametrize(
    ("reason", "change"),
    [
        (Refusal.NEWER, newer),
        (Refusal.DAMAGED, damaged),
        (Refusal.LAYOUT, changed(layout="another")),
        (Refusal.FOREIGN, changed(source="others:ticks")),
        (Refusal.AHEAD, changed(offset=10**9)),
    ],
)
def test_pages_that_cannot_be_used_are_counted_and_their_series_rebuilt_from_the_log(
    broker: Broker, reason: Refusal, change: Callable[[bytes], bytes]
) -> None:
    first = Worker(broker, config())
    first.come_to(700)
    broker.spoil(change)
    second = Worker(broker, config())
    with capture_logs() as logs:
        second.until(lambda: second.ready)
    assert second.counted("forecaster_state_refused_total", reason=reason.value) >= 1
    told = [line for line in logs if line["event"] == "state_refused"]
    assert {(line["topic"], line["reason"]) for line in told} == {("forecaster.state", reason.value)}
    if reason is Refusal.FOREIGN:
        assert {tuple(line["written_by"]) for line in told} == {("others:ticks",)}
        assert all("give each group its own topics.state" in line["mend"] for line in told)
    assert second.counted("forecaster_state_pages_total", event="read") > 0, "of the other partition"
    committed = broker.committed[0]
    assert {s.name for s in second.fold.index.partitions[0].values()} == {
        json.loads(r.value or b"")["series"]
        for r in broker.ticks
        if r.partition == 0 and committed - 500 <= r.offset < committed
    }
    second.until(lambda: second.source.finished)
    second.turn()
    seen = {(p.source.partition, p.source.offset) for p in broker.predictions}
    assert len(seen) == len(broker.ticks)


@pytest.mark.parametrize(
    "error", [BrokerError("no answer"), OSError(24, "Too many open files"), SystemExit(1)]
)
def test_a_log_that_cannot_be_read_back_lets_series_start_young_and_says_so(
    broker: Broker, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    first = Worker(broker, config())
    first.come_to(700)
    read = FakeLog.read

    def fails(log: FakeLog, topic: str, ranges: Mapping[int, tuple[int, int]], *_: object) -> Any:
        if 1 in ranges and topic == "forecaster.state":
            raise error
        return read(log, topic, ranges)

    monkeypatch.setattr(FakeLog, "read", fails)
    monkeypatch.setattr(rebuild, "RETRY_S", 0.0)
    second = Worker(broker, config())
    with capture_logs() as logs:
        second.until(lambda: second.ready)
    assert second.counted("forecaster_rebuild_shortfalls_total", reason="unread") == 1
    assert second.counted("forecaster_rebuild_shortfalls_total", reason="gone") == 0
    told = [line for line in logs if line["event"] in {"rebuild_interrupted", "rebuilt_in_part"}]
    assert [line["event"] for line in told] == ["rebuild_interrupted"] * 3 + ["rebuilt_in_part"]
    assert (told[-1]["partition"], told[-1]["reason"]) == (1, "unread")
    assert len(second.fold.index.partitions[0]) > 0
    assert second.fold.index.partitions.get(1, {}) == {}


def test_a_reading_back_that_ends_before_its_work_is_not_taken_for_done(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rebuild.Rebuild, "_run", lambda _: None)
    worker = Worker(broker, config())
    with pytest.raises(BugError, match="has ended before its work"):
        worker.until(lambda: worker.ready)


def test_a_model_that_is_gone_is_counted_and_what_serves_takes_its_place(broker: Broker) -> None:
    first = Worker(broker, config())
    first.come_to(50)
    first.serve(make_model("v1", 1))
    first.come_to(700)
    del broker.models["v1"]
    broker.models["v2"] = make_model("v2", 2)
    broker.serving = "v2"
    second = Worker(broker, config())
    second.until(lambda: second.ready)
    assert second.counted("forecaster_state_models_missing_total") >= 1
    assert second.fold.version(0) == "v2"
    second.come_to(900)
    assert broker.predictions[-1].model == "v2"


@pytest.mark.parametrize("takes_back", [False, True])
def test_a_tick_counts_once_however_often_it_was_taken_back(broker: Broker, takes_back: bool) -> None:
    """What becomes of ticks, and the scores of the forecasts that they settle, are those of the log."""
    worker = Worker(broker, config())
    for upto in range(100, 1200, 100):
        worker.come_to(upto)
        if takes_back:
            assert isinstance(worker.daemon.delivery, AtLeastOnce)
            worker.daemon.delivery._take_back(KafkaTimeoutError("lost"))
    worker.until(lambda: worker.source.finished and worker.ready)
    worker.until(lambda: broker.committed == {p: worker.source.position(p) for p in (0, 1)})
    assert len(broker.predictions) > len(broker.ticks) if takes_back else True
    fold, _ = told(broker)
    outcomes = {o: worker.counted("forecaster_ticks_total", outcome=o) for o in Outcome}
    assert outcomes == {o: len(broker.ticks) * (o is Outcome.ACCEPTED) for o in Outcome}
    steps = [
        np.asarray(fold.rows.count)[s.row] for its in fold.index.partitions.values() for s in its.values()
    ]
    for h in range(1, SPEC.horizon + 1):
        settled = sum(max(0, int(count) - h) for count in steps)
        assert worker.counted("forecaster_forecasts_scored_total", horizon=str(h)) == settled


def test_what_lies_behind_a_part_that_was_taken_back_is_not_answered(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else its offset, committed, would pass over what was taken back."""
    worker = Worker(broker, config())
    worker.until(lambda: worker.ready)
    daemon, answered = worker.daemon, list[int]()

    def answer(part: Sequence[Record], *_: object) -> None:
        answered.extend(record.offset for record in part)
        daemon.delivery.resets += 1
        daemon.source.rewind("in doubt")

    monkeypatch.setattr(daemon, "answer", answer)
    monkeypatch.setattr(daemon.state, "parts", lambda records: ([record] for record in records))
    worker.until(lambda: bool(answered))
    assert answered == [0]


def test_who_leads_goes_on_training_while_its_ticks_are_read_back_and_begins_nothing_new(
    broker: Broker,
) -> None:
    worker = Worker(broker, config())
    worker.come_to(100)
    assert worker.life.polled.items() >= {"decides": True, "leads": True, "remains": True}.items()
    worker.daemon.assignment.apply([Lost(frozenset({0})), Assigned(frozenset({0}))])
    worker.turn()  # 1 is served, so 0 is read back a little at a time
    assert worker.daemon.assignment.waiting == {0}
    assert worker.life.polled.items() >= {"decides": False, "leads": False, "remains": True}.items()
    worker.daemon.assignment.apply([Lost(frozenset({0}))])
    worker.turn()
    assert worker.life.polled["remains"] is False
