"""From send to outcome, as a producer sees it, at 1,000 commands a second through FlowClient."""

import asyncio
import time
from pathlib import Path
from uuid import uuid4

from processor.client import FlowClient
from processor.settings import Settings
from tests.benchmarks.running import running_worker

RATE_PER_S = 1_000
FLOWS = 500
WARM_UP_S = 20
TICK_S = 0.005


async def measure(home: Path, bootstrap: str, *, seconds: int = 30) -> dict[str, float]:
    """Percentiles in milliseconds over `seconds`, after a warm-up that is not counted: the broker's
    JVM takes a while to compile what it does all the time."""
    settings = Settings(bootstrap_servers=bootstrap, topic_prefix="latency")
    async with running_worker(settings, home / "latency"), FlowClient(settings) as client:
        flows = [str(uuid4()) for _ in range(FLOWS)]
        common = {"issued_by": "agent:bench:session:1"}
        create = {
            "kind": "create_mirrored",
            "controller_id": "bench/inbox",
            "goal": "triage the inbox",
            "requester_origin": "user-1",
        }
        await asyncio.gather(*(client.send(common | create | {"flow_id": f}) for f in flows))
        took_ms: list[float] = []

        async def one(number: int) -> None:
            began = time.perf_counter()
            outcome = await client.send(
                common
                | {
                    "kind": "update_state",
                    "flow_id": flows[number % FLOWS],
                    "patch": {"processed": number},
                }
            )
            assert outcome.code is None, outcome
            if number >= WARM_UP_S * RATE_PER_S:
                took_ms.append((time.perf_counter() - began) * 1000)

        began, sent = time.perf_counter(), 0
        async with asyncio.TaskGroup() as group:
            while sent < (seconds + WARM_UP_S) * RATE_PER_S:
                due = int((time.perf_counter() - began) * RATE_PER_S)
                while sent < due:
                    group.create_task(one(sent))
                    sent += 1
                await asyncio.sleep(TICK_S)
        took_ms.sort()
        return {
            f"p{p}": took_ms[min(len(took_ms) - 1, len(took_ms) * p // 100)] for p in (50, 95, 99)
        } | {"max": took_ms[-1]}
