"""What must have been answered, found out from the topics alone; nothing of the daemon is used or known here.

In come topics, the group's committed offsets, and how often a tick may be answered; out go findings. The rules for
ticks are written again, for the plain ticks that this suite sends: a JSON object with `series`, `ts` and `value`, each
newer than the one before it in its series.
"""

import json
import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from kafka import KafkaConsumer, TopicPartition

FUTURE_S = 300.0  # past its record's timestamp
MOST_BYTES = 65_536
TOLERANCE = 1e-5  # of the spread of a series: how far a repeated forecast may be from the first
PATIENCE_MS = 30_000

Place = tuple[int, int]
"""Partition and offset of a tick."""


class Told(NamedTuple):
    """A prediction as its readers see it, in the order of its partition."""

    place: Place
    series: str
    model: str
    numbers: tuple[float, ...]


@dataclass(frozen=True)
class Expected:
    """What is to become of the ticks before the committed offsets."""

    accepted: dict[Place, str]  # -> series
    dead: set[Place]
    dropped: set[Place]  # late or duplicate
    scales: dict[str, float]  # spread of the values of each series


def consume(
    servers: str,
    topic: str,
    starts: Mapping[int, int] | None = None,
    ends: Mapping[int, int] | None = None,
) -> Iterator[Any]:
    """Every committed record of a topic that is there now, or between the offsets; partition by partition."""
    consumer = _reader(servers, "read_committed")
    try:
        for tp in _partitions(consumer, topic):
            consumer.assign([tp])
            first = consumer.beginning_offsets([tp])[tp]
            consumer.seek(tp, max(first, (starts or {}).get(tp.partition, 0)))
            end = ends[tp.partition] if ends is not None else consumer.end_offsets([tp])[tp]
            while consumer.position(tp) < end:
                for records in consumer.poll(timeout_ms=200).values():
                    yield from (record for record in records if record.offset < end)
    finally:
        consumer.close()


def ends(servers: str, topic: str, isolation: str = "read_committed") -> dict[int, int]:
    """The offset behind the last record: of all, or of those that committed readers may see by now."""
    consumer = _reader(servers, isolation)
    try:
        return {tp.partition: end for tp, end in consumer.end_offsets(_partitions(consumer, topic)).items()}
    finally:
        consumer.close()


def committed(servers: str, group: str, topic: str) -> dict[int, int]:
    """Where the group goes on; 0 where it has committed nothing."""
    consumer = _reader(servers, "read_committed", group)
    try:
        return {tp.partition: consumer.committed(tp) or 0 for tp in _partitions(consumer, topic)}
    finally:
        consumer.close()


def expect(servers: str, topic: str, upto: Mapping[int, int], unreadable: Collection[Place] = ()) -> Expected:
    """Judge the ticks before these offsets; those that are unreadable for workers do not count."""
    found = Expected({}, set(), set(), {})
    newest: dict[tuple[int, str], tuple[float, float]] = {}
    values: dict[str, list[float]] = defaultdict(list)
    for record in consume(servers, topic, ends=upto):
        place = (record.partition, record.offset)
        if place in unreadable:
            continue
        tick = _tick(record)
        if tick is None:
            found.dead.add(place)
            continue
        series, time_s, value = tick
        at = (record.partition, series)
        if at in newest and (time_s < newest[at][0] or (time_s, value) == newest[at]):
            found.dropped.add(place)
            continue
        newest[at] = (time_s, value)
        found.accepted[place] = series
        values[series].append(value)
    found.scales.update({series: statistics.pstdev(some) or 1.0 for series, some in values.items()})
    return found


def told(record: Any) -> Told:
    """A prediction's place, and all its numbers."""
    body = json.loads(record.value)
    source = body["source"]
    numbers = [body["last"], *(q for step in body["quantiles"] for q in step), *body["mean"]]
    return Told((source["partition"], source["offset"]), body["series"], body["model"], tuple(numbers))


def dead_place(record: Any) -> Place:
    """The tick that a dead letter is about."""
    headers = dict(record.headers)
    return int(headers["source.partition"]), int(headers["source.offset"])


