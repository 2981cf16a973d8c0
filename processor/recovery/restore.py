"""Bring a partition's table to where its topics are: catch up, or restore from `state`.

How far the partition is decided says the newest cursor on `state`, which every transaction writes.
A table that was here before catches up to there: flows and steps by folding `audit`, ledger
entries from `outcomes`. An empty one, one that was away for too long, or one of other topics is
restored from `state` and from the outcomes of the dedupe window. A table never catches up from
`state`: the tombstones of what was pruned in between may be gone.

Where the topics contradict each other, or lost what comes next, nothing is touched, and the error
ends in the command that repairs.
"""

import asyncio
from collections.abc import Callable, Sequence
from enum import StrEnum

import structlog

from processor.engine.batch import PartitionConfig, first_event_id
from processor.engine.codec import Record
from processor.engine.ports import LogReader, OffsetRange, OnHanging, Table
from processor.engine.rows import Changes, Checkpoint, Position, RestoreChunk
from processor.errors import HistoryLost
from processor.recovery.catch_up import AT_ONCE, CatchUp
from processor.recovery.checkpoint import (
    OffsetRanges,
    PartitionCheckpoint,
    check_cursor,
    losses,
    newest_cursor,
    repair,
    restored,
    settled,
    stand,
    unfinished,
)
from processor.recovery.ledger_window import ledger_start
from processor.recovery.snapshot_reader import newest_of_each, take_ledger_entries, take_snapshots
from processor.recovery.table_match import contradiction

log = structlog.get_logger()


class RestoreMethod(StrEnum):
    """What a recovery had to do to the table."""

    WARM = "caught up"
    RESTORED = "restored"


class Restore:
    """One recovery of one partition's table. `how` it went, how many `records` of `audit` and
    `outcomes` were missing from the table, and the event from which on work items may not be
    written, `first_unwritten`, are known afterwards."""

    def __init__(self, place: PartitionConfig, table: Table, history: LogReader) -> None:
        self.how = RestoreMethod.WARM
        self.first_unwritten = first_event_id(place.partition)
        self._place = place
        self._topics = place.topics
        self._table = table
        self._history = history
        self._forward = CatchUp(place, table, history)
        self._log = log.bind(partition=place.partition)

    @property
    def records(self) -> int:
        return self._forward.records

    async def run(
        self, *, trust_table: bool = True, on_hanging: OnHanging | None = None
    ) -> Checkpoint:
        """Bring the table to the end of the topics and return how far that is; `on_hanging` as of
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
            why := await contradiction(
                place, self._table, history, checkpoint, offset_ranges, cursor and cursor.position
            )
        ):
            self._log.warning("the table is restored", reason=why)
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
        why = await contradiction(
            self._place, self._table, self._history, checkpoint, offset_ranges, cursor
        )
        if why is None:
            await self._catch_up(checkpoint, offset_ranges, cursor)
        return why

    def _repair(self, how: str) -> str:
        return repair(how, self._place.partition)

    async def _look_for_lost_state(self, state: OffsetRange) -> None:
        """Each flow was written to `state` at least once. An owner that writes while the topic is
        recreated does not notice, and a table restored from it would miss flows."""
        flows = await self._table.count_flows()
        if flows > state.end:
            raise HistoryLost(
                f"{self._topics.state} partition {self._place.partition} ends at offset "
                f"{state.end}, but the table has {flows} flows: the topic was truncated or made "
                f"again. {self._repair('--restore-state')} rewrites it from audit and outcomes."
            )

    # Rolling forward

    async def _catch_up(
        self, checkpoint: Checkpoint, offset_ranges: OffsetRanges, cursor: Position
    ) -> Checkpoint:
        checkpoint = await self._forward.advance(checkpoint, offset_ranges)
        check_cursor(self._place, cursor, checkpoint.position.next_event_id)
        if checkpoint.position != cursor:
            # The cursor steps over markers, and over what an operator accepted as lost.
            after = checkpoint._replace(position=cursor)
            await self._table.write(Changes(), before=checkpoint, after=after)
            checkpoint = after
        return checkpoint

    # Restoring

    async def from_state(
        self, offset_ranges: OffsetRanges, standing: PartitionCheckpoint
    ) -> Checkpoint:
        """Restore the table: flows and steps from `state`, the ledger from `outcomes`. It is worth
        nothing until that has come to its end: the position comes last."""
        state, outcomes = self._topics.state, self._topics.outcomes
        await self._table.begin_restore(unfinished(self._place))
        loop = asyncio.get_running_loop()
        began = loop.time()
        flows = await self._restore_topic(state, *offset_ranges[state], take_snapshots)
        snapshots_at = loop.time()
        since = await ledger_start(self._place, self._history, standing)
        ledger_entries = 0
        if since is not None:
            ledger_entries = await self._restore_topic(
                outcomes, since, offset_ranges[outcomes].end, take_ledger_entries
            )
        checkpoint = restored(self._place, offset_ranges, standing)
        ends = loop.time()
        await self._table.end_restore(checkpoint)
        self._log.info(
            "the table was restored from the state topic",
            flows=await self._table.count_flows(),
            snapshots=flows,
            snapshots_s=round(snapshots_at - began, 3),
            outcomes=ledger_entries,
            outcomes_s=round(ends - snapshots_at, 3),
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
