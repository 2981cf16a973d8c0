"""Tune the interpreter, keep files private, and wait in a way that loses no cancellation.

`asyncio.wait_for` is not used anywhere: until Python 3.12 it swallows a cancellation that arrives
as the awaited future completes, and the task goes on. A deadline is `asyncio.timeout`; a task is
ended by `end_tasks`.
"""

import asyncio
import ctypes
import gc
import os
import stat
import sys
import time
from collections.abc import Awaitable
from contextlib import suppress
from errno import ENOTDIR
from pathlib import Path
from typing import Any, Final, TypeVar

T = TypeVar("T")

DOUBLINGS_MAX: Final = 64
"""Of a pause; more change nothing."""

SWITCH_INTERVAL_S: Final = 0.001
"""How long one thread may keep the others waiting. Work on a batch is busy in one thread while
SQLite's threads wait for their turn at each end of a statement; Python's default is 5 ms."""
GC_THRESHOLDS: Final = (100_000, 50, 1_000)
"""A batch makes many objects and no cycles; Python's default of 700 spends a third of a worker's
time on looking for them."""
KEPT_MEMORY: Final = ((-3, 32 * 2**20), (-1, 64 * 2**20))
"""M_MMAP_THRESHOLD and M_TRIM_THRESHOLD of mallopt(3), bytes. A batch takes some buffers of a MiB
and gives them back; by default each comes from the kernel, page by page: a fault per command."""

CANCEL_AGAIN_S: Final = 0.5
CLEAN_UP_S: Final = 10.0
"""How long work that closes clients and processes may take to end before it is cancelled again."""


def tune_interpreter() -> None:
    """Set what suits a process that is busy in one thread and writes to SQLite in others.

    Called once, when all modules are loaded.
    """
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    gc.set_threshold(*GC_THRESHOLDS)
    gc.freeze()
    with suppress(AttributeError, OSError):  # not the C library of GNU
        for parameter, size_bytes in KEPT_MEMORY:
            ctypes.CDLL(None).mallopt(parameter, size_bytes)


def private_directory(path: Path) -> None:
    """Make a directory that only this user can enter (0700), and those above it that are missing.

    One that is there and is this user's is closed to others, unless it is meant for more than us:
    a directory for temporary files, the home or the working directory. Raises OSError.
    """
    for missing in reversed([path, *path.parents]):
        with suppress(FileExistsError):
            missing.mkdir(mode=0o700)
    found = path.stat()
    if not stat.S_ISDIR(found.st_mode):
        raise NotADirectoryError(ENOTDIR, os.strerror(ENOTDIR), str(path))
    shared = found.st_mode & stat.S_ISVTX or path.resolve() in _shared_places()
    if found.st_uid == os.geteuid() and found.st_mode & 0o077 and not shared:
        path.chmod(0o700)


def _shared_places() -> set[Path]:
    places = {Path("/"), Path.cwd().resolve()}
    with suppress(RuntimeError):  # a user without a home
        places.add(Path.home().resolve())
    return places


async def end_tasks(*tasks: "asyncio.Future[Any]", again_s: float = CANCEL_AGAIN_S) -> None:
    """Cancel `tasks` until each has ended. Their results and errors are dropped.

    A task that lives on, because a library swallowed the cancellation, is cancelled again after
    `again_s` seconds. A cancellation of the caller meanwhile is raised when all have ended.
    """
    pending = {task for task in tasks if not task.done()}
    cancelled = False
    while pending:
        for task in pending:
            task.cancel()
        try:
            _, pending = await asyncio.wait(pending, timeout=again_s)
        except asyncio.CancelledError:
            cancelled = True
            pending = {task for task in pending if not task.done()}
    for task in tasks:
        if not task.cancelled():
            task.exception()  # retrieved, or asyncio reports it
    if cancelled:
        raise asyncio.CancelledError


async def unless_stopped(work: Awaitable[T], stop: asyncio.Event) -> T | None:
    """Return the result of `work`, or None if `stop` is set first; `work` is then cancelled."""
    working, stopping = asyncio.ensure_future(work), asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
    finally:
        await end_tasks(working, stopping, again_s=CLEAN_UP_S)
    return None


def now_ms() -> int:
    """The time of day by this machine's clock, in ms since 1970."""
    return time.time_ns() // 1_000_000


def backoff_s(failures: int, min_s: float, max_s: float) -> float:
    """How long to wait after so many failures in a row: `min_s`, doubled with each, up to `max_s`.

    Of any number: 2**1024 is no float any more.
    """
    return min(min_s * 2.0 ** min(failures, DOUBLINGS_MAX), max_s)


async def sleep_unless(event: asyncio.Event, timeout_s: float) -> bool:
    """Sleep for `timeout_s` seconds or until `event` is set; return whether it is."""
    with suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            await event.wait()
    return event.is_set()
