"""The topics of a recorded deployment, as a client reads them."""

import asyncio
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

from processor.adapters.kafka.errors import PositionLost
from processor.client.connection import standing_in
from processor.client.ports import Connection
from processor.contract.rights import Operation
from processor.engine.codec import Record
from processor.engine.ports import Start
from processor.settings import Settings
from tests.support.recorded_deployment import Recorded

BROKERS = "recorded.invalid:9092"


class RecordedReader:
    """Reads what is recorded of one topic, `chunk` records at a time; then nothing comes."""

    def __init__(self, recorded: Recorded, topic: str, chunk: int) -> None:
        self.positions: dict[int, int] = {}
        self._recorded = recorded
        self._name = topic.partition(".")[2]
        self._topic = topic
        self._chunk = chunk

    async def open(self, partitions: Collection[int], start: Start) -> dict[int, int]:
        assert isinstance(start, Mapping)
        self.positions = {p: start.get(p, 0) for p in partitions}
        return {p: self._recorded.end(self._name, p) for p in partitions}

    async def rewind(self, partitions: Collection[int]) -> None:
        self.positions |= dict.fromkeys(partitions, 0)

    async def poll(self, *, wait_s: float) -> Sequence[Record]:
        moved: list[Record] = []
        for partition, at in self.positions.items():
            first = self._recorded.starts.get((self._name, partition), 0)
            end = self._recorded.end(self._name, partition)
            if not first <= at <= end:
                raise PositionLost(self._topic, {partition: at})
            there = [r for r in self._recorded.of(self._name, partition) if r.offset >= at]
            some = there[: self._chunk]
            moved += cast(list[Record], some)
            self.positions[partition] = some[-1].offset + 1 if len(there) > len(some) else end
        if not moved:
            await asyncio.sleep(wait_s)
        return moved

    async def close(self) -> None:
        """Nothing is held open."""


class RecordedConnection:
    """As much of a connection as a reader of topics needs."""

    def __init__(self, recorded: Recorded, chunk: int) -> None:
        self._recorded = recorded
        self._chunk = chunk

    def reader(self, topic: str) -> RecordedReader:
        return RecordedReader(self._recorded, topic, self._chunk)

    async def count_partitions(
        self, topics: Iterable[str], operation: Operation = Operation.READ
    ) -> dict[str, int]:
        return dict.fromkeys(topics, self._recorded.partitions)


@contextmanager
def readable(recorded: Recorded, *, chunk: int = 7, **settings: Any) -> Iterator[Settings]:
    """Settings whose clients read what is recorded, within the block."""
    connection = RecordedConnection(recorded, chunk)
    with standing_in(BROKERS, lambda _: cast(Connection, connection)):
        yield Settings(bootstrap_servers=BROKERS, **settings)
