"""FakeConnection: the ports of the client, on Kafka in memory."""

import asyncio
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import datetime
from typing import NamedTuple, Protocol

from aiokafka.errors import ProducerClosed

from processor.adapters.kafka.admin.topic_admin import require
from processor.adapters.kafka.errors import PositionLost
from processor.adapters.kafka.reader.topic_reader import POLL_RECORDS_MAX
from processor.client.kafka.work_items import received
from processor.client.ports import Place, ReceivedItem
from processor.contract.headers import Headers
from processor.contract.rights import Operation, Right
from processor.engine.codec import Record
from processor.engine.partitioner import partition_of
from processor.engine.ports import Start
from processor.runtime import end_tasks
from processor.testing.memory.timed_kafka import TimedKafka


class Fake(Protocol):
    """What a connection needs of the fake that it belongs to."""

    @property
    def kafka(self) -> TimedKafka: ...

    def ensure_running(self) -> None:
        """Run the engine on this loop, unless it does."""

    def monotonic(self) -> float: ...


class ProducedRecord(NamedTuple):
    """Where a record was appended."""

    partition: int
    offset: int


class Group:
    """A consumer group of executors: what it has not read yet, and what was given back."""

    def __init__(self) -> None:
        self.next: dict[int, int] = defaultdict(int)
        self.returned: deque[Record] = deque()
        self.given_back = asyncio.Event()


class FakeConnection:
    """A connection to the engine of a fake."""

    def __init__(self, fake: Fake, groups: dict[str, Group]) -> None:
        self._fake = fake
        self._groups = groups

    def now_ms(self) -> int:
        return self._fake.kafka.now_ms

    def monotonic(self) -> float:
        return self._fake.monotonic()

    def producer(self, topic: str | None = None) -> "FakeProducer":
        return FakeProducer(self._fake)

    def reader(self, topic: str) -> "FakeReader":
        return FakeReader(self._fake, topic)

    def work_items(self, group: str, tasks: Iterable[str]) -> "FakeItemReader":
        state = self._groups.setdefault(group, Group())
        return FakeItemReader(self._fake, state, tasks)

    async def count_partitions(
        self, topics: Iterable[str], operation: Operation = Operation.READ
    ) -> dict[str, int]:
        kafka = self._fake.kafka
        there = {name for name, _ in kafka.topics}
        wanted = list(topics)
        return require(wanted, {name: kafka.partitions for name in wanted if name in there})

    async def missing_rights(self, wanted: Iterable[Right]) -> list[Right]:
        return []


class FakeProducer:
    """Appends commands; each is acknowledged at once."""

    def __init__(self, fake: Fake) -> None:
        self._fake = fake
        self._closed = False

    async def start(self) -> None:
        self._fake.ensure_running()

    async def send(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        headers: Headers,
        *,
        partition: int | None = None,
        handed_over: Callable[[], None],
    ) -> ProducedRecord:
        if self._closed:
            raise ProducerClosed
        self._fake.ensure_running()
        kafka = self._fake.kafka
        if partition is None:
            partition = partition_of(key or b"", kafka.partitions)
        handed_over()
        return ProducedRecord(partition, kafka.append(topic, partition, key, value, headers))

    async def close(self) -> None:
        self._closed = True


class FakeReader:
    """Reads committed records of one topic.

    `poll` waits until something happens, however long: a time-out of its own would be one of the
    moments at which a moved clock stops.
    """

    def __init__(self, fake: Fake, topic: str) -> None:
        self.positions: dict[int, int] = {}
        self._fake = fake
        self._topic = topic

    async def open(self, partitions: Collection[int], start: Start) -> dict[int, int]:
        self._fake.ensure_running()
        self.positions |= {partition: self._first(partition, start) for partition in partitions}
        return {p: self._fake.kafka.log(self._topic, p).stable_end for p in partitions}

    def _first(self, partition: int, start: Start) -> int:
        log = self._fake.kafka.log(self._topic, partition)
        if isinstance(start, Mapping):
            return start.get(partition, log.start)
        if isinstance(start, datetime):
            since_ms = round(start.timestamp() * 1000)
            found = (r.offset for r in log.committed(log.start, log.end) if r.timestamp >= since_ms)
            return next(found, log.stable_end)
        return log.start if start == "beginning" else log.stable_end

    async def rewind(self, partitions: Collection[int]) -> None:
        for partition in partitions:
            self.positions[partition] = self._fake.kafka.log(self._topic, partition).start

    async def poll(self, *, wait_s: float) -> Sequence[Record]:
        kafka = self._fake.kafka
        moved: list[Record] = []
        while True:
            before = dict(self.positions)
            for partition in self.positions:
                moved += self._read(partition, POLL_RECORDS_MAX - len(moved))
            # Markers alone move a position, too.
            if moved or before != self.positions:
                return moved
            await kafka.watch((self._topic, partition) for partition in self.positions)

    def _read(self, partition: int, records_max: int) -> list[Record]:
        log, at = self._fake.kafka.log(self._topic, partition), self.positions[partition]
        if not log.start <= at <= log.end:
            raise PositionLost(self._topic, {partition: at})
        end = max(at, log.stable_end)
        some: list[Record] = list(log.committed(at, end))
        self.positions[partition] = some[records_max].offset if len(some) > records_max else end
        return some[:records_max]

    async def close(self) -> None:
        """Nothing is held open."""


class FakeItemReader:
    """Reads work items; readers of one group share them record by record."""

    def __init__(self, fake: Fake, group: Group, tasks: Iterable[str]) -> None:
        self._fake = fake
        self._group = group
        self._tasks = frozenset(task.encode() for task in tasks)
        self._topic = fake.kafka.topics.steps
        self._open: dict[tuple[int, int], Record] = {}

    async def poll(self, *, max_records: int, wait_s: float) -> list[ReceivedItem]:
        self._fake.ensure_running()
        kafka, group = self._fake.kafka, self._group
        while True:
            items = [
                item
                for record in self._take(max_records)
                if (item := self._received(record)) is not None
            ]
            if items:
                return items
            group.given_back.clear()
            came = kafka.watch((self._topic, partition) for partition in range(kafka.partitions))
            returned = asyncio.ensure_future(group.given_back.wait())
            try:
                await asyncio.wait((came, returned), return_when=asyncio.FIRST_COMPLETED)
            finally:
                await end_tasks(returned)

    def _take(self, records_max: int) -> list[Record]:
        group = self._group
        taken: list[Record] = []
        while group.returned and len(taken) < records_max:
            taken.append(group.returned.popleft())
        for partition in range(self._fake.kafka.partitions):
            log = self._fake.kafka.log(self._topic, partition)
            some = list(log.committed(group.next[partition], log.end))[: records_max - len(taken)]
            if some:
                group.next[partition] = some[-1].offset + 1
            taken += some
        return taken

    def _received(self, record: Record) -> ReceivedItem | None:
        place = Place(record.partition, record.offset, 0)
        item = received(record, place, self._tasks)
        if item is not None:
            self._open[record.partition, record.offset] = record
        return item

    def done(self, place: Place) -> None:
        self._open.pop((place.partition, place.offset), None)

    async def close(self) -> None:
        """Give back what was not acknowledged, as the group of a consumer that leaves does."""
        self._group.returned.extend(self._open.values())
        self._open.clear()
        self._group.given_back.set()
