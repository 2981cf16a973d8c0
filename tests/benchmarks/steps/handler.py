"""From when a step was due to be scheduled to the first line of its handler, in a StepWorker.

The StepWorker is a process of its own; the load is one in C. A step counts from when it was due,
not from when it was sent. Both clocks are the machine's.
"""

import asyncio
import gc
import os
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from confluent_kafka import Producer

from processor.adapters.kafka.admin.topic_admin import create_topics
from processor.client import Step, StepWorker
from processor.contract.topics import Topics
from processor.settings import Settings
from tests.benchmarks.paced import WARM_UP_S, pace
from tests.benchmarks.running import percentile, publish, running_worker
from tests.benchmarks.steps.hops import SHARES as HOP_SHARES
from tests.benchmarks.steps.hops import hops
from tests.benchmarks.steps.work import PER_FLOW, TASK, Work

PARTITIONS: Final = 4
AT_FIRST: Final = 2_000
"""Steps as fast as they go: all have joined, and the broker has compiled what it runs."""
JOIN_S: Final = 60.0
LATE_S: Final = 20.0
SHARES: Final = (50, 95, 99)


async def work() -> None:
    """A StepWorker whose handler writes the step's number and the time of its first line."""
    lines = os.fdopen(1, "w", buffering=1, closefd=False)

    async def handle(step: Step) -> None:
        lines.write(f"{step.run_id.removeprefix('run-')} {time.time()}\n")

    async with StepWorker({TASK: handle}, group="bench-handlers", concurrency=64) as worker:
        await worker.run()


def result(due_s: Sequence[float], began_s: Sequence[float]) -> dict[str, float]:
    """Milliseconds to the first line of each handler; one that never began (0) is told."""
    pairs = list(zip(due_s, began_s, strict=True))
    ms = [(began - due) * 1000 for due, began in pairs if began]
    return {
        "steps": len(pairs),
        "not_begun": len(pairs) - len(ms),
        **{f"p{share}": percentile(ms, share) for share in SHARES},
        "max": max(ms, default=float("nan")),
    }


async def measure(
    home: Path, bootstrap: str, *, rate_per_s: int, seconds: int, prefix: str
) -> dict[str, float]:
    settings = Settings(bootstrap_servers=bootstrap, topic_prefix=prefix, partitions=PARTITIONS)
    await create_topics(settings)
    paced = rate_per_s * (WARM_UP_S + seconds)
    steps = Work((AT_FIRST + paced) // PER_FLOW + 1, PARTITIONS)
    flows = [steps.create(flow) for flow in range((AT_FIRST + paced) // PER_FLOW + 1)]
    await publish(settings, ((one.partition, one.key.decode(), one.value) for one in flows))
    began_s = [0.0] * (AT_FIRST + paced)
    all_began = asyncio.Event()
    async with running_worker(settings, home / prefix):
        executor = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.benchmarks.steps.handler"),
            stdout=asyncio.subprocess.PIPE,
            env={
                **os.environ,
                "TASKFLOW_BOOTSTRAP_SERVERS": bootstrap,
                "TASKFLOW_TOPIC_PREFIX": prefix,
                "TASKFLOW_PARTITIONS": str(PARTITIONS),
            },
        )
        try:
            reading = asyncio.create_task(_read(executor, began_s, all_began))
            due_s = await asyncio.to_thread(_send, settings, steps, began_s, rate_per_s, paced)
            with suppress(TimeoutError):
                async with asyncio.timeout(LATE_S):
                    await all_began.wait()
        finally:
            executor.terminate()
            await executor.wait()
        await reading
        first = AT_FIRST + rate_per_s * WARM_UP_S
        due = dict(enumerate(due_s[first - AT_FIRST :], start=first))
        spans = await asyncio.to_thread(hops, settings, due, began_s)
    return {
        "rate_per_s": rate_per_s,
        **result([*due.values()], began_s[first:]),
        **{
            f"{hop} p{share}": ms
            for hop, of in spans.items()
            for share, ms in zip(HOP_SHARES, of, strict=True)
        },
    }


async def _read(
    executor: asyncio.subprocess.Process, began_s: list[float], all_began: asyncio.Event
) -> None:
    """Take in what the handlers write; a step may be done twice."""
    assert executor.stdout is not None
    begun = 0
    async for line in executor.stdout:
        number, at_s = line.split()
        if not began_s[int(number)]:
            began_s[int(number)] = float(at_s)
            begun += 1
        if begun == len(began_s):
            all_began.set()


def _send(
    settings: Settings, steps: Work, began_s: Sequence[float], rate_per_s: int, count: int
) -> list[float]:
    """When each of the paced steps was due."""
    commands = Topics(settings.topic_prefix).commands
    producer = Producer({"bootstrap.servers": settings.bootstrap_servers, "linger.ms": 1})

    def send(number: int) -> None:
        made = steps.schedule(number)
        producer.produce(commands, made.value, made.key, made.partition)
        producer.poll(0)

    for number in range(AT_FIRST):
        send(number)
    producer.flush()
    deadline_s = time.monotonic() + JOIN_S
    while not all(began_s[:AT_FIRST]):
        assert time.monotonic() < deadline_s, "the first steps were not done"
        time.sleep(0.2)
    gc.collect()
    first_s, _ = pace(count, rate_per_s, lambda n: send(AT_FIRST + n), clock=time.time)
    producer.flush()
    return [first_s + number / rate_per_s for number in range(count)]


if __name__ == "__main__":
    asyncio.run(work())
