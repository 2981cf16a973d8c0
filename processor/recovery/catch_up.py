"""Bring a table forward by the events of `audit` and the outcomes that it does not hold yet."""

import asyncio
from collections.abc import Sequence
from typing import Final

import orjson

from processor.contract.topics import Topics
from processor.engine.batch import PartitionConfig
from processor.engine.codec import Record
from processor.engine.ports import LogReader, Table
from processor.engine.rows import Changes, Checkpoint, LedgerEntry
from processor.errors import TableDistrusted, WrittenByNewer
from processor.recovery.checkpoint import OffsetRanges
from processor.recovery.event_applier import open_applier, portions
from processor.recovery.snapshot_reader import ledger_entry_of

AT_ONCE: Final = 100
"""Records taken without giving way to the event loop: some milliseconds."""


class CatchUp:
    """Brings one table forward. `records`: how many of `audit` and `outcomes` were missing."""

    def __init__(self, place: PartitionConfig, table: Table, history: LogReader) -> None:
        self.records = 0
        self._topics = place.topics
        self._table = table
        self._history = history

    async def advance(
        self,
        checkpoint: Checkpoint,
        offset_ranges: OffsetRanges,
        *,
        forget_before_ms: int | None = None,
    ) -> Checkpoint:
        """Fold the events and outcomes up to the ends of `offset_ranges` into the table, which
        `contradiction` found to be of these topics; outcomes of commands older than
        `forget_before_ms` go. The two topics need not end at the same transaction: each goes on
        by itself from where it stands.

        Raises HistoryLost, TableDistrusted or WrittenByNewer.
        """
        audit, outcomes = self._topics.audit, self._topics.outcomes
        row_number = await self._table.next_row_number()
        async for records in self._history.read(audit, checkpoint.audit, offset_ranges[audit].end):
            for events in portions(records):
                fold = await open_applier(self._table, events, row_number)
                position = checkpoint.position
                for n, (record, event) in enumerate(events):
                    if n % AT_ONCE == 0:
                        await asyncio.sleep(0)
                    try:
                        position = fold.apply(record, event, position)
                    except WrittenByNewer:
                        raise
                    except Exception as error:
                        raise TableDistrusted(
                            f"the table cannot be caught up with the event at offset "
                            f"{record.offset} of {audit} ({error}); it is restored"
                        ) from error
                row_number = fold.next_row_number
                after = checkpoint._replace(position=position, audit=record.offset + 1)
                await self._table.write(fold.changes(), before=checkpoint, after=after)
                checkpoint = after
            self.records += len(records)
        async for records in self._history.read(
            outcomes, checkpoint.outcomes, offset_ranges[outcomes].end
        ):
            checkpoint = await write_ledger(
                self._topics, self._table, records, checkpoint, forget_before_ms=forget_before_ms
            )
            self.records += len(records)
        return checkpoint


async def write_ledger(
    topics: Topics,
    table: Table,
    records: Sequence[Record],
    checkpoint: Checkpoint,
    *,
    positions: bool = True,
    forget_before_ms: int | None = None,
) -> Checkpoint:
    """Write the ledger entries of these outcomes, and with `positions` how far their commands
    are decided."""
    ledger_entries: dict[bytes, LedgerEntry] = {}
    position = checkpoint.position
    for n, record in enumerate(records):
        if n % AT_ONCE == 0:
            await asyncio.sleep(0)
        outcome = orjson.loads(record.value or b"")
        if positions:
            source = outcome["source"]
            field = "commands" if source["topic"] == topics.commands else "control"
            position = position._replace(**{field: source["offset"] + 1})
        row = ledger_entry_of(outcome)
        if row is not None:
            ledger_entries[row.key] = row
    newest = records[-1]
    after = Checkpoint(position, checkpoint.audit, newest.offset + 1, newest.timestamp)
    changes = Changes(
        ledger_entries=list(ledger_entries.values()), forget_before_ms=forget_before_ms
    )
    await table.write(changes, before=checkpoint, after=after)
    return after
