"""Follows a running deployment from outside: its topics, and the tables of its workers."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition

from processor.adapters.kafka.admin.topic_admin import partition_counts
from processor.adapters.kafka.reader.record_decoder import read_any_record
from processor.contract.topics import Topics
from processor.settings import Settings
from processor.testing.memory.deployment import SOURCES, TOPICS
from processor.testing.memory.record import Appended
from tests.support.checked_deployment import CheckedDeployment, is_at, items_left
from tests.support.machine import patience
from tests.support.tables import read_tables

REQUEST_TIMEOUT_MS = int(patience(40_000))
"""aiokafka's own, for a broker that shares its cores."""


class Observer:
    """Follows the seven topics; made by `observing`."""

    def __init__(
        self, consumer: AIOKafkaConsumer, world: CheckedDeployment, bootstrap: str
    ) -> None:
        self._consumer = consumer
        self._bootstrap = bootstrap
        self.world = world
        self.decided: set[tuple[str, int, int]] = set()
        self.unanswered: set[tuple[str, int, int]] = set()

    async def catch_up(self) -> CheckedDeployment:
        """Read to the last stable offsets as they are now."""
        consumer, world = self._consumer, self.world
        tps = consumer.assignment()
        # Outcomes first, so that each of those that are read has its source read too.
        for chosen in (
            {tp for tp in tps if tp.topic.rpartition(".")[2] not in SOURCES},
            {tp for tp in tps if tp.topic.rpartition(".")[2] in SOURCES},
        ):
            ends = await consumer.end_offsets(chosen)
            behind = set(chosen)
            while True:
                behind = {tp for tp in behind if await consumer.position(tp) < ends[tp]}
                if not behind:
                    break
                batches = await consumer.getmany(*behind, timeout_ms=500)
                for records in batches.values():
                    for record in records:
                        self._take(record)
            for tp, end in ends.items():
                world.ends[tp.topic.rpartition(".")[2], tp.partition] = (end, -1)
        return world

    def _take(self, record: Any) -> None:
        """Keep a record; `answered` and `unanswered` are places of commands (full topic, partition,
        offset)."""
        at = (record.topic, record.partition, record.offset)
        name = record.topic.rpartition(".")[2]
        seen = Appended(*at, record.timestamp, record.key, record.value, tuple(record.headers))
        self.world.of(name, record.partition).append(seen)
        if name in SOURCES:
            if at not in self.decided:
                self.unanswered.add(at)
        elif name == "outcomes":
            source = json.loads(record.value)["source"]
            at = (source["topic"], source["partition"], source["offset"])
            self.decided.add(at)
            self.unanswered.discard(at)

    async def settled(
        self, state_dirs: Iterable[Path] = (), *, timeout_s: float
    ) -> CheckedDeployment:
        """Wait until every command has its outcome, no transaction is open, and for each
        partition some table (if there are any) is where the topics are; then all of it."""
        deadline = time.monotonic() + timeout_s
        while True:
            world = await self.catch_up()
            left = self._without_outcome()
            if left is None:  # only now: all tables are read whole
                await self._high_watermarks()
                world.tables = read_tables(state_dirs, world.topics.prefix)
                left = self._left(bool(world.tables))
            if left is None:
                return world
            if time.monotonic() > deadline:
                raise AssertionError(f"not settled within {timeout_s} s: {left}")
            await asyncio.sleep(0.1)

    def _without_outcome(self) -> str | None:
        if not self.unanswered:
            return None
        return f"{len(self.unanswered)} commands without outcome, as {min(self.unanswered)}"

    def _left(self, tables: bool) -> str | None:
        if open_transactions := [
            at for at, (stable, high) in self.world.ends.items() if stable != high
        ]:
            return f"transactions are open on {open_transactions}"
        for partition in range(self.world.partitions) if tables else ():
            end = [table for table in self.world.tables if table.partition == partition]
            cursor = self.world.newest_cursor(partition)
            if cursor is not None and not any(is_at(table, cursor) for table in end):
                return f"no table of partition {partition} is where the topics are: {cursor}"
            if cursor is not None and items_left(partition, cursor):
                return f"work items of partition {partition} are not written yet: {cursor}"
        return None

    async def _high_watermarks(self) -> None:
        consumer = AIOKafkaConsumer(
            bootstrap_servers=self._bootstrap, request_timeout_ms=REQUEST_TIMEOUT_MS
        )
        await consumer.start()
        try:
            ends = await consumer.end_offsets(self._consumer.assignment())
        finally:
            await consumer.stop()
        for tp, high in ends.items():
            at = (tp.topic.rpartition(".")[2], tp.partition)
            self.world.ends[at] = (self.world.ends[at][0], high)


@asynccontextmanager
async def observing(bootstrap: str, prefix: str, partitions: int) -> AsyncIterator[Observer]:
    """An Observer from the beginning of the topics, which must be there."""
    read_any_record()  # as a worker does: some tests send what no other consumer can read
    consumer = AIOKafkaConsumer(
        bootstrap_servers=bootstrap,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        isolation_level="read_committed",
        fetch_max_wait_ms=20,
        request_timeout_ms=REQUEST_TIMEOUT_MS,
    )
    await consumer.start()
    try:
        topics = Topics(prefix)
        tps = [TopicPartition(f"{prefix}.{t}", p) for t in TOPICS for p in range(partitions)]
        counts = await partition_counts(Settings(bootstrap_servers=bootstrap), [topics.steps])
        items = counts.get(topics.steps, partitions)
        tps += [TopicPartition(topics.steps, number) for number in range(items)]
        consumer.assign(tps)
        await consumer.seek_to_beginning(*tps)
        world = CheckedDeployment(partitions, topics=topics, steps_partitions=items)
        yield Observer(consumer, world, bootstrap)
    finally:
        await consumer.stop()
