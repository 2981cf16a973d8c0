"""A client that hashes keys in another way: its commands are forwarded, and end as they should."""

import asyncio
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

from aiokafka import AIOKafkaProducer
from confluent_kafka import KafkaError, Message, Producer

from processor.adapters.kafka.admin.topic_admin import create_topics
from processor.embedded.broker import EmbeddedBroker
from processor.ops.verify.contract import home_of
from processor.settings import Settings
from tests.support.json_values import json_of
from tests.support.machine import patience
from tests.support.observed_deployment import observing
from tests.support.processes import workers

PARTITIONS = 4
FLOWS = 40
UPDATES = 8


def commands() -> Iterator[Any]:
    """All flows' commands, round by round: a create, a start, updates, an end."""
    rng = random.Random(3)
    flows = [str(UUID(int=rng.getrandbits(128), version=4)) for _ in range(FLOWS)]
    about = {"controller_id": "c", "goal": "Ankommen, trotz CRC32 — 着く", "requester_origin": "r"}
    bodies: list[dict[str, Any]] = [
        {"kind": "create_managed", **about},
        {"kind": "start_running"},
        *({"kind": "update_state", "patch": {"n": n}} for n in range(UPDATES)),
        {"kind": "finish"},
    ]
    for revision, body in enumerate(bodies):
        if revision:
            body["expected_revision"] = revision - 1
        for flow_id in flows:
            command_id = str(UUID(int=rng.getrandbits(128), version=4))
            yield {"command_id": command_id, "flow_id": flow_id, "issued_by": "me", **body}


def produce(bootstrap: Any, topic: Any, sent: Any) -> None:
    """With librdkafka's own partitioner, `consistent_random`: CRC32 of the key."""
    producer = Producer({"bootstrap.servers": bootstrap, "enable.idempotence": True})
    refused: list[KafkaError] = []

    def delivered(error: KafkaError | None, _: Message) -> None:
        if error is not None:
            refused.append(error)

    for command in sent:
        producer.produce(
            topic,
            json.dumps(command).encode(),
            command["flow_id"].encode(),
            headers=[("traceparent", b"00-ab"), ("nothing", None)],
            on_delivery=delivered,
        )
        producer.poll(0)
    assert producer.flush(patience(30)) == 0
    assert refused == []


async def test_all_of_a_foreign_clients_commands_end_in_order(
    broker: EmbeddedBroker, prefix: str, tmp_path: Path
) -> None:
    await create_topics(
        Settings(bootstrap_servers=broker.bootstrap, topic_prefix=prefix, partitions=PARTITIONS)
    )
    topic, sent = f"{prefix}.commands", list(commands())
    async with (
        workers(2, tmp_path, broker.bootstrap, prefix) as pair,
        observing(broker.bootstrap, prefix, PARTITIONS) as observer,
    ):
        await asyncio.gather(*(worker.start() for worker in pair))
        await asyncio.to_thread(produce, broker.bootstrap, topic, sent)
        world = await observer.settled([w.state_dir for w in pair], timeout_s=patience(30))
        assert [await worker.end() for worker in pair] == [0, 0]

    world.assert_clean()
    verdicts = [json_of(record)["verdict"] for record in world.all_of("outcomes")]
    assert verdicts.count("accepted") == len(sent)
    forwarded = verdicts.count("forwarded")
    assert forwarded > len(sent) / 2
    assert len(verdicts) == len(sent) + forwarded
    output: dict[str, list[str]] = {}
    for record in world.all_of("outcomes"):
        outcome = json_of(record)
        if outcome["verdict"] == "accepted":
            output.setdefault(outcome["flow_id"], []).append(outcome["command_id"])
    for flow_id, command_ids in output.items():
        assert command_ids == [c["command_id"] for c in sent if c["flow_id"] == flow_id]


async def test_a_copy_that_lies_wrong_again_is_quarantined(
    broker: EmbeddedBroker, prefix: str, tmp_path: Path
) -> None:
    await create_topics(
        Settings(bootstrap_servers=broker.bootstrap, topic_prefix=prefix, partitions=PARTITIONS)
    )
    command = next(commands())
    key = command["flow_id"].encode()
    wrong = (home_of(key, PARTITIONS) + 1) % PARTITIONS
    forged = [("taskflow-forwarded-from", f"{prefix}.commands/9/9".encode())]
    async with (
        workers(1, tmp_path, broker.bootstrap, prefix) as (worker,),
        AIOKafkaProducer(bootstrap_servers=broker.bootstrap) as producer,
        observing(broker.bootstrap, prefix, PARTITIONS) as observer,
    ):
        await worker.start()
        value = json.dumps(command).encode()
        await producer.send_and_wait(
            f"{prefix}.commands", value, key, partition=wrong, headers=forged
        )
        world = await observer.settled([worker.state_dir], timeout_s=patience(30))
        assert await worker.end() == 0

    world.assert_clean()
    (outcome,) = (json_of(record) for record in world.all_of("outcomes"))
    assert (outcome["verdict"], outcome["code"]) == ("quarantined", "invalid_key")
    (dead_letter,) = world.of("deadletters", wrong)
    assert (dead_letter.key, dead_letter.value) == (key, value)
    copies = [value for name, value in dead_letter.headers if name == "taskflow-forwarded-from"]
    assert copies == [forged[0][1]]
