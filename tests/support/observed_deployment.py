"""Everything that can be seen of taskflow from outside: its topics, and the tables of its workers.

Nothing of the processor is used for it.
"""

import asyncio
import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
from aiokafka import AIOKafkaConsumer, TopicPartition

SOURCES = ("commands", "control")
TOPICS = (*SOURCES, "outcomes", "audit", "state", "deadletters")


@dataclass(frozen=True, slots=True)
class Seen:
    """A committed record; `topic` without the prefix, `timestamp` in ms."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...] = ()


@dataclass(slots=True)
class TableSeen:
    """One table file; rows as (document, last event id, chain) and step documents."""

    path: str
    partition: int
    commands: int
    control: int
    next_event_id: int
    filled: bool
    flows: dict[str, tuple[str, int, bytes]] = field(default_factory=dict)
    steps: dict[tuple[str, str], str] = field(default_factory=dict)


@dataclass(slots=True)
class World:
    """What was seen, at one moment."""

    prefix: str
    partitions: int
    records: dict[str, list[list[Seen]]]
    ends: dict[tuple[str, int], tuple[int, int]] = field(default_factory=dict)
    """Last stable offset and high watermark, by topic and partition."""
    tables: list[TableSeen] = field(default_factory=list)
    dedupe_window_ms: int = 3_600_000

    @classmethod
    def empty(cls, prefix: str, partitions: int) -> "World":
        return cls(prefix, partitions, {t: [[] for _ in range(partitions)] for t in TOPICS})

    def put(self, record: Seen) -> None:
        self.records[record.topic][record.partition].append(record)

    def all(self, topic: str) -> Iterator[Seen]:
        return (record for partition in self.records[topic] for record in partition)


class Observer:
    """Follows the six topics; made by `observing`."""

    def __init__(self, consumer: AIOKafkaConsumer, world: World, bootstrap: str) -> None:
        self._consumer = consumer
        self._bootstrap = bootstrap
        self.world = world
        self.answered: set[tuple[str, int, int]] = set()
        self.unanswered: set[tuple[str, int, int]] = set()

    async def catch_up(self) -> World:
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
        seen = Seen(
            record.topic.rpartition(".")[2],
            record.partition,
            record.offset,
            record.timestamp,
            record.key,
            record.value,
            tuple(record.headers),
        )
        self.world.put(seen)
        if seen.topic in SOURCES:
            at = (record.topic, record.partition, record.offset)
            if at not in self.answered:
                self.unanswered.add(at)
        elif seen.topic == "outcomes":
            source = orjson.loads(record.value)["source"]
            at = (source["topic"], source["partition"], source["offset"])
            self.answered.add(at)
            self.unanswered.discard(at)

    async def settled(self, state_dirs: Iterable[Path] = (), *, timeout_s: float) -> World:
        """Wait until every command has its outcome, no transaction is open, and for each
        partition some table (if there are any) is where the topics are; then all of it."""
        deadline = time.monotonic() + timeout_s
        while True:
            world = await self.catch_up()
            await self._high_watermarks()
            world.tables = read_tables(state_dirs, world.prefix)
            left = self._left(bool(world.tables))
            if left is None:
                return world
            if time.monotonic() > deadline:
                raise AssertionError(f"not settled within {timeout_s} s: {left}")
            await asyncio.sleep(0.1)

    def _left(self, tables: bool) -> str | None:
        if self.unanswered:
            return f"{len(self.unanswered)} commands without outcome, as {min(self.unanswered)}"
        if still_open := [at for at, (stable, high) in self.world.ends.items() if stable != high]:
            return f"transactions are open on {still_open}"
        for partition in range(self.world.partitions) if tables else ():
            end = [table for table in self.world.tables if table.partition == partition]
            cursor = newest_cursor(self.world, partition)
            if cursor is not None and not any(is_at(table, cursor) for table in end):
                return f"no table of partition {partition} is where the topics are: {cursor}"
        return None

    async def _high_watermarks(self) -> None:
        consumer = AIOKafkaConsumer(bootstrap_servers=self._bootstrap)
        await consumer.start()
        try:
            ends = await consumer.end_offsets(self._consumer.assignment())
        finally:
            await consumer.stop()
        for tp, high in ends.items():
            at = (tp.topic.rpartition(".")[2], tp.partition)
            self.world.ends[at] = (self.world.ends[at][0], high)


@asynccontextmanager
async def observing(bootstrap: str, prefix: str, partitions: int):
    """An Observer from the beginning of the topics, which must be there."""
    consumer = AIOKafkaConsumer(
        bootstrap_servers=bootstrap,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        isolation_level="read_committed",
        fetch_max_wait_ms=20,
    )
    await consumer.start()
    try:
        tps = [TopicPartition(f"{prefix}.{t}", p) for t in TOPICS for p in range(partitions)]
        consumer.assign(tps)
        await consumer.seek_to_beginning(*tps)
        yield Observer(consumer, World.empty(prefix, partitions), bootstrap)
    finally:
        await consumer.stop()


def newest_cursor(world: World, partition: int) -> dict[str, Any] | None:
    key = f"cursor/{partition}".encode()
    for record in reversed(world.records["state"][partition]):
        if record.key == key:
            cursor: dict[str, Any] = orjson.loads(record.value or b"")
            return cursor
    return None


def is_at(table: TableSeen, cursor: dict[str, Any]) -> bool:
    return all(getattr(table, n) == cursor[n] for n in ("commands", "control", "next_event_id"))


def read_tables(state_dirs: Iterable[Path], prefix: str) -> list[TableSeen]:
    """All tables of `prefix`, also while workers write them."""
    return [
        table
        for state_dir in state_dirs
        for path in sorted(state_dir.glob(f"{prefix}-*.db"))
        if (table := _read_table(path)) is not None
    ]


def _read_table(path: Path) -> TableSeen | None:
    partition = int(path.stem.rpartition("-")[2])
    # Without a log there is no writer; opened in the usual way, the file would get one.
    how = "" if path.with_name(path.name + "-wal").exists() else "&immutable=1"
    try:
        with closing(
            sqlite3.connect(f"file:{path}?mode=ro{how}", uri=True, isolation_level=None)
        ) as db:
            db.execute("BEGIN")
            stored = db.execute(
                "SELECT commands, control, next_event_id, audit >= 0 FROM stored"
            ).fetchone()
            if stored is None:
                return None
            flows = db.execute("SELECT id, doc, last_event_id, chain FROM flow").fetchall()
            steps = db.execute("SELECT flow_id, run_id, doc FROM step").fetchall()
    except sqlite3.OperationalError:  # it is just being made, or thrown away
        return None
    return TableSeen(
        str(path),
        partition,
        *stored[:3],
        filled=bool(stored[3]),
        flows={flow_id: (doc, last, chain) for flow_id, doc, last, chain in flows},
        steps={(flow_id, run_id): doc for flow_id, run_id, doc in steps},
    )


def headers_of(record: Seen, name: str) -> Sequence[bytes | None]:
    return [value for key, value in record.headers if key == name]
