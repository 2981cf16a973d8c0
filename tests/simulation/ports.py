"""The ports of a partition processor, on simulated Kafka, for a worker to which anything happens.

Each call is a moment at which its worker may be killed or stopped, and the call may fail before or
after its effect.
"""

import asyncio
from collections.abc import Mapping, Sequence
from random import Random
from typing import Final, Protocol

from processor.engine.batch import Forward, Outgoing
from processor.engine.ports import Written
from processor.errors import TaskflowError
from processor.testing.memory.kafka import MemoryKafka
from processor.testing.memory.ports import (
    MemoryForwarder,
    MemoryHistory,
    MemoryWorkItems,
    MemoryWriter,
)
from tests.simulation.kafka import HistoryKafka
from tests.support.moments import Fault, Op

CONCURRENT_RETRY_S: Final = 0.02
LATE_MAX_S: Final = 8.0


class Unanswered(TaskflowError):
    """A request failed, or its answer was lost."""

    retriable = True


class ProcessLife(Protocol):
    """The worker that calls. It decides at each call what goes wrong, and whether it still runs."""

    rng: Random

    async def at(self, op: Op) -> Fault | None:
        """Return the fault that the caller has to bring about here; None: nothing goes wrong."""

    async def reach(self, op: Op) -> Fault | None:
        """As `at`, where the broker is needed. Raises Unanswered if it is away."""


class Calm:
    """A worker for which nothing goes wrong."""

    def __init__(self) -> None:
        self.rng = Random(0)

    async def at(self, op: Op) -> Fault | None:
        return None

    reach = at


class SimWriter(MemoryWriter):
    """The partition's transactional producer."""

    _kafka: HistoryKafka

    def __init__(self, kafka: HistoryKafka, life: ProcessLife, partition: int) -> None:
        super().__init__(kafka, partition)
        self._life = life

    async def start(self) -> None:
        fault = await self._life.reach(Op.FENCE)
        if fault is Fault.FENCE_LOST:
            raise Unanswered("InitProducerId did not arrive")
        await self._until_completed()
        await super().start()
        await self._until_completed()
        if fault is Fault.FENCE_UNANSWERED:
            raise Unanswered("no answer to InitProducerId")
        await self._life.at(Op.FENCED)

    async def _until_completed(self) -> None:
        while self._kafka.completing(self.transactional_id):
            await asyncio.sleep(CONCURRENT_RETRY_S)
            await self._life.at(Op.FENCED)

    async def write(self, records: Mapping[str, Sequence[Outgoing]]) -> Written:
        self._ensure_usable()
        await self._life.reach(Op.BEGIN)
        await self._until_completed()
        kafka = self._kafka
        kafka.begin_for(self.transactional_id, self._epoch)
        ends: dict[str, int] = {}
        at_ms = kafka.now_ms
        # Sent side by side: the broker may take them in any order.
        left = list(records.items())
        self._life.rng.shuffle(left)
        while left:
            topic, some = left.pop()
            fault = await self._life.reach(Op.PRODUCE)
            if fault is Fault.BATCH_LOST:
                self._batch_lost(topic, ends, left)
                continue
            if fault is Fault.BATCH_SPLIT and len(some) > 1:
                self._produce(topic, some[:1])
                await self._life.reach(Op.PRODUCE)
                some = some[1:]
            ends[topic] = self._produce(topic, some)
            at_ms = kafka.now_ms
            if fault is Fault.BATCH_UNANSWERED:
                self._straggle(left)
                raise Unanswered(f"no answer to a batch for {topic}")
        fault = await self._life.reach(Op.COMMIT)
        if fault is Fault.COMMIT_LOST:
            raise Unanswered("EndTxn did not arrive")
        if fault is Fault.COMMIT_LATE:
            self._commit_later()
            await asyncio.sleep(self._life.rng.random() * LATE_MAX_S)
            raise Unanswered("a transaction was not acknowledged in time")
        kafka.commit_for(self.transactional_id, self._epoch)
        if fault is Fault.COMMIT_TWICE:
            if self._life.rng.random() < 0.5:
                kafka.held[self.transactional_id] = self._epoch
            else:
                self._commit_later()
            self.suspect = True
        if fault is Fault.COMMIT_UNANSWERED:
            raise Unanswered("no answer to EndTxn")
        await self._life.at(Op.COMMITTED)
        return Written(ends, at_ms, 0.0)

    def _batch_lost(
        self, topic: str, ends: dict[str, int], left: Sequence[tuple[str, Sequence[Outgoing]]]
    ) -> None:
        self._straggle(left)
        raise Unanswered(f"a batch for {topic} failed")

    def _produce(self, topic: str, some: Sequence[Outgoing]) -> int:
        kafka, end = self._kafka, super()._produce(topic, some)
        if self.transactional_id in kafka.held and self._life.rng.random() < 0.5:
            # A commit of an earlier transaction, sent twice, arrives amid this one.
            kafka.commit_arrives(self.transactional_id, kafka.held.pop(self.transactional_id))
        return end

    def _straggle(self, left: Sequence[tuple[str, Sequence[Outgoing]]]) -> None:
        """What was sent beside a batch that failed may arrive after we gave up."""
        loop, epoch = asyncio.get_running_loop(), self._epoch
        for topic, some in left:
            if self._life.rng.random() < 0.5:
                loop.call_later(self._life.rng.random(), self._arrive, topic, some, epoch)

    def _arrive(self, topic: str, some: Sequence[Outgoing], epoch: int) -> None:
        if self._kafka.is_open(self.transactional_id, epoch):
            self._produce(topic, some)

    def _commit_later(self) -> None:
        # From at once to long after the next one has begun.
        delay_s = self._life.rng.choice((0.001, 0.01, 0.1, LATE_MAX_S)) * self._life.rng.random()
        asyncio.get_running_loop().call_later(
            delay_s, self._kafka.commit_arrives, self.transactional_id, self._epoch
        )

    async def abort_open(self) -> None:
        await self._life.reach(Op.BEGIN)
        await super().abort_open()


