"""The same number of updates over few flows and over more than fit into memory.

The flows are written to `state` as they stand there, and a worker with an empty disk fills its
tables from it; each update then goes to another of them, so that of many flows hardly one is in
memory. All sizes are filled and updated in the same way.

Run it: .venv/bin/python -m tests.benchmarks.many_flows --flows 20000 1000000 10000000
"""

import argparse
import asyncio
import itertools
import json
import math
import tempfile
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import psutil
import uvloop
from confluent_kafka import Producer

from processor.adapters.kafka.admin.topic_admin import create_topics
from processor.contract.flow import FlowStatus
from processor.contract.topics import Topics
from processor.contract.values import instant
from processor.domain.flow import Flow
from processor.embedded.broker import EmbeddedBroker, embedded_broker
from processor.engine.batch import cursor_record, first_event_id, snapshot_of
from processor.engine.encoding import flow_doc
from processor.engine.rows import FlowRow, Position
from processor.settings import Settings
from tests.benchmarks import throughput
from tests.benchmarks.results import Run, arguments
from tests.benchmarks.running import cpu_s, machine, memory_bytes
from tests.benchmarks.throughput import OWNER, Shape
from tests.benchmarks.timers import flow_ids, watched_worker

PARTITIONS: Final = 4
SIZES: Final = (20_000, 1_000_000, 10_000_000)
STRIDE: Final = 7_368_787
"""A prime: one after the other, the updates meet all flows before they meet one again."""
SOME: Final = 100_000
WEIGHED_EVERY_S: Final = 0.5
AT_REST: Final = 0.1
"""Of a core: what the broker takes once `state` is compacted."""
AT_REST_S: Final = 20
"""The broker's cleaner pauses for 15 s before it looks again."""
REST_WITHIN_S: Final = 600

BROKER: Final = {**throughput.JOINED_TOGETHER, "log.cleaner.dedupe.buffer.size": str(128 * 2**20)}
"""As Kafka has it. The embedded broker's compacts ten million flows in passes, each over all."""

Sent = tuple[bytes, bytes]
"""Key, value."""


