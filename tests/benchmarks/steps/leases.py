"""What leases cost that last: a worker at rest beside a million of them.

Flows with steps that executors hold for a day are written to `state` as they stand there, with a
cursor that says that nothing was decided yet; a worker with an empty disk fills its tables from it.
At rest that is the same as after a million starts.
"""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import orjson

from processor.adapters.kafka.admin.topic_admin import create_topics
from processor.contract.topics import Topics
from processor.contract.values import DAY_MS, instant
from processor.domain.decide_steps import step_id
from processor.settings import Settings
from tests.benchmarks.many_flows import end_with_cursors, send, snapshots
from tests.benchmarks.running import memory_bytes
from tests.benchmarks.steps.work import HOLDER, TASK
from tests.benchmarks.timers import IDLE_S, PARTITIONS, watched_worker

PER_FLOW: Final = 100

Sent = tuple[bytes, bytes]
"""Key, value."""


def held(count: int) -> Iterator[Sent]:
    """What `state` holds of flows with `count` running steps."""
    for key, value in snapshots(count // PER_FLOW):
        yield key, value
        for number in range(PER_FLOW):
            yield step_snapshot(key.decode(), f"run-{number}")


def step_snapshot(flow_id: str, run_id: str) -> Sent:
    """A step that was started now, for a day."""
    now_ms = time.time_ns() // 1_000_000
    at = instant(now_ms)
    step = {
        "id": step_id(flow_id, run_id),
        "flow_id": flow_id,
        "runtime": "managed",
        "child_session_key": HOLDER,
        "run_id": run_id,
        "task": TASK,
        "status": "running",
        "result_json": None,
        "created_at": at,
        "updated_at": at,
        "input_json": {"mail": 1, "subject": "please pay"},
        "execution": {
            "attempt": 1,
            "max_attempts": 3,
            "lease_ms": DAY_MS,
            "backoff_ms": 1_000,
            "offers": 0,
            "due_at": instant(now_ms + DAY_MS),
            "timeout_at": None,
            "progress": None,
            "last_failure": None,
        },
    }
    return f"{flow_id}/{run_id}".encode(), b'{"step":%b}' % orjson.dumps(step)


async def measure(home: Path, bootstrap: str, count: int, *, prefix: str) -> dict[str, float]:
    """Seconds to fill the tables, their size, and what `count` leases cost at rest."""
    settings = Settings(bootstrap_servers=bootstrap, topic_prefix=prefix, partitions=PARTITIONS)
    await create_topics(settings)
    state = Topics(prefix).state
    send(bootstrap, state, held(count))
    end_with_cursors(bootstrap, state)
    async with watched_worker(settings, home / prefix) as worker:
        restored_s, _ = await worker.taken_over()
        await worker.until(count, "taskflow_steps_running")
        table_bytes = await worker.says("taskflow_table_bytes")
        await worker.until_idle()
        busy = await worker.busy(IDLE_S)
        return {
            "leases": count,
            "restored_s": restored_s,
            "table_mib": table_bytes / 2**20,
            "idle_percent": 100 * busy,
            "mib": memory_bytes(worker.process) / 2**20,
        }
