"""Decide one partition of `commands` and `control`: the only writer of its flows."""

import asyncio
import heapq
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager
from enum import StrEnum
from functools import partial
from typing import Final, NamedTuple
from uuid import uuid4

import structlog

from processor.contract.steps import StepStatus
from processor.engine.batch import (
    AT_ONCE,
    Decoded,
    LoadedState,
    PartitionConfig,
    WriteSet,
    cursor_record,
    sliced,
)
from processor.engine.codec import Record, decode
from processor.engine.command_handler import CommandHandler
from processor.engine.flow_cache import FlowCache
from processor.engine.ports import (
    Fetched,
    Forwarder,
    GroupConsumer,
    LogReader,
    OffsetRange,
    Table,
    TransactionalProducer,
    WorkItemProducer,
    Written,
)
from processor.engine.rows import Checkpoint, Position
from processor.errors import ProducerSuspect, TableDistrusted, TaskflowError
from processor.partition.hidden_records import HiddenRecordsWatch
from processor.partition.loader import load_state
from processor.partition.packs import TransactionPacks
from processor.partition.scheduler import DueTask, Scheduler
from processor.partition.step_timers import Commands
from processor.partition.work_outbox import WorkOutbox
from processor.recovery.hanging_transaction import end_left_open
from processor.recovery.restore import LATE_MAX_MS, Restore
from processor.recovery.unwritten_items import unwritten_items
from processor.runtime import sleep_unless
from processor.telemetry.metrics import Metrics
from processor.telemetry.tracing import WorkerTraces

log = structlog.get_logger()

BACKOFF_MIN_S: Final = 0.05
BACKOFF_MAX_S: Final = 5.0
CURSOR_ONLY_EVERY_S: Final = 3600.0
"""How often a cursor may be written for markers alone, lest retention overtake it."""
FETCH_BYTES: Final = 2**20
"""What a partition takes in hand at once, keys and values, by the size of the records before."""
FULL_SHARES: Final = 4
"""Of so many partitions in one process each may have a whole batch in hand; of more, a share."""
SHARE_MIN: Final = 100
LARGE_BYTES: Final = 16 * 2**10
"""What a record is taken for while none has been seen."""
ROOM_WAIT_S: Final = 0.5
"""How long to wait for room for work items before the partition says so."""
ITEMS_TIMEOUT_S: Final = 0.5
"""How long what leaves the partition waits for its work items; the next owner writes the rest."""
OFFERED_EVERY_S: Final = 1.0
"""How old a cursor may be whose `offered` lags, while nothing else is decided."""


class Pace(NamedTuple):
    """How long a partition waits of its own accord."""

    fetch_s: float = 0.5
    """For commands, before it looks at everything else again."""
    between_s: float = 0.003
    """After a small batch, for the next one to grow."""


PACE: Final = Pace()


class PartitionPhase(StrEnum):
    WAITING = "waiting for assignment"
    FENCING = "fencing the last owner"
    RECOVERING = "bringing the table up to date"
    RUNNING = "running"
    BLOCKED = "waiting until work items can be written"
    FAILED = "failed, trying again"
    RELEASED = "released"


