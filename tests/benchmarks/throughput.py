"""How many commands a second one worker decides, with the broker on the same machine.

400,000 commands over 20,000 flows (a create, a start, then updates) lie on 4 partitions before the
worker starts; measured from the first outcome to the last, on the topic.
"""

import asyncio
import json
import os
import sys
import tempfile
import time
import uuid
from pathlib import Path

import psutil
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from processor.adapters.kafka.admin import create_topics
from processor.broker import embedded_broker
from processor.placement import partition_of
from processor.settings import Settings
from schemas.topics import Topics

FLOWS = 20_000
PARTITIONS = 4
POLL_S = 0.05
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
    producer = AIOKafkaProducer(
        bootstrap_servers=settings.bootstrap_servers,
        compression_type="lz4",
        max_batch_size=900_000,
        linger_ms=5,
    )
    await producer.start()
    topic = Topics(settings.topic_prefix).commands
    flows = [str(uuid.UUID(int=(7 << 120) + n * 7919)) for n in range(FLOWS)]
    places = [partition_of(flow.encode(), PARTITIONS) for flow in flows]
    batches = [producer.create_batch() for _ in range(PARTITIONS)]
    for i in range(count):
        n, turn = i % FLOWS, i // FLOWS
        place, key, value = places[n], flows[n].encode(), command(flows[n], turn, n)
        if batches[place].append(timestamp=None, key=key, value=value) is None:
            await (await producer.send_batch(batches[place], topic, partition=place))
            batches[place] = producer.create_batch()
            batches[place].append(timestamp=None, key=key, value=value)
    for place, batch in enumerate(batches):
        await (await producer.send_batch(batch, topic, partition=place))
    await producer.stop()


async def measure(count: int, workers: int = 1) -> None:
    with tempfile.TemporaryDirectory() as home:
        async with embedded_broker() as broker:
            settings = Settings(bootstrap_servers=broker.bootstrap, partitions=PARTITIONS)
            await create_topics(settings)
            await load(settings, count)
            tps = [
                TopicPartition(Topics(settings.topic_prefix).outcomes, p)
                for p in range(PARTITIONS)
            ]
            consumer = AIOKafkaConsumer(
                bootstrap_servers=broker.bootstrap, isolation_level="read_committed"
            )
            await consumer.start()
            processes = []
            for number in range(workers):
                environ = {
                    **os.environ,
                    "TASKFLOW_BOOTSTRAP_SERVERS": broker.bootstrap,
                    "TASKFLOW_STATE_DIR": str(Path(home) / str(number)),
                    "TASKFLOW_HTTP": "off",
                }
                processes.append(
                    await asyncio.create_subprocess_exec(
                        sys.executable, "-m", "processor", "worker", env=environ
                    )
                )
            watched = [psutil.Process(process.pid) for process in processes]
            broker_process = psutil.Process(broker.pid)
            peak = began = cpu_began = 0.0
            broker_cpu_began = 0.0
            done = 0
            total = changed = 0.0
            while total < count or time.perf_counter() - changed < SETTLED_S:
                ends = sum((await consumer.end_offsets(tps)).values())
                now = time.perf_counter()
                peak = max(peak, sum(p.memory_info().rss for p in watched))
                if ends > total:
                    total, changed = ends, now
                    cpu, broker_cpu = _cpu(watched), _cpu([broker_process])
                    if not began:
                        began, done = now, total
                        cpu_began, broker_cpu_began = cpu, broker_cpu
                await asyncio.sleep(POLL_S)
            wall = changed - began
            cpu, broker_cpu = cpu - cpu_began, broker_cpu - broker_cpu_began
            for process in processes:
                process.terminate()
                await process.wait()
            await consumer.stop()
            rate = (count - done) / wall
            print(
                f"| {workers} | {count:,} | {wall:.1f} | {rate:,.0f} |"
                f" {cpu / count * 100_000:.2f} | {broker_cpu / count * 100_000:.2f} |"
                f" {peak / 2**20:.0f} |"
            )


def _cpu(processes: list[psutil.Process]) -> float:
    return sum(sum(process.cpu_times()[:2]) for process in processes)


if __name__ == "__main__":
    asyncio.run(measure(int(sys.argv[1]) if len(sys.argv) > 1 else 400_000))
