"""Convert rows to SQLite's values and back, with checks."""

import struct
from collections.abc import Iterator
from typing import Any, Final
from zlib import crc32

import orjson

from processor.adapters.sqlite.errors import TableCorrupt
from processor.contract.flow import FlowStatus
from processor.contract.outcomes import Code
from processor.contract.steps import StepStatus
from processor.contract.values import parse_timestamp
from processor.domain.flow import read_flow
from processor.domain.step import read_step
from processor.domain.steps import NO_TOTALS, StepTotals, input_bytes, step_due_ms
from processor.domain.transitions import WAITING
from processor.domain.waits import due_ms
from processor.engine.rows import (
    Checkpoint,
    Deadline,
    FlowRow,
    LedgerEntry,
    Position,
    Snapshot,
    StepDue,
    StepRow,
    StepSnapshotRow,
)

# Stored: a new status takes a new number.
_STATUS_CODES: Final = {
    "created": 1,
    "running": 2,
    "waiting": 3,
    "cancelled": 4,
    "finished": 5,
    "failed": 6,
}
STEP_STATUSES: Final = {
    StepStatus.PENDING: 1,
    StepStatus.RUNNING: 2,
    StepStatus.SUCCEEDED: 3,
    StepStatus.FAILED: 4,
    StepStatus.CANCELLED: 5,
}
"""Of managed steps; indexes.sql and statements.py name 1 and 2, bulk_load 4 and 5."""
_STATUSES: Final = {code: FlowStatus(status) for status, code in _STATUS_CODES.items()}
ENTRY: Final = struct.Struct("<16s16sqqqIB")
"""A ledger entry but for its code and details: key, digest, append time, revision, first event,
number of events, status."""
_entry: Final = ENTRY.pack
_NO_REVISION: Final = -1
_NO_STATUS: Final = 0


def flow_crc(row_number: int, flow_id: str, last_event_id: int, chain: bytes, doc: bytes) -> int:
    return crc32(doc, crc32(f"{row_number} {flow_id} {last_event_id} ".encode() + chain))


def flow_key(row: FlowRow) -> tuple[Any, ...]:
    """What a change of this row must find."""
    flow, _, last_event_id, _, row_number, _ = row
    return row_number, flow.id, flow.revision, last_event_id


def flow_values(row: FlowRow) -> tuple[Any, ...]:
    """What an update sets."""
    flow, doc, last_event_id, chain, row_number, totals = row
    return (
        flow.revision,
        last_event_id,
        chain,
        flow.status._value_,
        flow.owner_session_key,
        flow.updated_at,
        flow_crc(row_number, flow.id, last_event_id, chain, doc),
        due_ms(flow),
        totals_text(row_number, totals),
        doc.decode(),
    )


def totals_text(row_number: int, totals: StepTotals) -> str | None:
    """The `steps` of the flow with this row number: the totals, and their CRC."""
    return totals_doc(row_number, *totals) if totals.steps else None


def totals_doc(row_number: int, steps: int, live: int, live_bytes: int, unsuccessful: int) -> str:
    text = f"{steps} {live} {live_bytes} {unsuccessful}"
    return f"{text} {crc32(f'{row_number} {text}'.encode())}"


def _totals(row_number: int, text: bytes) -> StepTotals:
    if not text:
        return NO_TOTALS
    totals = StepTotals(*map(int, text.split()[:-1]))
    if totals_doc(row_number, *totals).encode() != text:
        raise ValueError("the totals are not what was written")
    return totals


def update_values(was: FlowRow, row: FlowRow) -> tuple[Any, ...]:
    """What an update must find, and what it sets: a flow's owner never changes."""
    old, _, old_event_id, _, row_number, _ = was
    flow, doc, last_event_id, chain, _, totals = row
    status = flow.status
    return (
        row_number,
        old.id,
        old.revision,
        old_event_id,
        flow.revision,
        last_event_id,
        chain,
        status._value_,
        flow.updated_at,
        flow_crc(row_number, flow.id, last_event_id, chain, doc),
        due_ms(flow) if status is WAITING else None,
        None if totals is NO_TOTALS else totals_text(row_number, totals),
        doc.decode(),
    )


def snapshot_values(row_number: int, snapshot: Snapshot) -> tuple[Any, ...]:
    """What filling.FLOWS takes of a flow that gets the row number `number`; the other columns are
    in the document."""
    flow_id, last_event_id, chain, due_ms, doc = snapshot
    crc = flow_crc(row_number, flow_id, last_event_id, chain, doc)
    return row_number, flow_id, last_event_id, chain, crc, due_ms, doc.decode()


def flow_row(fields: list[bytes]) -> FlowRow:
    """A row of statements.FLOWS. Raises TableCorrupt if it is not what was written."""
    try:
        row_number, flow_id, revision, last_event_id, chain, crc, steps, doc = fields
        row = FlowRow(
            flow=read_flow(orjson.loads(doc)),
            doc=doc,
            last_event_id=int(last_event_id),
            chain=bytes.fromhex(chain.decode()),
            row_number=int(row_number),
            totals=_totals(int(row_number), steps),
        )
    except (ValueError, TypeError, KeyError) as error:
        raise TableCorrupt("a flow's row is not what was written") from error
    flow = row.flow
    said = flow_crc(row.row_number, flow.id, row.last_event_id, row.chain, doc)
    if said != int(crc) or flow_id != flow.id.encode() or int(revision) != flow.revision:
        raise TableCorrupt(f"the row of flow {flow.id} is not what was written")
    return row


