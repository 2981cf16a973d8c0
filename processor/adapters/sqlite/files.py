"""Open a partition's table file, and discard one that is not valid."""

import asyncio
import shutil
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, Final

import aiosqlite
import structlog

from processor.adapters.sqlite import integrity_check as checking
from processor.adapters.sqlite.errors import TableFailed, as_table_errors, is_corruption
from processor.adapters.sqlite.internals import data_version
from processor.adapters.sqlite.table import FlowTable
from processor.runtime import private_directory

log = structlog.get_logger(__name__)

FORMAT: Final = 5
SCHEMA: Final = "\n".join(
    Path(__file__).with_name(name).read_text() for name in ("schema.sql", "indexes.sql")
)
BUSY_TIMEOUT_S: Final = 1.0
CACHE_KIB: Final = 4 * 1024
LOG_KEPT_BYTES: Final = 16 * 1024 * 1024
"""The write-ahead log is cut to this when it starts over."""
USUAL: Final = (
    "synchronous = NORMAL",
    f"cache_size = -{CACHE_KIB}",
    f"journal_size_limit = {LOG_KEPT_BYTES}",
    "mmap_size = 0",
    "temp_store = MEMORY",
)
CACHED_STATEMENTS: Final = 64
"""More than the sizes of all statements together."""


def table_path(state_dir: Path, prefix: str, partition: int) -> Path:
    return state_dir / f"{prefix}-{partition}.db"


@asynccontextmanager
async def open_table(
    path: Path, *, partition: int, prefix: str, partitions: int
) -> AsyncIterator[FlowTable]:
    """The table at `path`, made if missing; closed, and removed if doubted, in the end.

    A file that is damaged, of another format or of another partition is removed and recreated,
    empty: it is a cache of Kafka. A large one is checked while it is used, so that opening takes
    no longer for a million flows than for one. Raises TableFailed if SQLite cannot use the path.
    """
    about = (prefix, partition, partitions)
    private_directory(path.parent)
    with as_table_errors(path):
        connection = await _connect(path)
        try:
            wrong = await _what_is_wrong(connection, about)
            if wrong is not None:
                await connection.close()
                discard(path, why=wrong)
                connection = await _connect(path)
                if await _what_is_wrong(connection, about) is not None:
                    raise sqlite3.OperationalError("a new table is not what was made")
            in_background = not await _is_small(connection)
            table = FlowTable(connection, path, await data_version(connection), USUAL)
        except BaseException:
            await connection.close()
            raise
    try:
        async with checking.checked_in_background(table) if in_background else nullcontext():
            yield table
    finally:
        await table.close()
        if table.doubted:
            discard(path, why="it was damaged or written by another process")


def discard(path: Path, *, why: str) -> None:
    """Remove a table, and say so."""
    log.warning("table removed; it is restored from Kafka", path=str(path), reason=why)
    remove(path)


def copy(path: Path, to: Path) -> None:
    """Copy a table that is not open, with the log that a killed worker left. Raises TableFailed
    if it cannot be read or written."""
    remove(to)
    try:
        for suffix in ("-wal", ""):
            if path.with_name(path.name + suffix).exists():
                shutil.copyfile(path.with_name(path.name + suffix), to.with_name(to.name + suffix))
    except OSError as error:
        raise TableFailed(f"{path} could not be copied to {to}: {error}") from error


def put_in_place(built: Path, path: Path) -> None:
    """Move a table that is not open to `path`. A crash in between leaves none there,
    and it is restored."""
    remove(path)
    built.replace(path)


def remove(path: Path) -> None:
    """Its log goes last: without its file, SQLite does not use it."""
    for suffix in ("", "-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


async def _connect(path: Path) -> aiosqlite.Connection:
    connecting = asyncio.ensure_future(_connected(path))
    try:
        return await asyncio.shield(connecting)
    except asyncio.CancelledError:
        # aiosqlite would leave its thread behind, to end when the loop may be gone.
        await (await connecting).close()
        raise


async def _connected(path: Path) -> aiosqlite.Connection:
    connection = await aiosqlite.connect(
        path,
        isolation_level=None,
        timeout=BUSY_TIMEOUT_S,
        cached_statements=CACHED_STATEMENTS,
    )
    # Joined documents need not be decoded to be parsed.
    connection.text_factory = bytes
    return connection


async def _what_is_wrong(connection: aiosqlite.Connection, about: tuple[Any, ...]) -> str | None:
    """Makes a new file a table. None if it is one, of this format and of this partition."""
    try:
        for setting in ("journal_mode = WAL", *USUAL):
            await connection.execute_fetchall(f"PRAGMA {setting}")
        ((version,),) = await connection.execute_fetchall("PRAGMA user_version")
        ((tables,),) = await connection.execute_fetchall("SELECT count(*) FROM sqlite_master")
        if version == 0 and tables == 0:
            await _make(connection, about)
        elif version != FORMAT:
            return f"it is of format {version}, not {FORMAT}"
        found = list(
            await connection.execute_fetchall("SELECT prefix, partition, partitions FROM about")
        )
        prefix, partition, partitions = found[0] if found else (b"", -1, -1)
        if (prefix.decode(), partition, partitions) != about:
            return f"it belongs to {prefix.decode()!r}, partition {partition} of {partitions}"
        if await _is_small(connection):
            ((verdict,),) = await connection.execute_fetchall(checking.CHECK)
            if verdict.decode() != checking.SOUND:
                return f"its check says: {verdict.decode(errors='replace')}"
    except sqlite3.DatabaseError as error:
        # A plain SQL error: it has other tables than ours.
        if is_corruption(error) or error.sqlite_errorcode == sqlite3.SQLITE_ERROR:
            return str(error)
        raise
    return None


async def _is_small(connection: aiosqlite.Connection) -> bool:
    ((pages,),) = await connection.execute_fetchall("PRAGMA page_count")
    ((page_bytes,),) = await connection.execute_fetchall("PRAGMA page_size")
    return bool(pages * page_bytes <= checking.AT_ONCE_MAX_BYTES)


async def _make(connection: aiosqlite.Connection, about: tuple[Any, ...]) -> None:
    try:
        await connection.executescript(f"BEGIN IMMEDIATE;\n{SCHEMA}")
        await connection.execute("INSERT INTO about VALUES (1, ?, ?, ?)", about)
        await connection.execute(f"PRAGMA user_version = {FORMAT}")
        await connection.commit()
    except BaseException:
        with suppress(sqlite3.Error):
            await connection.rollback()
        raise
