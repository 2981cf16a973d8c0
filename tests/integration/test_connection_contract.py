"""The test kit's connection and Kafka's keep the same contract: processor/client/ports.py."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import pytest
from aiokafka.errors import ProducerClosed

from processor.adapters.kafka.admin.topic_admin import create_topics
from processor.adapters.kafka.errors import TopicsWrong
from processor.client.connection import connect
from processor.client.ports import Connection, ItemReader, Reader, ReceivedItem
from processor.contract import Topics, instant
from processor.contract.steps import TASK_HEADER, WorkItem
from processor.embedded.broker import EmbeddedBroker
from processor.settings import Settings
from processor.testing.fake import TaskflowFake
from tests.support.machine import patience

FLOW_ID = "0d9f5f2e-7d2b-4c8b-9a51-1c8a8a3f0d11"


@pytest.fixture(params=["fake", "kafka"])
async def connection(
    request: pytest.FixtureRequest, prefix: str
) -> AsyncIterator[tuple[Connection, Topics]]:
    settings = Settings(topic_prefix=prefix, partitions=1)
    if request.param == "fake":
        fake = TaskflowFake(settings)
        with fake.connected():
            yield connect(fake.settings), Topics(prefix)
        return
    broker: EmbeddedBroker = request.getfixturevalue("broker")
    settings = settings.model_copy(update={"bootstrap_servers": broker.bootstrap})
    await create_topics(settings)
    yield connect(settings), Topics(prefix)


@asynccontextmanager
async def reading(
    connection: Connection, topic: str, start: object
) -> AsyncIterator[tuple[Reader, dict[int, int]]]:
    reader = connection.reader(topic)
    ends = await reader.open([0], start)  # type: ignore[arg-type]
    try:
        yield reader, ends
    finally:
        await reader.close()


async def write(
    connection: Connection, topic: str, *values: bytes, task: bytes | None = None
) -> list[int]:
    producer = connection.producer()
    await producer.start()
    headers = [] if task is None else [(TASK_HEADER, task)]
    written = [
        await producer.send(topic, b"key", value, headers, handed_over=lambda: None)
        for value in values
    ]
    await producer.close()
    with pytest.raises(ProducerClosed):
        await producer.send(topic, b"key", b"late", headers, handed_over=lambda: None)
    assert {one.partition for one in written} == {0}
    return [one.offset for one in written]


async def test_a_reader_begins_where_it_is_told(
    connection: tuple[Connection, Topics],
) -> None:
    kafka, topics = connection
    assert await write(kafka, topics.outcomes, b"one", b"two", b"three") == [0, 1, 2]
    past, future = datetime(2020, 1, 1, tzinfo=UTC), datetime.now(UTC) + timedelta(days=1)
    for start, first in (
        ("beginning", 0),
        ("end", 3),
        ({0: 1}, 1),
        ({}, 0),
        (past, 0),
        (future, 3),
    ):
        async with reading(kafka, topics.outcomes, start) as (reader, ends):
            assert (ends, reader.positions) == ({0: 3}, {0: first}), start
            values: list[bytes | None] = []
            async with asyncio.timeout(patience(30)):
                while reader.positions != {0: 3}:
                    values += [record.value for record in await reader.poll(wait_s=0.2)]
            assert values == [b"one", b"two", b"three"][first:], start


async def test_a_reader_goes_on_and_back(connection: tuple[Connection, Topics]) -> None:
    kafka, topics = connection
    async with reading(kafka, topics.outcomes, "end") as (reader, _):
        await write(kafka, topics.outcomes, b"one")
        for _ in range(2):
            values: list[bytes | None] = []
            async with asyncio.timeout(patience(30)):
                while not values:
                    values += [record.value for record in await reader.poll(wait_s=0.2)]
            assert (values, reader.positions) == ([b"one"], {0: 1})
            await reader.rewind([0])
            assert reader.positions == {0: 0}


async def test_a_topic_that_is_not_there_is_named(connection: tuple[Connection, Topics]) -> None:
    kafka, topics = connection
    assert await kafka.count_partitions([topics.commands]) == {topics.commands: 1}
    with pytest.raises(TopicsWrong, match=r"^nowhere does not exist; `taskflow topics create`"):
        await kafka.count_partitions([topics.commands, "nowhere"])


async def items(reader: ItemReader) -> list[ReceivedItem]:
    async with asyncio.timeout(patience(60)):
        while True:
            if some := await reader.poll(max_records=10, wait_s=0.2):
                return some


async def test_items_that_were_not_answered_come_again(
    connection: tuple[Connection, Topics],
) -> None:
    kafka, topics = connection

    def item(run_id: str, task: str) -> bytes:
        return (
            WorkItem(
                flow_id=FLOW_ID,
                run_id=run_id,
                task=task,
                attempt=1,
                max_attempts=1,
                input_json=None,
                lease_ms=60_000,
                event_id=1,
                at=instant(kafka.now_ms()),
            )
            .model_dump_json()
            .encode()
        )

    await write(kafka, topics.steps, item("other", "print"), task=b"print")
    await write(kafka, topics.steps, item("one", "pack"), item("two", "pack"), task=b"pack")
    first = kafka.work_items("packers", ["pack"])
    received: list[ReceivedItem] = []
    while len(received) < 2:
        received += await items(first)
    assert [one.item.run_id for one in received] == ["one", "two"]
    assert all(abs(one.appended_ms - kafka.now_ms()) < 600_000 for one in received)
    first.done(received[0].place)
    await first.close()

    second = kafka.work_items("packers", ["pack"])
    assert [one.item.run_id for one in await items(second)] == ["two"]
    await second.close()
