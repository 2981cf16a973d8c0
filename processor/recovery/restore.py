"""Bring a partition's table to where its topics are: catch up, or restore from `state`.

How far the partition is decided says the newest cursor on `state`, which every transaction writes.
A table that was here before is rolled forward to there: flows and steps by folding `audit`, answers
from `outcomes`. An empty one, one that was away for too long, or one of other topics is filled from
`state` and from the outcomes of the dedupe window. A table is never rolled forward from `state`:
the tombstones of what was pruned in between may be gone.

Where the topics contradict each other, or lost what comes next, nothing is touched, and the error
ends in the command that repairs.
"""

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import StrEnum
from typing import Any, Final

import orjson
import structlog

from processor.contract.events import EventKind
from processor.contract.headers import chain_of
from processor.contract.topics import STATE
from processor.domain.evolve import evolve, evolve_step
from processor.engine.batch import PartitionConfig, first_event_id
from processor.engine.codec import Record, fact_of, step_doc
from processor.engine.ports import LogReader, OffsetRange, OnHanging, Table
from processor.engine.rows import (
    Changes,
    Checkpoint,
    LedgerEntry,
    Position,
    RestoreChunk,
    StepRow,
)
from processor.errors import HistoryLost, TableDistrusted, WrittenByNewer
from processor.recovery.checkpoint import (
    OffsetRanges,
    PartitionCheckpoint,
    check_cursor,
    check_version,
    last_records,
    losses,
    newest_cursor,
    repair,
    settled,
    stand,
)
from processor.recovery.event_applier import EventApplier, check_chain, step_of
from processor.recovery.snapshot_reader import (
    ledger_entry_of,
    newest_of_each,
    take_ledger_entries,
    take_snapshots,
)

log = structlog.get_logger()

Event = tuple[Record, Mapping[str, Any]]
"""A record of `audit`, and the FlowEvent in it."""

TABLE_MAX_AGE_MS: Final = int(STATE.config["delete.retention.ms"]) // 2
"""A table that was away for longer is filled anew: reading the present is shorter by then."""
LATE_MAX_MS: Final = 16 * 60_000
"""How much older a record may be than one that was seen before it: 15 minutes in a transaction that
was open until then, Kafka's `transaction.max.timeout.ms`, and one for a clock that steps back."""
UNFINISHED: Final = (-1, -1)
"""Offsets of a table whose filling has not come to its end: they meet no topic, so that the next
recovery begins again."""
STEPS_AT_ONCE: Final = 250
"""Events of steps folded at a time: a step may take 140 KiB, and its document twice that."""
AT_ONCE: Final = 100
"""Events folded without giving way to the event loop: some milliseconds."""


class RestoreMethod(StrEnum):
    """What a recovery had to do to the table."""

    WARM = "rolled forward"
    RESTORED = "filled anew"