def coverage(expected: Expected, predictions: Collection[Told], dead: Collection[Place]) -> list[str]:
    """I1: every accepted tick is answered, every bad one is among the dead letters, and nothing else is."""
    answered, lettered = {one.place for one in predictions}, set(dead)
    known = expected.accepted.keys() | expected.dead | expected.dropped
    # What is not yet committed may be answered already, and is judged when it is.
    return [
        f"{what}: {_some(places)}"
        for what, places in {
            "never answered": expected.accepted.keys() - answered,
            "answered, though late, duplicate or bad": (answered & known) - expected.accepted.keys(),
            "bad, and not among the dead letters": expected.dead - lettered,
            "among the dead letters, though good": (lettered & known) - expected.dead,
        }.items()
        if places
    ] + [
        f"{one.place} is of {expected.accepted[one.place]!r}, answered as {one.series!r}"
        for one in predictions
        if one.place in expected.accepted and one.series != expected.accepted[one.place]
    ]


def uniqueness(
    predictions: Collection[Told], dead: Collection[Place], scales: Mapping[str, float], *, once: bool
) -> list[str]:
    """I2: no tick is answered twice; or, where repeats are allowed, each says the same again."""
    if once:
        twice = Counter(one.place for one in predictions) + Counter(dead)
        return [f"answered more than once: {_some(p for p, n in twice.items() if n > 1)}"] * (
            max(twice.values(), default=0) > 1
        )
    first: dict[Place, Told] = {}
    wrong = []
    for one in predictions:
        same = first.setdefault(one.place, one)
        if one.model != same.model:
            continue  # a model was swapped in between
        scale = scales.get(one.series, 1.0)
        off = max(abs(a - b) for a, b in zip(one.numbers, same.numbers, strict=True)) / scale
        if off > TOLERANCE:
            wrong.append(f"{one.place} was answered again with numbers that differ by {off:.2g} of the scale")
    return wrong


def order(predictions: Collection[Told]) -> list[str]:
    """I3: in each series answers come in the order of their ticks; only what was answered before may come again."""
    newest: dict[tuple[int, str], int] = {}
    seen: set[Place] = set()
    wrong = []
    for one in predictions:
        partition, offset = one.place
        if offset < newest.get((partition, one.series), -1) and one.place not in seen:
            wrong.append(f"{one.place} of {one.series!r} came after {newest[partition, one.series]}")
        seen.add(one.place)
        newest[partition, one.series] = max(newest.get((partition, one.series), -1), offset)
    return wrong


def sanity(predictions: Collection[Told], models: Collection[str]) -> list[str]:
    """I5: every number is finite, every model is one of these."""
    return [f"{one.place}: not finite" for one in predictions if not all(map(math.isfinite, one.numbers))] + [
        f"a model that nobody published: {name!r}"
        for name in {one.model for one in predictions} - set(models)
    ]


def _tick(record: Any) -> tuple[str, float, float] | None:
    """Series, time and value; None for what cannot be used."""
    if record.value is None or len(record.value) > MOST_BYTES:
        return None
    try:
        body = json.loads(record.value)
        series, time_s, value = body["series"], body["ts"], body["value"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    if not isinstance(series, str) or not all(type(number) in {int, float} for number in (time_s, value)):
        return None
    if not series or not math.isfinite(time_s) or not abs(value) < 1e18:
        return None
    return None if time_s > record.timestamp / 1000 + FUTURE_S else (series, float(time_s), float(value))


def _reader(servers: str, isolation: str, group: str | None = None) -> KafkaConsumer:
    return KafkaConsumer(
        bootstrap_servers=servers.split(","),
        group_id=group,
        enable_auto_commit=False,
        isolation_level=isolation,
        auto_offset_reset="earliest",
        bootstrap_timeout_ms=PATIENCE_MS,
        reconnect_backoff_max_ms=500,
    )


def _partitions(consumer: KafkaConsumer, topic: str) -> list[TopicPartition]:
    return [TopicPartition(topic, p) for p in sorted(consumer.partitions_for_topic(topic) or ())]


def _some(places: Collection[Place] | Iterator[Place]) -> str:
    ordered = sorted(places)
    return f"{len(ordered)}, first {ordered[:5]}"
