"""Process a partition's batches, one after another.

A batch lives in five steps. After a crash, the next take-over goes on from the topics:

1. Poll: fetch records that are not decided yet.
2. Decide: load their flows, handle the records in memory, and forward those that lie on the wrong
   partition. A crash up to here leaves nothing but copies of forwarded records, which are resends
   where they arrive.
3. Transaction: write events, outcomes, state, dead letters and the cursor to Kafka, all or nothing.
   That of a small batch begins in step 2, a round trip sooner. A crash before its end leaves an
   open transaction, which the next owner's fencing aborts: the batch is decided again. A crash
   during its end leaves what the topics say.
4. Table: write the changes to the table. A crash before this leaves a table that is behind the
   topics, which the take-over brings up to date.
5. Memory: show the batch to cache, timers and metrics. A crash before this loses nothing that is
   not loaded again. Work items go out in the background; the cursor says which may be missing, and
   the take-over writes those again.
"""

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Final
from uuid import uuid4

import structlog

from processor.engine.batch import (
    AT_ONCE,
    Decoded,
    LoadedState,
    PartitionConfig,
    WriteSet,
    cursor_record,
    sliced,
)
from processor.engine.command_handler import CommandHandler
from processor.engine.flow_cache import FlowCache
from processor.engine.ports import Table, TransactionalProducer, Written
from processor.engine.rows import Checkpoint, Position
from processor.errors import ProducerSuspect, TableDistrusted
from processor.partition.hidden_records import HiddenRecordsWatch
from processor.partition.input_queue import InputQueue
from processor.partition.loader import load_state
from processor.partition.pace import PACE, Pace
from processor.partition.packs import TransactionPacks
from processor.partition.ports import PartitionPorts
from processor.partition.scheduling.scheduler import DueTask, Scheduler
from processor.partition.scheduling.step_timers import Commands
from processor.partition.status import PartitionPhase, PartitionStatus
from processor.partition.work_outbox import WorkOutbox
from processor.recovery.ledger_window import LATE_MAX_MS
from processor.telemetry.metrics import Metrics
from processor.telemetry.tracing import WorkerTraces

log = structlog.get_logger()

CURSOR_ONLY_EVERY_S: Final = 3600.0
"""How often a cursor may be written for markers alone, lest retention overtake it."""
OFFERED_EVERY_S: Final = 1.0
"""How old a cursor may be whose `offered` lags, while nothing else is decided."""


