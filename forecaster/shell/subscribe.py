"""The predictions topic -> `Prediction`s: what `forecaster.predictions(...)` and `forecaster tail` read with.

Comes in: where the broker is and where to begin. Goes out: an endless iterator. Nothing is computed or
written.
"""

import logging
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import ValidationError

from forecaster.errors import BrokerError, ConfigError, DataError
from forecaster.shell.kafka.log import Follower
from forecaster.shell.kafka.log import Start as LogStart
from forecaster.shell.kafka.record import Assigned, Lost, Record, Revoked
from forecaster.shell.kafka.source import Source
from forecaster.shell.kafka.spec import KafkaSpec
from forecaster.shell.prediction import Prediction, decode, refuse_newer

POLL_S = 0.5  # the longest wait inside the client

Start = Literal["earliest", "latest"] | float

log = logging.getLogger(__name__)


def predictions(
    bootstrap_servers: str,
    topic: str = "predictions",
    *,
    group_id: str | None = None,
    start: Start = "latest",
    **kafka: Any,
) -> Iterator[Prediction]:
    """Predictions as they are published, for ever; end by leaving the loop.

    Without `group_id` this reader alone sees all of them, from `start` on: the earliest that is kept, the
    next one, or those written at or after a time (epoch s). With it, the readers of that group share the
    partitions and go on after a restart where they had stopped: a prediction counts as done when the next one
    is asked for, and after a crash some come again, with the same `source`. `kafka` are further keys of the
    configuration's `[kafka]` section, such as `security_protocol`. What is no prediction is logged and left
    out.

    Raises ConfigError for wrong keys, BrokerError when the broker refuses, or, without a group, none has ever answered
    for `connect_timeout_s`, DataError for a newer format.

    >>> for p in predictions("localhost:9092"):                              # doctest: +SKIP
    ...     print(p.series, p.last, "->", p.quantile(0.5))
    """
    settings = {"client_id": "forecaster-reader", **kafka, "bootstrap_servers": bootstrap_servers}
    if group_id is not None:
        settings |= {"group_id": group_id, **_group_start(start)}
    try:
        spec = KafkaSpec.model_validate(settings)
    except ValidationError as error:
        problems = (f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())  # without values
        raise ConfigError(f"predictions(...): {'; '.join(problems)}") from None
    records = _all(spec, topic, start) if group_id is None else _shared(spec, topic)
    return filter(None, map(_prediction, records))


def _group_start(start: Start) -> dict[str, Any]:
    if isinstance(start, str):
        return {"start": start}
    return {"start": "time", "start_time": datetime.fromtimestamp(start, UTC)}


def _all(spec: KafkaSpec, topic: str, start: Start) -> Iterator[Record]:
    at: LogStart = "beginning" if start == "earliest" else "end" if start == "latest" else start
    follower = Follower(spec, {topic: at})
    give_up_s = time.monotonic() + spec.connect_timeout_s
    try:
        while follower.reached or time.monotonic() < give_up_s:
            yield from follower.poll(POLL_S)
        raise BrokerError(follower.trouble)
    finally:
        follower.close()


def _shared(spec: KafkaSpec, topic: str) -> Iterator[Record]:
    source = Source(spec, topic)
    done: dict[int, int] = {}  # next offsets, not committed yet
    source.before_revoke = lambda partitions: {p: offset for p, offset in done.items() if p in partitions}
    try:
        while True:
            records = source.poll(POLL_S)
            for change in source.changes():
                if isinstance(change, Assigned):
                    source.resume(change.partitions)
                elif isinstance(change, Revoked | Lost):
                    done = {p: offset for p, offset in done.items() if p not in change.partitions}
            for record in records:
                yield record
                done[record.partition] = record.offset + 1
            if source.commit(done):
                done = {}
    finally:
        source.commit(done)
        source.close()


def _prediction(record: Record) -> Prediction | None:
    message = record.value or b""
    try:
        return decode(message)
    except DataError as error:
        refuse_newer(message)
        log.warning("left out %s/%d at %d: %s", record.topic, record.partition, record.offset, error)
        return None
