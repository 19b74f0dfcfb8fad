"""Where to read when the group has no offset for a partition, or one that is no longer on the log.

Comes in: the policies of the spec, and a client to ask. Goes out: offsets; nothing is moved or committed here.
"""

from collections.abc import Collection, Mapping

from kafka import KafkaConsumer, TopicPartition

from forecaster.errors import BrokerError
from forecaster.shell.kafka.spec import KafkaSpec

Offsets = dict[TopicPartition, int]

_TIMEOUT_MS = 5_000


def starting(consumer: KafkaConsumer, spec: KafkaSpec, partitions: Collection[TopicPartition]) -> Offsets:
    """Where to begin in partitions without a committed offset, by `start`."""
    if spec.start == "earliest":
        return _first(consumer, partitions)
    offsets = _end(consumer, partitions)
    if spec.start == "time" and spec.start_time is not None:
        since_ms = max(0, round(spec.start_time.timestamp() * 1000))
        found = consumer.offsets_for_times(dict.fromkeys(partitions, since_ms), timeout_ms=_TIMEOUT_MS)
        offsets |= {partition: at.offset for partition, at in found.items() if at is not None}
    return offsets


def replacing(consumer: KafkaConsumer, spec: KafkaSpec, wanted: Mapping[TopicPartition, int]) -> Offsets:
    """Where to go on when the wanted offsets are gone, by `out_of_range`. Raises BrokerError if that is to stop."""
    first = _first(consumer, wanted.keys())
    if spec.out_of_range == "stop":
        gone = ", ".join(f"{p.topic}/{p.partition}: {at}, first is {first[p]}" for p, at in wanted.items())
        raise BrokerError(
            f"offsets are no longer on the log ({gone}); reset the group's offsets, or set "
            'kafka.out_of_range to "earliest" or "latest"'
        )
    return first if spec.out_of_range == "earliest" else _end(consumer, wanted.keys())


def _first(consumer: KafkaConsumer, partitions: Collection[TopicPartition]) -> Offsets:
    return consumer.beginning_offsets(list(partitions), timeout_ms=_TIMEOUT_MS)


def _end(consumer: KafkaConsumer, partitions: Collection[TopicPartition]) -> Offsets:
    return consumer.end_offsets(list(partitions), timeout_ms=_TIMEOUT_MS)
