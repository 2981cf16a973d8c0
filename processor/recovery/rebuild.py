"""Rebuild a table beside the live one, and compare the two.

A table that is made while a worker elsewhere goes on writing is behind, which the next takeover
mends.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import orjson

from processor.engine.batch import PartitionConfig, first_event_id
from processor.engine.ports import LogReader, Table
from processor.engine.rows import Changes, Checkpoint, Position
from processor.errors import HistoryLost, WrittenByNewer
from processor.recovery.catch_up import write_ledger
from processor.recovery.checkpoint import (
    OffsetRanges,
    PartitionCheckpoint,
    repair,
    restored,
    unfinished,
)
from processor.recovery.consistent_cut import ConsistentCut, standing_of
from processor.recovery.event_applier import check_chain, open_applier, portions
from processor.recovery.ledger_window import ledger_start
from processor.recovery.restore import Restore


async def rebuild(
    place: PartitionConfig, table: Table, view: ConsistentCut, *, from_audit: bool
) -> Checkpoint:
    """Restore `table`. Raises CursorMissing, HistoryLost or WrittenByNewer."""
    standing = await standing_of(place, view)
    if from_audit:
        return await fold_audit(place, table, view, view.offset_ranges, standing)
    return await Restore(place, table, view).from_state(view.offset_ranges, standing)


async def catch_up(place: PartitionConfig, table: Table, view: ConsistentCut) -> str | None:
    """Roll `table` forward to where `view` ends; why it cannot be, if so. Raises as `rebuild`."""
    position = (await standing_of(place, view)).position
    return await Restore(place, table, view).catch_up(view.offset_ranges, position)


async def fold_audit(
    place: PartitionConfig,
    table: Table,
    history: LogReader,
    offset_ranges: OffsetRanges,
    standing: PartitionCheckpoint,
) -> Checkpoint:
    """Restore the table: flows and steps by folding `audit` from its first event on, each
    flow's chain verified; ledger entries from `outcomes`.

    Raises HistoryLost if `audit` does not hold all that ever happened, as it was written.
    """
    audit = place.topics.audit
    if offset_ranges[audit].start > 0:
        raise HistoryLost(
            f"{audit} partition {place.partition} begins at offset "
            f"{offset_ranges[audit].start}: what happened before cannot be folded. "
            f"{repair('--from state', place.partition)} needs only the present."
        )
    checkpoint: Checkpoint | None = None
    row_number = 1
    position = Position(0, 0, first_event_id(place.partition))
    await table.clear()
    async for records in history.read(audit, *offset_ranges[audit]):
        for events in portions(records):
            fold = await open_applier(table, events, row_number)
            for record, event in events:
                try:
                    check_chain(fold, record)
                    position = fold.apply(record, event, position)
                except WrittenByNewer:
                    raise
                except Exception as error:
                    raise HistoryLost(
                        f"the event at offset {record.offset} of {audit} partition "
                        f"{place.partition} cannot be folded ({error}). "
                        f"{repair('--from state', place.partition)} needs only the present."
                    ) from error
            row_number = fold.next_row_number
            checkpoint = await _write_unfinished(place, table, fold.changes(), checkpoint)
    return await _restore_ledger(place, table, history, offset_ranges, standing, checkpoint)


async def _write_unfinished(
    place: PartitionConfig, table: Table, changes: Changes, before: Checkpoint | None
) -> Checkpoint:
    after = unfinished(place)
    await table.write(changes, before=before, after=after)
    return after


async def _restore_ledger(
    place: PartitionConfig,
    table: Table,
    history: LogReader,
    offset_ranges: OffsetRanges,
    standing: PartitionCheckpoint,
    checkpoint: Checkpoint | None,
) -> Checkpoint:
    """The ledger entries, and then the position, which makes the table one that may be used."""
    outcomes = offset_ranges[place.topics.outcomes]
    since = await ledger_start(place, history, standing)
    if since is not None:
        checkpoint = checkpoint or await _write_unfinished(place, table, Changes(), None)
        async for records in history.read(place.topics.outcomes, since, outcomes.end):
            checkpoint = await write_ledger(
                place.topics, table, records, checkpoint, positions=False
            )
    after = restored(place, offset_ranges, standing)
    await table.write(Changes(), before=checkpoint, after=after)
    return after


class TableDifference(NamedTuple):
    """A row that two tables do not have alike; `column` None: only one of them has it."""

    what: str
    key: str
    column: str | None
    live: str | None
    built: str | None

    def __str__(self) -> str:
        if self.column is None:
            where = "the live table" if self.built is None else "the rebuilt table"
            return f"{self.what} {self.key} is in {where} only"
        return f"{self.what} {self.key}: {self.column} is {self.live}, rebuilt {self.built}"


class TableRows(NamedTuple):
    """A table's rows of one kind, each a key and its columns, in the order of the keys."""

    what: str
    columns: Sequence[str]
    rows: Iterator[tuple[str, Sequence[Any]]]


def first_difference(
    live: Iterable[TableRows], built: Iterable[TableRows]
) -> TableDifference | None:
    """The first row that is not the same in both, as canonical JSON; None if all are."""
    for here, there in zip(live, built, strict=True):
        found = _first_of(here, there)
        if found is not None:
            return found
    return None


def _first_of(live: TableRows, built: TableRows) -> TableDifference | None:
    here, there = next(live.rows, None), next(built.rows, None)
    while here is not None or there is not None:
        if there is None or (here is not None and here[0].encode() < there[0].encode()):
            assert here is not None
            return TableDifference(live.what, here[0], None, "", None)
        if here is None or here[0] != there[0]:
            return TableDifference(live.what, there[0], None, None, "")
        for column, mine, other in zip(live.columns, here[1], there[1], strict=True):
            if mine != other and canonical(mine) != canonical(other):
                return TableDifference(live.what, here[0], column, str(mine), str(other))
        here, there = next(live.rows, None), next(built.rows, None)
    return None


def canonical(value: Any) -> Any:
    """JSON with sorted keys, where `value` is JSON."""
    if not isinstance(value, str):
        return value
    try:
        return orjson.dumps(orjson.loads(value), option=orjson.OPT_SORT_KEYS)
    except orjson.JSONDecodeError:
        return value
