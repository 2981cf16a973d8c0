"""Write events to another topic in transactions, together with the progress."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Final

from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.errors import InvalidProducerEpoch, ProducerFenced

from processor.adapters.kafka.internals import count_commits, quiet_failures
from processor.adapters.kafka.metadata_backoff import back_off_metadata
from processor.adapters.kafka.producer.transactional_producer import (
    BATCH_MAX_BYTES,
    RETRY_BACKOFF_MS,
)
from processor.adapters.kafka.shutdown import stop_producer
from processor.engine.partitioner import partition_of
from processor.errors import TaskflowError
from processor.ops.replay.republish import RepublishedRecord

TRANSACTION_TIMEOUT_MS: Final = 60_000
COMMIT_TIMEOUT_S: Final = 45.0
STOP_TIMEOUT_S: Final = 2.0


class RunTakenOver(TaskflowError):
    """Another process goes on with the same run; this one has written nothing since."""


class Republisher:
    """The producer of one run, under a transactional id of its own: the next start of it fences
    the one before, and what that had not committed is gone.

    Its place on `source` is kept as the offsets of a consumer group that has no members, `group`;
    they are part of each transaction. Events keep their partition where the target has as many as
    the source (`partitions`), and go by their key otherwise.
    """

    def __init__(
        self,
        connection: Mapping[str, Any],
        *,
        source: str,
        target: str,
        group: str,
        partitions: tuple[int, int],
        compression: str | None,
    ) -> None:
        self._connection = connection
        self._source = source
        self._target = target
        self._group = group
        self._same = partitions[0] == partitions[1]
        self._count = partitions[1]
        self._compression = compression
        self._producer: AIOKafkaProducer | None = None
        self._attempts = 0

    async def start(self) -> None:
        """Fence the earlier producer of this run."""
        producer = AIOKafkaProducer(
            **self._connection,
            transactional_id=self._group,
            transaction_timeout_ms=TRANSACTION_TIMEOUT_MS,
            retry_backoff_ms=RETRY_BACKOFF_MS,
            compression_type=self._compression,
            max_batch_size=BATCH_MAX_BYTES,
            max_request_size=2 * BATCH_MAX_BYTES,
        )
        back_off_metadata(producer.client)
        quiet_failures(producer)
        self._producer = producer
        async with asyncio.timeout(COMMIT_TIMEOUT_S):
            await producer.start()
        count_commits(producer, self._attempted)

    def _attempted(self) -> None:
        self._attempts += 1

    async def write(
        self, copies: Sequence[RepublishedRecord], positions: Mapping[int, int]
    ) -> None:
        """All of it in one transaction. Raises RunTakenOver, and what Kafka raises; what became of
        the next `start` and the group's offsets say it then."""
        producer = self._producer
        assert producer is not None, "a republisher is started before it writes"
        self._attempts = 0
        try:
            async with asyncio.timeout(COMMIT_TIMEOUT_S):
                await producer.begin_transaction()
                sent = await self._send(producer, copies)
                offsets = {TopicPartition(self._source, p): at for p, at in positions.items()}
                await producer.send_offsets_to_transaction(offsets, self._group)
                # Awaited: a commit succeeds although a batch of it has failed.
                await asyncio.gather(*sent)
                await producer.commit_transaction()
        except (ProducerFenced, InvalidProducerEpoch) as error:
            raise RunTakenOver("Another process goes on with this run; this one ends.") from error
        if self._attempts != 1:
            # A late request may be under way that would end half of the next transaction.
            await self.close()
            await self.start()

    async def _send(
        self, producer: AIOKafkaProducer, copies: Sequence[RepublishedRecord]
    ) -> list["asyncio.Future[Any]"]:
        sent: list[asyncio.Future[Any]] = []
        batches: dict[int, Any] = {}
        for copy in copies:
            partition = self._partition(copy)
            batch = batches.get(partition)
            if batch is None:
                batch = batches[partition] = producer.create_batch()
            if not self._append(batch, copy):
                sent.append(await producer.send_batch(batch, self._target, partition=partition))
                batch = batches[partition] = producer.create_batch()
                self._append(batch, copy)
        for partition, batch in batches.items():
            sent.append(await producer.send_batch(batch, self._target, partition=partition))
        return sent

    def _append(self, batch: Any, copy: RepublishedRecord) -> bool:
        headers = [*copy.headers]
        added = batch.append(timestamp=copy.at_ms, key=copy.key, value=copy.value, headers=headers)
        return added is not None

    def _partition(self, copy: RepublishedRecord) -> int:
        if self._same:
            return copy.partition
        return partition_of(copy.key or b"", self._count)

    async def close(self) -> None:
        """Let go of the producer; what it left open is aborted by the next one, or by its time."""
        if self._producer is not None:
            await stop_producer(self._producer, timeout_s=STOP_TIMEOUT_S)
            self._producer = None
