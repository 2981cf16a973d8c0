"""Verify needs the same memory for any number of flows and events."""

import asyncio
import sys
from pathlib import Path

FLOWS = 30_000
"""All caches are full then: twice as many take 4 MiB more."""
PEAK_MAX_KIB = 130 * 1024
"""Of the whole process, a third of it Python with its modules; 112 MiB were measured. Keeping 600
bytes for each flow would be too much."""


async def test_a_long_history_needs_no_more_memory_than_its_caches() -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.support.infinite_history", str(FLOWS)),
        cwd=Path(__file__).parents[4],
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await process.communicate()

    assert process.returncode == 0
    events, peak_kib = map(int, out.split())
    assert events == 3 * FLOWS
    assert peak_kib < PEAK_MAX_KIB
