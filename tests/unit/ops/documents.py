"""A flow as JSON, as the tests of what operators choose flows by have it."""

from typing import Any

from tests.unit.adapters.sqlite.tables import uuid

FLOW: dict[str, Any] = {
    "id": uuid(1),
    "controller_id": "inbox",
    "goal": "Deal with message 7",
    "owner_session_key": "session-1",
    "requester_origin": "mail",
    "current_step": "file",
    "state_json": {
        "label": "invoice",
        "n": 7,
        "deep": [{"a b": None}],
        "ok": True,
        "a = b": 1,
        "and": "and",
    },
    "wait_json": {"kind": "manual"},
    "status": "waiting",
    "cancel_requested": False,
    "revision": 3,
    "created_at": "2026-11-20T00:00:00.000Z",
    "updated_at": "2026-11-22T00:00:00.000Z",
}
