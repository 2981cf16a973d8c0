"""Tables, producers and progress for `taskflow rebuild`."""

import sys
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from processor.adapters.kafka.client_config import compression_type, connection_options
from processor.adapters.kafka.transactional_producer import (
    KafkaTransactionalProducer,
    producers_stopped,
)
from processor.adapters.sqlite import FlowTable, open_table
from processor.cli.common.output import console, for_people, table, write_json
from processor.contract.topics import Topics
from processor.engine.batch import PartitionConfig
from processor.engine.ports import OffsetRange
from processor.settings import Settings

TELL_EVERY_S = 1.0
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
    """One line on a terminal that changes: how far the partition is, and how fast."""

    def __init__(self) -> None:
        self.records = 0
        self._what, self._total, self._began, self._told = "", 0, 0.0, 0.0
        self._shown = sys.stderr.isatty()

    def begin(self, what: str, offset_ranges: Iterable[OffsetRange]) -> None:
        self._what, self.records = what, 0
        self._total = sum(offset_range.end - offset_range.start for offset_range in offset_ranges)
        self._began = self._told = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    @property
    def per_s(self) -> int:
        return int(self.records / max(self.seconds, 1e-3))

    def heard(self, records: int) -> None:
        self.records += records
        if self._shown and time.monotonic() - self._told > TELL_EVERY_S:
            self._told = time.monotonic()
            share = min(1.0, self.records / self._total) if self._total else 1.0
            sys.stderr.write(
                f"\r\x1b[K{self._what}: {self.records:,} records, {share:.0%}, {self.per_s:,}/s"
            )
            sys.stderr.flush()

    def end(self) -> None:
        if self._shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


@asynccontextmanager
async def progress_line() -> AsyncIterator[RebuildProgress]:
    """Taken away in the end."""
    progress = RebuildProgress()
    try:
        yield progress
    finally:
        progress.end()


def place_of(settings: Settings, number: int) -> PartitionConfig:
    """A partition under these settings."""
    topics = Topics(settings.topic_prefix)
    return PartitionConfig(number, settings.partitions, topics, settings.dedupe_window_ms)


@asynccontextmanager
async def writers(
    settings: Settings, number: int
) -> AsyncIterator[Callable[[], KafkaTransactionalProducer]]:
    """Makes producers with the partition's transactional id; waits for them at the end."""

    def new_writer() -> KafkaTransactionalProducer:
        return KafkaTransactionalProducer(
            connection_options(settings, "rebuild"),
            Topics(settings.topic_prefix),
            number,
            compression=compression_type(settings),
            commit_timeout_s=settings.commit_timeout_ms / 1000,
        )

    try:
        yield new_writer
    finally:
        await producers_stopped(STOP_TIMEOUT_S)


def opened(settings: Settings, number: int, path: Path) -> AbstractAsyncContextManager[FlowTable]:
    """A table at `path`."""
    return open_table(
        path,
        partition=number,
        prefix=settings.topic_prefix,
        partitions=settings.partitions,
    )
