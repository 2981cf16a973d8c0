"""Keeps the embedded broker running: its process may be killed, or run out of memory or disk."""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

from processor.embedded.broker import EmbeddedBroker
from processor.embedded.errors import BrokerDidNotStart, BrokerKeepsEnding, PortTaken
from processor.runtime import end_tasks

SOUND_AFTER_S: Final = 2.0
"""A run that answered for so long was sound: the next end is a new one."""
WITHIN_S: Final = 60.0
GIVE_UP_AT: Final = 3
"""At so many ends within WITHIN_S, none of them after a sound run, it is not started again."""
PAUSE_MIN_S: Final = 0.5
PAUSE_MAX_S: Final = 30.0
POLL_S: Final = 0.1


@asynccontextmanager
async def kept_running(
    broker: EmbeddedBroker,
    stop: asyncio.Event,
    notify: Callable[[str], None],
    *,
    give_up_at: int = GIVE_UP_AT,
) -> AsyncIterator[None]:
    """Until the block ends, start `broker` again whenever its process has ended.

    `notify` gets a sentence each time. At the end number `give_up_at` within WITHIN_S, none of
    them after a sound run, `stop` is set, and BrokerKeepsEnding is raised when the block ends.
    """
    keeping = asyncio.create_task(keep_running(broker, notify, give_up_at), name="broker keeper")
    keeping.add_done_callback(lambda _: stop.set())
    try:
        yield
    finally:
        await end_tasks(keeping)
    if not keeping.cancelled():
        keeping.result()


async def keep_running(
    broker: EmbeddedBroker, notify: Callable[[str], None], give_up_at: int
) -> None:
    """Start `broker` again whenever its process has ended, until cancelled.

    Raises BrokerKeepsEnding.
    """
    ends: deque[float] = deque()
    pause_s = PAUSE_MIN_S
    while True:
        responded_at = time.monotonic()
        while broker.running:  # noqa: ASYNC110 (the end of a process is polled)
            await asyncio.sleep(POLL_S)
        why, last_words = f"Apache Kafka {broker.how_it_ended}", broker.last_words()
        if time.monotonic() - responded_at >= SOUND_AFTER_S:
            ends.clear()
            pause_s = PAUSE_MIN_S
        while True:
            now = time.monotonic()
            ends.append(now)
            while ends[0] < now - WITHIN_S:
                ends.popleft()
            if len(ends) >= give_up_at:
                times = f" It ended {len(ends)} times within {WITHIN_S:.0f} s." * (len(ends) > 1)
                raise BrokerKeepsEnding(
                    f"{why} and is not started again.{times} "
                    f"The last lines of {broker.log}:\n{last_words}"
                )
            notify(f"{why}; it is started again in {pause_s:g} s. Its log: {broker.log}")
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, PAUSE_MAX_S)
            try:
                await broker.restart()
            except (BrokerDidNotStart, PortTaken) as error:
                reason, _, last_words = str(error).partition("\n")
                why = reason.partition(";")[0]
            else:
                break
        notify(f"Apache Kafka answers again at {broker.bootstrap}.")
