"""A member of the consumer group, and what it sees of the topics."""

import asyncio
from collections.abc import Iterable
from typing import Any, Final

from processor.engine.ports import Fetched, HiddenRecords
from processor.engine.rows import Position
from processor.errors import OwnershipLost
from processor.testing.memory.timed_kafka import At, TimedKafka, wake

COMMIT_EVERY_S: Final = 1.0


class MemoryMember:
    """The port GroupConsumer, of a member whose partitions stay with it."""

    def __init__(self, kafka: TimedKafka) -> None:
        self.generation = 0
        self._kafka = kafka
        self._assigned: frozenset[int] = frozenset()
        self._changed = asyncio.Event()
        self._next: dict[At, int] = {}
        self._stable: dict[At, int] = {}
        self._waiting: dict[int, asyncio.Future[None]] = {}
        self._committed_s: dict[int, float] = {}

    @property
    def belongs(self) -> bool:
        """Whether the group has it among its members now."""
        return True

    def assign(self, partitions: frozenset[int]) -> None:
        """Take an assignment, in place of any other."""
        self._next.clear()
        self._stable.clear()
        self.generation += 1
        self._assigned = partitions
        self._changed.set()

    # The port

    async def assigned(self, partition: int) -> int:
        while partition not in self._assigned:
            self._changed.clear()
            await self._changed.wait()
        return self.generation

    async def confirm(self, partition: int, position: Position) -> None:
        if partition not in self._assigned or not self.belongs:
            raise OwnershipLost(f"partition {partition} may belong to another by now")
        self._commit_decided(partition, position)

    def attach(self, partition: int, position: Position) -> None:
        if partition not in self._assigned:
            raise OwnershipLost(f"partition {partition} is not assigned any more")
        for topic, offset in zip(self._topics(), position, strict=False):
            self._next[topic, partition] = offset

    def decided(self, partition: int, position: Position) -> None:
        now_s = asyncio.get_running_loop().time()
        if now_s - self._committed_s.get(partition, -COMMIT_EVERY_S) >= COMMIT_EVERY_S:
            self._committed_s[partition] = now_s
            if self.belongs:
                self._commit_decided(partition, position)

    def _commit_decided(self, partition: int, position: Position) -> None:
        for topic, offset in zip(self._topics(), position, strict=False):
            self._kafka.group_offsets[topic, partition] = offset

    async def fetch(self, partition: int, *, max_records: int, timeout_s: float) -> Fetched:
        loop = asyncio.get_running_loop()
        ends_s = loop.time() + timeout_s
        generation = self.generation
        fetched = self._drain(partition, max_records)
        while not (fetched.commands or fetched.control):
            left_s = ends_s - loop.time()
            if left_s <= 0 or generation != self.generation:
                return fetched
            waiting = self._kafka.watch((topic, partition) for topic in self._topics())
            self._waiting[partition] = waiting
            timer = loop.call_later(left_s, wake, waiting)
            try:
                await waiting
            finally:
                timer.cancel()
            await self._looks_again()
            fetched = self._drain(partition, max_records)
        return fetched

    async def _looks_again(self) -> None:
        """Called when something has come, before it is fetched."""

    def _drain(self, partition: int, max_records: int) -> Fetched:
        taken: list[list[Any]] = []
        for topic in self._topics():
            at = (topic, partition)
            start = self._next.get(at)
            if start is None:
                taken.append([])
                continue
            log = self._kafka.log(*at)
            stable = self._stable[at] = log.stable_end
            some = list(log.committed(start, stable)) if stable > start else []
            if len(some) <= max_records:
                self._next[at] = max(start, stable)
            elif max_records:
                self._next[at] = some[max_records].offset
            some = some[:max_records]
            max_records -= len(some)
            taken.append(some)
        return Fetched(*taken)

    async def commands_end(self, partition: int) -> int:
        return self._kafka.log(self._kafka.topics.commands, partition).end

    def ahead(self, partition: int) -> Position | None:
        commands, control = (self._next.get((topic, partition)) for topic in self._topics())
        return None if commands is None or control is None else Position(commands, control, 0)

    def lags(self, partition: int) -> tuple[int | None, int | None]:
        commands, control = (
            self._stable[topic, partition] - self._next[topic, partition]
            if (topic, partition) in self._stable
            else None
            for topic in self._topics()
        )
        return commands, control

    def hidden(self, partition: int) -> list[HiddenRecords]:
        return []

    async def undone(self, partitions: Iterable[int]) -> set[int]:
        return set()

    def _topics(self) -> tuple[str, str]:
        return self._kafka.topics.commands, self._kafka.topics.control
