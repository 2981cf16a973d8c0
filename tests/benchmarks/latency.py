"""From send to outcome, as a producer sees it, at a steady rate through FlowClient.

A command counts from when it was due, not from when it could be sent: what a stall holds up is
late, too, and not left out of the count.
"""

import asyncio
import gc
import time
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

from processor.client import FlowClient
from processor.runtime import GC_THRESHOLDS
from processor.settings import Settings
from tests.benchmarks.running import percentile, running_worker

RATE_PER_S = 1_000
FLOWS = 500
WARM_UP_S = 20
TICK_S = 0.001
COMMON = {"issued_by": "agent:bench:session:1"}


class Took(NamedTuple):
    """A command: when it was due, by our clock, and how long after that its outcome came."""

    sent_s: float
    ms: float


async def created(client: FlowClient) -> list[str]:
    """The ids of FLOWS running flows."""
    flows = [str(uuid4()) for _ in range(FLOWS)]
    create = COMMON | {
        "kind": "create_mirrored",
        "controller_id": "bench/inbox",
        "goal": "triage the inbox",
        "requester_origin": "user-1",
    }
    await asyncio.gather(*(client.send(create | {"flow_id": flow}) for flow in flows))
    return flows


async def steadily(
    client: FlowClient, flows: list[str], *, rate_per_s: int, done: asyncio.Event
) -> list[Took]:
    """Update `flows` in turn until `done`, `rate_per_s` times whatever the outcomes take."""
    took: list[Took] = []

    async def one(number: int) -> None:
        due_s = began_s + (number + 1) / rate_per_s
        outcome = await client.send(
            COMMON
            | {
                "kind": "update_state",
                "flow_id": flows[number % len(flows)],
                "patch": {"processed": number},
            }
        )
        assert outcome.code is None, outcome
        took.append(Took(due_s + clock_s, (time.perf_counter() - due_s) * 1000))

    began_s, sent = time.perf_counter(), 0
    clock_s = time.time() - began_s
    async with asyncio.TaskGroup() as group:
        while not done.is_set():
            due = int((time.perf_counter() - began_s) * rate_per_s)
            while sent < due:
                group.create_task(one(sent))
                sent += 1
            await asyncio.sleep(TICK_S)
    return took


async def measure(
    home: Path, settings: Settings, *, seconds: int = 30, rate_per_s: int = RATE_PER_S
) -> dict[str, float]:
    """Percentiles in milliseconds over `seconds`, after a warm-up that is not counted: the broker's
    JVM takes a while to compile what it does all the time. Our own collector is kept from looking
    at each command again and again, as the worker's is: its pauses would count as latency."""
    gc.set_threshold(*GC_THRESHOLDS)
    state_dir = home / settings.topic_prefix
    async with running_worker(settings, state_dir), FlowClient(settings) as client:
        flows = await created(client)
        done = asyncio.Event()
        asyncio.get_running_loop().call_later(WARM_UP_S + seconds, done.set)
        warm_s = time.time() + WARM_UP_S
        took = await steadily(client, flows, rate_per_s=rate_per_s, done=done)
    counted = [one.ms for one in took if one.sent_s >= warm_s]
    return {f"p{p}": percentile(counted, p) for p in (50, 95, 99, 99.9)} | {"max": max(counted)}
