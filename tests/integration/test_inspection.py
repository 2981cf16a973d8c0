"""What the doctor asks a real broker for."""

import asyncio
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from processor.adapters.kafka.admin.cluster_inspection import api_versions, group_members, hanging
from processor.adapters.kafka.admin.topic_admin import create_topics
from processor.adapters.kafka.client_config import connection_options
from processor.adapters.kafka.internals import add_partition
from processor.adapters.kafka.reader.log_reader import KafkaLogReader, LogReaders
from processor.contract.topics import Topics
from processor.embedded.broker import EmbeddedBroker
from processor.settings import Settings
from tests.support.machine import patience
from tests.support.transactions import until_ended


async def test_members_versions_and_an_open_transaction(
    broker: EmbeddedBroker, prefix: str, tmp_path: Path
) -> None:
    settings = Settings(
        bootstrap_servers=broker.bootstrap, topic_prefix=prefix, partitions=2, state_dir=tmp_path
    )
    names = Topics(prefix)
    await create_topics(settings)

    for name, (ours, theirs) in (await api_versions(settings)).items():
        assert theirs is not None, name
        assert ours[0] <= theirs[1], name
        assert theirs[0] <= ours[1], name

    assert await group_members(settings) in (0, None)  # None before any group was made there

    everywhere = [(name, number) for name, _ in names for number in range(2)]
    assert await hanging(settings, everywhere) == []
    producer = AIOKafkaProducer(bootstrap_servers=broker.bootstrap, transactional_id=prefix)
    await producer.start()
    try:
        async with producer.transaction():
            await producer.send_and_wait(names.audit, b"x", partition=1)
        await producer.begin_transaction()
        written = await producer.send_and_wait(names.audit, b"y", partition=1)
        (one,) = await hanging(settings, everywhere)
        assert (one.topic, one.partition, one.offset) == (names.audit, 1, written.offset)
        assert one.since_ms == written.timestamp
        await producer.abort_transaction()
        await until_ended(settings, names.audit, [1])
        assert await hanging(settings, everywhere) == []
    finally:
        await producer.stop()


async def test_a_transaction_that_ends_while_it_is_looked_for_does_not_hang(
    broker: EmbeddedBroker, prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It leaves a marker behind the last stable offset that was asked for, and no record."""
    settings = Settings(
        bootstrap_servers=broker.bootstrap, topic_prefix=prefix, partitions=1, state_dir=tmp_path
    )
    audit = Topics(prefix).audit
    await create_topics(settings)
    consumer = LogReaders.consumer
    async with AIOKafkaProducer(
        bootstrap_servers=broker.bootstrap, transactional_id=prefix
    ) as producer:

        async def meanwhile(readers: LogReaders, isolation_level: str) -> AIOKafkaConsumer:
            if isolation_level == "read_uncommitted":
                monkeypatch.undo()
                await producer.begin_transaction()
                add_partition(producer, TopicPartition(audit, 0))
                await producer.commit_transaction()
                await until_written()
            return await consumer(readers, isolation_level)

        async def until_written() -> None:
            readers = LogReaders(connection_options(settings, "looking"), topics=[audit])
            history = KafkaLogReader({}, 0, readers=readers)
            async with asyncio.timeout(patience(30)):
                while (await history.offset_range(audit)).end == 0:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            await history.close()

        monkeypatch.setattr(LogReaders, "consumer", meanwhile)
        assert await hanging(settings, [(audit, 0)]) == []
