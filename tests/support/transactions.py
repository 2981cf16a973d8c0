"""The end of a transaction: a broker acknowledges it before each partition has its marker, and what
it wrote is hidden until then."""

import asyncio
from collections.abc import Iterable

from processor.adapters.kafka.client_config import connection_options
from processor.adapters.kafka.reader.log_reader import KafkaLogReader, LogReaders
from processor.settings import Settings
from tests.support.machine import patience


async def until_ended(settings: Settings, topic: str, partitions: Iterable[int]) -> None:
    """Wait until no transaction is open on `partitions` of `topic` (its full name)."""
    connection = connection_options(settings, "looking")
    readers = LogReaders(connection, topics=[topic])
    try:
        async with asyncio.timeout(patience(30)):
            for partition in set(partitions):
                await KafkaLogReader(connection, partition, readers=readers).settled([topic])
    finally:
        await readers.close()
