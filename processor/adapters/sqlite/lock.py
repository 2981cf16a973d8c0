"""Locks: one worker per state directory, and one process per table."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from os import getpid
from pathlib import Path
from typing import Final

from filelock import FileLock, Timeout

from processor.adapters.sqlite.errors import StateDirInUse, StateDirUnusable
from processor.runtime import private_directory

TABLE_LOCK_POLL_S: Final = 0.01


@contextmanager
def state_dir_lock(state_dir: Path) -> Iterator[None]:
    """Hold `state_dir`, made if missing, against other workers.

    Raises StateDirInUse at once if another one holds it. The lock is the kernel's: it ends with
    the process, however that ends. Raises StateDirUnusable if nothing can be written there.
    """
    # Who holds it stands beside the lock: to ask for the lock is to truncate its file.
    holder = state_dir / "worker.pid"
    lock = FileLock(state_dir / "worker.lock", timeout=0)
    try:
        private_directory(state_dir)
        lock.acquire()
        holder.write_text(f"{getpid()}\n")
    except Timeout:
        raise StateDirInUse(
            f"{state_dir} is in use by the worker with process id {_read(holder)};"
            " give this one a state directory of its own."
        ) from None
    except OSError as error:
        lock.release()
        raise StateDirUnusable(
            f"The state directory {state_dir} cannot be used ({(error.strerror or '').lower()});"
            " name another in TASKFLOW_STATE_DIR."
        ) from error
    try:
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


def _read(holder: Path) -> str:
    try:
        return holder.read_text().strip() or "unknown"
    except OSError:
        return "unknown"


@asynccontextmanager
async def table_lock(path: Path) -> AsyncIterator[None]:
    """Hold the table at `path` against the other processes of a worker: a partition goes from one
    to another while the first may still be at its last write. Waits for as long as that takes.
    """
    lock = FileLock(path.with_suffix(".lock"), timeout=0)
    private_directory(path.parent)
    while True:
        try:
            lock.acquire()
            break
        except Timeout:
            await asyncio.sleep(TABLE_LOCK_POLL_S)
    try:
        yield
    finally:
        lock.release()
