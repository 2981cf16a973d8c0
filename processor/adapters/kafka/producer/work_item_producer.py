"""Writing work items by a plain idempotent producer, outside of any transaction.

In the partition's transaction they would add up to as many partitions and markers as `steps` has,
and an executor that reads committed records would stand still for as long as any partition's
transaction is open.
"""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Final

from aiokafka import AIOKafkaProducer

from processor.adapters.kafka.producer.plain_producer import STOP_TIMEOUT_S, start_producer
from processor.adapters.kafka.producer.transactional_producer import BATCH_MAX_BYTES, RecordPack
from processor.adapters.kafka.shutdown import stop_producer
from processor.contract.topics import MESSAGE_MAX_BYTES
from processor.engine.batch import Outgoing
from processor.engine.partitioner import hashed_partition

METADATA_MAX_AGE_MS: Final = 30_000
"""How late a worker learns that `steps` has more partitions; executors look more often."""


class KafkaWorkItemProducer:
    """Shared by all partitions of a worker; started when it is first needed."""

    def __init__(
        self,
        connection: Mapping[str, Any],
        topic: str,
        *,
        compression: str | None,
        timeout_s: float,
    ) -> None:
        self._connection = connection
        self._topic = topic
        self._compression = compression
        self._timeout_s = timeout_s
        self._producer: AIOKafkaProducer | None = None
        self._starting = asyncio.Lock()

    async def write(self, records: Sequence[Outgoing]) -> None:
        """Write all, in order on each partition of the topic, acknowledged by all replicas. Raises
        if any may be missing; the caller writes all of them again."""
        producer: AIOKafkaProducer | None = None
        try:
            async with asyncio.timeout(self._timeout_s):
                producer = await self._started()
                # As many as the topic has now: it may grow.
                count = len(await producer.partitions_for(self._topic))
                packs: dict[int, list[Outgoing]] = {}
                for record in records:
                    packs.setdefault(hashed_partition(record.key or b"", count), []).append(record)
                await asyncio.gather(
                    *(self._send(producer, partition, some) for partition, some in packs.items())
                )
        except Exception:
            # Its sequence may be off after a failed batch. What is cancelled goes out all the same.
            await self._drop(producer)
            raise

    async def _send(
        self, producer: AIOKafkaProducer, partition: int, records: Sequence[Outgoing]
    ) -> None:
        pack = RecordPack(producer.create_batch)
        for record in records:
            pack.add(*record)
        sent = [
            await producer.send_batch(batch, self._topic, partition=partition)
            for batch in pack.batches()
        ]
        await asyncio.gather(*sent)

    async def _started(self) -> AIOKafkaProducer:
        async with self._starting:
            if self._producer is None:
                self._producer = await start_producer(
                    **self._connection,
                    compression_type=self._compression,
                    max_batch_size=BATCH_MAX_BYTES,
                    max_request_size=4 * MESSAGE_MAX_BYTES,
                    metadata_max_age_ms=METADATA_MAX_AGE_MS,
                )
            return self._producer

    async def stop(self) -> None:
        """Let go of the producer; the next `write` starts another."""
        await self._drop(self._producer)

    async def _drop(self, producer: AIOKafkaProducer | None) -> None:
        """Unless another call has replaced it already."""
        if producer is not None and producer is self._producer:
            self._producer = None
            await stop_producer(producer, timeout_s=STOP_TIMEOUT_S)
