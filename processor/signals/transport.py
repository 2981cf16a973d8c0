"""Make Faust's consumer start at the positions in `signals.state`."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, ClassVar, cast

from aiokafka import ConsumerRecord
from faust.types import TP

from processor.signals.partition import Chunk
from processor.views.faust.transport import (
    CommittedConsumer,
    CommittedThread,
    CommittedTransport,
    chunks_of,
)


class FetchedBatch(list[ConsumerRecord]):
    """The records of one fetch of a partition, complete from offset `start` on."""

    def __init__(self, records: Sequence[ConsumerRecord], start: int) -> None:
        super().__init__(records)
        self.start = start


class RestoredThread(CommittedThread):
    """Notes the start offset of each fetch. Gaps between the records' offsets are normal, so only
    the start shows a lost fetch."""

    def _noted(self, tp: TP, batch: Sequence[ConsumerRecord]) -> Sequence[ConsumerRecord]:
        start = self.fetched.get(tp, self.sought.get(tp, 0))
        return FetchedBatch(super()._noted(tp, batch), start)


class RestoredConsumer(CommittedConsumer):
    """Takes partitions over before it seeks."""

    def _new_consumer_thread(self) -> RestoredThread:
        return RestoredThread(self, loop=self.loop, beacon=self.beacon)

    async def seek_to_committed(self) -> Mapping[TP, int]:
        await cast(RestoredTransport, self.transport).restore(set(self.assignment()))
        return await super().seek_to_committed()

    def _cut(self, batch: Any) -> list[Any]:
        """Cut the records into chunks, each with its start offset."""
        chunks, start = [], batch.start
        for records in chunks_of(batch):
            chunks.append(Chunk(start, records))
            start = records[-1].offset + 1
        return chunks

    def _to_message(self, tp: TP, record: Any) -> Any:
        message = super()._to_message(tp, record.records)
        message.value = record
        return message


class RestoredTransport(CommittedTransport):
    """The transport from which Faust makes its consumer. `restore` is the application's method."""

    Consumer: ClassVar = RestoredConsumer

    restore: Callable[[set[TP]], Awaitable[None]]
