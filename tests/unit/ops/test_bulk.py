"""One order for many flows: which are meant, what stands for them, and what is sent to each."""

from typing import Any

import pytest

from processor.contract.commands import COMMANDS
from processor.contract.flow import FlowStatus
from processor.domain.transitions import MOVES, TERMINAL
from processor.ops.bulk import FROM, BulkAction, BulkTarget, Filter, condition, digest, order
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


@pytest.mark.parametrize(
    "text",
    [
        "state.label = invoice",
        'state.label="invoice"',
        "$.state_json.label = invoice",
        "state.label != receipt",
        "state.nothing != 1",
        "state.n = 7.0",
        "state.n >= 7",
        "revision < 4",
        "goal ~ message 7",
        "goal ~ message",
        "state.deep[0]['a b'] = null",
        "state.deep",
        "!state.nothing",
        "wait.kind = manual",
        "cancel_requested = false",
        "updated_at < 2026-11-23",
        "state.ok = true",
    ],
)
def test_a_condition_that_holds(text: str):
    assert condition(text).holds(FLOW)


@pytest.mark.parametrize(
    "text",
    [
        "state.label = receipt",
        "state.n = seven",
        "state.n > 7",
        "state.n < x",
        "state.nothing",
        "state.nothing = null",
        "state.nothing < 1",
        "!state.n",
        "state.ok = 1",
        "state.ok < 2",
        "state.n ~ 7",
        "goal ~ Message",
    ],
)
def test_a_condition_that_does_not(text: str):
    assert not condition(text).holds(FLOW)


@pytest.mark.parametrize("text", ["", "labels = 1", "state..x = 1", "= 3", "sate.label", "$ = 1"])
def test_what_is_no_condition_is_refused(text: str):
    with pytest.raises(ValueError, match=r"field|path"):
        condition(text)


def test_an_order_is_for_the_statuses_that_it_may_lead_from():
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
        ({"where": [condition("state.n = 7"), condition("goal")]}, True),
        ({"where": [condition("state.n = 7"), condition("!goal")]}, False),
    ],
)
def test_all_that_is_asked_for_must_hold(narrowed: dict[str, Any], meant: bool):
    assert (Filter(BulkAction.CANCEL, **narrowed).target(FLOW) is not None) is meant


def test_a_digest_stands_for_action_reason_flows_and_revisions():
    targets = [BulkTarget(uuid(n), "running", "", n) for n in range(3)]
    found = digest(BulkAction.CANCEL, None, targets)

    assert found == digest(BulkAction.CANCEL, None, reversed(targets))
    assert found != digest(BulkAction.FAIL, "why", targets)
    assert found != digest(BulkAction.CANCEL, None, targets[:2])
    assert found != digest(BulkAction.CANCEL, None, [*targets[:2], targets[2]._replace(revision=9)])
    assert digest(BulkAction.FAIL, "a", targets) != digest(BulkAction.FAIL, "b", targets)


@pytest.mark.parametrize("action", BulkAction)
def test_each_gets_its_command_at_the_revision_that_was_seen(action: BulkAction):
    reason = "late" if action is BulkAction.FAIL else None

    made = order(action, "operator:ana", reason)(BulkTarget(uuid(1), "running", "", 4))

    command = COMMANDS.validate_python({**made, "command_id": uuid(2)})
    assert (command.kind, command.expected_revision) == (action, 4)
