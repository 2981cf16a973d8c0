"""Write records that keep their timestamps, in transactions of the partition's future owner."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

from aiokafka import AIOKafkaProducer
from aiokafka.admin import NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.admin.records_to_delete import RecordsToDelete
from aiokafka.errors import NoError, TopicAlreadyExistsError, for_code
from aiokafka.structs import TopicPartition

from processor.adapters.kafka.admin.topic_admin import open_admin, partition_counts, topic_configs
from processor.adapters.kafka.errors import TopicsWrong
from processor.adapters.kafka.producer.record_writer import write_record
from processor.adapters.kafka.producer.transactional_producer import (
    CommitUncertain,
    KafkaTransactionalProducer,
)
from processor.adapters.kafka.reader.bounded_decompression import UNPACKED_MAX_BYTES
from processor.contract.rights import Operation
from processor.contract.topics import DEAD_LETTER_MAX_BYTES, STEPS, Topics
from processor.engine.batch import Outgoing
from processor.settings import Settings

TIME_TYPE: Final = "message.timestamp.type"
WHILE_COPIED_TIME: Final = "CreateTime"
"""While topics are copied, records keep their timestamps; no worker starts on such topics."""
COPIED_MAX_BYTES: Final = UNPACKED_MAX_BYTES + DEAD_LETTER_MAX_BYTES
"""The largest record that can have been read: the old topics may have taken compressed ones."""
WHILE_COPIED: Final = {
    TIME_TYPE: WHILE_COPIED_TIME,
    "max.message.bytes": str(COPIED_MAX_BYTES),
}
"""Settings of topics that are being copied, beside their own."""

Timed = tuple[str, Outgoing, int]
"""Topic, record, and the time it keeps in ms; below 0: now."""


class BulkCopy(KafkaTransactionalProducer):
    """The producer of one partition number; a worker that starts there later fences it."""

    request_max_bytes = COPIED_MAX_BYTES

    async def copy(
        self, first: Sequence[Timed], then: Callable[[Sequence[int]], Sequence[Timed]]
    ) -> None:
        """Write `first`, and then what is made of the offsets that it got, in one transaction.

        Raises CommitUncertain, and what Kafka raises; what became of it says the newest cursor.
        """
        if self._producer is None or self.suspect:
            self.discard()
            self.suspect = False
            await self.start()
        producer = self._producer
        assert producer is not None
        self._attempts = 0
        try:
            async with asyncio.timeout(self._commit_timeout_s):
                await producer.begin_transaction()
                offsets = await self._put(producer, first)
                await self._put(producer, then(offsets))
                await producer.commit_transaction()
        except TimeoutError as error:
            raise CommitUncertain(
                f"a transaction was not acknowledged within {self._commit_timeout_s:g} s"
            ) from error
        self.suspect = self._attempts != 1

    async def _put(self, producer: AIOKafkaProducer, records: Sequence[Timed]) -> list[int]:
        sent = [
            await write_record(
                producer,
                topic,
                record.key,
                record.value,
                record.headers,
                partition=self._partition,
                timestamp_ms=None if at_ms < 0 else at_ms,
            )
            for topic, record, at_ms in records
        ]
        return [written.offset for written in await asyncio.gather(*sent)]


async def make_for_copy(settings: Settings, topics: Topics, partitions: int) -> None:
    """Make the topics of the copy; those that are there stay. `steps` gets no fewer partitions
    than the others. Raises TopicsWrong if refused."""
    steps = max(partitions, settings.steps_partitions)
    async with open_admin(settings) as admin:
        response = await admin.create_topics(
            [
                NewTopic(
                    name,
                    num_partitions=steps if spec is STEPS else partitions,
                    replication_factor=settings.replication_factor,
                    topic_configs={
                        **spec.replicated(settings.replication_factor),
                        **WHILE_COPIED,
                    },
                )
                for name, spec in topics
            ]
        )
    for name, code, *message in response.topic_errors:
        if for_code(code) not in (NoError, TopicAlreadyExistsError):
            why = message[0] if message and message[0] else for_code(code).__name__
            raise TopicsWrong(f"The broker did not make {name}: {why}.")


async def time_types(settings: Settings, topics: Topics) -> dict[str, str]:
    """By topic that is there: whose time its records have. Raises AccessDenied."""
    counts = await partition_counts(settings, [name for name, _ in topics], Operation.DESCRIBE)
    configs = await topic_configs(settings, [name for name, _ in topics if name in counts])
    return {name: found.get(TIME_TYPE, "") for name, found in configs.items()}


async def open_for_workers(settings: Settings, topics: Topics) -> None:
    """From now on the broker's time counts, and workers may start. Raises TopicsWrong."""
    async with open_admin(settings) as admin:
        responses = await admin.alter_configs(
            [
                ConfigResource(
                    ConfigResourceType.TOPIC,
                    name,
                    configs=spec.replicated(settings.replication_factor),
                )
                for name, spec in topics
            ]
        )
    for response in responses:
        for code, message, _, name in response.resources:
            if code:
                raise TopicsWrong(f"The broker did not change {name}: {message}.")


async def drop_before(settings: Settings, topic: str, partition: int, offset: int) -> None:
    """Let a topic begin at `offset`."""
    async with open_admin(settings) as admin:
        await admin.delete_records({TopicPartition(topic, partition): RecordsToDelete(offset)})
