"""A producer that cannot send what it has lets go of it, and nothing is said about it later; no
consumer stays open."""

import asyncio
import gc
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.errors import ProducerClosed, ProducerFenced

from processor.adapters.kafka import shutdown
from processor.adapters.kafka.internals import fail_unsent, quiet_failures
from processor.adapters.kafka.reader.log_reader import KafkaLogReader, LogReaders
from tests.support.machine import patience
from tests.support.unconnected import NOWHERE, unconnected_consumer

TP = TopicPartition("anywhere", 0)


async def one_by_one(producer: AIOKafkaProducer) -> Any:
    return await producer._message_accumulator.add_message(TP, b"k", b"v", timeout=1)


async def as_a_batch(producer: AIOKafkaProducer) -> Any:
    batch = producer.create_batch()
    batch.append(key=b"k", value=b"v", timestamp=None)
    return await producer._message_accumulator.add_batch(batch, TP, 1)


@pytest.mark.parametrize("send", [one_by_one, as_a_batch])
async def test_what_is_unsent_fails_for_who_waits_and_for_nobody_else(send: Any) -> None:
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, what: complaints.append(what))
    producer = AIOKafkaProducer(bootstrap_servers="127.0.0.1:1")
    sent = await send(producer)

    fail_unsent(producer)

    with pytest.raises(ProducerClosed):
        await asyncio.wait_for(sent, patience(5))
    await producer.stop()
    del producer, sent
    gc.collect()
    assert complaints == []


@pytest.mark.parametrize("waits_for", ["its turn", "its retry", "its answer"])
async def test_a_fenced_producer_fails_for_who_waits_and_for_nobody_else(waits_for: str) -> None:
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, what: complaints.append(what))
    producer = AIOKafkaProducer(bootstrap_servers="127.0.0.1:1", transactional_id="t")
    quiet_failures(producer)
    transactions, accumulator = producer._txn_manager, producer._message_accumulator
    transactions.set_pid_and_epoch(1, 0)
    transactions.begin_transaction()
    sent = await as_a_batch(producer)
    if waits_for != "its turn":
        batch = accumulator._pop_batch(TP)
        if waits_for == "its retry":
            accumulator.reenqueue(batch)
        del batch

    # As aiokafka's sender does when a broker tells it.
    transactions.fatal_error(ProducerFenced())
    accumulator.fail_all(ProducerFenced())

    with pytest.raises(ProducerFenced):
        await asyncio.wait_for(sent, patience(5))
    await asyncio.sleep(0)
    await producer.stop()
    del producer, sent, transactions, accumulator
    gc.collect()
    assert complaints == []


Closes = tuple[Callable[[], Awaitable[None]], list[AIOKafkaConsumer]]


def two_of(readers: LogReaders) -> list[AIOKafkaConsumer]:
    for level in ("read_committed", "read_uncommitted"):
        readers._consumers[level] = AIOKafkaConsumer(isolation_level=level, **NOWHERE)
    return list(readers._consumers.values())


def log_reader() -> Closes:
    reader = KafkaLogReader(NOWHERE, 0)
    of_a_read = LogReaders(NOWHERE)
    reader._readers_of_reads.append(of_a_read)
    return reader.close, [*two_of(reader._readers), *two_of(of_a_read)]


def group_consumer() -> Closes:
    member = unconnected_consumer()
    return lambda: member.stop(timeout_s=patience(5)), [member._consumer, *two_of(member._ends)]


@pytest.mark.parametrize("iterations", range(1, 6))
@pytest.mark.parametrize("make", [log_reader, group_consumer])
async def test_who_is_cancelled_while_it_stops_consumers_leaves_none_open(
    make: Callable[[], Closes], iterations: int
) -> None:
    """While brokers are away each takes a while, and a task that takes a while to end is cancelled
    again: aiokafka complained of consumers that were not stopped."""
    close, consumers = make()
    closing = asyncio.ensure_future(close())
    for _ in range(iterations):
        await asyncio.sleep(0)

    closing.cancel()

    await asyncio.wait([closing])
    if shutdown._stopping:
        await asyncio.wait(set(shutdown._stopping), timeout=patience(5))
    assert [consumer._closed for consumer in consumers] == [True] * len(consumers)