def due(fields: list[bytes]) -> Deadline:
    """A row of statements.DUE."""
    try:
        at_ms, flow_id = fields
        return Deadline(int(at_ms), flow_id.decode())
    except ValueError as error:
        raise TableCorrupt("the time of a wait is not what was written") from error


def ended(fields: list[bytes]) -> Deadline:
    """A row of statements.ENDED."""
    try:
        updated_at, flow_id = fields
        return Deadline(parse_timestamp(updated_at.decode()), flow_id.decode())
    except ValueError as error:
        raise TableCorrupt("the time of a last change is not what was written") from error


def step_due(fields: list[bytes]) -> StepDue:
    """A row of statements.STEPS_DUE."""
    try:
        at_ms, flow_id, run = fields
        return StepDue(int(at_ms), flow_id.decode(), bytes.fromhex(run.decode()).decode())
    except ValueError as error:
        raise TableCorrupt("the time of a step is not what was written") from error


def step_values(row: StepRow) -> tuple[Any, ...]:
    """A step's columns."""
    step, doc = row
    if step.runtime != "managed":
        return step.flow_id, step.run_id, None, None, 0, crc32(doc), doc.decode()
    due = step_due_ms(step)
    return (
        step.flow_id,
        step.run_id,
        STEP_STATUSES[step.status],
        due,
        0 if due is None else input_bytes(step),
        crc32(doc),
        doc.decode(),
    )


def step_snapshot_values(snapshot: StepSnapshotRow) -> tuple[Any, ...]:
    """The same of a step as `state` has it."""
    flow_id, run_id, status, due_ms, size_bytes, doc = snapshot
    index = None if status is None else STEP_STATUSES[status]
    return flow_id, run_id, index, due_ms, size_bytes, crc32(doc), doc.decode()


def step_row(fields: list[bytes]) -> StepRow:
    """A row of statements.STEPS. Raises TableCorrupt if it is not what was written."""
    try:
        crc, doc = fields
        row = StepRow(read_step(orjson.loads(doc)), doc)
    except (ValueError, TypeError, KeyError) as error:
        raise TableCorrupt("a step's row is not what was written") from error
    if crc32(doc) != int(crc):
        raise TableCorrupt(f"a step of flow {row.step.flow_id} is not what was written")
    return row


def run_id(fields: list[bytes]) -> tuple[str, str]:
    """A row of statements.RUN_IDS: flow id and run id."""
    flow_id, run = fields
    return flow_id.decode(), bytes.fromhex(run.decode()).decode()


def ledger_values(row: LedgerEntry) -> tuple[None, None, bytes, str | None]:
    """A row of the ledger; its number and its tag are the ledger's to give."""
    key, at_ms, digest, code, revision, status, first_event_id, event_count, details = row
    entry = _entry(
        key,
        digest,
        at_ms,
        _NO_REVISION if revision is None else revision,
        first_event_id,
        event_count,
        _NO_STATUS if status is None else _STATUS_CODES[status._value_],
    )
    if code is None and not details:
        return None, None, entry, None
    return None, None, entry, orjson.dumps([code and code._value_, details]).decode()


def ledger_entry(entry: bytes, said: bytes) -> LedgerEntry:
    """An entry of the ledger and its details. Raises TableCorrupt."""
    try:
        key, digest, at_ms, revision, first_event_id, event_count, status = ENTRY.unpack(entry)
        code, details = orjson.loads(said) if said else (None, {})
        return LedgerEntry(
            key=key,
            at_ms=at_ms,
            digest=digest,
            code=None if code is None else Code(code),
            revision=None if revision == _NO_REVISION else revision,
            status=None if status == _NO_STATUS else _STATUSES[status],
            first_event_id=first_event_id,
            event_count=event_count,
            details=details,
        )
    except (ValueError, KeyError, struct.error) as error:
        raise TableCorrupt("a ledger entry is not what was written") from error


def ledger_row(fields: list[bytes]) -> tuple[int, LedgerEntry]:
    """A row of statements.LEDGER: its number and the entry."""
    try:
        row_number, entry, said = fields
        return int(row_number), ledger_entry(bytes.fromhex(entry.decode()), said)
    except ValueError as error:
        raise TableCorrupt("a ledger entry is not what was written") from error


def checkpoint_values(checkpoint: Checkpoint) -> tuple[int, ...]:
    return (*checkpoint.position, checkpoint.audit, checkpoint.outcomes, checkpoint.as_of_ms)


def checkpoint_row(row: tuple[int, ...]) -> Checkpoint:
    commands, control, next_event_id, audit, outcomes, as_of_ms = row
    return Checkpoint(Position(commands, control, next_event_id), audit, outcomes, as_of_ms)


def split(count: int, joined: bytes | None) -> Iterator[list[bytes]]:
    """The rows that a query joined into one. Raises TableCorrupt if they are not `count`."""
    rows = joined.split(b"\x1e") if joined else []
    # A NULL would vanish from the joined text, and its row with it.
    if len(rows) != count:
        raise TableCorrupt("a row holds nothing where something was written")
    return (row.split(b"\x1f") for row in rows)
