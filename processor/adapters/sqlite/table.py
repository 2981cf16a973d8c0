"""The table of one partition: flows, steps, ledger and checkpoint."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from operator import itemgetter
from pathlib import Path
from typing import Any, TypeVar

import aiosqlite

from processor.adapters.sqlite import bulk_load, statements
from processor.adapters.sqlite import row_codec as records
from processor.adapters.sqlite.errors import TableConflict, TableCorrupt, as_table_errors
from processor.adapters.sqlite.internals import data_version, run_in_thread
from processor.adapters.sqlite.ledger import Ledger
from processor.adapters.sqlite.write_batch import WriteBatch, WriteStatement
from processor.contract.steps import StepStatus
from processor.contract.values import instant
from processor.engine.rows import (
    Changes,
    Checkpoint,
    Deadline,
    FlowRow,
    LedgerEntry,
    RestoreChunk,
    StepDue,
    StepRow,
)

first = itemgetter(0)
A = TypeVar("A")
T = TypeVar("T")
Timed = TypeVar("Timed", Deadline, StepDue)


class FlowTable:
    """One partition's table. Calls take turns on its one connection.

    Raises TableFailed when SQLite cannot, TableCorrupt when what it reads was never written.
    Made by files.open_table.
    """

    def __init__(
        self,
        connection: aiosqlite.Connection,
        path: Path,
        data_version: int,
        usual: Sequence[str] = (),
    ) -> None:
        """`usual`: PRAGMAs of the connection, to be set again after a restore."""
        self._usual = usual
        self._connection = connection
        self._path = path
        self._data_version = data_version
        self._lock = asyncio.Lock()
        self._unfinished: asyncio.Task[None] | None = None
        self.doubted = False
        """Whether a foreign write or a damage was seen: the file goes when the table is closed."""
        self._damage: str | None = None
        self._next_row_number = 1
        self._ledger: Ledger | None = None
        """None: to be loaded."""

    @property
    def path(self) -> Path:
        return self._path

    async def checkpoint(self) -> Checkpoint | None:
        """How far the table is written; None if it is empty."""
        row = await self._row(statements.CHECKPOINT)
        return None if row is None else records.checkpoint_row(row)

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

    async def live_steps(self, flow_ids: Sequence[str]) -> dict[str, list[StepRow]]:
        """The managed steps of each flow that have not ended; flows without any are left out.

        Which these are no CRC covers: what the flow's totals say must be held against it.
        """
        keys = [(flow_id,) for flow_id in flow_ids]
        found: dict[str, list[StepRow]] = {}
        for row in await self._read(statements.LIVE_STEPS, keys, records.step_row):
            found.setdefault(row.step.flow_id, []).append(row)
        return found

    async def ledger_entries(self, keys: Sequence[bytes]) -> dict[bytes, LedgerEntry]:
        """The ledger entries of `keys`; whether they are too old is for the caller."""
        async with self._turn():
            ledger = await self._loaded_ledger()
            tags = [(tag,) for tag in ledger.tags(keys)]
        if not tags:
            return {}
        rows = await self._read(statements.LEDGER, tags, records.ledger_row)
        wanted = set(keys)
        # Of one key the newest counts.
        return {row.key: row for _, row in sorted(rows, key=first) if row.key in wanted}

    async def due(self, after: Deadline | None, until_ms: int, limit: int) -> list[Deadline]:
        """Up to `limit` waits that end by themselves at or before `until_ms`, the earliest first,
        from behind `after` on (None: from the first).

        To be believed only once the flow itself was looked at: no CRC covers its time.
        """
        keys = (*(after or statements.FIRST_DUE), until_ms, limit)
        return await self._by_time(statements.DUE, keys, records.due)

    async def steps_due(
        self, status: StepStatus, after: StepDue | None, until_ms: int, limit: int
    ) -> list[StepDue]:
        """Up to `limit` managed steps of this status, pending or running, that are to be looked at
        by `until_ms`, the earliest first, from behind `after` on (None: from the first).

        To be believed only once the step itself was looked at: no CRC covers its time.
        """
        sql = statements.STEPS_DUE[records.STEP_STATUSES[status]]
        keys = (*(after or statements.FIRST_STEP), until_ms, limit)
        return await self._by_time(sql, keys, records.step_due)

    async def count_live(self) -> tuple[int, int]:
        """How many managed steps are pending, and how many are running. Looks at each, in their
        indexes: 80 ms for a million."""
        row = await self._row(statements.COUNT_LIVE)
        return (int(row[0]), int(row[1])) if row else (0, 0)

    async def armed(self) -> int:
        """How many waits end by themselves. Looks at each, in the index: 80 ms for a million."""
        row = await self._row(statements.ARMED)
        return int(row[0]) if row else 0

    async def ended(self, after: Deadline | None, before_ms: int, limit: int) -> list[Deadline]:
        """Up to `limit` terminal flows whose last change is older than `before_ms`, the oldest
        first, from behind `after` on (None: from the first); `at_ms` is that of the change.

        To be believed only once the flow itself was looked at: no CRC covers what is asked here.
        """
        start = statements.FIRST_ENDED if after is None else (instant(after.at_ms), after.flow_id)
        keys = (*start, instant(before_ms), limit)
        return await self._by_time(statements.ENDED, keys, records.ended)

    async def next_row_number(self) -> int:
        """The row number after the highest."""
        row = await self._row(statements.NEXT_ROW_NUMBER)
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
        """Whether no other connection has committed to the file since it was opened or cleared.

        SQLite's `data_version` changes by other connections' commits only; a foreign
        `wal_checkpoint(TRUNCATE)` counts too. Once False, it stays False until `clear`.
        """
        async with self._turn():
            version = await data_version(self._connection)
        if version != self._data_version:
            self.doubted = True
        return version == self._data_version

    @staticmethod
    def new_pack() -> WriteBatch:
        """An empty one, for the next `write`."""
        return WriteBatch()

    async def write(
        self, changes: WriteBatch | Changes, *, before: Checkpoint | None, after: Checkpoint
    ) -> None:
        """Write a batch in one transaction, in the order that Changes documents.

        `before` is the checkpoint now (None: an empty table), `after` the next one. Raises
        TableConflict, with nothing written, unless it is, unless each updated or deleted flow is
        at the revision and event that it was decided on, unless each inserted one is new, or if
        another connection has written to the file.

        A caller that is cancelled leaves the write running; the next call waits for it.
        """
        if isinstance(changes, Changes):
            pack = self.new_pack()
            pack.take(changes)
        else:
            pack = changes
        await self._undisturbed(lambda: self._write(pack, before, after))

    async def clear(self) -> None:
        """Remove all rows, also the position, and trust the file again."""
        await self._undisturbed(self._clear)

    async def begin_restore(self, unfinished: Checkpoint) -> None:
        """Remove all rows and trust the file again, to be restored; it stands at `unfinished`.

        Until `end_restore` it has no index, and what is committed may be lost with the power. What
        fails on the way, or is cut short, leaves a table to be restored.
        """
        await self._unless_cancelled(self._begin_restore, unfinished)

    async def restore(self, some: RestoreChunk) -> None:
        """Add rows; of a key that comes again, the later counts."""
        await self._unless_cancelled(self._restore, some)

    async def end_restore(self, after: Checkpoint) -> None:
        """Make the indexes; everything is on the disk before the table stands at `after`."""
        await self._unless_cancelled(bulk_load.finish, after)
        async with self._turn():
            for setting in self._usual:
                await self._connection.execute_fetchall(f"PRAGMA {setting}")

    def distrust(self, damage: str) -> None:
        """`damage` was found in the file: each call from now on raises TableCorrupt."""
        self._damage = damage
        self.doubted = True

    async def close(self) -> None:
        """Wait for an unfinished write, then close."""
        async with self._lock:
            with suppress(sqlite3.Error):
                await self._connection.close()

    async def _write(self, pack: WriteBatch, before: Checkpoint | None, after: Checkpoint) -> None:
        ledger = await self._loaded_ledger()
        self._ledger = None  # until what it goes ahead of is written
        writes = [self._store(before, after), *pack.to_statements(ledger)]
        await run_in_thread(self._connection, self._write_now, writes)
        self._ledger = ledger

    async def _loaded_ledger(self) -> Ledger:
        if self._ledger is None:
            self._ledger = await run_in_thread(self._connection, Ledger.load, None)
        return self._ledger

    def _write_now(self, connection: sqlite3.Connection, writes: Sequence[WriteStatement]) -> None:
        """Everything or nothing, in the connection's own thread."""
        store, *others = writes
        connection.execute("BEGIN IMMEDIATE")
        try:
            self._do(connection, store)
            try:
                for write in others:
                    self._do(connection, write)
                connection.commit()
            except BaseException:
                # No one else can have committed since the position was compared, but SQLite
                # drops its pages when a write fails, and then counts the rows it reads as news.
                with suppress(sqlite3.Error):
                    connection.rollback()
                    ((version,),) = connection.execute("PRAGMA data_version").fetchall()
                    self._data_version = int(version)
                raise
        except BaseException:
            with suppress(sqlite3.Error):
                connection.rollback()
            raise

    def _do(self, connection: sqlite3.Connection, write: WriteStatement) -> None:
        cursor = connection.execute(write.sql, write.parameters)
        if write.unless is not None and cursor.rowcount != write.rows:
            raise TableConflict(f"{self._path}: {write.unless}; nothing of the batch was written")

    def _store(self, before: Checkpoint | None, after: Checkpoint) -> WriteStatement:
        was = () if before is None else records.checkpoint_values(before)
        sql = statements.STORE_FIRST if before is None else statements.STORE_NEXT
        parameters = (*records.checkpoint_values(after), self._data_version, *was)
        return WriteStatement(sql, parameters, 1, "it was written by another process")

    async def _clear(self) -> None:
        await self._connection.execute("BEGIN IMMEDIATE")
        self._ledger = None
        for table in statements.CLEAR:
            await self._connection.execute(f"DELETE FROM {table}")
        await run_in_thread(self._connection, bulk_load.ensure_indexes, None)
        version = await data_version(self._connection)
        await self._connection.commit()
        self._data_version = version
        self.doubted = False

    def _begin_restore(self, db: sqlite3.Connection, unfinished: Checkpoint) -> None:
        bulk_load.prepare(db, unfinished)
        ((version,),) = db.execute("PRAGMA data_version").fetchall()
        self._data_version = int(version)
        self._next_row_number = 1
        self._ledger = Ledger.empty()
        self.doubted = False

    def _restore(self, db: sqlite3.Connection, some: RestoreChunk) -> None:
        ledger = self._ledger or Ledger.load(db)
        self._ledger = None  # until what it goes ahead of is written
        self._next_row_number = bulk_load.put(db, self._next_row_number, ledger, some)
        self._ledger = ledger

    async def _unless_cancelled(
        self, work: Callable[[sqlite3.Connection, A], None], what: A
    ) -> None:
        """Do a step of a restore. Its result is dropped once the caller has stopped waiting."""
        try:
            await self._undisturbed(lambda: run_in_thread(self._connection, work, what))
        except asyncio.CancelledError:
            await self._connection.interrupt()
            raise

    async def _undisturbed(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run a transaction to its end, also if the caller is cancelled meanwhile."""
        await self._lock.acquire()
        self._unfinished = asyncio.create_task(self._transaction(work))
        self._unfinished.add_done_callback(self._finished)
        await asyncio.shield(self._unfinished)

    def _finished(self, work: asyncio.Task[None]) -> None:
        self._lock.release()
        if not work.cancelled():
            work.exception()  # retrieved: a caller that was cancelled does not ask for it

    async def _transaction(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        with self._as_table_errors():
            await self._rollback_unfinished()
            try:
                await work()
            except BaseException:
                # The pending statement may still run in its thread; this one comes after it.
                with suppress(sqlite3.Error):
                    await self._connection.rollback()
                raise

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        async with self._lock:
            with self._as_table_errors():
                await self._rollback_unfinished()
                yield

    async def _rollback_unfinished(self) -> None:
        """Of a write whose task was itself cancelled, as a closing loop does."""
        if self._connection.in_transaction:
            await self._connection.rollback()

    @contextmanager
    def _as_table_errors(self) -> Iterator[None]:
        if self._damage is not None:
            raise TableCorrupt(f"{self._path} is damaged: {self._damage}")
        try:
            with as_table_errors(self._path):
                yield
        except TableCorrupt:
            self.doubted = True
            raise

    async def _row(self, sql: str) -> tuple[int, ...] | None:
        async with self._turn():
            rows = await self._connection.execute_fetchall(sql)
        return next((tuple(row) for row in rows), None)

    async def _by_time(
        self, sql: str, keys: statements.Row, parse: Callable[[list[bytes]], Timed]
    ) -> list[Timed]:
        async with self._turn():
            ((count, joined),) = await self._connection.execute_fetchall(sql, keys)
            # SQLite joins what it was given in order, but promises no order.
            return sorted(map(parse, records.split(count, joined)))

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
