"""The dials of Python and its C library, for a process that is busy in one thread and writes to
SQLite in others."""

import ctypes
import gc
import sys
from contextlib import suppress
from typing import Final

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
    """Once, when all modules are loaded."""
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    gc.set_threshold(*GC_THRESHOLDS)
    gc.freeze()
    with suppress(AttributeError, OSError):  # not the C library of GNU
        for parameter, size_bytes in KEPT_MEMORY:
            ctypes.CDLL(None).mallopt(parameter, size_bytes)
