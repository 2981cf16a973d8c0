"""One short story on the topics: a flow is created, and its creation has an outcome."""

from typing import Any, Final

FLOW_ID: Final = "2fce7035-2e57-5ac8-98cf-336ebef3eea6"
_OWNER: Final = "agent:kate:session:abc"
_AT: Final = "2026-11-22T21:02:08.123Z"
_SOURCE: Final = {"topic": "taskflow.commands", "partition": 2, "offset": 17}
_EVENT_ID: Final = 2 * 2**40 + 1
_CHAIN: Final = "c4d73a6f81ad530a2ab445af1d001d01"

COMMAND: Final[dict[str, Any]] = {
    "kind": "create_managed",
    "command_id": "5e758a71-24e2-540d-bcff-62b8c12b5508",
    "flow_id": FLOW_ID,
    "issued_by": _OWNER,
    "controller_id": "kate/inbox",
    "goal": "triage inbox",
    "requester_origin": "user-1",
    "current_step": "classify",
    "state_json": {"messages": 10, "processed": 0},
}
OUTCOME: Final[dict[str, Any]] = {
    "command_id": COMMAND["command_id"],
    "flow_id": FLOW_ID,
    "kind": "create_managed",
    "verdict": "accepted",
    "code": None,
    "message": "The flow was created.",
    "revision": 0,
    "status": "created",
    "event_ids": [_EVENT_ID],
    "allowed": [
        "cancel",
        "record_step_observation",
        "request_cancel",
        "start_running",
        "update_state",
    ],
    "details": {},
    "dry_run": False,
    "command_digest": "6f5e5ba4979191c422f2729c96addb17",
    "source": _SOURCE,
    "at": _AT,
}
EVENT: Final[dict[str, Any]] = {
    "id": _EVENT_ID,
    "flow_id": FLOW_ID,
    "kind": "created",
    "payload_json": {
        "controller_id": "kate/inbox",
        "goal": "triage inbox",
        "owner_session_key": _OWNER,
        "requester_origin": "user-1",
        "current_step": "classify",
        "state_json": {"messages": 10, "processed": 0},
    },
    "at": _AT,
    "revision": 0,
    "status": "created",
    "command_id": COMMAND["command_id"],
    "actor": _OWNER,
    "source": _SOURCE,
    "schema_version": 1,
}
FLOW: Final[dict[str, Any]] = {
    "id": FLOW_ID,
    **EVENT["payload_json"],
    "wait_json": None,
    "status": "created",
    "cancel_requested": False,
    "revision": 0,
    "created_at": _AT,
    "updated_at": _AT,
}
FLOW_SNAPSHOT: Final[dict[str, Any]] = {
    "flow": FLOW,
    "last_event_id": _EVENT_ID,
    "chain": _CHAIN,
}
STEP: Final[dict[str, Any]] = {
    "id": "e51be455-4d9f-57d4-8d2e-ea4f3d53be23",
    "flow_id": FLOW_ID,
    "runtime": "mirrored",
    "child_session_key": "agent:sam:session:def",
    "run_id": "run-1",
    "task": "classify",
    "status": "succeeded",
    "result_json": {"classified": 10},
    "created_at": _AT,
    "updated_at": _AT,
}
STEP_SNAPSHOT: Final[dict[str, Any]] = {"step": STEP}
MANAGED_STEP: Final[dict[str, Any]] = {
    "id": "c9e80317-0f42-5127-9db7-67f8172a0ed5",
    "flow_id": FLOW_ID,
    "runtime": "managed",
    "child_session_key": None,
    "run_id": "run-2",
    "task": "summarise",
    "status": "pending",
    "result_json": None,
    "created_at": _AT,
    "updated_at": _AT,
    "input_json": {"messages": 10},
    "execution": {
        "attempt": 0,
        "max_attempts": 3,
        "lease_ms": 300_000,
        "backoff_ms": 1_000,
        "offers": 1,
        "due_at": "2026-11-22T21:07:08.123Z",
        "timeout_at": None,
        "progress": None,
        "last_failure": None,
    },
}
MANAGED_STEP_SNAPSHOT: Final[dict[str, Any]] = {"step": MANAGED_STEP}
WORK_ITEM: Final[dict[str, Any]] = {
    "flow_id": FLOW_ID,
    "run_id": "run-2",
    "task": "summarise",
    "attempt": 1,
    "max_attempts": 3,
    "input_json": {"messages": 10},
    "lease_ms": 300_000,
    "event_id": _EVENT_ID + 1,
    "at": _AT,
}
SIGNAL: Final[dict[str, Any]] = {
    "id": "payment-17",
    "topic": "payments",
    "correlation_id": "order-17",
    "payload": {"paid": True},
}
CURSOR: Final[dict[str, Any]] = {
    "commands": 18,
    "control": 0,
    "next_event_id": _EVENT_ID + 1,
    "offered": _EVENT_ID,
    "schema_version": 1,
}
DEAD_LETTER_HEADERS: Final[dict[str, Any]] = {
    "taskflow-code": "malformed",
    "taskflow-message": "The value is not one JSON object within the limits: it is empty.",
    "taskflow-source-topic": "taskflow.commands",
    "taskflow-source-partition": "2",
    "taskflow-source-offset": "18",
    "taskflow-source-timestamp": _AT,
}
MORE_COMMANDS: Final[list[dict[str, Any]]] = [
    {
        "kind": "set_waiting",
        "command_id": "ab369ab5-9b05-5817-9202-207f6d0c6d66",
        "flow_id": FLOW_ID,
        "issued_by": _OWNER,
        "expected_revision": 1,
        "wait": {"kind": "timer", "at": "2026-11-22T22:00:00Z"},
    },
    {
        "kind": "update_state",
        "command_id": "90e23881-1f83-59d3-97bd-72bea27e8662",
        "flow_id": FLOW_ID,
        "issued_by": _OWNER,
        "patch": {"processed": 5},
        "next_step": "summarise",
    },
    {
        "kind": "schedule_step",
        "command_id": "0d1c8f62-6a8c-5a35-8d7b-5c3f0f2b8f50",
        "flow_id": FLOW_ID,
        "issued_by": _OWNER,
        "run_id": "run-2",
        "task": "summarise",
        "input_json": {"messages": 10},
    },
    {
        "kind": "start_step",
        "command_id": "7b0b0d9e-3f0d-5d3c-9a55-1d5a4c2f2c11",
        "flow_id": FLOW_ID,
        "issued_by": "executor:1f0c",
        "expires_at": "2026-11-22T22:02:08Z",
        "run_id": "run-2",
    },
]
