"""Kafka in memory whose time stands still, and what a test does to it and sees of it."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import orjson

from processor.contract.topics import Topics
from processor.testing.memory.kafka import MemoryKafka, Transaction, TxnState
from tests.support.machine import patience

PATIENCE_S = patience(20.0)
"""How long a test waits for what must happen; only a failing one waits that long."""


class ScriptedKafka(MemoryKafka):
    """All topics of one prefix. Time stands still unless `later` moves it."""

    def __init__(self, topics: Topics, partitions: int = 1) -> None:
        super().__init__(topics, partitions)
        self._lost: dict[str, list[Transaction]] = {}
        self._changed = asyncio.Event()

    def later(self, ms: int) -> None:
        self.now_ms += ms

    # What happens, and waiting for it

    def notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def until(self, holds: Callable[[], object]) -> None:
        """Wait until `holds()`; it is asked after each change."""
        async with asyncio.timeout(PATIENCE_S):
            while not holds():
                await self._changed.wait()

    def watch(self, ats: Iterable[tuple[str, int]]) -> Awaitable[None]:
        """Return what is done at the next append or marker, at the latest on one of `ats`."""
        return self._next_change()

    async def _next_change(self) -> None:
        async with asyncio.timeout(PATIENCE_S):
            await self._changed.wait()

    # Writing

    def send(
        self, *commands: dict[str, Any], topic: str = "commands", partition: int = 0
    ) -> list[int]:
        """Append commands at the present time; return their offsets."""
        name = f"{self.topics.prefix}.{topic}"
        return [
            self.append(name, partition, one["flow_id"].encode(), orjson.dumps(one))
            for one in commands
        ]

    def append_command(self, body: dict[str, Any], transaction: Transaction) -> None:
        """A command in a transaction of its producer's, on partition 0."""
        key, value = body["flow_id"].encode(), orjson.dumps(body)
        self.append(self.topics.commands, 0, key, value, (), transaction)

    def begin(self) -> Transaction:
        """Begin a transaction of a foreign producer."""
        return Transaction()

    # A transactional id

    def lose_markers(self, transactional_id: str) -> Transaction:
        """Make the coordinator take the open transaction for ended, without writing its markers: no
        fence ends it any more (KIP-664)."""
        lost = self._open.pop(transactional_id)
        self._lost.setdefault(transactional_id, []).append(lost)
        return lost

    def abort_for(self, transactional_id: str, epoch: int) -> None:
        super().abort_for(transactional_id, epoch)
        for lost in self._lost.pop(transactional_id, []):
            self._end(lost, TxnState.ABORTED)

    def end_late(self, transactional_id: str) -> None:
        """The request to commit has arrived; it takes effect when the next one fences."""
        self._open[transactional_id].ends_late = True

    # Retention

    def compact(self, topic: str, partition: int = 0) -> None:
        """As the cleaner leaves it once `delete.retention.ms` is over: no tombstones."""
        newest: set[bytes | None] = set()
        for entry in reversed(self.log(topic, partition).entries):
            if entry.record is not None and entry.readable:
                old = entry.record.key in newest or entry.record.value is None
                newest.add(entry.record.key)
                entry.compacted = old

    def expire(self, topic: str, before: int, partition: int = 0) -> None:
        """Retention removes the offsets before `before`."""
        self.log(topic, partition).start = before
        self.notify()

    # Looking at it

    def read(self, topic: str, partition: int = 0) -> list[Any]:
        """The committed values, as JSON; None for a tombstone."""
        log = self.log(topic, partition)
        return [r.value and orjson.loads(r.value) for r in log.committed(0, log.end)]

    @property
    def outcomes(self) -> list[Any]:
        return self.read(self.topics.outcomes)

    @property
    def events(self) -> list[Any]:
        return self.read(self.topics.audit)

    @property
    def decided(self) -> bool:
        """Whether each visible command of partition 0 has an outcome."""
        commands = sum(len(self.read(t)) for t in (self.topics.commands, self.topics.control))
        return len(self.outcomes) >= commands
