"""A scenario of the demo with two foreign clients and an operator."""

import os
import zlib
from uuid import UUID, uuid4

import orjson
from aiokafka import AIOKafkaProducer

from processor.adapters.kafka.client_config import connection_options
from processor.adapters.kafka.errors import explained
from processor.cli.demo.observer import Observer
from processor.cli.demo.scenarios import Scenario
from processor.cli.flow.execute import login
from processor.contract.topics import Topics
from processor.engine.partitioner import partition_of
from processor.settings import Settings


async def foreigners(
    settings: Settings, observer: Observer, scenario: Scenario, flow_id: str
) -> None:
    """A flow that meets other clients and an operator.

    One client hashes keys with CRC32, as librdkafka does, so that its command lies on the wrong
    partition; another writes what is no command; the operator cancels.
    """
    topics, me = Topics(settings.topic_prefix), "session:foreign"
    key = flow_id.encode()
    create = {
        "kind": "create_managed",
        "command_id": str(uuid4()),
        "flow_id": flow_id,
        "issued_by": me,
        "controller_id": "foreign",
        "goal": "Find the right partition",
        "requester_origin": "another client",
    }
    with explained(settings):
        options = connection_options(settings, "foreign")
        async with AIOKafkaProducer(**options, acks="all") as producer:
            wrong = zlib.crc32(key) % settings.partitions
            await producer.send_and_wait(
                topics.commands, orjson.dumps(create), key=key, partition=wrong
            )
            await producer.send_and_wait(
                topics.commands, b'{"kind": "create_managed", oops', key=key
            )
    await observer.in_time(observer.settles(create["command_id"]), scenario.sent.total() + 2)
    await scenario.send("start_running", flow_id, me)
    await scenario.send("set_waiting", flow_id, me, wait={"kind": "manual"})
    await scenario.send("resume", flow_id, f"operator:{login()}", control=True)
    await scenario.send("update_state", flow_id, me, patch={"found": True}, next_step="done")
    await scenario.send("cancel", flow_id, f"operator:{login()}", control=True)


def misplaced_by_crc32(partitions: int) -> str:
    """A flow id whose key CRC32 sends to another partition than Kafka's hash."""
    while True:
        flow_id = str(UUID(bytes=os.urandom(16), version=4))
        key = flow_id.encode()
        if zlib.crc32(key) % partitions != partition_of(key, partitions):
            return flow_id
