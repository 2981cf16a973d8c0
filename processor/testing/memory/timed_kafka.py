"""Kafka in memory on a loop's clock."""

import asyncio
from collections.abc import Callable, Iterable

from processor.contract.headers import Headers
from processor.contract.topics import Topics
from processor.testing.memory.kafka import MemoryKafka, Transaction

At = tuple[str, int]
"""A topic's partition."""


class TimedKafka(MemoryKafka):
    """`clock` gives seconds; the broker's clock runs with it, from NOON on, unless it is set."""

    def __init__(self, topics: Topics, partitions: int, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._base_ms = 0
        super().__init__(topics, partitions)
        self._waiters: dict[At, list[asyncio.Future[None]]] = {}

    @property
    def now_ms(self) -> int:
        return self._base_ms + int(self._clock() * 1000)

    @now_ms.setter
    def now_ms(self, at_ms: int) -> None:
        self._base_ms = at_ms - int(self._clock() * 1000)

    # Waiting for what happens

    def notify(self) -> None:
        """Do nothing: `append` and `mark` wake the watchers of their partition."""

    def watch(self, ats: Iterable[At]) -> asyncio.Future[None]:
        """Return a future that is done at the next append or marker on one of these partitions."""
        future = asyncio.get_running_loop().create_future()
        for at in ats:
            self._waiters.setdefault(at, []).append(future)
        return future

    def _wake(self, at: At) -> None:
        waiters = self._waiters.pop(at, None)
        for waiter in waiters or ():
            wake(waiter)

    def append(
        self,
        topic: str,
        partition: int,
        key: bytes | None,
        value: bytes | None,
        headers: Headers = (),
        transaction: Transaction | None = None,
    ) -> int:
        offset = super().append(topic, partition, key, value, headers, transaction)
        self._wake((topic, partition))
        return offset

    def mark(self, transaction: Transaction, at: At) -> None:
        super().mark(transaction, at)
        self._wake(at)


def wake(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)
