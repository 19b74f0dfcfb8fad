"""What of the ticks kills, as workers noted beside their group's offsets: for readers who are none of them.

Comes in: a topic's partitions. Goes out: what of each is better not decoded. The group is asked, not joined.
"""

from collections.abc import Collection

from kafka import KafkaConsumer, TopicPartition
from kafka.errors import KafkaError

from forecaster.errors import BrokerError
from forecaster.shell.kafka.client import connect, fatal, reader_settings, told
from forecaster.shell.kafka.notes import Deadly, deadly, decode
from forecaster.shell.kafka.spec import KafkaSpec

_CALL_TIMEOUT_MS = 10_000


def hazards(spec: KafkaSpec, topic: str, partitions: Collection[int]) -> dict[int, Deadly]:
    """By partition, where the group has committed anything. Raises BrokerError when nobody answers."""
    # Committed reads would wait here for transactions that move the offset just now.
    settings = reader_settings(spec) | {"group_id": spec.group_id, "isolation_level": "read_uncommitted"}
    found: dict[int, Deadly] = {}
    try:
        consumer = connect(KafkaConsumer, settings)
        try:
            for partition in partitions:
                place = TopicPartition(topic, partition)
                at = consumer.committed(place, metadata=True, timeout_ms=_CALL_TIMEOUT_MS)
                if at is not None:
                    found[partition] = deadly(decode(at.metadata or ""), at.offset)
        finally:
            consumer.close(autocommit=False, timeout_ms=1_000)
    except KafkaError as error:
        text = f"group {spec.group_id!r} does not say where it is: {told(error)}"
        raise fatal(error) or BrokerError(text) from error
    return found
