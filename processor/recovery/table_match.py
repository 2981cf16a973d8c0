"""Decide whether a table is of these topics, and how far behind them it may be."""

from typing import Final

import orjson

from processor.contract.events import EventKind
from processor.contract.headers import chain_of
from processor.contract.topics import STATE
from processor.engine.batch import PartitionConfig, first_event_id
from processor.engine.ports import LogReader, OffsetRange, Table
from processor.engine.rows import Checkpoint, Position
from processor.recovery.checkpoint import UNFINISHED, OffsetRanges, last_records
from processor.recovery.ledger_window import first_record
from processor.recovery.snapshot_reader import ledger_entry_of

TABLE_MAX_AGE_MS: Final = int(STATE.config["delete.retention.ms"]) // 2
"""A table that was away for longer is restored: reading the present is shorter by then."""


async def contradiction(
    place: PartitionConfig,
    table: Table,
    history: LogReader,
    checkpoint: Checkpoint,
    offset_ranges: OffsetRanges,
    cursor: Position | None = None,
) -> str | None:
    """Why the table cannot be rolled forward; None if it can. Without a `cursor` it may be
    ahead of what is visible of `state`.

    Its offsets may by chance lie within topics that were recreated, or another cluster's: so
    what lies right before them must be what the table knows.
    """
    outcomes_topic = place.topics.outcomes
    audit, outcomes = offset_ranges[place.topics.audit], offset_ranges[outcomes_topic]
    if (checkpoint.audit, checkpoint.outcomes) == UNFINISHED:
        return "its last restore was not completed"
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
    if not as_of_ms:  # nothing was decided by then
        first = await first_record(history, outcomes_topic, *outcomes)
        as_of_ms = 0 if first is None else first.timestamp
    too_late_ms = as_of_ms + TABLE_MAX_AGE_MS
    if as_of_ms and await history.offset_at(outcomes_topic, too_late_ms) is not None:
        return "it was away for too long"
    if not await knows_events_before(
        place, table, history, OffsetRange(audit.start, checkpoint.audit), checkpoint
    ):
        return "its newest events are not those of the audit topic: it is of other topics"
    if not await _knows_outcomes_before(
        place, table, history, OffsetRange(outcomes.start, checkpoint.outcomes)
    ):
        return (
            "its newest ledger entries are not those of the outcomes topic: it is of other topics"
        )
    return None


async def knows_events_before(
    place: PartitionConfig,
    table: Table,
    history: LogReader,
    offset_range: OffsetRange,
    checkpoint: Checkpoint,
) -> bool:
    """Whether the newest events in `offset_range` of `audit` are what the table has."""
    records = await last_records(history, place.topics.audit, offset_range)
    if not records:
        first = first_event_id(place.partition)
        return offset_range.start > 0 or checkpoint.position.next_event_id == first
    events = [orjson.loads(record.value or b"") for record in records]
    if events[-1]["id"] != checkpoint.position.next_event_id - 1:
        return False
    newest = {
        event["flow_id"]: (event["id"], chain_of(record.headers), event["kind"])
        for event, record in zip(events, records, strict=True)
    }
    rows = await table.flows(sorted(newest))
    for flow_id, (event_id, chain, kind) in newest.items():
        row = rows.get(flow_id)
        if kind == EventKind.PRUNED:
            if row is not None:
                return False
        elif row is None or (row.last_event_id, row.chain) != (event_id, chain):
            return False
    return True


async def _knows_outcomes_before(
    place: PartitionConfig, table: Table, history: LogReader, offset_range: OffsetRange
) -> bool:
    records = await last_records(history, place.topics.outcomes, offset_range)
    ledger_entries = map(ledger_entry_of, (orjson.loads(record.value or b"") for record in records))
    newest = {
        ledger_entry.key: ledger_entry
        for ledger_entry in ledger_entries
        if ledger_entry is not None
    }
    found = await table.ledger_entries(sorted(newest))
    # An outcome without an event notes which event would have come next.
    return all(
        (row if row.event_count else row._replace(first_event_id=0)) == newest[key]
        for key, row in found.items()
    )
