"""Make rows of events, flows and steps. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple

import orjson

from processor.adapters.postgres.texts import json_text, text
from processor.contract.headers import chain_of
from processor.contract.values import EVENTS_PER_PARTITION
from processor.domain.flow import read_flow
from processor.domain.step import read_step
from processor.engine.codec import Record
from processor.engine.rows import FlowRow, Position, StepRow
from processor.errors import HistoryLost, TaskflowError, WrittenByNewer
from processor.recovery.event_applier import Event, EventApplier, check_chain, step_of

FLOW_COLUMNS: Final[Mapping[str, str]] = {
    "id": "uuid",
    "controller_id": "text",
    "goal": "text",
    "owner_session_key": "text",
    "requester_origin": "text",
    "current_step": "text",
    "state_json": "jsonb",
    "wait_json": "jsonb",
    "status": "text",
    "cancel_requested": "boolean",
    "revision": "bigint",
    "created_at": "timestamptz",
    "updated_at": "timestamptz",
    "last_event_id": "bigint",
    "chain": "bytea",
}
"""The columns of `taskflow_flows` with their types: the fields of a flow, and two more."""
STEP_COLUMNS: Final[Mapping[str, str]] = {
    "id": "uuid",
    "flow_id": "uuid",
    "runtime": "text",
    "child_session_key": "text",
    "run_id": "text",
    "task": "text",
    "status": "text",
    "result_json": "jsonb",
    "created_at": "timestamptz",
    "updated_at": "timestamptz",
    "input_json": "jsonb",
    "execution": "jsonb",
}
"""The columns of `taskflow_steps`: the fields of a managed step."""
EVENT_COLUMNS: Final = (
    *("id", "flow_id", "kind", "payload_json", "at", "revision", "status"),
    *("command_id", "actor", "source", "chain"),
)
"""The columns of `taskflow_events`: the fields of a FlowEvent, and its chain."""
ARRAY_MAX_BYTES: Final = 16 * 1024 * 1024
"""Of rows that one statement gets; PostgreSQL holds 256 MiB in one jsonb."""


class SinkRefused(TaskflowError):
    """The tables and the audit do not fit together; nothing more is written."""


class SinkPosition(NamedTuple):
    """How far a partition of the audit is written: the newest event, where it lies, its chain."""

    event_id: int
    audit_offset: int
    chain: bytes
    event_at: datetime


class SinkChanges(NamedTuple):
    """What a batch of events writes in one transaction.

    `flows` and `steps` are rows in JSON arrays; `pruned` are the ids of flows that go first, with
    their steps; `events` are rows of EVENT_COLUMNS.
    """

    events: Sequence[tuple[Any, ...]]
    flows: Sequence[str]
    steps: Sequence[str]
    pruned: Sequence[str]
    positions: Mapping[int, SinkPosition]


class KnownRows(NamedTuple):
    """What the tables have of the flows and steps that a batch is about."""

    flows: Mapping[str, FlowRow]
    steps: Mapping[tuple[str, str], StepRow]


def read_events(records: Iterable[Record]) -> list[Event]:
    """Parse the events. Raises SinkRefused for what is none."""
    events = []
    for record in records:
        try:
            event = orjson.loads(record.value or b"")
            event["id"], event["flow_id"], event["kind"]
        except (ValueError, TypeError, LookupError):
            raise SinkRefused(
                f"{_place(record)} is no FlowEvent; the sink goes on only once the topic is mended."
            ) from None
        events.append((record, event))
    return events


def in_sequence(
    events: Iterable[Event], positions: Mapping[int, SinkPosition]
) -> dict[int, SinkPosition]:
    """The positions after `events`, which must follow `positions` without a gap.

    Raises SinkRefused.
    """
    after: dict[int, SinkPosition] = {}
    for record, event in events:
        before = after.get(record.partition) or positions.get(record.partition)
        first = record.partition * EVENTS_PER_PARTITION + 1
        expected = first if before is None else before.event_id + 1
        if event["id"] != expected:
            raise SinkRefused(
                f"{_place(record)} is event {event['id']} of flow {event['flow_id']}, but event "
                f"{expected} must come next: the audit lost events, or was recreated. Bring the "
                "events back; or drop the sink's tables, and the audit is written from its "
                "beginning, if it still has that."
            )
        after[record.partition] = SinkPosition(
            event["id"], record.offset, chain_of(record.headers), _instant(event["at"])
        )
    return after


def touched_flows(events: Iterable[Event]) -> set[str]:
    return {event["flow_id"] for _, event in events}


def touched_steps(events: Iterable[Event]) -> set[tuple[str, str]]:
    """Flow id and run id of the steps that `events` are about."""
    return {at for _, event in events if (at := step_of(event)) is not None}


def changes_of(
    events: Sequence[Event], known: KnownRows, positions: Mapping[int, SinkPosition]
) -> SinkChanges:
    """Fold `events` into the `known` rows; `positions` are those after them.

    Raises SinkRefused for an event that does not follow its flow's one before.
    """
    fold = EventApplier(known.flows, known.steps, 1)
    for record, event in events:
        try:
            check_chain(fold, record)
            fold.apply(record, event, Position(0, 0, event["id"]))
        except (HistoryLost, WrittenByNewer, ValueError, TypeError, LookupError) as error:
            raise SinkRefused(
                f"{_place(record)}, event {event['id']} of flow {event['flow_id']}, does not "
                f"follow what was written of that flow: {error}. Drop the sink's tables, and the "
                "audit is written from its beginning; `taskflow verify` says whether it is whole."
            ) from error
    changes = fold.changes()
    put = [*changes.inserted, *(after for _, after in changes.updated)]
    return SinkChanges(
        [event_row(record, event) for record, event in events],
        json_arrays(flow_json(row.doc, row.last_event_id, row.chain) for row in put),
        json_arrays(row.doc for row in changes.steps),
        [row.flow.id for row in changes.deleted],
        positions,
    )


def flow_json(doc: bytes, last_event_id: int, chain: bytes) -> bytes:
    """The row of a flow as JSON; `doc` is the flow."""
    return b'%b,"last_event_id":%d,"chain":"\\\\x%b"}' % (
        doc[:-1], last_event_id, chain.hex().encode(),
    )  # fmt: skip


def json_arrays(docs: Iterable[bytes], max_bytes: int = ARRAY_MAX_BYTES) -> list[str]:
    """The documents in JSON arrays, each of `max_bytes` or of one document."""
    arrays: list[list[bytes]] = []
    size = max_bytes
    for doc in docs:
        size += len(doc)
        if size > max_bytes:
            arrays.append([])
            size = len(doc)
        arrays[-1].append(doc)
    return [json_text(f"[{b','.join(some).decode()}]") for some in arrays]


def event_row(record: Record, event: Mapping[str, Any]) -> tuple[Any, ...]:
    """The columns of EVENT_COLUMNS."""
    return (
        event["id"],
        event["flow_id"],
        event["kind"],
        json_text(orjson.dumps(event["payload_json"]).decode()),
        _instant(event["at"]),
        event["revision"],
        event["status"],
        event["command_id"],
        text(event["actor"]),
        json_text(orjson.dumps(event["source"]).decode()),
        chain_of(record.headers),
    )


def flow_row(doc: str, last_event_id: int, chain: bytes) -> FlowRow:
    """What the fold needs of a flow; `doc` is the flow as JSON."""
    return FlowRow(read_flow(orjson.loads(doc)), doc.encode(), last_event_id, chain, 0)


def step_row(doc: str, run_id: str) -> StepRow:
    """What the fold needs of a step; `run_id` as its events have it."""
    return StepRow(read_step({**orjson.loads(doc), "run_id": run_id}), doc.encode())


def _instant(at: str) -> datetime:
    return datetime.fromisoformat(at)


def _place(record: Record) -> str:
    return f"{record.topic}/{record.partition} offset {record.offset}"