def snapshots(count: int) -> Iterator[Sent]:
    """What `state` holds of `count` running flows."""
    ids = itertools.chain.from_iterable(
        flow_ids(min(SOME, count - begun), first=begun + 1) for begun in range(0, count, SOME)
    )
    at, placeholder = instant(time.time_ns() // 1_000_000), "f" * 36
    flow = Flow(
        id=placeholder,
        controller_id="bench/inbox",
        goal="triage the inbox",
        owner_session_key=OWNER,
        requester_origin="user-1",
        current_step="init",
        state_json={"messages": 10, "processed": 0},
        wait_json=None,
        status=FlowStatus.RUNNING,
        cancel_requested=False,
        revision=1,
        created_at=at,
        updated_at=at,
    )
    value = snapshot_of(FlowRow(flow, flow_doc(flow), 2, bytes(16), 0))
    head, tail = value.split(placeholder.encode())
    for flow_id in ids:
        key = flow_id.encode()
        yield key, head + key + tail


def updates(flows: int, count: int) -> Iterator[Sent]:
    """`count` updates in rounds over all flows, in another order than they were made in."""
    assert math.gcd(STRIDE, flows) == 1
    for number in range(count):
        (flow_id,) = flow_ids(1, first=number * STRIDE % flows + 1)
        turn = 1 + number // flows
        body = {
            "kind": "update_state",
            "command_id": f"00000000-0000-4000-8000-{number:012x}",
            "flow_id": flow_id,
            "issued_by": OWNER,
            "patch": {"processed": turn, "note": "x" * throughput.SMALL},
            "next_step": f"step-{turn}",
            "expected_revision": turn,
        }
        yield flow_id.encode(), json.dumps(body, separators=(",", ":")).encode()


def send(bootstrap: str, topic: str, records: Iterable[Sent]) -> None:
    """Write them to where their keys belong, as fast as Kafka takes them."""
    producer = Producer(
        {
            "bootstrap.servers": bootstrap,
            "partitioner": "murmur2_random",
            "compression.type": "lz4",
            "enable.idempotence": True,
            "batch.size": 900_000,
            "linger.ms": 5,
        }
    )
    for key, value in records:
        while True:
            try:
                producer.produce(topic, value, key)
                break
            except BufferError:
                producer.poll(0.05)
    producer.flush()


def end_with_cursors(bootstrap: str, topic: str) -> None:
    """Say that nothing was decided yet, where an owner looks for how far it is."""
    producer = Producer({"bootstrap.servers": bootstrap})
    for partition in range(PARTITIONS):
        cursor = cursor_record(partition, Position(0, 0, first_event_id(partition)))
        producer.produce(topic, cursor.value, cursor.key, partition)
    producer.flush()


@asynccontextmanager
async def weighed(
    process: psutil.Process, into: dict[str, float], name: str
) -> AsyncIterator[None]:
    """The largest memory of `process` and its children meanwhile, MiB."""
    into[name] = 0.0

    async def weigh() -> None:
        while True:
            into[name] = max(into[name], memory_bytes(process) / 2**20)
            await asyncio.sleep(WEIGHED_EVERY_S)

    weighing = asyncio.create_task(weigh())
    try:
        yield
    finally:
        weighing.cancel()
        await asyncio.wait({weighing})


async def at_rest(process: psutil.Process) -> None:
    """Wait until it has had nothing to do for AT_REST_S, but not for ever."""
    rest_s = 0
    for _ in range(REST_WITHIN_S):
        before = cpu_s(process)
        await asyncio.sleep(1)
        rest_s = rest_s + 1 if cpu_s(process) - before < AT_REST else 0
        if rest_s == AT_REST_S:
            break


async def measure(
    home: Path, broker: EmbeddedBroker, flows: int, commands: int
) -> dict[str, float]:
    """Commands a second over that many flows, and the worker's memory while it fills its tables and
    while it decides."""
    prefix = f"flows-{time.monotonic_ns()}"
    settings = Settings(
        bootstrap_servers=broker.bootstrap, topic_prefix=prefix, partitions=PARTITIONS
    )
    topics, broker_process = Topics(prefix), psutil.Process(broker.pid)
    await create_topics(settings)
    made = list(updates(flows, commands))
    began_s = time.monotonic()
    await asyncio.to_thread(send, broker.bootstrap, topics.state, snapshots(flows))
    await asyncio.to_thread(end_with_cursors, broker.bootstrap, topics.state)
    written_s = time.monotonic() - began_s
    found: dict[str, float] = {"flows": flows, "written_s": written_s}
    state_dir = home / prefix
    async with watched_worker(settings, state_dir) as worker:
        async with weighed(worker.process, found, "filling_peak_mib"):
            _, found["restored_s"] = await worker.taken_over()
        await at_rest(broker_process)
        sending = asyncio.create_task(
            asyncio.to_thread(send, broker.bootstrap, topics.commands, made)
        )
        found |= await throughput.decided(settings, [worker.process], [broker_process], commands)
        await sending
        await worker.until(commands, "taskflow_commands_total", "accepted")
        found["table_mib"] = sum(file.stat().st_size for file in state_dir.rglob("*.db*")) / 2**20
    return found


async def main(chosen: argparse.Namespace) -> None:
    print(machine() + "\n")
    print(
        f"{chosen.commands:,} updates of flows that were there before, one process, {PARTITIONS} "
        "partitions; CPU seconds per 100,000:\n"
    )
    print(
        "| flows | commands/s | worker CPU s | broker CPU s | peak MiB | while filling | "
        "restored, s | tables MiB |\n| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        flush=True,
    )
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        async with embedded_broker(properties=BROKER) as broker:
            await throughput.measure(home, broker, Shape(50_000), prefix="warm-up")
            for flows in chosen.flows:
                r = await measure(home, broker, flows, chosen.commands)
                rows.append(r)
                print(
                    f"| {flows:,} | {r['rate_per_s']:,.0f} | {r['worker_cpu_s']:.2f} | "
                    f"{r['broker_cpu_s']:.2f} | {r['peak_mib']:.0f} | "
                    f"{r['filling_peak_mib']:.0f} | {r['restored_s']:.1f} | "
                    f"{r['table_mib']:,.0f} |",
                    flush=True,
                )
    Run("flows", arguments(chosen), rows).keep(chosen.results)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--flows", type=int, nargs="+", default=SIZES)
    parser.add_argument("--commands", type=int, default=200_000)
    parser.add_argument("--results", type=Path, help="the folder where the figures are kept")
    uvloop.run(main(parser.parse_args()))