class PartitionProcessor:
    """Takes its partition over, decides batch after batch, and begins again after any error.

    `open_table`, `new_writer` and `new_history` make the parts that one takeover uses.
    `run` is its whole life; `release` ends it after the batch in hand.
    """

    def __init__(
        self,
        place: PartitionConfig,
        *,
        source: GroupConsumer,
        forwarder: Forwarder,
        work_items: WorkItemProducer,
        open_table: Callable[[], AbstractAsyncContextManager[Table]],
        new_writer: Callable[[], TransactionalProducer],
        new_history: Callable[[], LogReader],
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
        self.cache = FlowCache(cache_bytes)
        self.phase = PartitionPhase.WAITING
        self.error: str | None = None
        """What went wrong last; None since the partition runs again."""
        self.waits: str | None = None
        """What a takeover or the next commands wait for, in a sentence; None: for nothing."""
        self.progressed_at = monotonic()
        """When it last did something, by `monotonic`."""
        self._hidden = HiddenRecordsWatch()
        self._source = source
        self._forwarder = forwarder
        self._open_table = open_table
        self._new_writer = new_writer
        self._new_history = new_history
        self._metrics = metrics
        self._traces = traces
        self._pace = pace
        self._batch_max_records = batch_max_records
        self._clock = clock
        self._monotonic = monotonic
        self._log = log.bind(partition=place.partition)
        self._released = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._failures = 0
        self._trust_table = True
        self._writer: TransactionalProducer | None = None
        self._checkpoint = Checkpoint(Position(0, 0, 0), 0, 0, 0)
        self._next_row_number = 1
        self._generation = 0
        self._pending: list[Decoded] = []
        self._handled = 0
        self.neighbours = 1
        """How many partitions this process has; they share the room for what is in hand."""
        self._record_bytes = LARGE_BYTES
        self._reported: Position | None = None
        self._seen_ms = {place.topics.commands: 0, place.topics.control: 0}
        self._cursor_written_at = monotonic()
        self._errands = Scheduler(
            place.partition,
            commands_topic=place.topics.commands,
            retain_ms=place.retain_terminal_ms,
            metrics=metrics,
            new_id=new_id,
        )
        self._outbox = WorkOutbox(place.partition, place.topics.steps, work_items, metrics=metrics)
        self._first_unwritten = 0
        """What the newest cursor says of work items: those of this event may not be written."""
        self._commands = Commands(
            decided=lambda: self._done(place.topics.commands),
            pending=lambda: self._has_pending(place.topics.commands),
            end=lambda: source.commands_end(place.partition),
        )

    # Its life

    def release(self) -> None:
        """Begin no more batches; `run` ends after the one in hand."""
        self._released.set()

    async def idle(self) -> None:
        """Wait until no batch is in hand, and a moment for its work items."""
        await self._idle.wait()
        await self._outbox.drained(ITEMS_TIMEOUT_S)

    async def run(self) -> None:
        """Own the partition until released or cancelled."""
        try:
            while not self._released.is_set():
                try:
                    async with self._open_table() as table:
                        self._watch(table)
                        await self._take_over(table)
                        while not self._released.is_set():
                            await self._step(table)
                except Exception as error:
                    await self._failed(error)
        finally:
            self._drop_writer()
            self.cache.clear()
            self.phase = PartitionPhase.RELEASED
            self._idle.set()
            await self._outbox.stop()
            self._metrics.unwatch(self.place.partition)

    @property
    def lag(self) -> int:
        """Offsets of both sources that are not decided yet, as far as is known; those behind an
        open transaction count."""
        lags = self._source.lags(self.place.partition)
        hidden = sum(one.end - one.start for one in self._source.hidden(self.place.partition))
        return sum(lag or 0 for lag in lags) + hidden + len(self._pending)

    def _watch(self, table: Table) -> None:
        self._metrics.watch(
            self.place.partition,
            lag=lambda: self.lag,
            table_bytes=table.size_bytes,
            cached=lambda: len(self.cache),
            pending_records=lambda: len(self._pending),
            pending_bytes=lambda: sum(map(_size_bytes, self._pending)),
        )
        self._metrics.watch_steps(
            self.place.partition,
            pending=lambda: self._errands.live_steps(StepStatus.PENDING),
            running=lambda: self._errands.live_steps(StepStatus.RUNNING),
            items_waiting=lambda: len(self._outbox),
        )

    @contextmanager
    def _waiting(self, waits_for: str) -> Iterator[None]:
        """Count the time as one in which the partition waits for that."""
        began = self._monotonic()
        try:
            yield
        finally:
            waited_s = max(0.0, self._monotonic() - began)
            self._metrics.waited_seconds.labels(str(self.place.partition), waits_for).inc(waited_s)

    async def _failed(self, error: Exception) -> None:
        """Note the error and wait a moment; what was in hand is forgotten."""
        self._drop_writer()
        self._failures += 1
        self.phase = PartitionPhase.FAILED
        self.error = f"{type(error).__name__}: {error}"
        label = str(self.place.partition)
        self._metrics.failures.labels(label, type(error).__name__).inc()
        self._metrics.last_error.labels(label).set(self._clock())
        if isinstance(error, TableDistrusted):
            self._trust_table = False
        unforeseen = None if isinstance(error, TaskflowError) else error
        self._log.warning(
            "the partition is taken over again", error=self.error, exc_info=unforeseen
        )
        pause_s = min(BACKOFF_MIN_S * 2**self._failures, BACKOFF_MAX_S)
        await sleep_unless(self._released, pause_s)

    def _drop_writer(self) -> None:
        if self._writer is not None:
            self._writer.discard()
            self._writer = None

    # Taking over

    async def _take_over(self, table: Table) -> None:
        """Become the one hand that changes this partition.

        1. Prove to the group that the partition is ours: a worker that was stopped and
           continued must not steal it back from its new owner.
        2. Fence: from here on, nothing that an earlier owner still sends is committed.
        3. Bring the table to the true end of the topics. A crash in between leaves a table that
           is behind, which the next takeover brings up to date.
        4. Write again the work items that the last owner may not have written.
        5. Fetch from the position that the topics name; the group's offsets are for lag tools.
        """
        started = self._monotonic()
        place, source = self.place, self._source
        self.phase = PartitionPhase.WAITING
        self._pending = []
        self.cache.clear()
        await self._outbox.stop()
        await source.assigned(place.partition)
        checkpoint = await table.checkpoint()
        await source.confirm(place.partition, _claim(checkpoint))

        self.phase = PartitionPhase.FENCING
        self._writer = writer = self._new_writer()
        await writer.start()

        self.phase = PartitionPhase.RECOVERING
        history = self._new_history()
        try:
            recovery = Restore(place, table, history)
            self._checkpoint = await recovery.run(
                trust_table=self._trust_table,
                on_hanging=partial(end_left_open, place, history, writer),
            )
            control = await history.offset_range(place.topics.control)
            self._first_unwritten = recovery.first_unwritten
            await self._write_items_again(history, table)
        finally:
            self.waits = None
            await history.close()
        self._trust_table = True
        self._next_row_number = await table.next_row_number()
        await self._errands.begin(table, control.end)
        await source.confirm(place.partition, self._checkpoint.position)
        await self._attach()
        self.phase = PartitionPhase.RUNNING
        self.error = None
        self._progressed()
        took_s = self._monotonic() - started
        self._metrics.takeover_seconds.observe(took_s)
        self._log.info(
            "the partition is taken over",
            took_s=round(took_s, 3),
            table=recovery.how,
            records=recovery.records,
            **self._checkpoint.position._asdict(),
        )

    async def _write_items_again(self, history: LogReader, table: Table) -> None:
        """Put into the outbox what the last owner may not have written; as much as there is room
        for, until the rest is too."""
        if self._first_unwritten >= self._checkpoint.position.next_event_id:
            return
        audit = self.place.topics.audit
        offset_range = OffsetRange(
            (await history.offset_range(audit)).start, self._checkpoint.audit
        )
        count = 0
        async for items in unwritten_items(
            history, table, audit, offset_range, first_event=self._first_unwritten
        ):
            while not await self._outbox.room(ROOM_WAIT_S):
                self.waits = self._outbox.waits_for
            self.waits = None
            self._outbox.put(items)
            count += len(items)
        if count:
            self._log.info("work items are written again", items=count)

    async def _attach(self) -> None:
        """Fetch from our position on: after a takeover, and whenever the group was rebalanced
        and left the partition with us, which keeps producer and memory."""
        self._generation = await self._source.assigned(self.place.partition)
        self._pending = []
        self._source.attach(self.place.partition, self._checkpoint.position)

    # Batch after batch

    async def _step(self, table: Table) -> None:
        if self._source.generation != self._generation:
            await self._attach()
        if not await self._has_room():
            return
        if not self._pending:
            await self._gather_some()
            wait_s = self._errands.wait_s(self._monotonic())
            with self._waiting("commands"):
                fetched = await self._source.fetch(
                    self.place.partition,
                    max_records=self._fetch_max(),
                    timeout_s=min(self._pace.fetch_s, math.inf if wait_s is None else wait_s),
                )
            hidden = self._source.hidden(self.place.partition)
            self.waits = self._hidden.look(hidden, self._monotonic())
            pending = await self._read(fetched)
            if self._source.generation != self._generation:
                return  # fetched for an assignment that is over
            self._pending = pending
        if self._released.is_set():
            return
        self._idle.clear()
        try:
            due = await self._errands.due(
                table,
                lambda: self._done(self.place.topics.control),
                self._commands,
                self._monotonic(),
            )
            if self._pending or due:
                await self._decide(table, self._writer_in_use(), due)
            elif self._errands.asks_the_time(self._monotonic()) or self._offered_lags():
                await self._write_cursor(table, self._checkpoint.position)
            else:
                await self._keep_cursor_up(table)
        finally:
            self._idle.set()

    async def _has_room(self) -> bool:
        """Whether the work items of another batch may be waited for; waits for that a moment."""
        if not self._outbox.has_room:
            with self._waiting("broker"):
                has_room = await self._outbox.room(ROOM_WAIT_S)
            if not has_room:
                self.waits = self._outbox.waits_for
                # Not stuck: another consumer would not help. Nor ready.
                self.phase = PartitionPhase.BLOCKED
                return False
        if self.phase is PartitionPhase.BLOCKED:
            self.phase, self.waits = PartitionPhase.RUNNING, None
            self._progressed()
        return True

    def _next_unwritten(self) -> int:
        """The event of the oldest work item that is not acknowledged, or the next event."""
        return self._outbox.oldest_event_id or self._checkpoint.position.next_event_id

    def _offered_lags(self) -> bool:
        """Whether more work items are written than the newest cursor says, for some time."""
        return (
            self._next_unwritten() > self._first_unwritten
            and self._monotonic() - self._cursor_written_at >= OFFERED_EVERY_S
        )

    def _done(self, topic: str) -> int:
        """Up to where `topic`, a source, is decided, markers included."""
        ahead = self._source.ahead(self.place.partition)
        commands = topic == self.place.topics.commands
        position = self._checkpoint.position
        decided = position.commands if commands else position.control
        if ahead is None or self._has_pending(topic):
            return decided
        return max(decided, ahead.commands if commands else ahead.control)

    def _has_pending(self, topic: str) -> bool:
        return any(item.record.topic == topic for item in self._pending)

    def _writer_in_use(self) -> TransactionalProducer:
        assert self._writer is not None, "a partition is taken over before it decides"
        return self._writer

    def _in_order(self, fetched: Fetched) -> Iterable[Record]:
        """Both topics by append time, each in the order of its offsets; nothing twice."""
        position = self._checkpoint.position
        commands = [r for r in fetched.commands if r.offset >= position.commands]
        control = [r for r in fetched.control if r.offset >= position.control]
        if not control:
            return commands
        return heapq.merge(commands, control, key=lambda record: record.timestamp)

    def _fetch_max(self) -> int:
        """As many records as make a batch, or fewer where they are large or the partitions many:
        each is in memory as it came, as it was parsed and as what it brings about."""
        share = min(1.0, FULL_SHARES / self.neighbours)
        records = max(SHARE_MIN, int(self._batch_max_records * share))
        fitting = int(FETCH_BYTES * share) // max(1, self._record_bytes)
        return max(1, min(self._batch_max_records, records, fitting))

    async def _gather_some(self) -> None:
        """After a small batch, leave a moment for the next one to grow, and for the broker to write
        the markers of the last: what comes in between waits less than for one more transaction."""
        if self._handled < AT_ONCE:
            between_s = self._pace.between_s
            moment_s = self.progressed_at + between_s - self._monotonic()
            await asyncio.sleep(max(0.0, min(moment_s, between_s)))

    async def _read(self, fetched: Fetched) -> list[Decoded]:
        items: list[Decoded] = []
        for some in fetched:
            if some:
                self._errands.observe(some[-1].timestamp, self._monotonic())
        for records in sliced(list(self._in_order(fetched))):
            items.extend(map(decode, records))
            await asyncio.sleep(0)
        if items:
            self._record_bytes = sum(map(_size_bytes, items)) // len(items)
        return items

    async def _decide(self, table: Table, writer: TransactionalProducer, due: DueTask) -> None:
        began_ns = time.time_ns()
        with self._waiting("disk"):
            items, memory = await load_state(self._pending, self.cache, table)
        # Asked while we decide: the answer comes from another thread.
        untouched = asyncio.ensure_future(table.untouched())
        try:
            batch, outbound = await self._handle(table, writer, items, memory, frozenset())
        finally:
            undisturbed = await untouched
        if not undisturbed:
            raise TableDistrusted("another hand wrote to the table; it is filled anew")
        if batch.forwards:
            with self._waiting("broker"):
                refused = await self._forwarder.forward(batch.forwards)
            if refused:
                batch, outbound = await self._handle(table, writer, items, memory, refused)
        for record, fault in batch.faults:
            self._log.error(
                "a record was set aside: handling it failed",
                topic=record.topic,
                offset=record.offset,
                exc_info=fault,
            )
        decided_ns = time.time_ns()
        sent = self._errands.send(batch, due)
        outbound.put(self.place.topics.control, sent.records)
        written = await self._commit(table, writer, batch, outbound)
        if self._traces is not None:
            self._traces.decided(
                batch.traced,
                batch.handled,
                began_ns=began_ns,
                decided_ns=decided_ns,
                committed_ns=time.time_ns(),
            )
        self._errands.written(batch, sent, written, memory, self._monotonic())
        self._pending = self._pending[batch.handled :]
        self._handled = batch.handled
        if batch.handled:
            seconds = self._clock() - items[0].record.timestamp / 1000
            self._metrics.end_to_end_seconds.observe(max(0.0, seconds))
            self._metrics.batch_size.observe(batch.handled)
        self._metrics.events.inc(outbound.count(self.place.topics.audit))
        for labels, count in batch.tally.items():
            self._metrics.commands.labels(*labels).inc(count)
        self._metrics.steps.observe(batch.step_events)
        self._failures = 0
        self.error = None

    async def _handle(
        self,
        table: Table,
        writer: TransactionalProducer,
        items: Sequence[Decoded],
        memory: LoadedState,
        refused: frozenset[tuple[str, int]],
    ) -> tuple[WriteSet, TransactionPacks]:
        """Decide `items`, as many as make a batch; its records are packed on the way."""
        handler = CommandHandler(
            self.place,
            memory,
            self._checkpoint.position,
            next_row_number=self._next_row_number,
            unforwardable=refused,
        )
        batch, outbound = handler.batch, TransactionPacks(self.place.topics, writer, table)
        for some in sliced(items):
            has_room = handler.add(some)
            outbound.take(batch)
            await asyncio.sleep(0)
            if not has_room:
                break
        for _ in handler.settle(self._outbox.oldest_event_id):
            outbound.take(batch)
            await asyncio.sleep(0)
        outbound.take(batch)
        return batch, outbound

    async def _commit(
        self,
        table: Table,
        writer: TransactionalProducer,
        batch: WriteSet,
        outbound: TransactionPacks,
    ) -> Written:
        """Write a batch: all of it to Kafka, then to the table.

        A crash or an error before Kafka's commit leaves nothing of it; between the two, a table
        that is behind the topics. Either way the next takeover goes on from the topics.
        """
        topics = self.place.topics
        with self._metrics.commit_seconds.time(), self._waiting("broker"):
            written = await writer.write(outbound.packs)
        self._outbox.put(batch.work)
        self._first_unwritten = batch.first_unwritten
        self._source.decided(self.place.partition, batch.position)
        outbound.changes.forget_before_ms = self._forget_before_ms(batch)
        after = Checkpoint(
            batch.position,
            written.ends.get(topics.audit, self._checkpoint.audit),
            written.ends.get(topics.outcomes, self._checkpoint.outcomes),
            max(batch.newest_ms, self._checkpoint.as_of_ms),
        )
        with self._metrics.table_seconds.time(), self._waiting("disk"):
            await table.write(outbound.changes, before=self._checkpoint, after=after)
        self._checkpoint = after
        self._next_row_number += batch.created
        self.cache.put(batch.flows)
        self._progressed()
        self._cursor_written_at = self.progressed_at
        if writer.suspect:
            raise ProducerSuspect("a commit was sent twice; the producer is replaced")
        return written

    def _forget_before_ms(self, batch: WriteSet) -> int | None:
        """The append time before which no command that can still come looks back.

        A topic that lags, or of which nothing is known yet, may still bring commands as old as
        its newest decided one.
        """
        for topic, at_ms in batch.newest.items():
            self._seen_ms[topic] = max(self._seen_ms[topic], at_ms)
        newest = max(self._seen_ms.values())
        topics = self.place.topics
        lags = self._source.lags(self.place.partition)
        undecided = {item.record.topic for item in self._pending[batch.handled :]}
        oldest = min(
            newest if lag == 0 and topic not in undecided else self._seen_ms[topic]
            for topic, lag in zip((topics.commands, topics.control), lags, strict=True)
        )
        return oldest - self.place.dedupe_window_ms - LATE_MAX_MS

    async def _keep_cursor_up(self, table: Table) -> None:
        """Where the consumer has stepped over markers alone, tell the group, so that lag tools see
        no lag at rest; and say so in the cursor, at most hourly: retention may take those markers
        and must not seem to take commands."""
        ahead = self._source.ahead(self.place.partition)
        old = self._checkpoint.position
        if ahead is None or (ahead.commands <= old.commands and ahead.control <= old.control):
            return
        position = Position(
            max(ahead.commands, old.commands), max(ahead.control, old.control), old.next_event_id
        )
        if position != self._reported:
            self._reported = position
            self._source.decided(self.place.partition, position)
        if self._monotonic() - self._cursor_written_at >= CURSOR_ONLY_EVERY_S:
            await self._write_cursor(table, position)

    async def _write_cursor(self, table: Table, position: Position) -> None:
        """A transaction with nothing but the cursor; it tells the broker's clock, too."""
        writer = self._writer_in_use()
        outbound = TransactionPacks(self.place.topics, writer, table)
        first_unwritten = self._outbox.oldest_event_id or position.next_event_id
        cursor = cursor_record(self.place.partition, position, first_unwritten)
        outbound.put(self.place.topics.state, [cursor])
        batch = WriteSet(position, first_unwritten=first_unwritten)
        written = await self._commit(table, writer, batch, outbound)
        self._errands.observe(written.at_ms, self._monotonic() - written.age_s)

    def _progressed(self) -> None:
        self.progressed_at = self._monotonic()


def _size_bytes(item: Decoded) -> int:
    """Of a record's key and value."""
    return len(item.record.key or b"") + len(item.record.value or b"")


def _claim(checkpoint: Checkpoint | None) -> Position:
    """An offset to commit while it is not known yet how far the topics are."""
    return checkpoint.position if checkpoint is not None else Position(0, 0, 0)
