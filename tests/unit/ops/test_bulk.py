"""One order for many flows: which are meant, what stands for them, and what is sent to each."""

from typing import Any

import pytest

from processor.contract.commands import COMMANDS
from processor.contract.flow import FlowStatus
from processor.domain.transitions import MOVES, TERMINAL
from processor.ops.bulk import FROM, BulkAction, BulkTarget, Filter, digest, order
from processor.ops.conditions import parse_condition
from tests.unit.adapters.sqlite.tables import uuid

FLOW: dict[str, Any] = {
    "id": uuid(1),
    "controller_id": "inbox",
    "goal": "Deal with message 7",
    "owner_session_key": "session-1",
    "requester_origin": "mail",
    "current_step": "file",
    "state_json": {"label": "invoice", "n": 7, "deep": [{"a b": None}], "ok": True},
    "wait_json": {"kind": "manual"},
    "status": "waiting",
    "cancel_requested": False,
    "revision": 3,
    "created_at": "2026-11-20T00:00:00.000Z",
    "updated_at": "2026-11-22T00:00:00.000Z",
}


def test_an_order_is_for_the_statuses_that_it_may_lead_from() -> None:
    assert FROM[BulkAction.CANCEL] == frozenset(MOVES)
    assert FROM[BulkAction.FAIL] == {s for s, to in MOVES.items() if FlowStatus.FAILED in to}
    assert FROM[BulkAction.PRUNE] == TERMINAL
    meant = BulkTarget(uuid(1), "waiting", FLOW["updated_at"], 3)
    assert Filter(BulkAction.RESUME).target(FLOW) == meant
    assert Filter(BulkAction.RESUME).target(FLOW | {"status": "running"}) is None
    assert Filter(BulkAction.PRUNE).target(FLOW) is None


@pytest.mark.parametrize(
    ("narrowed", "meant"),
    [
        ({"owner": "session-1", "status": FlowStatus.WAITING}, True),
        ({"owner": "session-2"}, False),
        ({"status": FlowStatus.RUNNING}, False),
        ({"before": "2026-11-22T00:00:00.001Z"}, True),
        ({"before": "2026-11-22T00:00:00.000Z"}, False),
        ({"where": [parse_condition("state.n = 7"), parse_condition("state.ok")]}, True),
        ({"where": [parse_condition("state.n = 7"), parse_condition("!state.ok")]}, False),
    ],
)
def test_all_that_is_asked_for_must_hold(narrowed: dict[str, Any], meant: bool) -> None:
    assert (Filter(BulkAction.CANCEL, **narrowed).target(FLOW) is not None) is meant


def test_a_digest_stands_for_action_reason_flows_and_revisions() -> None:
    targets = [BulkTarget(uuid(n), "running", "", n) for n in range(3)]
    found = digest(BulkAction.CANCEL, None, targets)

    assert found == digest(BulkAction.CANCEL, None, reversed(targets))
    assert found != digest(BulkAction.FAIL, "why", targets)
    assert found != digest(BulkAction.CANCEL, None, targets[:2])
    assert found != digest(BulkAction.CANCEL, None, [*targets[:2], targets[2]._replace(revision=9)])
    assert digest(BulkAction.FAIL, "a", targets) != digest(BulkAction.FAIL, "b", targets)


@pytest.mark.parametrize("action", BulkAction)
def test_each_gets_its_command_at_the_revision_that_was_seen(action: BulkAction) -> None:
    reason = "late" if action is BulkAction.FAIL else None

    made = order(action, "operator:ana", reason)(BulkTarget(uuid(1), "running", "", 4))

    command = COMMANDS.validate_python({**made, "command_id": uuid(2)})
    assert (command.kind, command.expected_revision) == (action, 4)
