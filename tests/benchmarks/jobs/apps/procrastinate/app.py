"""The job with procrastinate on PostgreSQL: `app.py schema`, `work`, or `enqueue FIRST COUNT RATE
WORK_S`.

As procrastinate's documentation has it for workers that die: a periodic task looks for stalled
jobs, whose worker's heartbeat is missing, and retries them.
"""

import asyncio
import os
import sys
from pathlib import Path

from procrastinate import App, PsycopgConnector

sys.path.append(str(Path(__file__).parents[1]))
import effect

LEASE_S = int(os.environ["JOBS_LEASE_S"])
app = App(connector=PsycopgConnector(conninfo=os.environ["JOBS_URL"]))


@app.task(name="classify")
async def classify(number: int, work_s: float) -> str:
    effect.begins(number)
    await asyncio.sleep(work_s)
    effect.ends(number)
    return "invoice"


@app.periodic(cron="* * * * * */1")
@app.task(name="retry_stalled_jobs", queueing_lock="retry_stalled_jobs")
async def retry_stalled_jobs(timestamp: int) -> None:
    stalled = await app.job_manager.get_stalled_jobs(seconds_since_heartbeat=LEASE_S)
    for one in stalled:
        await app.job_manager.retry_job(one)


async def main() -> None:
    async with app.open_async():
        if sys.argv[1] == "schema":
            await app.schema_manager.apply_schema_async()
        elif sys.argv[1] == "work":
            await app.run_worker_async(
                concurrency=int(os.environ["JOBS_SLOTS"]),
                update_heartbeat_interval=LEASE_S / 5,
                stalled_worker_timeout=LEASE_S,
            )
        else:
            first, count, rate_per_s = map(int, sys.argv[2:5])
            work_s = float(sys.argv[5])
            due = effect.Due(count, rate_per_s)
            if rate_per_s:
                for number in due:
                    await classify.defer_async(number=first + number, work_s=work_s)
            else:
                jobs = [{"number": first + number, "work_s": work_s} for number in due]
                for start in range(0, count, 1_000):
                    await classify.batch_defer_async(*jobs[start : start + 1_000])
            print(due.began_s)


asyncio.run(main())
