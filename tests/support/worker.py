"""A real worker beside the test, on the test's own loop."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from processor.adapters.kafka.admin.topic_admin import create_topics
from processor.settings import Settings
from processor.worker.composition import run_worker


@asynccontextmanager
async def running_worker(settings: Settings) -> AsyncIterator[None]:
    """Topics and a worker that is ready; it is stopped, and its errors raised, at the end."""
    await create_topics(settings)
    stop, ready = asyncio.Event(), asyncio.Event()
    worker = asyncio.create_task(run_worker(settings, stop=stop, ready=ready))
    becoming_ready = asyncio.create_task(ready.wait())
    try:
        await asyncio.wait([worker, becoming_ready], return_when=asyncio.FIRST_COMPLETED)
        if worker.done():
            worker.result()
        yield
    finally:
        becoming_ready.cancel()
        stop.set()
        await worker
