"""What the daemon's throughput is compared with: the least that a program on kafka-python can do for the same promise.

Poll, send a message of the same size for each record, wait for the acknowledgements, commit; nothing is computed.

    python -m benchmarks.bare BOOTSTRAP_SERVERS TICKS ANSWERS BYTES COUNT [--ours]
"""

import argparse
import uuid
from typing import Any

from kafka import KafkaConsumer, KafkaProducer, TopicPartition

from forecaster.shell.kafka.client import common_settings, member_settings, writer_settings
from forecaster.shell.kafka.spec import KafkaSpec


def loop(consumer: Any, producer: Any, answers: str, size: int, count: int) -> None:
    """Until `count` records are answered."""
    message = b"x" * size
    done = 0
    while done < count:
        for records in consumer.poll(timeout_ms=100).values():
            for record in records:
                producer.send(answers, message, record.key, partition=record.partition)
            done += len(records)
        producer.flush()
        consumer.commit()


def main() -> None:
    """With the library's own settings, or with `--ours`, those of the daemon."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bare")
    parser.add_argument("bootstrap_servers")
    parser.add_argument("ticks")
    parser.add_argument("answers")
    parser.add_argument("bytes", type=int)
    parser.add_argument("count", type=int)
    parser.add_argument("--ours", action="store_true")
    arguments = parser.parse_args()
    kafka = KafkaSpec(bootstrap_servers=arguments.bootstrap_servers, group_id=uuid.uuid4().hex)
    reader = common_settings(kafka) | {"group_id": kafka.group_id, "enable_auto_commit": False}
    writer = common_settings(kafka)
    if arguments.ours:
        reader, writer = member_settings(kafka), writer_settings(kafka)
    consumer = KafkaConsumer(**reader | {"auto_offset_reset": "earliest"})
    # Not subscribed: the library alone does not always get through a join, and joining is not what is timed.
    partitions = consumer.partitions_for_topic(arguments.ticks)
    consumer.assign([TopicPartition(arguments.ticks, partition) for partition in partitions])
    producer = KafkaProducer(**writer)
    loop(consumer, producer, arguments.answers, arguments.bytes, arguments.count)
    producer.close()
    consumer.close()


if __name__ == "__main__":
    main()
