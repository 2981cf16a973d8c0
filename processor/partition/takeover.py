"""Take a partition over: become the only one that changes it."""

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from structlog.typing import FilteringBoundLogger

from processor.engine.ports import LogReader, OffsetRange, Table
from processor.engine.rows import Checkpoint, Position
from processor.partition.batch_processor import BatchProcessor
from processor.partition.status import PartitionPhase
from processor.recovery.hanging_transaction import end_left_open
from processor.recovery.restore import Restore
from processor.recovery.unwritten_items import unwritten_items


class Restored(NamedTuple):
    """How far the table is, where `control` ended, and how the table was restored."""

    checkpoint: Checkpoint
    control_end: int
    restore: Restore


@dataclass(frozen=True, slots=True)
class Takeover:
    """Makes this worker the only one that changes a partition.

    1. Prove to the group that the partition is ours: a worker that was stopped and continued must
       not steal it back from its new owner.
    2. Fence: from here on, nothing that an earlier owner still sends is committed.
    3. Bring the table to the true end of the topics. A crash in between leaves a table that is
       behind, which the next takeover brings up to date.
    4. Write again the work items that the last owner may not have written.
    5. Fetch from the position that the topics name; the group's offsets are for lag tools.
    """

    batches: BatchProcessor
    log: FilteringBoundLogger

    async def restore(self, table: Table, *, trust_table: bool) -> Restored:
        """Steps 1 to 4."""
        batches = self.batches
        place, source, status = batches.place, batches.ports.source, batches.status
        status.phase = PartitionPhase.WAITING
        batches.queue.clear()
        await batches.outbox.stop()
        await source.assigned(place.partition)
        checkpoint = await table.checkpoint()
        await source.confirm(place.partition, _claim(checkpoint))

        status.phase = PartitionPhase.FENCING
        writer = batches.new_writer()
        await writer.start()

        status.phase = PartitionPhase.RECOVERING
        history = batches.ports.new_history(status.wait_for)
        try:
            restore = Restore(place, table, history)
            checkpoint = await restore.run(
                trust_table=trust_table, on_hanging=partial(end_left_open, place, history, writer)
            )
            control = await history.offset_range(place.topics.control)
            if restore.first_unwritten < checkpoint.position.next_event_id:
                await self._write_items_again(history, table, checkpoint, restore.first_unwritten)
        finally:
            status.waits = None
            await history.close()
        return Restored(checkpoint, control.end, restore)

    async def attach(self, table: Table, restored: Restored) -> None:
        """Step 5."""
        batches, position = self.batches, restored.checkpoint.position
        batches.begin(
            restored.checkpoint,
            next_row_number=await table.next_row_number(),
            first_unwritten=restored.restore.first_unwritten,
        )
        await batches.scheduler.begin(table, restored.control_end)
        await batches.ports.source.confirm(batches.place.partition, position)
        await batches.queue.attach(position)
        batches.status.phase = PartitionPhase.RUNNING
        batches.status.error = None

    async def _write_items_again(
        self, history: LogReader, table: Table, checkpoint: Checkpoint, first_event: int
    ) -> None:
        """Put into the outbox what the last owner may not have written; as much as there is room
        for, until the rest is too."""
        outbox, status = self.batches.outbox, self.batches.status
        audit = self.batches.place.topics.audit
        offset_range = OffsetRange((await history.offset_range(audit)).start, checkpoint.audit)
        count = 0
        async for items in unwritten_items(
            history, table, audit, offset_range, first_event=first_event
        ):
            while not await outbox.room():
                status.waits = outbox.waits_for
            status.waits = None
            outbox.put(items)
            count += len(items)
        if count:
            self.log.info("work items are written again", items=count)


def _claim(checkpoint: Checkpoint | None) -> Position:
    """An offset to commit while it is not known yet how far the topics are."""
    return checkpoint.position if checkpoint is not None else Position(0, 0, 0)
