"""TaskflowBroker: an embedded Kafka with its topics and a worker, in a thread of its own."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from processor.adapters.kafka.admin.topic_admin import create_topics
from processor.embedded.broker import embedded_broker
from processor.runtime import end_tasks
from processor.settings import Settings, load_settings
from processor.worker.composition import run_worker


@dataclass(frozen=True, slots=True)
class TaskflowBroker:
    """A running deployment; `settings` are those for its clients."""

    settings: Settings


@contextmanager
def running_broker() -> Iterator[TaskflowBroker]:
    """Run a broker and a worker while the block lasts.

    They have a loop of their own, since each test may have another one.
    """
    context = _deployment()
    with ThreadPoolExecutor(max_workers=1) as thread, asyncio.Runner() as runner:
        broker = thread.submit(runner.run, context.__aenter__()).result()
        stop = asyncio.Event()
        serving = thread.submit(runner.run, stop.wait())
        try:
            yield broker
        finally:
            runner.get_loop().call_soon_threadsafe(stop.set)
            serving.result()
            thread.submit(runner.run, context.__aexit__(None, None, None)).result()
            thread.submit(runner.close).result()


@asynccontextmanager
async def _deployment() -> AsyncIterator[TaskflowBroker]:
    with TemporaryDirectory(prefix="taskflow-testing-") as folder:
        async with embedded_broker() as broker:
            settings = load_settings().model_copy(
                update={
                    "bootstrap_servers": broker.bootstrap,
                    "state_dir": Path(folder),
                    "http": None,
                }
            )
            await create_topics(settings)
            stop, ready = asyncio.Event(), asyncio.Event()
            worker = asyncio.create_task(run_worker(settings, stop=stop, ready=ready))
            starting = asyncio.create_task(ready.wait())
            try:
                await asyncio.wait((worker, starting), return_when=asyncio.FIRST_COMPLETED)
                if worker.done():
                    worker.result()
                yield TaskflowBroker(settings)
            finally:
                await end_tasks(starting)
                stop.set()
                await worker