class BatchProcessor:
    """Decides what comes in, and what is due, of a partition that is taken over.

    `cache_bytes` is what the flow caches of all partitions of this process may take together.
    """

    def __init__(  # noqa: PLR0913
        self,
        place: PartitionConfig,
        ports: PartitionPorts,
        *,
        metrics: Metrics,
        batch_max_records: int,
        cache_bytes: int,
        traces: WorkerTraces | None = None,
        pace: Pace = PACE,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        new_id: Callable[[], str] = lambda: str(uuid4()),
    ) -> None:
        self.place = place
        self.ports = ports
        self.metrics = metrics
        self.clock = clock
        self.monotonic = monotonic
        self.status = PartitionStatus(progressed_at=monotonic())
        self.cache = FlowCache(cache_bytes)
        self.scheduler = Scheduler(
            place.partition,
            commands_topic=place.topics.commands,
            retain_ms=place.retain_terminal_ms,
            metrics=metrics,
            new_id=new_id,
        )
        self.outbox = WorkOutbox(
            place.partition, place.topics.steps, ports.work_items, metrics=metrics
        )
        self.queue = queue = InputQueue(
            place,
            ports.source,
            batch_max_records=batch_max_records,
            appended=lambda at_ms: self.scheduler.observe(at_ms, monotonic()),
        )
        self.released = asyncio.Event()
        """Set: begin no more batches."""
        self.idle = asyncio.Event()
        """Set while no batch is under way."""
        self.idle.set()
        self.failures_in_a_row = 0
        self._cache_bytes = cache_bytes
        self._traces = traces
        self._pace = pace
        self._log = log.bind(partition=place.partition)
        self._hidden = HiddenRecordsWatch()
        self._commands = Commands(
            decided=lambda: queue.decided(place.topics.commands),
            pending=lambda: queue.holds(place.topics.commands),
            end=lambda: ports.source.commands_end(place.partition),
        )
        self._writer: TransactionalProducer | None = None
        self._checkpoint = Checkpoint(Position(0, 0, 0), 0, 0, 0)
        self._next_row_number = 1
        self._last_batch_records = 0
        self._reported: Position | None = None
        self._cursor_written_at = monotonic()
        self._first_unwritten = 0
        """What the newest cursor says of work items: those of this event may not be written."""

    def share(self, partitions: int) -> None:
        """Share the process's memory with so many partitions, this one included."""
        self.cache.resize(self._cache_bytes // partitions)
        self.queue.partitions = partitions

    def new_writer(self) -> TransactionalProducer:
        """The producer of all transactions from now on, to be started."""
        self._writer = self.ports.new_writer()
        return self._writer

    def drop_writer(self) -> None:
        if self._writer is not None:
            self._writer.discard()
            self._writer = None

    def begin(self, checkpoint: Checkpoint, *, next_row_number: int, first_unwritten: int) -> None:
        """Go on from `checkpoint`, where the table is after a takeover."""
        self._checkpoint = checkpoint
        self._next_row_number = next_row_number
        self._first_unwritten = first_unwritten

    async def step(self, table: Table) -> None:
        if self.queue.is_outdated:
            await self.queue.attach(self._checkpoint.position)
        if not await self._has_room():
            return
        if not self.queue and not await self._poll():
            return
        if self.released.is_set():
            return
        self.idle.clear()
        try:
            due = await self.scheduler.due(
                table,
                lambda: self.queue.decided(self.place.topics.control),
                self._commands,
                self.monotonic(),
            )
            if self.queue or due:
                await self._process(table, self._writer_in_use(), due)
            elif self.scheduler.asks_the_time(self.monotonic()) or self._offered_lags():
                await self._write_cursor(table, self._checkpoint.position)
            else:
                await self._keep_cursor_up(table)
        finally:
            self.idle.set()

    async def _process(self, table: Table, writer: TransactionalProducer, due: DueTask) -> None:
        """Bring a batch of what is pending, and what is `due`, through its life."""
        began_ns = time.time_ns()
        if 0 < len(self.queue) <= AT_ONCE:
            topics = self.place.topics
            await writer.begin((topics.audit, topics.outcomes, topics.state))
        with self._waiting("disk"):
            items, loaded = await load_state(self.queue.pending, self.cache, table)
        batch, outbound = await self._decide(table, writer, items, loaded)
        decided_ns = time.time_ns()
        sent = self.scheduler.send(batch, due)
        for record in sent.records:
            outbound.control.add(*record)
        written = await self._commit(table, writer, batch, outbound)
        if self._traces is not None:
            self._traces.decided(
                batch.traced,
                batch.handled,
                began_ns=began_ns,
                decided_ns=decided_ns,
                committed_ns=time.time_ns(),
            )
        self.scheduler.written(batch, sent, written, loaded, self.monotonic())
        self._measure(items, batch, outbound)
        self._last_batch_records = batch.handled
        self.failures_in_a_row = 0
        self.status.error = None

    # 1. Poll

    async def _has_room(self) -> bool:
        """Whether the work items of another batch may be waited for; waits for that a moment."""
        if not self.outbox.has_room:
            with self._waiting("broker"):
                has_room = await self.outbox.room()
            if not has_room:
                # Not stuck: another consumer would not help. Nor ready.
                self.status.phase = PartitionPhase.BLOCKED
                self.status.waits = self.outbox.waits_for
                return False
        if self.status.phase is PartitionPhase.BLOCKED:
            self.status.phase, self.status.waits = PartitionPhase.RUNNING, None
            self.progressed()
        return True

    async def _poll(self) -> bool:
        """Fetch what is to be decided next. False: for an assignment that is over."""
        if self._last_batch_records < AT_ONCE:
            # After a small transaction, leave a moment for the next one to grow, and for the broker
            # to write the markers of the last: what comes in waits less than for one more.
            between_s = self._pace.between_s
            moment_s = self.status.progressed_at + between_s - self.monotonic()
            await asyncio.sleep(max(0.0, min(moment_s, between_s)))
        wait_s = self.scheduler.wait_s(self.monotonic())
        with self._waiting("commands"):
            fetched = await self.queue.fetch(
                timeout_s=min(self._pace.fetch_s, math.inf if wait_s is None else wait_s)
            )
        hidden = self.ports.source.hidden(self.place.partition)
        self.status.waits = self._hidden.look(hidden, self.monotonic())
        return await self.queue.put(fetched)

    # 2. Decide

    async def _decide(
        self,
        table: Table,
        writer: TransactionalProducer,
        items: Sequence[Decoded],
        loaded: LoadedState,
    ) -> tuple[WriteSet, TransactionPacks]:
        # Asked while we decide: the answer comes from another thread.
        untouched = asyncio.ensure_future(table.untouched())
        try:
            batch, outbound = await self._handle(table, writer, items, loaded, frozenset())
        finally:
            undisturbed = await untouched
        if not undisturbed:
            raise TableDistrusted("another process wrote to the table; it is restored")
        if batch.forwards:
            with self._waiting("broker"):
                refused = await self.ports.forwarder.forward(batch.forwards)
            if refused:
                batch, outbound = await self._handle(table, writer, items, loaded, refused)
        for record, fault in batch.faults:
            self._log.error(
                "a record was set aside: handling it failed",
                topic=record.topic,
                offset=record.offset,
                exc_info=fault,
            )
        return batch, outbound

    async def _handle(
        self,
        table: Table,
        writer: TransactionalProducer,
        items: Sequence[Decoded],
        loaded: LoadedState,
        refused: frozenset[tuple[str, int]],
    ) -> tuple[WriteSet, TransactionPacks]:
        """Decide `items`, as many as make a batch; its records are packed on the way."""
        outbound = TransactionPacks(self.place.topics, writer, table)
        handler = CommandHandler(
            self.place,
            loaded,
            self._checkpoint.position,
            next_row_number=self._next_row_number,
            unforwardable=refused,
            outbound=outbound,
        )
        for some in sliced(items):
            has_room = handler.add(some)
            await asyncio.sleep(0)
            if not has_room:
                break
        for _ in handler.settle(self.outbox.oldest_event_id):
            await asyncio.sleep(0)
        return handler.batch, outbound

    # 3 to 5. Transaction, table, memory

    async def _commit(
        self,
        table: Table,
        writer: TransactionalProducer,
        batch: WriteSet,
        outbound: TransactionPacks,
    ) -> Written:
        """Write a batch: all of it to Kafka, then to the table, then to memory."""
        topics, before = self.place.topics, self._checkpoint
        # 3. Transaction
        with self.metrics.commit_seconds.time(), self._waiting("broker"):
            written = await writer.write(outbound.packs)
        self.progressed()
        self._cursor_written_at = self.status.progressed_at
        self.outbox.put(batch.work)
        self._first_unwritten = batch.first_unwritten
        self.ports.source.decided(self.place.partition, batch.position)
        # 4. Table
        oldest_ms = self.queue.oldest_to_come_ms(batch)
        # No command that can still come looks back further than this.
        outbound.changes.forget_before_ms = oldest_ms - self.place.dedupe_window_ms - LATE_MAX_MS
        after = Checkpoint(
            batch.position,
            written.ends.get(topics.audit, before.audit),
            written.ends.get(topics.outcomes, before.outcomes),
            max(batch.newest_ms, before.as_of_ms),
        )
        with self.metrics.table_seconds.time(), self._waiting("disk"):
            await table.write(outbound.changes, before=before, after=after)
        # 5. Memory
        self._checkpoint = after
        self._next_row_number += batch.created
        self.queue.advance(after.position, batch.handled)
        self.cache.put(batch.flows)
        self.cache.put_steps(batch.steps)
        if writer.suspect:
            raise ProducerSuspect("a commit was sent twice; the producer is replaced")
        return written

    def _measure(
        self, items: Sequence[Decoded], batch: WriteSet, outbound: TransactionPacks
    ) -> None:
        metrics = self.metrics
        if batch.handled:
            seconds = self.clock() - items[0].record.timestamp / 1000
            metrics.end_to_end_seconds.observe(max(0.0, seconds))
            metrics.batch_size.observe(batch.handled)
        metrics.events.inc(len(outbound.audit))
        for labels, count in batch.tally.items():
            metrics.commands.labels(*labels).inc(count)
        metrics.steps.observe(batch.step_tally)

    def progressed(self) -> None:
        self.status.progressed_at = self.monotonic()

    # The cursor alone

    def _offered_lags(self) -> bool:
        """Whether more work items are written than the newest cursor says, for some time."""
        unwritten = self.outbox.oldest_event_id or self._checkpoint.position.next_event_id
        return (
            unwritten > self._first_unwritten
            and self.monotonic() - self._cursor_written_at >= OFFERED_EVERY_S
        )

    async def _keep_cursor_up(self, table: Table) -> None:
        """Where the consumer has stepped over markers alone, commit that, so that lag tools see
        no lag at rest; and say so in the cursor, at most hourly: retention may take those markers
        and must not seem to take commands."""
        ahead = self.ports.source.ahead(self.place.partition)
        old = self._checkpoint.position
        if ahead is None or (ahead.commands <= old.commands and ahead.control <= old.control):
            return
        position = Position(
            max(ahead.commands, old.commands), max(ahead.control, old.control), old.next_event_id
        )
        if position != self._reported:
            self._reported = position
            self.ports.source.decided(self.place.partition, position)
        if self.monotonic() - self._cursor_written_at >= CURSOR_ONLY_EVERY_S:
            await self._write_cursor(table, position)

    async def _write_cursor(self, table: Table, position: Position) -> None:
        """A transaction with nothing but the cursor; it shows the broker's clock, too."""
        writer = self._writer_in_use()
        outbound = TransactionPacks(self.place.topics, writer, table)
        first_unwritten = self.outbox.oldest_event_id or position.next_event_id
        outbound.state.add(*cursor_record(self.place.partition, position, first_unwritten))
        batch = WriteSet(position, first_unwritten=first_unwritten)
        written = await self._commit(table, writer, batch, outbound)
        self.scheduler.observe(written.at_ms, self.monotonic() - written.age_s)

    def _writer_in_use(self) -> TransactionalProducer:
        assert self._writer is not None, "a partition is taken over before it decides"
        return self._writer

    def _waiting(self, waits_for: str) -> AbstractContextManager[None]:
        return self.metrics.waiting(self.place.partition, waits_for, self.monotonic)
