"""Batches before they are decoded: each is shown, by its header, to whoever reads, and may be passed over.

A batch may kill the process that decodes it, as one that inflates beyond the memory does. Who knows of it has to be
asked first: the library decodes as it gives records.
"""

from collections.abc import Callable, Iterable
from typing import Any

from kafka import KafkaConsumer, TopicPartition

from forecaster.shell.kafka.notes import Span

Look = Callable[[TopicPartition, Span], bool]
"""Partition, first offset and the one behind the last of a batch that is to be decoded -> whether to pass over it."""


def look_first(consumer: KafkaConsumer, look: Look) -> None:
    """Have the consumer ask before it decodes a batch, inside `poll`. What `look` raises comes out of there."""
    fetcher = consumer._fetcher  # noqa: SLF001

    class Looking(fetcher.PartitionRecords):
        """The library's reader of one fetch, which is given the batches."""

        def _unpack_records(self, tp: TopicPartition, records: Any, *more: Any) -> Iterable[Any]:
            return super()._unpack_records(tp, _Shown(self, records, look), *more)

    fetcher.PartitionRecords = Looking


class _Shown:
    """The batches of a fetch, without those that are passed over."""

    def __init__(self, reader: Any, records: Any, look: Look) -> None:
        self._reader, self._records, self._look = reader, records, look

    def next_batch(self) -> Any:
        """As the library asks for it."""
        while (batch := self._records.next_batch()) is not None:
            if batch.magic < 2 or batch.is_control_batch:
                break  # of an older format, whose header does not tell the end; or a marker, which holds no records
            span = (batch.base_offset, batch.next_offset)
            if not self._look(self._reader.topic_partition, span):
                break
            self._reader.next_fetch_offset = batch.next_offset
        return batch