class Restore:
    """One recovery of one partition's table. `how` it went, how many `records` of `audit` and
    `outcomes` were missing from the table, and the event from which on work items may not be
    written, `first_unwritten`, are known afterwards."""

    def __init__(self, place: PartitionConfig, table: Table, history: LogReader) -> None:
        self.how = RestoreMethod.WARM
        self.records = 0
        self.first_unwritten = first_event_id(place.partition)
        self._place = place
        self._topics = place.topics
        self._table = table
        self._history = history
        self._log = log.bind(partition=place.partition)

    async def run(
        self, *, trust_table: bool = True, on_hanging: OnHanging | None = None
    ) -> Checkpoint:
        """Bring the table to the end of the topics and answer how far that is; `on_hanging` as of
        `LogReader`.

        Raises CursorMissing, HistoryLost or WrittenByNewer, with the table as it was, if the topics
        contradict each other, no longer hold what comes next, or say what we cannot know.
        """
        place, history = self._place, self._history
        offset_ranges = await settled(place, history, on_hanging)
        cursor = await newest_cursor(place, history, offset_ranges)
        self.first_unwritten = (
            first_event_id(place.partition) if cursor is None else cursor.first_unwritten
        )
        if cursor is not None and (
            lost := await losses(place, history, offset_ranges, cursor.position)
        ):
            raise HistoryLost(
                f"{'; '.join(one.sentence for one in lost)}. {self._repair('--skip-lost')} shows "
                "what is lost and, if you accept it, lets the partition go on behind it."
            )
        checkpoint = await self._table.checkpoint() if trust_table else None
        if checkpoint is not None and (
            why := await self.contradiction(checkpoint, offset_ranges, cursor and cursor.position)
        ):
            self._log.warning("the table is filled anew", reason=why)
            checkpoint = None
        if checkpoint is None or cursor is None:
            self.how = RestoreMethod.RESTORED
            return await self.from_state(
                offset_ranges, await stand(place, history, offset_ranges, cursor)
            )
        await self._look_for_lost_state(offset_ranges[self._topics.state])
        return await self._catch_up(checkpoint, offset_ranges, cursor.position)

    async def catch_up(self, offset_ranges: OffsetRanges, cursor: Position) -> str | None:
        """Bring the table to the ends of `offset_ranges`, where the cursor says that the partition
        is; why it cannot be, if so. Raises HistoryLost, TableDistrusted or WrittenByNewer."""
        checkpoint = await self._table.checkpoint()
        if checkpoint is None:
            return "it is empty"
        why = await self.contradiction(checkpoint, offset_ranges, cursor)
        if why is None:
            await self._catch_up(checkpoint, offset_ranges, cursor)
        return why

    def _repair(self, how: str) -> str:
        return repair(how, self._place.partition)

    async def contradiction(
        self, checkpoint: Checkpoint, offset_ranges: OffsetRanges, cursor: Position | None = None
    ) -> str | None:
        """Why the table cannot be rolled forward; None if it can. Without a `cursor` it may be
        ahead of what is visible of `state`.

        Its offsets may by chance lie within topics that were made anew, or another cluster's: so
        what lies right before them must be what the table knows.
        """
        outcomes_topic = self._topics.outcomes
        audit, outcomes = offset_ranges[self._topics.audit], offset_ranges[outcomes_topic]
        if (checkpoint.audit, checkpoint.outcomes) == UNFINISHED:
            return "its last filling did not come to an end"
        if cursor is not None and any(
            ours > theirs for ours, theirs in zip(checkpoint.position, cursor, strict=True)
        ):
            # The table is written after the commit: a broker lost what it had acknowledged.
            return "it is ahead of the topics: they no longer hold what was committed last"
        if not audit.start <= checkpoint.audit <= audit.end:
            return "it does not meet the audit topic"
        if not outcomes.start <= checkpoint.outcomes <= outcomes.end:
            return "it does not meet the outcomes topic"
        as_of_ms = checkpoint.as_of_ms
        if not as_of_ms:  # nothing was answered by then
            first = await self._first(self._topics.outcomes, *outcomes)
            as_of_ms = 0 if first is None else first.timestamp
        too_late_ms = as_of_ms + TABLE_MAX_AGE_MS
        if as_of_ms and await self._history.offset_at(outcomes_topic, too_late_ms) is not None:
            return "it was away for too long"
        if not await self._knows_events_before(
            OffsetRange(audit.start, checkpoint.audit), checkpoint
        ):
            return "its newest events are not those of the audit topic: it is of other topics"
        if not await self._knows_outcomes_before(OffsetRange(outcomes.start, checkpoint.outcomes)):
            return "its newest answers are not those of the outcomes topic: it is of other topics"
        return None

    async def _knows_events_before(self, offset_range: OffsetRange, checkpoint: Checkpoint) -> bool:
        records = await last_records(self._history, self._topics.audit, offset_range)
        if not records:
            first = first_event_id(self._place.partition)
            return offset_range.start > 0 or checkpoint.position.next_event_id == first
        events = [orjson.loads(record.value or b"") for record in records]
        if events[-1]["id"] != checkpoint.position.next_event_id - 1:
            return False
        newest = {
            event["flow_id"]: (event["id"], chain_of(record.headers), event["kind"])
            for event, record in zip(events, records, strict=True)
        }
        rows = await self._table.flows(sorted(newest))
        for flow_id, (event_id, chain, kind) in newest.items():
            row = rows.get(flow_id)
            if kind == EventKind.PRUNED:
                if row is not None:
                    return False
            elif row is None or (row.last_event_id, row.chain) != (event_id, chain):
                return False
        return True

    async def _knows_outcomes_before(self, offset_range: OffsetRange) -> bool:
        records = await last_records(self._history, self._topics.outcomes, offset_range)
        ledger_entries = map(
            ledger_entry_of, (orjson.loads(record.value or b"") for record in records)
        )
        newest = {
            ledger_entry.key: ledger_entry
            for ledger_entry in ledger_entries
            if ledger_entry is not None
        }
        found = await self._table.ledger_entries(sorted(newest))
        # Whoever answered without an event noted which one would have come next.
        return all(
            (row if row.event_count else row._replace(first_event_id=0)) == newest[key]
            for key, row in found.items()
        )

    async def _look_for_lost_state(self, state: OffsetRange) -> None:
        """Each flow was written to `state` at least once. An owner that writes while the topic is
        made anew does not notice, and whoever filled a table from it would miss flows."""
        flows = await self._table.count_flows()
        if flows > state.end:
            raise HistoryLost(
                f"{self._topics.state} partition {self._place.partition} ends at offset "
                f"{state.end}, but the table has {flows} flows: the topic was truncated or made "
                f"anew. {self._repair('--restore-state')} writes it anew from audit and outcomes."
            )

    # Rolling forward

    async def _catch_up(
        self, checkpoint: Checkpoint, offset_ranges: OffsetRanges, cursor: Position
    ) -> Checkpoint:
        checkpoint = await self.advance(checkpoint, offset_ranges)
        check_cursor(self._place, cursor, checkpoint.position.next_event_id)
        if checkpoint.position != cursor:
            # The cursor steps over markers, and over what somebody accepted as lost.
            after = checkpoint._replace(position=cursor)
            await self._table.write(Changes(), before=checkpoint, after=after)
            checkpoint = after
        return checkpoint

    async def advance(
        self,
        checkpoint: Checkpoint,
        offset_ranges: OffsetRanges,
        *,
        forget_before_ms: int | None = None,
    ) -> Checkpoint:
        """Fold the events and answers up to the ends of `offset_ranges` into the table, which
        `contradiction` found to be of these topics; answers to commands older than
        `forget_before_ms` go. The two topics need not end at the same transaction: each goes on
        by itself from where it stands.

        Raises HistoryLost, TableDistrusted or WrittenByNewer.
        """
        audit, outcomes = self._topics.audit, self._topics.outcomes
        row_number = await self._table.next_row_number()
        async for records in self._history.read(audit, checkpoint.audit, offset_ranges[audit].end):
            for events in self._portions(records):
                fold = await self._applier(events, row_number)
                position = checkpoint.position
                for n, (record, event) in enumerate(events):
                    if n % AT_ONCE == 0:
                        await asyncio.sleep(0)
                    try:
                        position = self._fold_event(fold, record, event, position)
                    except WrittenByNewer:
                        raise
                    except Exception as error:
                        raise TableDistrusted(
                            f"the table cannot be rolled forward by the event at offset "
                            f"{record.offset} of {audit} ({error}); it is filled anew"
                        ) from error
                row_number = fold.next_row_number
                after = checkpoint._replace(position=position, audit=record.offset + 1)
                await self._table.write(fold.changes(), before=checkpoint, after=after)
                checkpoint = after
            self.records += len(records)
        async for records in self._history.read(
            outcomes, checkpoint.outcomes, offset_ranges[outcomes].end
        ):
            checkpoint = await self._write_ledger(
                records, checkpoint, positions=True, forget_before_ms=forget_before_ms
            )
            self.records += len(records)
        return checkpoint

    def _portions(self, records: Sequence[Record]) -> Iterator[list[Event]]:
        """`records` with their events, in portions whose steps memory holds."""
        some: list[Event] = []
        steps = 0
        for record in records:
            event = orjson.loads(record.value or b"")
            some.append((record, event))
            steps += step_of(event) is not None
            if steps >= STEPS_AT_ONCE:
                yield some
                some, steps = [], 0
        if some:
            yield some

    def _fold_event(
        self, fold: EventApplier, record: Record, event: Mapping[str, Any], position: Position
    ) -> Position:
        check_version(event, record)
        if event["id"] != position.next_event_id:
            raise HistoryLost(
                f"audit partition {self._place.partition} holds event {event['id']} at offset "
                f"{record.offset}, where {position.next_event_id} must stand"
            )
        fact = fact_of(event)
        flow = evolve(fold.flow(fact.flow_id), fact)
        if flow is None:
            fold.remove(fact.flow_id)
        else:
            step: StepRow | None = None
            if (at := step_of(event)) is not None:
                after = evolve_step(fold.step(at), fact)
                step = StepRow(after, step_doc(after))
            fold.put(flow, event["id"], chain_of(record.headers), step)
        return position._replace(next_event_id=event["id"] + 1)

    async def _applier(self, events: Sequence[Event], next_row_number: int) -> EventApplier:
        """One that knows what the table has of the flows, by the record keys, and of the steps that
        `events` are about."""
        ids = {(record.key or b"").decode().partition("/")[0] for record, _ in events}
        rows = await self._table.flows(sorted(ids))
        keys = {at for _, event in events if (at := step_of(event)) is not None}
        steps = await self._table.steps(sorted(keys)) if keys else {}
        return EventApplier(rows, steps, next_row_number)

    async def _write_ledger(
        self,
        records: Sequence[Record],
        checkpoint: Checkpoint,
        *,
        positions: bool,
        forget_before_ms: int | None = None,
    ) -> Checkpoint:
        ledger_entries: dict[bytes, LedgerEntry] = {}
        position = checkpoint.position
        for n, record in enumerate(records):
            if n % AT_ONCE == 0:
                await asyncio.sleep(0)
            outcome = orjson.loads(record.value or b"")
            if positions:
                source = outcome["source"]
                field = "commands" if source["topic"] == self._topics.commands else "control"
                position = position._replace(**{field: source["offset"] + 1})
            row = ledger_entry_of(outcome)
            if row is not None:
                ledger_entries[row.key] = row
        newest = records[-1]
        after = Checkpoint(position, checkpoint.audit, newest.offset + 1, newest.timestamp)
        changes = Changes(
            ledger_entries=list(ledger_entries.values()), forget_before_ms=forget_before_ms
        )
        await self._table.write(changes, before=checkpoint, after=after)
        return after

    # Filling

    async def from_state(
        self, offset_ranges: OffsetRanges, standing: PartitionCheckpoint
    ) -> Checkpoint:
        """Fill the table anew: flows and steps from `state`, answers from `outcomes`. It is worth
        nothing until that has come to its end: the position comes last."""
        state, outcomes = self._topics.state, self._topics.outcomes
        await self._table.begin_restore(self._unfinished)
        loop = asyncio.get_running_loop()
        began = loop.time()
        flows = await self._restore_topic(state, *offset_ranges[state], take_snapshots)
        snapshots_at = loop.time()
        since = await self._ledger_start(standing)
        ledger_entries = 0
        if since is not None:
            ledger_entries = await self._restore_topic(
                outcomes, since, offset_ranges[outcomes].end, take_ledger_entries
            )
        checkpoint = self._restored(offset_ranges, standing)
        ends = loop.time()
        await self._table.end_restore(checkpoint)
        self._log.info(
            "the table was filled from the state topic",
            flows=await self._table.count_flows(),
            snapshots=flows,
            snapshots_s=round(snapshots_at - began, 3),
            answers=ledger_entries,
            answers_s=round(ends - snapshots_at, 3),
            indexes_s=round(loop.time() - ends, 3),
        )
        return checkpoint

    async def _restore_topic(
        self,
        topic: str,
        start: int,
        end: int,
        parse: Callable[[Sequence[Record], RestoreChunk], None],
    ) -> int:
        """One part is written while the next is read and parsed; how many records there were."""
        count = 0
        writing: asyncio.Future[None] | None = None
        try:
            async for records in self._history.read(topic, start, end):
                count += len(records)
                some = RestoreChunk()
                newest = newest_of_each(records) if topic == self._topics.state else records
                for at in range(0, len(newest), AT_ONCE):
                    parse(newest[at : at + AT_ONCE], some)
                    await asyncio.sleep(0)
                if writing is not None:
                    await writing
                writing = asyncio.ensure_future(self._table.restore(some))
        finally:
            if writing is not None:
                await writing
        return count

    @property
    def _unfinished(self) -> Checkpoint:
        return Checkpoint(Position(0, 0, first_event_id(self._place.partition)), *UNFINISHED, 0)

    def _restored(self, offset_ranges: OffsetRanges, standing: PartitionCheckpoint) -> Checkpoint:
        as_of_ms = standing.last_outcome.timestamp if standing.last_outcome else 0
        audit, outcomes = offset_ranges[self._topics.audit], offset_ranges[self._topics.outcomes]
        return Checkpoint(standing.position, audit.end, outcomes.end, as_of_ms)

    async def fold(self, offset_ranges: OffsetRanges, standing: PartitionCheckpoint) -> Checkpoint:
        """Fill the table anew: flows and steps by folding `audit` from its first event on, each
        flow's chain verified; answers from `outcomes`.

        Raises HistoryLost if `audit` does not hold all that ever happened, as it was written.
        """
        audit = self._topics.audit
        if offset_ranges[audit].start > 0:
            raise HistoryLost(
                f"{audit} partition {self._place.partition} begins at offset "
                f"{offset_ranges[audit].start}: what happened before cannot be folded. "
                f"{self._repair('--from state')} needs only the present."
            )
        checkpoint: Checkpoint | None = None
        row_number = 1
        position = Position(0, 0, first_event_id(self._place.partition))
        await self._table.clear()
        async for records in self._history.read(audit, *offset_ranges[audit]):
            for events in self._portions(records):
                fold = await self._applier(events, row_number)
                for record, event in events:
                    try:
                        check_chain(fold, record)
                        position = self._fold_event(fold, record, event, position)
                    except WrittenByNewer:
                        raise
                    except Exception as error:
                        raise HistoryLost(
                            f"the event at offset {record.offset} of {audit} partition "
                            f"{self._place.partition} cannot be folded ({error}). "
                            f"{self._repair('--from state')} needs only the present."
                        ) from error
                row_number = fold.next_row_number
                checkpoint = await self._write_unfinished(fold.changes(), checkpoint)
        return await self._finish_fold(offset_ranges, standing, checkpoint)

    async def _write_unfinished(self, changes: Changes, before: Checkpoint | None) -> Checkpoint:
        after = self._unfinished
        await self._table.write(changes, before=before, after=after)
        return after

    async def _finish_fold(
        self,
        offset_ranges: OffsetRanges,
        standing: PartitionCheckpoint,
        checkpoint: Checkpoint | None,
    ) -> Checkpoint:
        """The answers, and then the position, which makes the table one that may be used."""
        outcomes = offset_ranges[self._topics.outcomes]
        since = await self._ledger_start(standing)
        if since is not None:
            checkpoint = checkpoint or await self._write_unfinished(Changes(), None)
            async for records in self._history.read(self._topics.outcomes, since, outcomes.end):
                checkpoint = await self._write_ledger(records, checkpoint, positions=False)
        restored = self._restored(offset_ranges, standing)
        await self._table.write(Changes(), before=checkpoint, after=restored)
        return restored

    async def _ledger_start(self, standing: PartitionCheckpoint) -> int | None:
        """The offset on `outcomes` from which answers may still be asked for; None: none are."""
        position, last_outcome, _ = standing
        if last_outcome is None:
            return None
        # An outcome is appended after its command was, so none is passed over.
        return await self._history.offset_at(
            self._topics.outcomes, await self.asked_for_since_ms(position, last_outcome.timestamp)
        )

    async def asked_for_since_ms(self, position: Position, newest_ms: int) -> int:
        """The append time before which no command that can still come looks back, for a partition
        that is decided up to `position` and whose newest answer was appended at `newest_ms`."""
        # The oldest command that can still come: the first undecided one, or one after now.
        oldest_ms = newest_ms
        for topic, offset in (
            (self._topics.commands, position.commands),
            (self._topics.control, position.control),
        ):
            # What lies in an open transaction is not waited for: LATE_MAX_MS covers it.
            start = max(offset, (await self._history.offset_range(topic)).start)
            first = await self._first(topic, start, await self._history.stable_end(topic))
            if first is not None:
                oldest_ms = min(oldest_ms, first.timestamp)
        return max(0, oldest_ms - self._place.dedupe_window_ms - LATE_MAX_MS)

    async def _first(self, topic: str, start: int, end: int) -> Record | None:
        async for records in self._history.read(topic, start, end):
            return records[0]
        return None
