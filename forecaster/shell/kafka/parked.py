"""What the client holds back: records that came for a partition while it was paused."""

from kafka import KafkaConsumer


def free_line(consumer: KafkaConsumer) -> None:
    """Let held back records of partitions that were resumed be given by the next `poll`.

    The client puts them back in line where nothing else is in line, but leaves there what it has given to the last
    record: as long as that partition is not paused in its turn, the other one is never asked for again
    (kafka-python 3.0.12, `Fetcher.fetched_records`).
    """
    fetcher = consumer._fetcher  # noqa: SLF001
    if not fetcher._next_partition_records:  # noqa: SLF001
        fetcher._next_partition_records = None  # noqa: SLF001
