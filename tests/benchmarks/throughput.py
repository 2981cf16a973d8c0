"""How many commands a second workers decide, with the broker on the same machine.

The commands (of each flow a create, a start, then updates) lie on their partitions before the
workers start; measured from the first outcome to the last, on the topic.
"""

import asyncio
import json
import random
import time
import uuid
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import psutil
from aiokafka import AIOKafkaConsumer, TopicPartition

from processor.adapters.kafka.admin.topic_admin import create_topics
from processor.contract.topics import Topics
from processor.engine.partitioner import partition_of
from processor.settings import Settings
from tests.benchmarks.running import (
    Kafka,
    cpu_s,
    memory_bytes,
    nodes,
    publish,
    running_worker,
    settings_for,
)

POLL_S = 0.05
"""How exactly the first outcome and the last are timed."""
WEIGHED_EVERY_S = 0.5
"""How often to look in between: a look at the CPU time of two programs takes 5 ms, one at their
memory 4 to 7 ms a process, and the cores are theirs."""
LAST_SHARE = 0.2
"""Of the commands, how many are waited for closely."""


def pause_s(total: int, commands: int) -> float:
    """How long to wait before the next look, after `total` of so many."""
    return WEIGHED_EVERY_S if 0 < total < commands * (1 - LAST_SHARE) else POLL_S


SETTLED_S = 1.5
OWNER = "agent:bench:session:1"
NOTES = random.Random(7).randbytes(128 * 1024).hex()
"""What larger updates write is cut out of it: as little to be compressed as ids and digests."""
SMALL = 40


@dataclass(frozen=True)
class Shape:
    """What a run is like; each update writes `note_bytes` into the flow's state."""

    commands: int = 400_000
    flows: int = 20_000
    partitions: int = 4
    note_bytes: int = 40
    workers: int = 1
    processes: int = 1
    """Of each worker."""


def command(flow_id: str, turn: int, n: int, note_bytes: int = 40) -> bytes:
    """The `turn`-th command of the `n`-th flow: a create, a start, then updates."""
    body: dict[str, object] = {
        "command_id": str(uuid.UUID(int=n << 32 | turn)),
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
        start = (n * 31 + turn) % (len(NOTES) - note_bytes)
        note = "x" * note_bytes if note_bytes <= SMALL else NOTES[start : start + note_bytes]
        body |= {
            "kind": "update_state",
            "patch": {"processed": turn, "note": note},
            "next_step": f"step-{turn}",
            "expected_revision": turn - 1,
        }
    return json.dumps(body, separators=(",", ":")).encode()


async def load(settings: Settings, shape: Shape) -> None:
    """Publish the commands in rounds over all flows."""
    flows = [str(uuid.UUID(int=(7 << 120) + n * 7919)) for n in range(shape.flows)]
    places = [partition_of(flow.encode(), shape.partitions) for flow in flows]
    numbers = ((i % shape.flows, i // shape.flows) for i in range(shape.commands))
    await publish(
        settings,
        ((places[n], flows[n], command(flows[n], t, n, shape.note_bytes)) for n, t in numbers),
    )


# As clusters have it by default; the embedded broker waits for nobody, so that tests start at once,
# and the first of several workers begins with all partitions alone.
JOINED_TOGETHER = {"group.initial.rebalance.delay.ms": "2000"}


def wire_bytes() -> int:
    """What the loopback interface has carried so far; 0 where it is not called `lo`."""
    counters = psutil.net_io_counters(pernic=True).get("lo")
    return 0 if counters is None else int(counters.bytes_sent)


class Spent:
    """What was used up to a moment: CPU seconds of workers and of brokers, bytes on the wire."""

    def __init__(self, workers: list[psutil.Process], brokers: list[psutil.Process]) -> None:
        self.workers_s = sum(map(cpu_s, workers))
        self.broker_s = sum(map(cpu_s, brokers))
        self.bytes = wire_bytes()


async def measure(
    home: Path, kafka: Kafka, shape: Shape, *, prefix: str = "throughput"
) -> dict[str, float]:
    """Commands a second, CPU seconds of all workers and of all brokers and MiB on the wire per
    100,000, and the largest worker's memory at its peak; on topics of their own under `prefix`.

    Start-up and joining the group are not in it; the first transaction is.
    """
    settings = settings_for(kafka, prefix, shape.partitions)
    await create_topics(settings)
    await load(settings, shape)
    async with AsyncExitStack() as running:
        workers = [
            await running.enter_async_context(
                running_worker(settings, home / f"{prefix}-{n}", processes=shape.processes)
            )
            for n in range(shape.workers)
        ]
        return await decided(settings, workers, nodes(kafka), shape.commands)


async def decided(
    settings: Settings,
    workers: list[psutil.Process],
    brokers: list[psutil.Process],
    commands: int,
    *,
    since: int = 0,
) -> dict[str, float]:
    """As `measure`, of workers that run: until there are as many outcomes as `commands`, behind
    those that count in `since`. `ends` are all outcomes then, and a marker for each of their
    transactions."""
    outcomes = Topics(settings.topic_prefix).outcomes
    tps = [TopicPartition(outcomes, p) for p in range(settings.partitions)]
    consumer = AIOKafkaConsumer(
        bootstrap_servers=settings.bootstrap_servers, isolation_level="read_committed"
    )
    await consumer.start()
    peak = began = changed = weighed = 0.0
    first = total = since
    before = after = Spent(workers, brokers)
    try:
        # The ends count transaction markers too: all is there once they stand still.
        while total < since + commands or time.perf_counter() - changed < SETTLED_S:
            end = sum((await consumer.end_offsets(tps)).values())
            if time.perf_counter() - weighed > WEIGHED_EVERY_S:
                weighed = time.perf_counter()
                peak = max(peak, *map(memory_bytes, workers))
            if end > total:
                total, changed = end, time.perf_counter()
                after = Spent(workers, brokers)
                if not began:
                    began, first, before = changed, end, after
            await asyncio.sleep(pause_s(total - since, commands))
    finally:
        await consumer.stop()
    done = since + commands - first
    share = 100_000 / done
    return {
        "commands": commands,
        "wall_s": changed - began,
        "rate_per_s": done / (changed - began),
        "worker_cpu_s": (after.workers_s - before.workers_s) * share,
        "broker_cpu_s": (after.broker_s - before.broker_s) * share,
        "wire_mib": (after.bytes - before.bytes) * share / 2**20,
        "peak_mib": peak / 2**20,
        "ends": total,
    }
