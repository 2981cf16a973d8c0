"""From where on outcomes may still be asked for, by resends of their commands."""

from typing import Final

from processor.engine.batch import PartitionConfig
from processor.engine.codec import Record
from processor.engine.ports import LogReader
from processor.engine.rows import Position
from processor.recovery.checkpoint import PartitionCheckpoint

LATE_MAX_MS: Final = 16 * 60_000
"""How much older a record may be than one that was seen before it: 15 minutes in a transaction that
was open until then, Kafka's `transaction.max.timeout.ms`, and one for a clock that steps back."""


async def ledger_start(
    place: PartitionConfig, history: LogReader, standing: PartitionCheckpoint
) -> int | None:
    """The offset on `outcomes` from which outcomes may still be asked for; None: none are."""
    position, last_outcome, _ = standing
    if last_outcome is None:
        return None
    # An outcome is appended after its command was, so none is passed over.
    return await history.offset_at(
        place.topics.outcomes,
        await asked_for_since_ms(place, history, position, last_outcome.timestamp),
    )


async def asked_for_since_ms(
    place: PartitionConfig, history: LogReader, position: Position, newest_ms: int
) -> int:
    """The append time before which no command that can still come looks back, for a partition that
    is decided up to `position` and whose newest outcome was appended at `newest_ms`."""
    # The oldest command that can still come: the first undecided one, or one after now.
    oldest_ms = newest_ms
    for topic, offset in (
        (place.topics.commands, position.commands),
        (place.topics.control, position.control),
    ):
        # What lies in an open transaction is not waited for: LATE_MAX_MS covers it.
        start = max(offset, (await history.offset_range(topic)).start)
        first = await first_record(history, topic, start, await history.stable_end(topic))
        if first is not None:
            oldest_ms = min(oldest_ms, first.timestamp)
    return max(0, oldest_ms - place.dedupe_window_ms - LATE_MAX_MS)


async def first_record(history: LogReader, topic: str, start: int, end: int) -> Record | None:
    async for records in history.read(topic, start, end):
        return records[0]
    return None
