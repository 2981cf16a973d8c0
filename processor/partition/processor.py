"""Run one partition of `commands` and `control`: the only writer of its flows."""

from typing import Final

import structlog

from processor.contract.steps import StepStatus
from processor.engine.ports import Table
from processor.errors import TableDistrusted, TaskflowError
from processor.partition.batch_processor import BatchProcessor
from processor.partition.status import PartitionPhase, PartitionStatus
from processor.partition.takeover import Takeover
from processor.runtime import backoff_s, sleep_unless

log = structlog.get_logger()

BACKOFF_MIN_S: Final = 0.05
BACKOFF_MAX_S: Final = 5.0
ITEMS_TIMEOUT_S: Final = 0.5
"""How long what leaves the partition waits for its work items; the next owner writes the rest."""


class PartitionProcessor:
    """Takes its partition over, processes batch after batch, and begins again after any error.

    `run` is its whole life; `release` ends it after the batch under way.
    """

    def __init__(self, batches: BatchProcessor) -> None:
        self.place = batches.place
        self._batches = batches
        self._metrics = batches.metrics
        self._trust_table = True
        self._log = log.bind(partition=batches.place.partition)

    @property
    def status(self) -> PartitionStatus:
        return self._batches.status

    @property
    def lag(self) -> int:
        """Offsets of both sources that are not decided yet, as far as is known; those behind an
        open transaction count."""
        return self._batches.queue.lag

    def share(self, partitions: int) -> None:
        """Share the process's memory with so many partitions, this one included."""
        self._batches.share(partitions)

    def release(self) -> None:
        """Begin no more batches; `run` ends after the one under way."""
        self._batches.released.set()

    async def idle(self) -> None:
        """Wait until no batch is under way, and a moment for its work items."""
        await self._batches.idle.wait()
        await self._batches.outbox.drained(ITEMS_TIMEOUT_S)

    async def run(self) -> None:
        """Decide the partition until released or cancelled."""
        batches = self._batches
        try:
            while not batches.released.is_set():
                try:
                    async with batches.ports.open_table() as table:
                        self._watch(table)
                        await self._take_over(table)
                        while not batches.released.is_set():
                            await batches.step(table)
                except Exception as error:
                    await self._failed(error)
        finally:
            batches.drop_writer()
            batches.cache.clear()
            self.status.phase = PartitionPhase.RELEASED
            batches.idle.set()
            await batches.outbox.stop()
            self._metrics.unwatch(self.place.partition)

    def _watch(self, table: Table) -> None:
        batches = self._batches
        self._metrics.watch(
            self.place.partition,
            lag=lambda: self.lag,
            table_bytes=table.size_bytes,
            cached=lambda: batches.cache.flows,
            pending_records=lambda: len(batches.queue),
            pending_bytes=lambda: batches.queue.size_bytes,
            steps_pending=lambda: batches.scheduler.live_steps(StepStatus.PENDING),
            steps_running=lambda: batches.scheduler.live_steps(StepStatus.RUNNING),
            items_waiting=lambda: len(batches.outbox),
        )

    async def _take_over(self, table: Table) -> None:
        batches = self._batches
        started = batches.monotonic()
        batches.cache.clear()
        takeover = Takeover(batches, self._log)
        restored = await takeover.restore(table, trust_table=self._trust_table)
        self._trust_table = True
        await takeover.attach(table, restored)
        batches.progressed()
        took_s = batches.monotonic() - started
        self._metrics.takeover_seconds.observe(took_s)
        self._log.info(
            "the partition is taken over",
            took_s=round(took_s, 3),
            table=restored.restore.how,
            records=restored.restore.records,
            **restored.checkpoint.position._asdict(),
        )

    async def _failed(self, error: Exception) -> None:
        """Note the error and wait a moment; the pending batch is forgotten."""
        self._batches.drop_writer()
        self._batches.failures_in_a_row += 1
        self.status.phase = PartitionPhase.FAILED
        self.status.error = f"{type(error).__name__}: {error}"
        label = str(self.place.partition)
        self._metrics.failures.labels(label, type(error).__name__).inc()
        self._metrics.last_error.labels(label).set(self._batches.clock())
        if isinstance(error, TableDistrusted):
            self._trust_table = False
        unforeseen = None if isinstance(error, TaskflowError) else error
        self._log.warning(
            "the partition is taken over again", error=self.status.error, exc_info=unforeseen
        )
        pause_s = backoff_s(self._batches.failures_in_a_row, BACKOFF_MIN_S, BACKOFF_MAX_S)
        await sleep_unless(self._batches.released, pause_s)
