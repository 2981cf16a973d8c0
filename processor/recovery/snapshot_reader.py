"""Read records of `state` and `outcomes` as rows, to restore a table from."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import orjson

from processor.contract.flow import FlowStatus
from processor.contract.outcomes import FORGOTTEN, Code, Verdict
from processor.contract.state import CURSOR_PREFIX
from processor.contract.steps import StepStatus
from processor.contract.values import parse_timestamp
from processor.domain.waits import due_ms_of
from processor.engine.codec import Record
from processor.engine.encoding import encode
from processor.engine.rows import (
    LedgerEntry,
    RestoreChunk,
    Snapshot,
    StepSnapshotRow,
    ledger_key,
    new_snapshot,
)

CURSOR_KEY: Final = CURSOR_PREFIX.encode()
SNAPSHOT_HEAD: Final = b'{"flow":{'
SNAPSHOT_TAIL: Final = re.compile(rb',"last_event_id":([0-9]+),"chain":"([0-9a-f]{32})"}\Z')
TAIL_MAX_BYTES: Final = 90
WAITING: Final = b'"status":"waiting"'


def take_snapshots(records: Sequence[Record], chunk: RestoreChunk) -> None:
    """What `records` say of flows and steps, each of them once.

    A million flows are read like this, so no model is made of them: the loader of a row makes one,
    and finds what is none.
    """
    for record in records:
        key, value = record.key or b"", record.value
        flow_id, slash, run_id = key.decode().partition("/")
        if slash:
            if key.startswith(CURSOR_KEY):
                continue
            if value is None:
                chunk.steps_gone.append((flow_id, run_id))
            else:
                chunk.steps.append(_step_snapshot(flow_id, run_id, orjson.loads(value)["step"]))
        elif value is None:
            chunk.flows_gone.append(flow_id)
        else:
            chunk.flows.append(_snapshot(flow_id, value))


def newest_of_each(records: Sequence[Record]) -> Sequence[Record]:
    """The last one of each key."""
    newest = {record.key: record for record in records}
    return records if len(newest) == len(records) else list(newest.values())


def _snapshot(flow_id: str, value: bytes) -> Snapshot:
    # The document goes into the table as it was written, wherever it can be cut out.
    tail = SNAPSHOT_TAIL.search(value, max(0, len(value) - TAIL_MAX_BYTES))
    if tail is not None and value.startswith(SNAPSHOT_HEAD):
        doc = value[len(SNAPSHOT_HEAD) - 1 : tail.start()]
        last_event_id, chain = int(tail[1]), tail[2].decode()
    else:
        parsed: dict[str, Any] = orjson.loads(value)
        doc, last_event_id, chain = encode(parsed["flow"]), parsed["last_event_id"], parsed["chain"]
    due_ms = None
    if WAITING in doc and (flow := orjson.loads(doc))["status"] == FlowStatus.WAITING:
        due_ms = due_ms_of(flow["wait_json"], cancel_requested=flow["cancel_requested"])
    return new_snapshot((flow_id, last_event_id, bytes.fromhex(chain), due_ms, doc))


def _step_snapshot(flow_id: str, run_id: str, step: Mapping[str, Any]) -> StepSnapshotRow:
    doc = encode(step)
    if step["runtime"] != "managed":
        return StepSnapshotRow(flow_id, run_id, None, None, 0, doc)
    status, due_at = StepStatus(step["status"]), step["execution"]["due_at"]
    if due_at is None:
        return StepSnapshotRow(flow_id, run_id, status, None, 0, doc)
    input_bytes = len(encode(step["input_json"]))
    return StepSnapshotRow(flow_id, run_id, status, parse_timestamp(due_at), input_bytes, doc)


def take_ledger_entries(records: Sequence[Record], chunk: RestoreChunk) -> None:
    ledger_entries = (ledger_entry_of(orjson.loads(record.value or b"")) for record in records)
    chunk.ledger_entries.extend(
        ledger_entry for ledger_entry in ledger_entries if ledger_entry is not None
    )


def ledger_entry_of(outcome: Mapping[str, Any]) -> LedgerEntry | None:
    """The ledger's row of an outcome; None if a resend would be decided again."""
    if outcome["verdict"] not in (Verdict.ACCEPTED, Verdict.REJECTED) or outcome["dry_run"]:
        return None
    code = Code(outcome["code"]) if outcome["code"] else None
    if code in FORGOTTEN:
        return None
    event_ids = outcome["event_ids"]
    return LedgerEntry(
        ledger_key(outcome["flow_id"], outcome["command_id"]),
        parse_timestamp(outcome["at"]),
        bytes.fromhex(outcome["command_digest"]),
        code,
        outcome["revision"],
        FlowStatus(outcome["status"]) if outcome["status"] else None,
        event_ids[0] if event_ids else 0,
        len(event_ids),
        outcome["details"],
    )
