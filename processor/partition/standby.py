"""Keep a table of a partition that another worker decides close to its topics, so that a take-over
needs no restore.

A standby replica reads what is committed and writes its own table, and nothing else: it fences no
producer, joins no group, and decides nothing. If the group gives the partition to its worker, the
takeover finds a table that is behind by what came in since the last look.
"""

import asyncio
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from enum import StrEnum
from typing import Final

import structlog

from processor.engine.batch import PartitionConfig
from processor.engine.ports import LogReader, OffsetRange, Table
from processor.engine.rows import Checkpoint
from processor.errors import TableDistrusted, TaskflowError
from processor.recovery.catch_up import CatchUp
from processor.recovery.checkpoint import OffsetRanges
from processor.recovery.consistent_cut import consistent_cut
from processor.recovery.ledger_window import asked_for_since_ms
from processor.recovery.rebuild import rebuild
from processor.recovery.table_match import contradiction
from processor.runtime import backoff_s
from processor.telemetry.metrics import Metrics

log = structlog.get_logger()

LOOK_EVERY_S: Final = 1.0
"""How old a standby replica's table is at most, where the worker has time for it."""
SETTLE_TIMEOUT_S: Final = 10.0
"""How long a table that is to be restored may wait for a foreign open transaction; meanwhile the
other partitions are not followed."""
FORGET_EVERY_S: Final = 60.0
BACKOFF_MIN_S: Final = 0.5
BACKOFF_MAX_S: Final = 30.0


class StandbyPhase(StrEnum):
    WAITING = "waiting for its turn"
    RESTORING = "restoring the table"
    FOLLOWING = "following"
    FAILED = "failed, trying again"


class StandbyReplica:
    """Follows one partition until it is cancelled; the table is closed by then.

    `turn` is shared by all standby replicas of a worker, and so are the clients of their log
    readers: one reads at a time, so that partition processors keep most of the CPU.
    """

    def __init__(
        self,
        place: PartitionConfig,
        *,
        open_table: Callable[[], AbstractAsyncContextManager[Table]],
        history: LogReader,
        turn: asyncio.Lock,
        metrics: Metrics,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.place = place
        self.phase = StandbyPhase.WAITING
        self.error: str | None = None
        """What went wrong last; None since it follows again."""
        self.lag: int | None = None
        """Offsets of `audit` and `outcomes` that are not in the table; None: not known yet."""
        self._open_table = open_table
        self._history = history
        self._turn = turn
        self._metrics = metrics
        self._monotonic = monotonic
        self._trust_table = True
        self._failures = 0
        self._forget_before_ms: int | None = None
        self._forget_asked_at = 0.0
        self._log = log.bind(partition=place.partition)

    async def run(self) -> None:
        """Follow, and begin again after any error."""
        try:
            while True:
                try:
                    async with self._open_table() as table:
                        self._metrics.watch_standby(
                            self.place.partition,
                            lag=lambda: float("nan") if self.lag is None else self.lag,
                            table_bytes=table.size_bytes,
                        )
                        await self._follow(table)
                except Exception as error:
                    await self._failed(error)
        finally:
            self._metrics.unwatch_standby(self.place.partition)

    async def _failed(self, error: Exception) -> None:
        before, self.error = self.error, f"{type(error).__name__}: {error}"
        self.phase = StandbyPhase.FAILED
        self._failures += 1
        if isinstance(error, TableDistrusted):
            self._trust_table = False
        if self.error != before:
            unforeseen = None if isinstance(error, TaskflowError | TimeoutError) else error
            self._log.warning("the standby begins again", error=self.error, exc_info=unforeseen)
        async with self._turn:
            await self._history.close()
        await asyncio.sleep(backoff_s(self._failures, BACKOFF_MIN_S, BACKOFF_MAX_S))

    async def _follow(self, table: Table) -> None:
        checkpoint = await table.checkpoint() if self._trust_table else None
        seen: OffsetRanges | None = None
        while True:
            async with self._turn:
                checkpoint, seen = await self._look(table, checkpoint, seen)
            await asyncio.sleep(LOOK_EVERY_S)

    async def _look(
        self, table: Table, checkpoint: Checkpoint | None, seen: OffsetRanges | None
    ) -> tuple[Checkpoint, OffsetRanges]:
        """Bring the table to what is visible now; up to where that is. `seen` is what the last
        look answered, None at the first one, when the table may be of other topics."""
        names = [self.place.topics.audit, self.place.topics.outcomes]
        catch_up = CatchUp(self.place, table, self._history)
        offset_ranges = await self._history.visible(names)
        if checkpoint is not None and (seen is None or _shrunk(seen, offset_ranges)):
            why = await contradiction(self.place, table, self._history, checkpoint, offset_ranges)
            if why is not None:
                self._log.info("the standby's table is restored", reason=why)
                checkpoint = None
        if checkpoint is None:
            checkpoint = await self._restore(table)
            seen, offset_ranges = None, await self._history.visible(names)
        if offset_ranges != seen:
            # From where the last look ended, for what lies there may be markers alone.
            behind = (seen or {}).get
            starts = zip(names, (checkpoint.audit, checkpoint.outcomes), strict=True)
            self.lag = sum(
                max(0, offset_ranges[name].end - max(at, behind(name, OffsetRange(0, 0)).end))
                for name, at in starts
            )
            await self._ask_what_to_forget(checkpoint)
            checkpoint = await catch_up.advance(
                checkpoint, offset_ranges, forget_before_ms=self._forget_before_ms
            )
        self.lag = 0
        if self.phase is not StandbyPhase.FOLLOWING:
            flows = await table.count_flows()
            self._log.info("the standby follows", flows=flows, **checkpoint.position._asdict())
        self.phase, self.error, self._failures = StandbyPhase.FOLLOWING, None, 0
        return checkpoint, offset_ranges

    async def _restore(self, table: Table) -> Checkpoint:
        self.phase = StandbyPhase.RESTORING
        async with asyncio.timeout(SETTLE_TIMEOUT_S):
            view = await consistent_cut(self.place, self._history)
        checkpoint = await rebuild(self.place, table, view, from_audit=False)
        self._trust_table = True
        return checkpoint

    async def _ask_what_to_forget(self, checkpoint: Checkpoint) -> None:
        """Outcomes outside of the dedupe window go as they do at the owner's, or the ledger
        would grow for as long as we follow."""
        if self._monotonic() - self._forget_asked_at >= FORGET_EVERY_S:
            self._forget_before_ms = await asked_for_since_ms(
                self.place, self._history, checkpoint.position, checkpoint.as_of_ms
            )
            self._forget_asked_at = self._monotonic()


def _shrunk(seen: OffsetRanges, offset_ranges: OffsetRanges) -> bool:
    """Whether a topic has lost something at either end, as one that was recreated."""
    return any(
        offset_ranges[name].end < old.end or offset_ranges[name].start != old.start
        for name, old in seen.items()
    )
