"""One order for many flows, or steps: which are meant, what stands for them, what each gets."""

from typing import Any

import pytest

from processor.contract.commands import COMMANDS, CancelStep, RetryStep
from processor.contract.flow import FlowStatus
from processor.contract.steps import StepStatus
from processor.domain.transitions import MOVES, TERMINAL
from processor.ops.bulk import (
    FROM,
    STEPS_FROM,
    BulkAction,
    BulkTarget,
    Filter,
    StepTarget,
    digest,
    order,
    step_order,
)
from processor.ops.conditions import parse_condition
from processor.ops.step_filter import StepFilter
from tests.unit.adapters.sqlite.tables import uuid
from tests.unit.ops.documents import FLOW


def test_an_order_is_for_the_statuses_that_it_may_lead_from() -> None:
    assert FROM[BulkAction.CANCEL] == frozenset(MOVES)
    assert FROM[BulkAction.FAIL] == {s for s, to in MOVES.items() if FlowStatus.FAILED in to}
    assert FROM[BulkAction.PRUNE] == TERMINAL
    about = FLOW["owner_session_key"], FLOW["goal"]
    meant = BulkTarget(uuid(1), "waiting", FLOW["updated_at"], 3, *about)
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


@pytest.mark.parametrize("action", [action for action in BulkAction if action not in STEPS_FROM])
def test_each_gets_its_command_at_the_revision_that_was_seen(action: BulkAction) -> None:
    reason = "late" if action is BulkAction.FAIL else None

    made = order(action, "operator:ana", reason)(BulkTarget(uuid(1), "running", "", 4))

    command = COMMANDS.validate_python({**made, "command_id": uuid(2)})
    assert (command.kind, command.expected_revision) == (action, 4)


STEP: dict[str, Any] = {
    "flow_id": uuid(1),
    "runtime": "managed",
    "child_session_key": "inbox:one",
    "run_id": "mail-7",
    "task": "classify",
    "status": "failed",
    "execution": {
        "attempt": 3,
        "max_attempts": 3,
        "last_failure": {"reason": "OSError: No route to Host", "at": "2026-11-22T00:00:00.000Z"},
    },
    "updated_at": "2026-11-22T00:00:00.000Z",
}


@pytest.mark.parametrize(
    ("meant", "matches"),
    [
        (StepFilter(), True),
        (StepFilter(uuid(1), "classify", {StepStatus.FAILED}, "inbox:one"), True),
        (StepFilter(flow_id=uuid(2)), False),
        (StepFilter(task="file"), False),
        (StepFilter(statuses={StepStatus.PENDING, StepStatus.RUNNING}), False),
        (StepFilter(holder="inbox:two"), False),
        (StepFilter(before="2026-11-22T00:00:00.001Z"), True),
        (StepFilter(before="2026-11-22T00:00:00.000Z"), False),
        (StepFilter(failure="no route to host"), True),
        (StepFilter(failure="timeout"), False),
    ],
)
def test_a_step_must_have_all_that_is_asked_for(meant: StepFilter, matches: bool) -> None:
    assert meant.matches(STEP) is matches


def test_a_step_that_never_failed_has_no_words_of_a_failure() -> None:
    step = STEP | {"execution": STEP["execution"] | {"last_failure": None}}

    assert not StepFilter(failure="a").matches(step)
    assert StepFilter(task="classify").matches(step)
    assert StepTarget.of(step).failure == ""


def test_an_observed_step_is_nobodys_to_try_again() -> None:
    observed = {name: value for name, value in STEP.items() if name != "execution"}

    assert not StepFilter().matches(observed | {"runtime": "mirrored"})


def test_an_order_for_steps_is_for_what_may_follow() -> None:
    pending = StepStatus.PENDING
    assert {
        BulkAction.CANCEL_STEP: {pending, StepStatus.RUNNING},
        BulkAction.RETRY_STEP: {pending, StepStatus.FAILED, StepStatus.CANCELLED},
    } == STEPS_FROM
    for action in STEPS_FROM:
        assert FROM[action] == frozenset(MOVES)


def test_a_digest_stands_for_steps_as_they_last_changed() -> None:
    one = StepTarget.of(STEP)
    found = digest(BulkAction.RETRY_STEP, None, [one])

    assert found == digest(BulkAction.RETRY_STEP, None, [StepTarget.of(STEP)])
    assert found != digest(BulkAction.CANCEL_STEP, None, [one])
    assert found != digest(BulkAction.RETRY_STEP, 5, [one])
    assert found != digest(BulkAction.RETRY_STEP, None, [one._replace(run_id="mail-8")])
    later = one._replace(updated_at="2026-11-23T00:00:00.000Z")
    assert found != digest(BulkAction.RETRY_STEP, None, [later])


@pytest.mark.parametrize(("action", "attempts"), [("retry_step", 2), ("cancel_step", None)])
def test_each_step_gets_its_command(action: str, attempts: int | None) -> None:
    made = step_order(BulkAction(action), "operator:ana", attempts)(StepTarget.of(STEP))

    command = COMMANDS.validate_python({**made, "command_id": uuid(2)})
    assert isinstance(command, CancelStep | RetryStep)
    assert (command.kind, command.run_id, command.issued_by) == (action, "mail-7", "operator:ana")
    assert getattr(command, "attempts", None) == attempts
