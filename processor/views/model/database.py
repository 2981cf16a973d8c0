"""A view's SQLite file: the projected rows with the positions that they come from."""

import asyncio
import logging
import sqlite3
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

import aiosqlite
import orjson

from processor.errors import TaskflowError
from processor.runtime import private_directory
from processor.views.model.projection import ProjectionChanges, Viewed, ViewedStep
from processor.views.model.reader_pool import PAGE_CACHE_KIB, ViewReader, lent, pool_of
from processor.views.model.rows import (
    DROP_DEAD_LETTERS,
    FLOW_COLUMNS,
    INSERT_FLOW,
    MUTABLE,
    PUT_STEP,
    UPDATE_FLOW,
    flow_of,
    flow_row,
    inserted_row,
    marks,
    pruned_row,
    step_row,
)
from processor.views.model.words import indexed

FORMAT: Final = 4
NAME: Final = "views.sqlite"
READERS: Final = 4
DEAD_LETTERS_KEPT: Final = 1000
"""Dead letters of one partition; the topic has them all."""
_CHECKPOINT_PAGES: Final = 16_000
"""64 MiB. Flows come in the order of no index on their ids or owners, so that a batch dirties pages
all over the file: with a quarter of this each of them is written to the file twice as often."""
_VARIABLES: Final = 500

_log = logging.getLogger(__name__)


class ViewUnusable(TaskflowError):
    """The view's file cannot be opened; the worker was not started."""


class ViewPosition(NamedTuple):
    """How far a partition of a topic is projected: the next offset; the newest event's id
    (partition * 2^40: none), and when the broker appended its record."""

    next: int
    event_id: int
    at_ms: int


class DeadLetterRow(NamedTuple):
    """A dead letter as it is shown: `doc` is JSON."""

    partition: int
    offset: int
    at_ms: int
    code: str
    doc: bytes


class ProjectionBatch(NamedTuple):
    """What is written in one transaction."""

    changes: ProjectionChanges
    dead_letters: Sequence[DeadLetterRow]
    aggregates: Mapping[tuple[str, int, int], bytes | None]
    """(table, partition, window's beginning in s) → its row; None: it is to go."""
    positions: Mapping[tuple[str, int], ViewPosition]


def remove(folder: Path) -> None:
    """Drop the view; it is rebuilt from the beginning."""
    for path in folder.glob(f"{NAME}*"):
        path.unlink()


