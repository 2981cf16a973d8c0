"""The flows, steps, answers and positions of one partition, in SQLite."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import aiosqlite

from processor.adapters.sqlite import records, statements
from processor.adapters.sqlite.errors import TableConflict, TableCorrupt, told
from processor.rows import Changes, FlowRow, Remembered, StepRow, Stored

T = TypeVar("T")

FORGET_FACTOR = 2
FORGET_EXTRA = 1000
"""Per write, up to 2 × the answers remembered + 1000 of the oldest are looked at."""


class FlowTable:
    """One partition's table. Calls take turns on its one connection.

    Raises TableFailed when SQLite cannot, TableCorrupt when what it reads was never written.
    Made by files.open_table.
    """

    def __init__(self, connection: aiosqlite.Connection, path: Path, data_version: int) -> None:
        self._connection = connection
        self._path = path
        self._data_version = data_version
        self._lock = asyncio.Lock()
        self._unfinished: asyncio.Task[None] | None = None
        self.doubted = False
        """Whether another hand or a damage was seen: the file goes when the table is closed."""

    @property
    def path(self) -> Path:
        return self._path

    async def stored(self) -> Stored | None:
        """How far the table is written; None if it is empty."""
        row = await self._row(statements.STORED)
        return None if row is None else records.stored_row(row)

    async def flows(self, ids: Sequence[str]) -> dict[str, FlowRow]:
        """The flows among `ids` that exist."""
        rows = await self._read(statements.FLOWS, [(flow_id,) for flow_id in ids], records.flow_row)
        return {row.flow.id: row for row in rows}

    async def steps(self, keys: Sequence[tuple[str, str]]) -> dict[tuple[str, str], StepRow]:
        """The steps among `keys`, pairs of flow id and run id, that exist."""
        rows = await self._read(statements.STEPS, keys, records.step_row)
        return {(row.step.flow_id, row.step.run_id): row for row in rows}

    async def run_ids(self, flow_ids: Sequence[str]) -> dict[str, list[str]]:
        """The run ids of each flow's steps, sorted; an empty list for a flow without."""
        found: dict[str, list[str]] = {flow_id: [] for flow_id in flow_ids}
        keys = [(flow_id,) for flow_id in found]
        for flow_id, run_id in await self._read(statements.RUN_IDS, keys, records.run_id):
            found[flow_id].append(run_id)
        for run_ids in found.values():
            run_ids.sort()
        return found

    async def recall(self, keys: Sequence[bytes]) -> dict[bytes, Remembered]:
        """The answers remembered under `keys`; whether they are too old is for the caller."""
        rows = await self._read(statements.ANSWERS, [(key,) for key in keys], records.answer)
        return {row.key: row for row in rows}

    async def next_number(self) -> int:
        """The row number after the highest."""
        row = await self._row("SELECT coalesce(max(n), 0) + 1 FROM flow")
        return int(row[0]) if row else 1

    async def count_flows(self) -> int:
        """Reads the index on ids, not the flows: about 10 ms for a million."""
        row = await self._row("SELECT count(*) FROM flow")
        return int(row[0]) if row else 0

    def size_bytes(self) -> int:
        """Of the file and its write-ahead log."""
        return sum(
            path.stat().st_size
            for path in (self._path, self._path.with_name(self._path.name + "-wal"))
            if path.exists()
        )

    async def untouched(self) -> bool:
        """Whether nobody else has committed to the file since it was opened or cleared.

        SQLite's `data_version` changes by other connections' commits only; a foreign
        `wal_checkpoint(TRUNCATE)` counts too. Once False, it stays False until `clear`.
        """
        async with self._turn():
            version = await data_version(self._connection)
        if version != self._data_version:
            self.doubted = True
        return version == self._data_version

    async def write(self, changes: Changes, *, before: Stored | None, after: Stored) -> None:
        """Write a batch in one transaction, in the order that Changes documents.

        `before` is what `stored` must be (None: an empty table), `after` what it becomes. Raises
        TableConflict, with nothing written, unless it is, unless each updated or deleted flow is
        at the revision and event that it was decided on, unless each inserted one is new, or if
        somebody else has written to the file.

        A caller that is cancelled leaves the write running; the next call waits for it.
        """
        await self._undisturbed(lambda: self._write(changes, before, after))

    async def clear(self) -> None:
        """Remove all rows, also the position, and trust the file again."""
        await self._undisturbed(self._clear)

    async def close(self) -> None:
        """Wait for an unfinished write, then close."""
        async with self._lock:
            with suppress(sqlite3.Error):
                await self._connection.close()

    async def _write(self, changes: Changes, before: Stored | None, after: Stored) -> None:
        await self._connection.execute("BEGIN IMMEDIATE")
        await self._store(before, after)
        try:
            await self._apply(changes)
            await self._connection.commit()
        except BaseException:
            # Nobody else can have committed since the position was compared, but SQLite drops
            # its pages when a write fails, and then counts the rows it reads as news.
            with suppress(sqlite3.Error):
                await self._connection.rollback()
                self._data_version = await data_version(self._connection)
            raise

    async def _apply(self, changes: Changes) -> None:
        deleted = [records.flow_key(row) for row in changes.deleted]
        await self._each(statements.DELETE_FLOWS, deleted, "a flow to delete has changed")
        await self._each(statements.DELETE_STEPS, [(row.flow.id,) for row in changes.deleted])
        await self._each(
            statements.UPDATE_FLOWS,
            [records.flow_key(was) + records.flow_values(row) for was, row in changes.updated],
            "a flow to update has changed",
        )
        await self._each(
            statements.INSERT_FLOWS,
            [(row.number, row.flow.id, *records.flow_values(row)) for row in changes.inserted],
        )
        await self._each(statements.DELETE_THESE_STEPS, changes.deleted_steps)
        await self._each(statements.UPSERT_STEPS, list(map(records.step_values, changes.steps)))
        answers = list(map(records.answer_values, changes.remembered))
        await self._each(statements.REMEMBER, answers)
        if changes.forget_before_ms is not None:
            looked_at = FORGET_FACTOR * len(answers) + FORGET_EXTRA
            await self._connection.execute(statements.FORGET, (looked_at, changes.forget_before_ms))

    async def _store(self, before: Stored | None, after: Stored) -> None:
        was = () if before is None else records.stored_values(before)
        sql = statements.STORE_FIRST if before is None else statements.STORE_NEXT
        cursor = await self._connection.execute(
            sql, (*records.stored_values(after), self._data_version, *was)
        )
        if cursor.rowcount != 1:
            raise TableConflict(f"{self._path} was written by somebody else; the batch was not")

    async def _each(
        self, rows: statements.Rows, values: Sequence[statements.Row], unless: str | None = None
    ) -> None:
        for sql, parameters, count in rows.writing(values):
            cursor = await self._connection.execute(sql, parameters)
            if unless is not None and cursor.rowcount != count:
                raise TableConflict(f"{self._path}: {unless}; nothing of the batch was written")

    async def _clear(self) -> None:
        await self._connection.execute("BEGIN IMMEDIATE")
        for table in statements.CLEAR:
            await self._connection.execute(f"DELETE FROM {table}")
        version = await data_version(self._connection)
        await self._connection.commit()
        self._data_version = version
        self.doubted = False

    async def _undisturbed(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run a transaction to its end, also if the caller is cancelled meanwhile."""
        await self._lock.acquire()
        self._unfinished = asyncio.create_task(self._transaction(work))
        self._unfinished.add_done_callback(lambda _: self._lock.release())
        await asyncio.shield(self._unfinished)

    async def _transaction(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        with self._telling():
            await self._roll_back_what_is_left()
            try:
                await work()
            except BaseException:
                # The statement in hand may still run in its thread; this one comes after it.
                with suppress(sqlite3.Error):
                    await self._connection.rollback()
                raise

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        async with self._lock:
            with self._telling():
                await self._roll_back_what_is_left()
                yield

    async def _roll_back_what_is_left(self) -> None:
        """Of a write whose task was itself cancelled, as a closing loop does."""
        if self._connection.in_transaction:
            await self._connection.rollback()

    @contextmanager
    def _telling(self) -> Iterator[None]:
        try:
            with told(self._path):
                yield
        except TableCorrupt:
            self.doubted = True
            raise

    async def _row(self, sql: str) -> tuple[int, ...] | None:
        async with self._turn():
            rows = await self._connection.execute_fetchall(sql)
        return next((tuple(row) for row in rows), None)

    async def _read(
        self,
        rows: statements.Rows,
        keys: Sequence[statements.Row],
        parse: Callable[[list[bytes]], T],
    ) -> list[T]:
        found: list[T] = []
        async with self._turn():
            for sql, parameters in rows.reading(keys):
                for count, joined in await self._connection.execute_fetchall(sql, parameters):
                    found.extend(map(parse, records.split(count, joined)))
        return found


async def data_version(connection: aiosqlite.Connection) -> int:
    """A number that changes when another connection has committed."""
    ((version,),) = await connection.execute_fetchall("PRAGMA data_version")
    return int(version)
