"""Stop aiokafka's clients under a deadline, however they fail.

Without a broker a producer waits for what is unsent, without a limit; a consumer in the middle of
a retry raises CancelledError out of `stop()` and leaves its client running (aiokafka 0.14).
"""

import asyncio
from typing import Any, Final

import structlog
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

from processor.adapters.kafka.internals import cancel_sender, client_of, fail_unsent

log = structlog.get_logger()

CLOSE_TIMEOUT_S: Final = 1.0

# Consumers on their way out; asyncio keeps only weak references to tasks.
_stopping: set[asyncio.Task[None]] = set()


async def stop_consumer(consumer: AIOKafkaConsumer, *, timeout_s: float) -> None:
    """Leave the group, if in one, and let go of all connections; as `stop_consumers`."""
    await stop_consumers(consumer, timeout_s=timeout_s)


async def stop_consumers(*consumers: AIOKafkaConsumer, timeout_s: float) -> None:
    """Stop all at the same time. Raises nothing but a cancellation, which ends the waiting alone:
    who is cancelled again while one is stopped must not leave the others open."""
    tasks = [asyncio.ensure_future(_stop(consumer, timeout_s)) for consumer in consumers]
    _stopping.update(tasks)
    for task in tasks:
        task.add_done_callback(_stopping.discard)
    if tasks:
        await asyncio.wait(tasks)


async def _stop(consumer: AIOKafkaConsumer, timeout_s: float) -> None:
    await _within(consumer.stop(), timeout_s)
    await _within(client_of(consumer).close(), CLOSE_TIMEOUT_S)


async def stop_producer(producer: AIOKafkaProducer, *, timeout_s: float) -> None:
    """Send what is unsent, as far as `timeout_s` allows, and let go; never raises."""
    stopping = asyncio.ensure_future(producer.stop())
    if not await _ends(stopping, timeout_s):
        fail_unsent(producer)
        if not await _ends(stopping, CLOSE_TIMEOUT_S):
            _let_go(stopping)
            cancel_sender(producer)
    await _within(producer.client.close(), CLOSE_TIMEOUT_S)


async def _within(work: Any, timeout_s: float) -> None:
    """Wait for `work` in a task of its own, so that its cancellation is not ours."""
    task = asyncio.ensure_future(work)
    if not await _ends(task, timeout_s):
        _let_go(task)


def _let_go(task: "asyncio.Future[Any]") -> None:
    """Cancel `task` without waiting for its end, which may never come."""
    task.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
    task.cancel()


async def _ends(task: "asyncio.Future[Any]", timeout_s: float) -> bool:
    """Whether `task` ended by itself within `timeout_s`, however it did."""
    done, _ = await asyncio.wait([task], timeout=timeout_s)
    if done and not task.cancelled() and (error := task.exception()) is not None:
        log.debug("a client did not stop in good order", error=repr(error))
    return bool(done)