class SimHistory(MemoryHistory):
    """A partition's topics, read back `chunk` records at a time."""

    def __init__(
        self, kafka: MemoryKafka, life: ProcessLife, partition: int, chunk: int = 2_000
    ) -> None:
        super().__init__(kafka, partition, chunk)
        self._life = life

    async def _reach(self, op: Op) -> None:
        if await self._life.reach(op) is Fault.HISTORY_FAILS:
            raise Unanswered("history cannot be read")

    async def _looks(self) -> None:
        await self._reach(Op.SETTLE)

    async def _reads(self) -> None:
        await self._reach(Op.READ)


class SimForwarder(MemoryForwarder):
    """The port Forwarder."""

    def __init__(self, kafka: HistoryKafka, life: ProcessLife) -> None:
        super().__init__(kafka)
        self._life = life

    async def forward(self, forwards: Sequence[Forward]) -> frozenset[tuple[str, int]]:
        for one in forwards:
            fault = await self._life.reach(Op.FORWARD)
            if fault is Fault.FORWARD_FAILS:
                raise Unanswered("a forward failed")
            await super().forward([one])
            if fault is Fault.FORWARD_UNANSWERED:
                raise Unanswered("no answer to a forward")
        await self._life.at(Op.FORWARDED)
        return frozenset()


class SimWorkItems(MemoryWorkItems):
    """The port WorkItemProducer."""

    def __init__(self, kafka: HistoryKafka, life: ProcessLife) -> None:
        super().__init__(kafka)
        self._life = life

    async def write(self, records: Sequence[Outgoing]) -> None:
        for record in records:
            fault = await self._life.reach(Op.OFFER)
            if fault is Fault.ITEM_FAILS:
                raise Unanswered("a work item was not written")
            self._append(record)
            if fault is Fault.ITEM_UNANSWERED:
                raise Unanswered("no answer to a work item")
        await self._life.at(Op.OFFERED)
