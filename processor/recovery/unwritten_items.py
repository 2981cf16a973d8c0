"""Work items that the last processor of a partition may not have written."""

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Final

import orjson

from processor.contract.steps import StepStatus
from processor.engine.batch import WorkRecord, work_record
from processor.engine.codec import Record, traceparent
from processor.engine.ports import LogReader, OffsetRange, Table
from processor.recovery.event_applier import STEPS_AT_ONCE, step_of

LOOK_BACK: Final = 64
"""Offsets to look back for the first event at first, beside one for each event."""

Offer = tuple[Record, Mapping[str, Any], Any]
"""The record and the FlowEvent that offered a step, and its `execution` there."""


async def unwritten_items(
    reader: LogReader, table: Table, audit: str, offset_range: OffsetRange, *, first_event: int
) -> AsyncIterator[list[WorkRecord]]:
    """The work items of `first_event` and later ones whose steps are pending still, in order.

    `offset_range` is what the topic `audit` holds, and `table` is level with its end. An offer that
    a later one of the same step replaced is left out, as is one whose step was started or ended.
    """
    start = await _offset_of(reader, audit, offset_range, first_event)
    async for records in reader.read(audit, start, offset_range.end):
        newest: dict[tuple[str, str], Offer] = {}
        for record in records:
            event = orjson.loads(record.value or b"")
            at = step_of(event)
            if at is not None and event["id"] >= first_event:
                newest.pop(at, None)
                if (execution := _offered(event)) is not None:
                    newest[at] = (record, event, execution)
        offers = list(newest.items())
        for n in range(0, len(offers), STEPS_AT_ONCE):
            if items := await _offered_now(table, offers[n : n + STEPS_AT_ONCE]):
                yield items


async def _offset_of(
    reader: LogReader, audit: str, offset_range: OffsetRange, event_id: int
) -> int:
    """An offset that no event from `event_id` on lies before, and few events lie behind."""
    back = LOOK_BACK
    while offset_range.end - back > offset_range.start:
        start = offset_range.end - back
        async for records in reader.read(audit, start, offset_range.end):
            newest = orjson.loads(records[0].value or b"")["id"]
            if newest <= event_id:
                return start
            break
        back *= 8
    return offset_range.start


def _offered(event: Mapping[str, Any]) -> Any:
    """`execution` as `event` left it, if the step was offered then; else None."""
    payload = event["payload_json"]
    execution = payload.get("step", payload.get("changes", {})).get("execution")
    # A step that is running has no offers; one that has ended keeps them, and has no time.
    offered = execution is not None and execution["offers"] > 0 and execution["due_at"] is not None
    return execution if offered else None


async def _offered_now(
    table: Table, offers: Sequence[tuple[tuple[str, str], Offer]]
) -> list[WorkRecord]:
    rows = await table.steps([at for at, _ in offers])
    items = []
    for at, (record, event, execution) in offers:
        row = rows.get(at)
        if row is None or row.step.runtime != "managed":
            continue
        if (
            row.step.status is StepStatus.PENDING
            and row.step.updated_at == event["at"]
            and orjson.loads(row.doc)["execution"] == execution
        ):
            items.append(work_record(event["id"], row.step, traceparent(record.headers)))
    return items
