"""Check a table file: before use while it is small, beside its use when it is large."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Final

import structlog

from processor.adapters.sqlite.errors import is_corruption
from processor.adapters.sqlite.table import FlowTable
from processor.runtime import end_tasks

log = structlog.get_logger(__name__)

# `integrity_check`, not `quick_check`: only the former compares each row with its indexes, and so
# finds a lost index entry, by which a flow would seem not to exist or would never be woken.
CHECK: Final = "PRAGMA integrity_check(1)"
SOUND: Final = "ok"
AT_ONCE_MAX_BYTES: Final = 16 * 1024 * 1024
"""Up to this size a file is checked before anything in it is believed: 0.04 to 0.1 s, and all
partitions that come to a worker at once are checked on the same cores."""
BACKGROUND_AFTER_S: Final = 10.0
"""When to begin with a larger one: a takeover needs the cores for itself."""
STOP_EVERY_S: Final = 0.05

_checker = ThreadPoolExecutor(1, thread_name_prefix="table-check")
"""One file at a time, however many partitions a worker was given at once."""


@asynccontextmanager
async def checked_in_background(table: FlowTable) -> AsyncIterator[None]:
    """Check the table's file once while it is in use, and distrust the table if it is damaged."""
    checking = asyncio.create_task(_check(table))
    try:
        yield
    finally:
        await end_tasks(checking)


async def _check(table: FlowTable) -> None:
    await asyncio.sleep(BACKGROUND_AFTER_S)
    try:
        with closing(_connect(table.path)) as connection:
            said = await _verdict(connection)
    except sqlite3.Error as error:
        if not is_corruption(error):
            log.warning("a table could not be checked", path=str(table.path), error=str(error))
            return
        said = str(error)
    if said != SOUND:
        table.distrust(f"its check says: {said}")


def _connect(path: Path) -> sqlite3.Connection:
    # A second one, so that batches go on; to SQLite, a reader is no other hand.
    uri = f"{path.resolve().as_uri()}?mode=ro"
    return sqlite3.connect(uri, uri=True, check_same_thread=False)


async def _verdict(connection: sqlite3.Connection) -> str:
    def ask() -> str:
        ((said,),) = connection.execute(CHECK)
        return str(said)

    asking = asyncio.get_running_loop().run_in_executor(_checker, ask)
    try:
        return await asyncio.shield(asking)
    except asyncio.CancelledError:
        while not asking.done():
            # Once is not enough: it has no effect on a statement that is about to begin.
            connection.interrupt()
            await asyncio.wait({asking}, timeout=STOP_EVERY_S)
        asking.exception()
        raise
