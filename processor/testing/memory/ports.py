"""The ports of a partition processor, on Kafka in memory."""

from collections.abc import AsyncIterator, Mapping, Sequence

from processor.engine.batch import Forward, Outgoing, Records
from processor.engine.codec import Record
from processor.engine.partitioner import partition_of
from processor.engine.ports import OffsetRange, OnHanging, Written
from processor.testing.memory.kafka import MemoryKafka
from processor.testing.memory.timed_kafka import TimedKafka


class MemoryWriter:
    """The partition's transactional producer."""

    def __init__(self, kafka: TimedKafka, partition: int) -> None:
        self.suspect = False
        self.transactional_id = f"{kafka.topics.prefix}-{partition}"
        self._kafka = kafka
        self._partition = partition
        self._epoch = 0
        self._discarded = False

    async def start(self) -> None:
        self._epoch = self._kafka.fence(self.transactional_id)

    def new_pack(self, topic: str) -> Records:
        return Records()

    async def begin(self, topics: Sequence[str]) -> None:
        """A transaction begins with its first record."""

    async def write(self, records: Mapping[str, Sequence[Outgoing]]) -> Written:
        self._ensure_usable()
        kafka = self._kafka
        kafka.begin_for(self.transactional_id, self._epoch)
        ends = {topic: self._produce(topic, some) for topic, some in records.items()}
        at_ms = kafka.now_ms
        kafka.commit_for(self.transactional_id, self._epoch)
        return Written(ends, at_ms, 0.0)

    def _ensure_usable(self) -> None:
        assert self._epoch, "a writer is started before it writes"
        assert not self._discarded, "a discarded writer writes"
        assert not self.suspect, "a suspect producer begins another transaction"

    def _produce(self, topic: str, some: Sequence[Outgoing]) -> int:
        transaction = self._kafka.begin_for(self.transactional_id, self._epoch)
        return self._kafka.put(some, topic, self._partition, transaction)

    async def abort_open(self) -> None:
        self._kafka.abort_for(self.transactional_id, self._epoch)

    def discard(self) -> None:
        self._discarded = True


class MemoryHistory:
    """A partition's topics, read back `chunk` records at a time."""

    def __init__(self, kafka: MemoryKafka, partition: int, chunk: int = 2_000) -> None:
        self._kafka = kafka
        self._partition = partition
        self._chunk = chunk

    async def _looks(self) -> None:
        """Called each time before it is looked how far the topics are."""

    async def _reads(self) -> None:
        """Called each time before records are read."""

    async def settled(
        self, topics: Sequence[str], on_hanging: OnHanging | None = None
    ) -> dict[str, OffsetRange]:
        await self._looks()
        logs = {topic: self._kafka.log(topic, self._partition) for topic in topics}
        offset_ranges = {topic: OffsetRange(log.start, log.end) for topic, log in logs.items()}
        for topic, log in logs.items():
            while log.stable_end < offset_ranges[topic].end:
                await self._kafka.watch([(topic, self._partition)])
                await self._looks()
        return offset_ranges

    async def visible(self, topics: Sequence[str]) -> dict[str, OffsetRange]:
        await self._looks()
        logs = {topic: self._kafka.log(topic, self._partition) for topic in topics}
        return {topic: OffsetRange(log.start, log.stable_end) for topic, log in logs.items()}

    async def read(self, topic: str, start: int, end: int) -> AsyncIterator[Sequence[Record]]:
        log = self._kafka.log(topic, self._partition)
        at = start
        while at < end:
            await self._reads()
            while log.stable_end <= at:
                await self._kafka.watch([(topic, self._partition)])
                await self._reads()
            stable = min(end, log.stable_end)
            some = list(log.committed(at, stable))[: self._chunk]
            at = some[-1].offset + 1 if len(some) == self._chunk else stable
            if some:
                yield some

    async def offset_at(self, topic: str, at_ms: int) -> int | None:
        await self._reads()
        log = self._kafka.log(topic, self._partition)
        found = (r.offset for r in log.committed(log.start, log.end) if r.timestamp >= at_ms)
        return next(found, None)

    async def offset_range(self, topic: str) -> OffsetRange:
        log = self._kafka.log(topic, self._partition)
        return OffsetRange(log.start, log.end)

    async def stable_end(self, topic: str) -> int:
        return self._kafka.log(topic, self._partition).stable_end

    async def close(self) -> None:
        pass


class MemoryForwarder:
    """The port Forwarder."""

    def __init__(self, kafka: TimedKafka) -> None:
        self._kafka = kafka

    async def forward(self, forwards: Sequence[Forward]) -> frozenset[tuple[str, int]]:
        for one in forwards:
            self._kafka.append(one.topic, one.partition, *one.record)
        return frozenset()


class MemoryWorkItems:
    """The port WorkItemProducer."""

    def __init__(self, kafka: TimedKafka) -> None:
        self._kafka = kafka

    async def write(self, records: Sequence[Outgoing]) -> None:
        for record in records:
            self._append(record)

    def _append(self, record: Outgoing) -> None:
        key, value, headers = record
        partition = partition_of(key or b"", self._kafka.steps_partitions)
        self._kafka.append(self._kafka.topics.steps, partition, key, value, headers)
