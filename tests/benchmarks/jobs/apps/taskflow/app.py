"""The job with a StepWorker: `app.py work`, or `app.py enqueue FIRST COUNT RATE WORK_S`."""

import asyncio
import os
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

from processor.client import FlowClient, Step, StepWorker

sys.path.append(str(Path(__file__).parents[1]))
import effect

LEASE = timedelta(seconds=int(os.environ["JOBS_LEASE_S"]))
PER_FLOW = 100


async def classify(step: Step) -> str:
    effect.begins(step.input["number"])
    await asyncio.sleep(step.input["work_s"])
    effect.ends(step.input["number"])
    return "invoice"


async def work() -> None:
    slots = int(os.environ["JOBS_SLOTS"])
    async with StepWorker({"classify": classify}, group="jobs", concurrency=slots) as worker:
        await worker.run()


async def enqueue(first: int, count: int, rate_per_s: int, work_s: float) -> None:
    async with FlowClient(session="jobs") as client:
        flows = [await client.create("jobs") for _ in range(0, count, PER_FLOW)]
        sending: set[asyncio.Task[Any]] = set()
        due = effect.Due(count, 0)
        for number in due:
            if rate_per_s:
                left_s = due.began_s + number / rate_per_s - effect.time.time()
                await asyncio.sleep(max(0.0, left_s))
            flow = flows[number // PER_FLOW]
            about = {"number": first + number, "work_s": work_s}
            sending.add(
                asyncio.create_task(
                    flow.schedule(
                        f"job-{first + number}",
                        "classify",
                        about,
                        lease=LEASE,
                        backoff=timedelta(0),
                        max_attempts=100,
                    )
                )
            )
            if len(sending) >= 500:
                _, sending = await asyncio.wait(sending, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.gather(*sending)
    print(due.began_s)


if __name__ == "__main__":
    if sys.argv[1] == "work":
        asyncio.run(work())
    else:
        asyncio.run(enqueue(*map(int, sys.argv[2:5]), float(sys.argv[5])))
