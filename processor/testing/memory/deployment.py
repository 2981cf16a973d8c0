"""The topics and tables of a deployment, as far as they were seen, for `processor.ops.verify`."""

from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from processor.contract.topics import Topics
from processor.ops.verify.ports import (
    LogRange,
    TableFlow,
    TablePosition,
    TableProblem,
    TableStep,
    TakeTable,
    Watcher,
)
from processor.ops.verify.report import Report
from processor.ops.verify.scope import Scope
from processor.ops.verify.verify import verify
from processor.testing.memory.record import Appended

SOURCES = ("commands", "control")
TOPICS = (*SOURCES, "outcomes", "audit", "state", "deadletters")
HOUR_MS = 3_600_000
IN_MEMORY = next((home for home in [Path("/dev/shm")] if home.is_dir()), None)
"""For the scratch files of thousands of verifications; None: where temporary files go."""


@dataclass(slots=True)
class TableContents:
    """A table of one partition, as lists of rows; or what kept it from being read."""

    partition: int
    position: TablePosition
    flows: list[TableFlow] = field(default_factory=list)
    steps: list[TableStep] = field(default_factory=list)
    problem: TableProblem | None = None

    @property
    def flow_ids(self) -> set[str]:
        return {row.flow_id for row in self.flows}


@dataclass(slots=True)
class Deployment:
    """Topics by (name without prefix, partition); `steps` may have more partitions than the others,
    `steps_partitions`. `starts` are first offsets that retention has
    left, `ends` (stable, high) where they are not behind the last record."""

    partitions: int = 1
    window_ms: int = HOUR_MS
    topics: Topics = field(default_factory=Topics)
    records: dict[tuple[str, int], list[Appended]] = field(default_factory=dict)
    starts: dict[tuple[str, int], int] = field(default_factory=dict)
    ends: dict[tuple[str, int], tuple[int, int]] = field(default_factory=dict)
    tables: list[TableContents] = field(default_factory=list)
    steps_partitions: int | None = None

    chunk: ClassVar[int] = 1_000
    """Records that a log gives at a time."""

    def of(self, name: str, partition: int = 0) -> list[Appended]:
        return self.records.setdefault((name, partition), [])

    def all_of(self, name: str) -> Iterator[Appended]:
        return (
            record for partition in range(self.partitions) for record in self.of(name, partition)
        )

    def end(self, name: str, partition: int) -> int:
        """The offset behind the last record."""
        return max((record.offset + 1 for record in self.of(name, partition)), default=0)

    async def verify(self, watcher: Watcher | None = None, **scope: Any) -> Report:
        """By default of a deployment at rest, whose ends are not waited for."""
        chosen = {"at_rest": True, "grace_s": -1.0, "steps_partitions": self.steps_partitions}
        return await verify(
            Scope(self.topics, self.partitions, self.window_ms, **chosen | scope),
            self.logs,
            self._tables_by_directory(),
            watcher=watcher,
            scratch_dir=IN_MEMORY,
        )

    @asynccontextmanager
    async def logs(self, partition: int) -> AsyncIterator["MemoryLog"]:
        yield MemoryLog(self, partition)

    def _tables_by_directory(self) -> list["_Tables"]:
        nth: Counter[int] = Counter()
        some: list[_Tables] = []
        for table in self.tables:
            if nth[table.partition] == len(some):
                some.append(_Tables({}))
            some[nth[table.partition]].all[table.partition] = table
            nth[table.partition] += 1
        return some


@dataclass(frozen=True, slots=True)
class MemoryLog:
    """The topics of one partition, as verify reads them."""

    all: Deployment
    partition: int

    def _at(self, topic: str) -> tuple[str, int]:
        return topic.removeprefix(f"{self.all.topics.prefix}."), self.partition

    async def offset_range(self, topic: str) -> LogRange:
        at = self._at(topic)
        end = self.all.end(*at)
        return LogRange(self.all.starts.get(at, 0), *self.all.ends.get(at, (end, end)))

    async def offset_at(self, topic: str, at_ms: int) -> int | None:
        some = self.all.of(*self._at(topic))
        return next((record.offset for record in some if record.timestamp >= at_ms), None)

    async def read(
        self, topic: str, start: int, end: int
    ) -> AsyncGenerator[Sequence[Appended], None]:
        wanted = [r for r in self.all.of(*self._at(topic)) if start <= r.offset < end]
        for first in range(0, len(wanted), self.all.chunk):
            yield wanted[first : first + self.all.chunk]


@dataclass(frozen=True, slots=True)
class _Tables:
    all: dict[int, TableContents]

    def read_table(self, partition: int, take: TakeTable) -> TableProblem | None:
        table = self.all.get(partition)
        if table is not None and table.problem is None:
            take(table.position, iter(table.flows), iter(table.steps))
        return None if table is None else table.problem
