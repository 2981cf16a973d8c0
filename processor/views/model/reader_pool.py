"""Connections that read the view's file: lent one at a time, each query within a deadline."""

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

import aiosqlite

from processor.errors import TaskflowError
from processor.views.model.meets import MEETS, meets

QUERY_MAX_S: Final = 2.0
"""A query that takes longer is given up, so that none can starve the others."""
QUEUE_MAX_S: Final = 4.0
"""For how long a query waits for a connection."""
PAGE_CACHE_KIB: Final = 64 * 1024
_PROGRESS_STEPS: Final = 10_000


class TooExpensive(TaskflowError):
    """A query took longer than it may; a narrower one will do."""

    retriable = True


class Overloaded(TaskflowError):
    """So many queries are waiting that this one was given up."""

    retriable = True


class ViewReader:
    """A connection that reads; a query that passes `deadline_s` (monotonic) is given up."""

    def __init__(self, connection: aiosqlite.Connection) -> None:
        self.connection = connection
        self.deadline_s = 0.0

    async def prepare(self) -> None:
        """Called once, before the first query."""
        await self.connection.execute(f"PRAGMA cache_size = -{PAGE_CACHE_KIB // 4}")
        await self.connection.execute("PRAGMA mmap_size = 268435456")
        await self.connection.create_function(MEETS, -1, meets, deterministic=True)
        await self.connection.set_progress_handler(
            lambda: time.monotonic() > self.deadline_s, _PROGRESS_STEPS
        )

    async def rows(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Raises TooExpensive."""
        try:
            return list(await self.connection.execute_fetchall(sql, parameters))  # type: ignore[arg-type]
        except sqlite3.OperationalError as error:
            if "interrupted" in str(error):
                raise TooExpensive(f"The query took longer than {QUERY_MAX_S:g} s.") from None
            raise


async def _rollback(reader: ViewReader) -> None:
    with suppress(sqlite3.Error, ValueError):  # ValueError: closed meanwhile
        await reader.connection.rollback()


ReaderPool = asyncio.Queue[ViewReader]


def pool_of(readers: Sequence[ViewReader]) -> ReaderPool:
    pool: ReaderPool = asyncio.Queue()
    for reader in readers:
        pool.put_nowait(reader)
    return pool


@asynccontextmanager
async def lent(pool: ReaderPool) -> AsyncIterator[ViewReader]:
    """A reader for one question. Raises Overloaded if none is free in time."""
    try:
        async with asyncio.timeout(QUEUE_MAX_S):
            reader = await pool.get()
    except TimeoutError:
        raise Overloaded("Too many questions are being answered; ask again.") from None
    reader.deadline_s = time.monotonic() + QUERY_MAX_S
    try:
        yield reader
    except asyncio.CancelledError:
        # Its thread may still be at a query, which ends now: its request is gone.
        reader.deadline_s = 0.0
        asyncio.ensure_future(_rollback(reader)).add_done_callback(
            lambda _: pool.put_nowait(reader)
        )
        raise
    except BaseException:
        pool.put_nowait(reader)
        raise
    else:
        pool.put_nowait(reader)
