"""How many whole steps (scheduled, started, completed) a second a worker decides."""

import asyncio
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import orjson
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, TopicPartition

from processor.adapters.kafka.admin.topic_admin import create_topics
from processor.contract.topics import Topics
from processor.embedded.broker import EmbeddedBroker
from processor.settings import Settings
from tests.benchmarks.running import nodes, publish, running_worker
from tests.benchmarks.steps.executor import Flight, fly
from tests.benchmarks.steps.work import Work
from tests.benchmarks.throughput import decided

PARTITIONS: Final = 4
COMMANDS_A_STEP: Final = 3


@dataclass(frozen=True)
class Shape:
    """What a run is like."""

    steps: int = 100_000
    flows: int = 5_000
    in_flight: int = 8_000
    processes: int = 2


async def measure(
    home: Path, broker: EmbeddedBroker, shape: Shape, *, prefix: str
) -> dict[str, float]:
    """Steps a second and what they cost; see `throughput.decided`. The flows are made before.
    `load_cpu_s` is what the executor takes of the same cores, per 100,000 commands too."""
    settings = Settings(
        bootstrap_servers=broker.bootstrap, topic_prefix=prefix, partitions=PARTITIONS
    )
    await create_topics(settings)
    work, topics = Work(shape.flows, PARTITIONS), Topics(prefix)
    made = map(work.create, range(shape.flows))
    await publish(settings, ((one.partition, one.key.decode(), one.value) for one in made))
    flight = Flight(
        broker.bootstrap,
        topics.commands,
        topics.steps,
        PARTITIONS,
        shape.flows,
        shape.steps,
        shape.in_flight,
    )
    commands, processes = COMMANDS_A_STEP * shape.steps, shape.processes
    async with running_worker(settings, home / prefix, processes=processes) as worker:
        r = await decided(settings, [worker], nodes(broker), shape.flows)
        before = int(r["ends"])
        flying = asyncio.create_task(fly(flight))
        r = await decided(settings, [worker], nodes(broker), commands, since=before)
        load_cpu_s = await flying
    kinds = await asyncio.to_thread(event_kinds, settings)
    for kind in ("step_scheduled", "step_started", "step_succeeded"):
        assert kinds[kind] == shape.steps, kinds
    return r | {
        "steps_per_s": r["rate_per_s"] / COMMANDS_A_STEP,
        "load_cpu_s": load_cpu_s * 100_000 / commands,
        "commands_a_transaction": commands / (r["ends"] - before - commands),
    }


def event_kinds(settings: Settings) -> Counter[str]:
    """What the audit holds, by kind."""
    audit = Topics(settings.topic_prefix).audit
    consumer = Consumer(
        {
            "bootstrap.servers": settings.bootstrap_servers,
            "group.id": "bench-audit",
            "isolation.level": "read_committed",
            "enable.auto.commit": False,
            "enable.partition.eof": True,
        }
    )
    partitions = range(settings.partitions)
    consumer.assign([TopicPartition(audit, p, OFFSET_BEGINNING) for p in partitions])
    kinds: Counter[str] = Counter()
    open_partitions = set(partitions)
    while open_partitions:
        for record in consumer.consume(10_000, 1.0):
            if (error := record.error()) is None:
                kinds[orjson.loads(record.value() or b"")["kind"]] += 1
            elif error.code() == KafkaError._PARTITION_EOF:
                open_partitions.discard(record.partition())
            else:
                raise AssertionError(error)
    consumer.close()
    return kinds
