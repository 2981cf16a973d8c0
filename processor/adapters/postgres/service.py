"""DatabaseService: a service between Kafka and a database that reconnects to both."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine
from typing import Any, Final, Protocol

import structlog

from processor.adapters.kafka.errors import BrokerUnreachable
from processor.adapters.postgres.errors import DatabaseUnavailable
from processor.runtime import backoff_s, sleep_unless, unless_stopped

log = structlog.get_logger()

BACKOFF_MIN_S: Final = 0.5
BACKOFF_MAX_S: Final = 10.0


class Lock(Protocol):
    """A lock against other processes; see `connection.lock`."""

    def __call__(self, *, wait: bool) -> Coroutine[Any, Any, bool]: ...


class DatabaseService(ABC):
    """Connects, works, and reconnects after database or brokers were away. One service at a time
    works; others stand by."""

    def __init__(self, name: str, lost: Callable[[], object]) -> None:
        """`name`: of the service, for people. `lost` is called each time that database or brokers
        are lost."""
        self._name = name
        self._lost = lost
        self._connected_once = False
        self._failures = 0
        self.state = "connecting"
        """Its present activity, for people."""
        self.failing: str | None = None
        """Why it cannot work; None if it can."""

    async def run(self, stop: asyncio.Event) -> None:
        """Work until `stop` is set, also after database or brokers were away.

        Raises DatabaseUnavailable and BrokerUnreachable if they do not respond at the start, and
        DatabaseRefused, TopicsWrong, AccessDenied.
        """
        while not stop.is_set():
            try:
                await self._work_while_connected(stop)
                return
            except (DatabaseUnavailable, BrokerUnreachable) as error:
                if not self._connected_once:
                    raise
                self.failing, self.state = str(error), "connecting"
                self._lost()
                log.warning("database or brokers were lost; connecting again", error=str(error))
            pause_s = backoff_s(self._failures, BACKOFF_MIN_S, BACKOFF_MAX_S)
            self._failures += 1
            await sleep_unless(stop, pause_s)

    @abstractmethod
    async def _work_while_connected(self, stop: asyncio.Event) -> None:
        """Work until `stop` is set, or the database or the brokers are lost."""

    async def _alone(self, lock: Lock, stop: asyncio.Event) -> bool:
        """Wait until no other process holds `lock`; False if `stop` is set first. From now on `run`
        reconnects after a loss."""
        self._connected_once = True
        if not await lock(wait=False):
            self.state, self.failing = f"waiting for another {self._name}", None
            log.info("another one works on this schema; this one waits")
            return bool(await unless_stopped(lock(wait=True), stop))
        return True

    def _progressed(self) -> None:
        """Reset the back-off: database and brokers work."""
        self._failures = 0
