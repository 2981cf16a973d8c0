"""Verify needs the same memory for any number of flows and events."""

import asyncio
import gc
import sys
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from processor.ops.verify import history_reader, scratch_store, snapshot_checks, transaction_checks
from processor.ops.verify.contract import home_of
from processor.testing.memory.record import Appended
from tests.support import infinite_history
from tests.support.infinite_history import Endless

FLOWS = 30_000
"""All caches are full then: twice as many take 4 MiB more."""
PEAK_MAX_KIB = 130 * 1024
"""Of the whole process, a third of it Python with its modules; 112 MiB were measured. Keeping 600
bytes for each flow would be too much."""
SMALL = 50
BOUNDS = (
    (history_reader, "FORGET_EVERY"),
    (scratch_store, "CACHED_FLOWS"),
    (scratch_store, "FORGET_AFTER"),
    (snapshot_checks, "AT_ONCE"),
    (snapshot_checks, "TRANSACTION_KEPT"),
    (snapshot_checks, "TRANSACTION_MAX_KEYS"),
    (transaction_checks, "TRANSACTION_MAX_KEYS"),
    (infinite_history, "AT_ONCE"),
)
"""What bounds the caches."""


@dataclass(slots=True)
class Peak:
    """Of the memory blocks that Python has in use."""

    blocks: int = 0

    def look(self) -> None:
        home_of.cache_clear()
        gc.collect()
        self.blocks = max(self.blocks, sys.getallocatedblocks())


@dataclass(frozen=True, slots=True)
class Watched(Endless):
    """Looks at the memory whenever records are read."""

    peak: Peak = field(default_factory=Peak)

    async def read(
        self, topic: str, start: int, end: int
    ) -> AsyncGenerator[Sequence[Appended], None]:
        async for records in Endless.read(self, topic, start, end):
            self.peak.look()
            yield records


async def test_with_small_caches_twice_the_flows_need_no_more_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The same of few flows; what SQLite itself takes is seen in the long history alone."""
    for module, bound in BOUNDS:
        monkeypatch.setattr(module, bound, SMALL)

    async def peak(flows: int) -> int:
        watched = Watched(flows)
        assert (await watched.verify()).ok
        return watched.peak.blocks

    flows = 16 * SMALL
    gc.collect()
    # What other tests have left would be looked at with each collection. It stays so: with it, all
    # modules and tests would come back, and each later collection would be a pause of some test's.
    gc.freeze()
    await peak(2 * flows)  # what is made once
    more = await peak(2 * flows) - await peak(flows)

    # A twentieth of that was measured.
    assert more < flows, "something is kept for each flow"


@pytest.mark.soak
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
