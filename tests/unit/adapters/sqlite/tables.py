"""Flows, steps, answers and positions for the tests of the local table."""

import sqlite3
from contextlib import AbstractAsyncContextManager, closing
from pathlib import Path
from typing import Any
from uuid import UUID, uuid5

import orjson

from processor.adapters.sqlite import FlowTable, open_table, table_path
from processor.contract.flow import FlowStatus
from processor.contract.outcomes import Code
from processor.contract.steps import StepStatus
from processor.contract.values import instant, parse_timestamp
from processor.domain.flow import Flow
from processor.domain.step import Execution, ManagedStep, ObservedStep
from processor.domain.waits import due_ms
from processor.engine.encoding import flow_doc, step_doc
from processor.engine.rows import (
    Checkpoint,
    FlowRow,
    LedgerEntry,
    Position,
    Snapshot,
    StepRow,
    StepSnapshotRow,
)

NOON_MS = 1_795_348_800_000


def opened(
    state_dir: Path, *, partition: int = 0, prefix: str = "taskflow", partitions: int = 4
) -> AbstractAsyncContextManager[FlowTable]:
    path = table_path(state_dir, "taskflow", 0)
    return open_table(path, partition=partition, prefix=prefix, partitions=partitions)


def uuid(number: int) -> str:
    return str(UUID(int=number))


def flow_row(number: int, *, revision: int = 0, event: int | None = None, **values: Any) -> FlowRow:
    flow = Flow(
        **{
            "id": uuid(number),
            "controller_id": "controller",
            "goal": "größer",
            "owner_session_key": "owner",
            "requester_origin": "test",
            "current_step": "init",
            "state_json": {"text": "a\x1f\x1e\x00\nb", "number": 1.5},
            "wait_json": None,
            "status": FlowStatus.RUNNING,
            "cancel_requested": False,
            "revision": revision,
            "created_at": instant(NOON_MS),
            "updated_at": instant(NOON_MS + revision),
            **values,
        }
    )
    doc = flow_doc(flow)
    event = 100 * number + revision if event is None else event
    return FlowRow(flow, doc, event, bytes([revision]) * 16, number)


def snapshot(row: FlowRow) -> Snapshot:
    """The row as `state` has it."""
    return Snapshot(row.flow.id, row.last_event_id, row.chain, due_ms(row.flow), row.doc)


def later(row: FlowRow, **values: Any) -> FlowRow:
    """The row after one more change."""
    after = flow_row(row.row_number, revision=row.flow.revision + 1, **values)
    return after._replace(last_event_id=row.last_event_id + 1)


def step_row(flow_number: int, run_id: str, *, at_ms: int = NOON_MS) -> StepRow:
    step = ObservedStep(
        id=str(uuid5(UUID(uuid(flow_number)), run_id)),
        flow_id=uuid(flow_number),
        runtime="mirrored",
        child_session_key=None,
        run_id=run_id,
        task="task",
        status=StepStatus.RUNNING,
        result_json={"at": at_ms},
        created_at=instant(at_ms),
        updated_at=instant(at_ms),
    )
    return StepRow(step, step_doc(step))


def managed_row(
    flow_number: int,
    run_id: str,
    status: StepStatus = StepStatus.PENDING,
    *,
    due_ms: int | None = None,
    at_ms: int = NOON_MS,
    input_json: Any = None,
) -> StepRow:
    """A managed step; `due_ms` is a minute later than `at_ms` unless given, if it is live."""
    live = status in (StepStatus.PENDING, StepStatus.RUNNING)
    due_ms = (at_ms + 60_000 if due_ms is None else due_ms) if live else None
    step = ManagedStep(
        id=str(uuid5(UUID(uuid(flow_number)), run_id)),
        flow_id=uuid(flow_number),
        runtime="managed",
        child_session_key=None,
        run_id=run_id,
        task="task",
        status=status,
        result_json=None,
        created_at=instant(at_ms),
        updated_at=instant(at_ms),
        input_json=input_json,
        execution=Execution(
            attempt=0,
            max_attempts=3,
            lease_ms=60_000,
            backoff_ms=0,
            offers=1,
            due_at=None if due_ms is None else instant(due_ms),
            timeout_at=None,
            progress=None,
            last_failure=None,
        ),
    )
    return StepRow(step, step_doc(step))


def step_snapshot(row: StepRow) -> StepSnapshotRow:
    """The step as `state` has it."""
    step = row.step
    if step.runtime != "managed":
        return StepSnapshotRow(step.flow_id, step.run_id, None, None, 0, row.doc)
    due_at = step.execution.due_at
    return StepSnapshotRow(
        *(step.flow_id, step.run_id, step.status),
        None if due_at is None else parse_timestamp(due_at),
        0 if due_at is None else len(orjson.dumps(step.input_json)),
        row.doc,
    )


def ledger_entry(
    number: int, *, at_ms: int = NOON_MS, code: Code | None = None, **details: Any
) -> LedgerEntry:
    return LedgerEntry(
        key=number.to_bytes(16, "big"),
        at_ms=at_ms,
        digest=b"\x1e" * 16,
        code=code,
        revision=None if code else 3,
        status=None if code else FlowStatus.WAITING,
        first_event_id=2**40 + number,
        event_count=2,
        details=details,
    )


def at(commands: int) -> Checkpoint:
    return Checkpoint(Position(commands, 2, 3), audit=4, outcomes=commands + 5, as_of_ms=NOON_MS)


def contents(state_dir: Path) -> dict[str, bytes]:
    """The bytes of each file: taken while a worker runs, what a kill -9 would leave."""
    return {path.name: path.read_bytes() for path in sorted(state_dir.iterdir())}


def put_back(state_dir: Path, left: dict[str, bytes]) -> None:
    for name, content in left.items():
        (state_dir / name).write_bytes(content)


def foreign(table: FlowTable, sql: str, *parameters: Any) -> list[Any]:
    """What another connection does to the same file."""
    with closing(sqlite3.connect(table.path, isolation_level=None)) as db:
        return db.execute(sql, parameters).fetchall()