class Database:
    """One connection that writes, and some that read. Made by `open_database`."""

    def __init__(self, writer: aiosqlite.Connection, readers: Sequence["ViewReader"]) -> None:
        self._writer = writer
        self._readers = readers
        # Streams have one of their own: they read much, and no request waits for their next event.
        self._for_streams = pool_of(readers[:1])
        self._for_questions = pool_of(readers[1:])

    async def positions(self) -> dict[tuple[str, int], ViewPosition]:
        rows = await self._writer.execute_fetchall(
            "SELECT topic, partition, next, event_id, at_ms FROM position"
        )
        return {(row[0], row[1]): ViewPosition(*row[2:]) for row in rows}

    async def aggregates(self) -> list[tuple[str, int, int, Any]]:
        rows = await self._writer.execute_fetchall(
            "SELECT name, partition, start_s, doc FROM aggregate"
        )
        return [(name, partition, start, orjson.loads(doc)) for name, partition, start, doc in rows]

    async def flows(self, ids: Iterable[str]) -> dict[str, Viewed]:
        """Those of `ids` that are there and not pruned, as the last write left them."""
        wanted = list(ids)
        found: dict[str, Viewed] = {}
        for start in range(0, len(wanted), _VARIABLES):
            some = wanted[start : start + _VARIABLES]
            rows = await self._writer.execute_fetchall(
                f"SELECT n, since_ms, events, last_event_id, {FLOW_COLUMNS} FROM flow "
                f"WHERE pruned = 0 AND id IN ({marks(some)})",
                some,
            )
            for row_number, since_ms, events, last_event_id, *row in rows:
                flow = flow_of(row)
                found[flow.id] = Viewed(row_number, flow, since_ms, events, last_event_id)
        return found

    async def steps(self, keys: Iterable[tuple[int, str]]) -> dict[tuple[int, str], ViewedStep]:
        """Those of `keys` (the flow's number, run id) that are there."""
        wanted = [part for key in keys for part in key]
        found: dict[tuple[int, str], ViewedStep] = {}
        for start in range(0, len(wanted), _VARIABLES):
            some = wanted[start : start + _VARIABLES]
            rows = await self._writer.execute_fetchall(
                "SELECT n, flow, run_id, doc FROM step WHERE (flow, run_id) IN "
                f"(VALUES {', '.join(['(?, ?)'] * (len(some) // 2))})",
                some,
            )
            for row_number, flow, run_id, doc in rows:
                found[flow, run_id] = ViewedStep(row_number, flow, orjson.loads(doc))
        return found

    async def write(self, batch: ProjectionBatch) -> None:
        """All of it, or nothing. Who is cancelled meanwhile leaves when it is over, so that no two
        writes meet."""
        writing = asyncio.ensure_future(self._write(batch))
        try:
            await asyncio.shield(writing)
        except asyncio.CancelledError:
            await asyncio.wait([writing])
            raise

    async def _write(self, batch: ProjectionBatch) -> None:
        writer, changes = self._writer, batch.changes
        new = [flow_row(v) for n, v in changes.flows.items() if n in changes.created]
        old = [flow_row(v) for n, v in changes.flows.items() if n not in changes.created]
        gone = [pruned_row(v) for v in changes.pruned.values()]
        new += [row for row in gone if row[-1] in changes.created]
        old += [row for row in gone if row[-1] not in changes.created]
        await writer.execute("BEGIN IMMEDIATE")
        try:
            if new:
                await writer.executemany(INSERT_FLOW, [inserted_row(row) for row in new])
                goals = [(row[-1], indexed(row[-2])) for row in new]
                await writer.executemany("INSERT INTO goal (rowid, words) VALUES (?, ?)", goals)
            if old:
                await writer.executemany(UPDATE_FLOW, [(*row[:MUTABLE], row[-1]) for row in old])
            if changes.steps:
                await writer.executemany(PUT_STEP, [step_row(s) for s in changes.steps.values()])
            if changes.pruned:
                row_numbers = [(row_number,) for row_number in changes.pruned]
                await writer.executemany("DELETE FROM step WHERE flow = ?", row_numbers)
            await writer.executemany("INSERT INTO event VALUES (?, ?, ?, ?, ?, ?)", changes.events)
            if batch.dead_letters:
                await writer.executemany(
                    "INSERT OR IGNORE INTO letter VALUES (?, ?, ?, ?, ?)", batch.dead_letters
                )
                oldest = [
                    (partition, partition, DEAD_LETTERS_KEPT)
                    for partition in {dead_letter.partition for dead_letter in batch.dead_letters}
                ]
                await writer.executemany(DROP_DEAD_LETTERS, oldest)
            dropped = [key for key, doc in batch.aggregates.items() if doc is None]
            kept = [(*key, doc) for key, doc in batch.aggregates.items() if doc is not None]
            await writer.executemany("INSERT OR REPLACE INTO aggregate VALUES (?, ?, ?, ?)", kept)
            if dropped:
                await writer.executemany(
                    "DELETE FROM aggregate WHERE name = ? AND partition = ? AND start_s = ?",
                    dropped,
                )
            await writer.executemany(
                "INSERT OR REPLACE INTO position VALUES (?, ?, ?, ?, ?)",
                [(*key, *position) for key, position in batch.positions.items()],
            )
            await writer.commit()
        except BaseException:
            await writer.rollback()
            raise

    async def read(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """The rows, all from one state of the file. Raises TooExpensive, Overloaded."""
        async with lent(self._for_questions) as reader:
            return await reader.rows(sql, parameters)

    @asynccontextmanager
    async def reading(self, *, stream: bool = False) -> AsyncIterator["ViewReader"]:
        """Several queries that see one state of the file, in QUERY_MAX_S all together; `stream`:
        for one, and not for a question. Raises TooExpensive, Overloaded."""
        async with lent(self._for_streams if stream else self._for_questions) as reader:
            await reader.connection.execute("BEGIN")
            try:
                yield reader
            except asyncio.CancelledError:
                raise  # rolled back behind whatever the connection is still at
            except BaseException:
                await reader.connection.rollback()
                raise
            await reader.connection.rollback()

    async def close(self) -> None:
        for reader in self._readers:
            await reader.connection.close()
        await self._writer.close()


@asynccontextmanager
async def open_database(folder: Path) -> AsyncIterator[Database]:
    """Open the view in `folder`, or begin one; a file of another format is thrown away.

    Raises ViewUnusable.
    """
    path = folder / NAME
    try:
        private_directory(folder)
        if await _format_of(path) not in (None, FORMAT):
            _log.warning("%s has another format and is rebuilt", path)
            remove(folder)
        writer = await aiosqlite.connect(path, isolation_level=None, cached_statements=256)
    except (OSError, sqlite3.Error) as error:
        raise ViewUnusable(f"The view {path} cannot be used: {error}.") from error
    readers: list[ViewReader] = []
    try:
        try:
            await _prepare(writer)
            for _ in range(READERS):
                readers.append(
                    ViewReader(
                        await aiosqlite.connect(
                            f"{path.resolve().as_uri()}?mode=ro", uri=True, isolation_level=None
                        )
                    )
                )
                await readers[-1].prepare()
        except sqlite3.Error as error:
            raise ViewUnusable(f"The view {path} cannot be used: {error}.") from error
        yield Database(writer, readers)
    finally:
        for reader in readers:
            await reader.connection.close()
        await writer.close()


async def _format_of(path: Path) -> int | None:
    """None: there is no file, or an empty one. One that is none of ours is 0."""
    if not path.exists():  # noqa: ASYNC240
        return None
    async with aiosqlite.connect(path) as connection:
        try:
            ((version,),) = await connection.execute_fetchall("PRAGMA user_version")
            tables = await connection.execute_fetchall("SELECT 1 FROM sqlite_master LIMIT 1")
        except sqlite3.DatabaseError:
            return 0
    return int(version) if tables else None


async def _prepare(writer: aiosqlite.Connection) -> None:
    await writer.execute("PRAGMA journal_mode = WAL")
    await writer.execute("PRAGMA synchronous = NORMAL")
    await writer.execute(f"PRAGMA cache_size = -{PAGE_CACHE_KIB}")
    await writer.execute(f"PRAGMA wal_autocheckpoint = {_CHECKPOINT_PAGES}")
    if not await writer.execute_fetchall("SELECT 1 FROM sqlite_master LIMIT 1"):
        schema = (Path(__file__).parent / "schema.sql").read_text("utf-8")
        await writer.executescript(f"BEGIN;{schema};PRAGMA user_version = {FORMAT};COMMIT;")
