"""Batches on the log that no client can decode: a wrong checksum, an unknown codec, rubbish inside.

They are tried again by new clients first, since the network may have done the damage; what stays unreadable is
found to its end and passed over. The offsets between are lost, and the one who reads is told.
"""

import logging
from collections import Counter
from collections.abc import Callable
from typing import TypeVar

from kafka import KafkaConsumer, TopicPartition
from kafka.errors import CorruptRecordError, KafkaError, KafkaTimeoutError, UnsupportedCodecError

from forecaster.shell.kafka.batches import Look, look_first
from forecaster.shell.kafka.client import connect, reader_settings
from forecaster.shell.kafka.spec import KafkaSpec

log = logging.getLogger(__name__)

Answer = TypeVar("Answer")

_TRIES = 3
_PROBE_TIMEOUT_MS = 3_000


class Gaps:
    """What is unreadable, by partition: first offset -> the offset at which reading can go on.

    `find(topic partition, offset)` looks for the end; it is handed in, so that this can be tried without a broker.
    """

    def __init__(self, find: Callable[[TopicPartition, int], int]) -> None:
        self._find = find
        self._tries: Counter[tuple[TopicPartition, int]] = Counter()
        self._known: dict[tuple[TopicPartition, int], int] = {}

    def failed(self, partition: TopicPartition, offset: int) -> bool:
        """Reading failed here; whether it has now been tried often enough, so that it will be passed over."""
        place = (partition, offset)
        self._tries[place] += 1
        if self._tries[place] < _TRIES:
            return False
        self._known[place] = self._find(partition, offset)
        del self._tries[place]
        return True

    def after(self, partition: TopicPartition, offset: int) -> int | None:
        """Where to go on, if reading cannot go on here."""
        return self._known.get((partition, offset))

    def __bool__(self) -> bool:
        return bool(self._known)


def culprit(consumer: KafkaConsumer, error: BaseException) -> tuple[TopicPartition, int] | None:
    """The place on the log that the client could not decode, if that is what went wrong."""
    if isinstance(error, KafkaError) and not isinstance(error, CorruptRecordError | UnsupportedCodecError):
        return None
    broken = consumer._fetcher._next_partition_records  # noqa: SLF001
    return (broken.topic_partition, broken.next_fetch_offset) if broken is not None else None


def next_readable(
    spec: KafkaSpec, partition: TopicPartition, offset: int, spares: Look = lambda _, __: False
) -> int:
    """The first offset after an unreadable one from which a client can read; the end of the log if there is none.

    What `spares` says of a batch is followed here, too: one that may kill is as good as read.
    """
    end = _ask(spec, lambda consumer: int(consumer.end_offsets([partition])[partition]))
    bad, good, step = offset, offset + 1, 1
    while good < end and not _readable(spec, partition, good, spares):
        bad, step = good, step * 2
        good = offset + step
    good = min(good, end)
    while good - bad > 1:
        middle = (bad + good) // 2
        bad, good = (bad, middle) if _readable(spec, partition, middle, spares) else (middle, good)
    log.error("%s/%d: offsets %d to %d cannot be read; passing over them", *partition, offset, good - 1)
    return good


def _readable(spec: KafkaSpec, partition: TopicPartition, offset: int, spares: Look) -> bool:
    def probe(consumer: KafkaConsumer) -> bool:
        look_first(consumer, spares)
        consumer.assign([partition])
        consumer.seek(partition, offset)
        try:
            found = consumer.poll(timeout_ms=_PROBE_TIMEOUT_MS, max_records=1)
        except Exception as error:  # whatever a decoder raises
            if culprit(consumer, error) is None:
                raise
            return False
        if not found and consumer.position(partition) == offset:  # markers alone give no record, yet move on
            raise KafkaTimeoutError(f"no answer for offset {offset} within {_PROBE_TIMEOUT_MS} ms")
        return True

    return _ask(spec, probe)


def _ask(spec: KafkaSpec, question: Callable[[KafkaConsumer], Answer]) -> Answer:
    consumer = connect(KafkaConsumer, reader_settings(spec))
    try:
        return question(consumer)
    finally:
        consumer.close(autocommit=False)
