"""KafkaConnection: the ports of the client, by aiokafka and the clocks of this machine."""

import time
from collections.abc import Iterable

from processor.adapters.kafka.access.authorization import missing_rights
from processor.adapters.kafka.admin.topic_admin import count_partitions
from processor.adapters.kafka.reader.topic_reader import TopicReader
from processor.client.kafka.command_producer import CommandProducer
from processor.client.kafka.work_items import WorkItemReader
from processor.contract.rights import Operation, Right
from processor.settings import Settings


class KafkaConnection:
    """What the client asks of the brokers that `settings` name. Nothing is opened by itself."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def monotonic(self) -> float:
        return time.monotonic()

    def producer(self, topic: str | None = None) -> CommandProducer:
        return CommandProducer(self._settings, topic)

    def reader(self, topic: str) -> TopicReader:
        return TopicReader(self._settings, topic)

    def work_items(self, group: str, tasks: Iterable[str]) -> WorkItemReader:
        return WorkItemReader(self._settings, group, tasks)

    async def count_partitions(
        self, topics: Iterable[str], operation: Operation = Operation.READ
    ) -> dict[str, int]:
        return await count_partitions(self._settings, topics, operation)

    async def missing_rights(self, wanted: Iterable[Right]) -> list[Right]:
        return await missing_rights(self._settings, wanted)
