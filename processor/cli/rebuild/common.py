"""Tables, producers and progress for `taskflow rebuild`."""

import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from processor.adapters.kafka.client_config import compression_type, connection_options
from processor.adapters.kafka.producer.transactional_producer import (
    KafkaTransactionalProducer,
    producers_stopped,
)
from processor.adapters.sqlite import FlowTable, open_table
from processor.cli.common.output import console, for_people, table, write_json
from processor.cli.common.progress import Bar, progress_bar
from processor.contract.topics import Topics
from processor.engine.batch import PartitionConfig
from processor.engine.ports import OffsetRange
from processor.settings import Settings

STOP_TIMEOUT_S = 2.0


@dataclass(frozen=True, slots=True)
class ProgressDisplay:
    """JSON lines for a pipe, tables for people."""

    json: bool

    def all(self, rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> None:
        if not for_people(self.json):
            for row in rows:
                write_json(row, flush=True)
        elif rows:
            cells = [[_cell(row[column]) for column in columns] for row in rows]
            names = [column.replace("_", " ") for column in columns]
            console().print(table(None, names, cells))


def _cell(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: ""}[value]
    if isinstance(value, list):
        return "\n".join(map(str, value))
    return f"{value:,}" if isinstance(value, int) else str(value)


class RebuildProgress:
    """How far a partition is, and how fast, on a progress bar."""

    def __init__(self, bar: Bar) -> None:
        self.records = 0
        self._bar = bar
        self._began = 0.0

    def begin(self, what: str, offset_ranges: Iterable[OffsetRange]) -> None:
        self.records, self._began = 0, time.monotonic()
        self._bar.at(what)
        self._bar.expect(sum(one.end - one.start for one in offset_ranges))

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    @property
    def per_s(self) -> int:
        return int(self.records / max(self.seconds, 1e-3))

    def advance(self, records: int) -> None:
        self.records += records
        self._bar.advance(records)


@asynccontextmanager
async def progress_line() -> AsyncIterator[RebuildProgress]:
    """Taken away in the end."""
    with progress_bar("rebuilding") as bar:
        yield RebuildProgress(bar)


def place_of(settings: Settings, partition: int) -> PartitionConfig:
    """A partition under these settings."""
    topics = Topics(settings.topic_prefix)
    return PartitionConfig(partition, settings.partitions, topics, settings.dedupe_window_ms)


@asynccontextmanager
async def writers(
    settings: Settings, partition: int
) -> AsyncIterator[Callable[[], KafkaTransactionalProducer]]:
    """Makes producers with the partition's transactional id; waits for them at the end."""

    def new_writer() -> KafkaTransactionalProducer:
        return KafkaTransactionalProducer(
            connection_options(settings, "rebuild"),
            Topics(settings.topic_prefix),
            partition,
            compression=compression_type(settings),
            commit_timeout_s=settings.commit_timeout_ms / 1000,
        )

    try:
        yield new_writer
    finally:
        await producers_stopped(STOP_TIMEOUT_S)


def opened(
    settings: Settings, partition: int, path: Path
) -> AbstractAsyncContextManager[FlowTable]:
    """A table at `path`."""
    return open_table(
        path,
        partition=partition,
        prefix=settings.topic_prefix,
        partitions=settings.partitions,
    )
