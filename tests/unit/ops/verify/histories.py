"""Commands that tests of verify let a deployment decide."""

from typing import Any

from tests.support import builders as given

ONE, TWO = "2fce7035-2e57-5ac8-98cf-336ebef3eea6", "6b81b0e0-d1f3-550c-af2c-c345b5a4c276"
ABOUT = {"controller_id": "c", "goal": "g", "requester_origin": "r"}


def a_days_work() -> Any:
    """Commands of two flows on both topics, resends, refusals and rubbish, in batches."""
    again = given.document("start_running", flow_id=ONE)
    odd = given.document("update_state", flow_id=TWO, patch=None, next_step="é😀", dry_run=None)
    step = {"run_id": "r/1", "task": "t", "status": "running", "child_session_key": "s"}
    return [
        [
            ("commands", given.document("create_managed", flow_id=ONE, **ABOUT)),
            ("commands", again),
            ("commands", again),
            ("commands", {**again, "issued_by": "another"}),
            ("commands", b"\xff"),
            ("control", None),
            ("commands", {"kind": "dance", "flow_id": ONE}),
        ],
        [
            ("commands", given.document("create_mirrored", flow_id=TWO, **ABOUT, state_json=[1.0])),
            ("commands", odd),
            ("commands", given.document("record_step_observation", flow_id=TWO, **step)),
            ("commands", given.document("start_running", flow_id=TWO)),
            ("commands", given.document("finish", flow_id=ONE, dry_run=True)),
            ("commands", b'"' + b"x" * 600_000 + b'"'),
        ],
        [
            ("commands", given.document("set_waiting", flow_id=TWO, wait=given.manual())),
            ("commands", given.document("request_cancel", flow_id=TWO)),
            ("commands", given.document("resume", flow_id=TWO)),
            ("control", given.document("wake", flow_id=TWO)),
            ("commands", given.document("fail", flow_id=ONE, reason="why")),
        ],
        [
            ("control", given.document("prune", flow_id=ONE)),
            ("control", given.document("prune", flow_id=TWO)),
            ("commands", given.document("create_managed", flow_id=ONE, **ABOUT)),
            ("commands", given.document("update_state", flow_id=ONE, patch={"x": 0.00001})),
            ("commands", given.document("cancel", flow_id=TWO)),
        ],
    ]
