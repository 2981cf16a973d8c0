"""A real worker in a process of its own, and what it costs."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil

from processor.adapters.kafka.admin import create_topics
from processor.settings import Settings


@asynccontextmanager
async def running_worker(settings: Settings, state_dir: Path) -> AsyncIterator[psutil.Process]:
    """`taskflow worker` on the topics of `settings`, which are made; ended in good order."""
    await create_topics(settings)
    environ = {
        **os.environ,
        "TASKFLOW_BOOTSTRAP_SERVERS": settings.bootstrap_servers,
        "TASKFLOW_TOPIC_PREFIX": settings.topic_prefix,
        "TASKFLOW_PARTITIONS": str(settings.partitions),
        "TASKFLOW_STATE_DIR": str(state_dir),
        "TASKFLOW_HTTP": "off",
        "TASKFLOW_LOG_LEVEL": "warning",
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "processor", "worker", env=environ
    )
    try:
        yield psutil.Process(process.pid)
    finally:
        process.terminate()
        await process.wait()


def cpu_s(*processes: psutil.Process) -> float:
    """User and system time of `processes` so far."""
    return sum(sum(process.cpu_times()[:2]) for process in processes)
