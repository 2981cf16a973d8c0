"""Tune the interpreter, and wait for work until the program is stopped."""

import asyncio
import ctypes
import gc
import sys
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, Final, TypeVar

T = TypeVar("T")

SWITCH_INTERVAL_S: Final = 0.001
"""How long one thread may keep the others waiting. Work on a batch is busy in one thread while
SQLite's threads wait for their turn at each end of a statement; Python's default is 5 ms."""
GC_THRESHOLDS: Final = (100_000, 50, 1_000)
"""A batch makes many objects and no cycles; Python's default of 700 spends a third of a worker's
time on looking for them."""
KEPT_MEMORY: Final = ((-3, 32 * 2**20), (-1, 64 * 2**20))
"""M_MMAP_THRESHOLD and M_TRIM_THRESHOLD of mallopt(3), bytes. A batch takes some buffers of a MiB
and gives them back; by default each comes from the kernel, page by page: a fault per command."""


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


async def unless_stopped(work: Coroutine[Any, Any, T], stop: asyncio.Event) -> T | None:
    """Return the result of `work`, or None if `stop` is set first."""
    working, stopping = asyncio.create_task(work), asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        working.cancel()
        stopping.cancel()
        await asyncio.wait({working, stopping})
