"""A transaction of ours that Kafka left open after all: its coordinator takes it for ended, and no
fence ends it."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from aiokafka import AIOKafkaProducer, TopicPartition

from processor.adapters.kafka.reader.topic_reader import read
from processor.contract.topics import Topics
from processor.embedded.broker import EmbeddedBroker, embedded_broker
from processor.settings import Settings
from tests.support.log_files import foreign_writers
from tests.support.machine import patience
from tests.support.observed_deployment import observing
from tests.support.worker import running_worker
from tests.unit.commands import create

PATIENCE_S = patience(30.0)


@pytest.fixture
async def trusting() -> AsyncIterator[EmbeddedBroker]:
    """A broker that does not ask the coordinator whether a transaction is open, as before 3.6."""
    async with embedded_broker(
        properties={"transaction.partition.verification.enable": "false"}
    ) as broker:
        yield broker


async def left_open(settings: Settings, *, of: list[str]) -> None:
    """A batch of the partition's producer that comes when its transaction has ended."""
    async with AIOKafkaProducer(
        bootstrap_servers=settings.bootstrap_servers,
        transactional_id=f"{settings.topic_prefix}-0",
        enable_idempotence=True,
    ) as producer:
        await producer.begin_transaction()
        # What it takes for added, it does not tell the coordinator.
        added = producer._txn_manager._txn_partitions
        added.update(TopicPartition(topic, 0) for topic in of)
        for topic in of:
            await producer.send_and_wait(topic, b"{}", b"never committed", partition=0)
        added.clear()
        await producer.abort_transaction()


async def decide(settings: Settings, *commands: dict[str, Any]) -> None:
    """Have a new worker decide these and all before them."""
    topics = Topics(settings.topic_prefix)
    async with (
        running_worker(settings),
        AIOKafkaProducer(bootstrap_servers=settings.bootstrap_servers) as producer,
        asyncio.timeout(PATIENCE_S),
    ):
        for one in commands:
            await producer.send_and_wait(
                topics.commands, orjson.dumps(one), one["flow_id"].encode()
            )
        ids = {one["command_id"] for one in commands}
        while ids - set(await outcomes_of(settings)):  # noqa: ASYNC110 (Kafka tells nobody)
            await asyncio.sleep(0.1)


async def outcomes_of(settings: Settings) -> list[str]:
    outcomes = Topics(settings.topic_prefix).outcomes
    return [orjson.loads(r.value or b"")["command_id"] async for r in read(settings, outcomes)]


async def test_the_next_owner_ends_it(
    trusting: EmbeddedBroker, prefix: str, tmp_path: Path
) -> None:
    settings = Settings(
        bootstrap_servers=trusting.bootstrap,
        topic_prefix=prefix,
        partitions=1,
        state_dir=tmp_path / "state",
        http=None,
    )
    topics = Topics(prefix)
    await decide(settings, create(1))
    await left_open(settings, of=[topics.state, topics.outcomes, topics.audit, topics.control])

    await decide(settings, create(2))

    assert len(await outcomes_of(settings)) == 2
    async with observing(settings.bootstrap_servers, prefix, 1) as observer:
        world = await observer.settled([settings.state_dir], timeout_s=PATIENCE_S)
    world.assert_clean()
    assert foreign_writers(trusting.data_dir, prefix, 1) == []
