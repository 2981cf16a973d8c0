"""A producer that cannot send what it has lets go of it, and nothing is said about it later."""

import asyncio
import gc
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.errors import ProducerClosed, ProducerFenced

from processor.adapters.kafka.internals import fail_unsent, quiet_failures
from tests.support.machine import patience

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
