"""How many commands a second one worker decides, with the broker on the same machine.

400,000 commands over 20,000 flows (a create, a start, then updates) lie on 4 partitions before the
worker starts; measured from the first outcome to the last, on the topic.
"""

import asyncio
import json
import time
import uuid
from pathlib import Path

import psutil
from aiokafka import AIOKafkaConsumer, TopicPartition

from processor.adapters.kafka.admin import create_topics
from processor.broker import EmbeddedBroker
from processor.placement import partition_of
from processor.settings import Settings
from schemas.topics import Topics
from tests.benchmarks.running import cpu_s, memory_bytes, publish, running_worker

FLOWS = 20_000
PARTITIONS = 4
POLL_S = 0.05
WEIGHED_EVERY_S = 0.5
SETTLED_S = 1.5
OWNER = "agent:bench:session:1"


def command(flow_id: str, turn: int, n: int) -> bytes:
    """The `turn`-th command of a flow: a create, a start, then updates."""
    body: dict[str, object] = {
        "command_id": str(uuid.UUID(int=n * FLOWS * 100 + turn)),
        "flow_id": flow_id,
        "issued_by": OWNER,
    }
    if turn == 0:
        body |= {
            "kind": "create_managed",
            "controller_id": "bench/inbox",
            "goal": "triage the inbox",
            "requester_origin": "user-1",
            "state_json": {"messages": 10, "processed": 0},
        }
    elif turn == 1:
        body["kind"] = "start_running"
    else:
        body |= {
            "kind": "update_state",
            "patch": {"processed": turn, "note": "x" * 40},
            "next_step": f"step-{turn}",
            "expected_revision": turn - 1,
        }
    return json.dumps(body, separators=(",", ":")).encode()


async def load(settings: Settings, count: int) -> None:
    """Publish `count` commands in rounds over all flows."""
    flows = [str(uuid.UUID(int=(7 << 120) + n * 7919)) for n in range(FLOWS)]
    places = [partition_of(flow.encode(), PARTITIONS) for flow in flows]
    numbers = ((i % FLOWS, i // FLOWS) for i in range(count))
    await publish(settings, ((places[n], flows[n], command(flows[n], t, n)) for n, t in numbers))


async def measure(
    home: Path,
    broker: EmbeddedBroker,
    *,
    count: int = 400_000,
    processes: int = 1,
    prefix: str = "throughput",
) -> dict[str, float]:
    """Commands a second, CPU seconds of worker and broker per 100,000, and the worker's memory at
    its peak, on topics of their own under `prefix`.

    Start-up and joining the group are not in it; the first transaction is.
    """
    settings = Settings(
        bootstrap_servers=broker.bootstrap, topic_prefix=prefix, partitions=PARTITIONS
    )
    await create_topics(settings)
    await load(settings, count)
    outcomes = Topics(settings.topic_prefix).outcomes
    tps = [TopicPartition(outcomes, p) for p in range(PARTITIONS)]
    consumer = AIOKafkaConsumer(
        bootstrap_servers=broker.bootstrap, isolation_level="read_committed"
    )
    await consumer.start()
    broker_process = psutil.Process(broker.pid)
    peak = began = changed = weighed = 0.0
    first = total = 0
    spent = broker_spent = (0.0, 0.0)
    try:
        async with running_worker(settings, home / prefix, processes=processes) as worker:
            # The ends count transaction markers too: all is there once they stand still.
            while total < count or time.perf_counter() - changed < SETTLED_S:
                end = sum((await consumer.end_offsets(tps)).values())
                if time.perf_counter() - weighed > WEIGHED_EVERY_S:
                    weighed = time.perf_counter()
                    peak = max(peak, memory_bytes(worker))
                if end > total:
                    total, changed = end, time.perf_counter()
                    if not began:
                        began, first = changed, end
                        spent = (cpu_s(worker), 0.0)
                        broker_spent = (cpu_s(broker_process), 0.0)
                    spent = (spent[0], cpu_s(worker))
                    broker_spent = (broker_spent[0], cpu_s(broker_process))
                await asyncio.sleep(POLL_S)
    finally:
        await consumer.stop()
    share = 100_000 / (count - first)
    return {
        "commands": count,
        "wall_s": changed - began,
        "rate_per_s": (count - first) / (changed - began),
        "worker_cpu_s": (spent[1] - spent[0]) * share,
        "broker_cpu_s": (broker_spent[1] - broker_spent[0]) * share,
        "peak_mib": peak / 2**20,
    }
