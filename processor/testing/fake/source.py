"""FakeSource: the commands of all partitions, for an engine that is never looked in on."""

from collections.abc import Callable
from typing import Final

from processor.engine.ports import Fetched
from processor.testing.memory.group import MemoryMember
from processor.testing.memory.timed_kafka import TimedKafka

NEAR_S: Final = 10.0
"""A partition knows by itself what is due within this time."""
LOOK_S: Final = 1.0


class FakeSource(MemoryMember):
    """The only member of its group, which has all partitions from the start.

    A worker looks at its table twice a second for what comes near. Here a fetch ends when the
    next deadline does, so that a clock that is moved by a month stops where something is due.
    """

    def __init__(self, kafka: TimedKafka, next_due_ms: Callable[[int], int | None]) -> None:
        """`next_due_ms`: of a partition, the earliest deadline in its table."""
        super().__init__(kafka)
        self._next_due_ms = next_due_ms
        self.assign(frozenset(range(kafka.partitions)))

    async def fetch(self, partition: int, *, max_records: int, timeout_s: float) -> Fetched:
        some = await super().fetch(partition, max_records=max_records, timeout_s=0)
        if some.commands or some.control:
            return some
        due_ms = self._next_due_ms(partition)
        if due_ms is not None:
            left_s = (due_ms - self._kafka.now_ms) / 1000
            timeout_s = min(timeout_s, max(left_s - NEAR_S, LOOK_S))
        return await super().fetch(partition, max_records=max_records, timeout_s=timeout_s)
