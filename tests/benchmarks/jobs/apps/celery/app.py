"""The job with Celery on Redis: `app.py work`, or `app.py enqueue FIRST COUNT RATE WORK_S`.

As Celery's documentation has it for jobs that must not be lost: `acks_late`, also where the worker
is lost, and a visibility timeout, after which a job that was not acknowledged comes back.
"""

import os
import sys
import time
from pathlib import Path

from celery import Celery

sys.path.append(str(Path(__file__).parents[1]))
import effect

URL = os.environ["JOBS_URL"]
app = Celery("jobs", broker=URL, backend=URL)
app.conf.update(
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    broker_transport_options={"visibility_timeout": int(os.environ["JOBS_LEASE_S"])},
    broker_connection_retry_on_startup=True,
    worker_hijack_root_logger=False,
)


@app.task(name="classify")
def classify(number: int, work_s: float) -> str:
    effect.begins(number)
    time.sleep(work_s)
    effect.ends(number)
    return "invoice"


if __name__ == "__main__":
    if sys.argv[1] == "work":
        slots = os.environ["JOBS_SLOTS"]
        options = ("-c", slots, "-l", "ERROR", "--without-gossip", "--without-mingle")
        app.worker_main(["worker", *options, "-n", f"{os.getpid()}@jobs"])
    else:
        first, count, rate_per_s = map(int, sys.argv[2:5])
        due = effect.Due(count, rate_per_s)
        for number in due:
            classify.delay(first + number, float(sys.argv[5]))
        print(due.began_s)
