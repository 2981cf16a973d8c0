"""What a chaos run says of the steps that it finds in the audit."""

from typing import Any

import pytest

from processor.contract.values import instant
from processor.testing.chaos.step_audit import StepAudit, Stop
from tests.support.builders import FLOW_ID, MORNING

LEASE_MS = 2_000
HOLDER, OTHER, TIMER = "executor:1", "executor:2", "taskflow:timer"


def event(kind: str, at_ms: int, actor: str = HOLDER, **payload: Any) -> dict[str, Any]:
    """`at_ms` counts from MORNING on."""
    due_at = instant(MORNING + at_ms + LEASE_MS)
    about: dict[str, Any] = {"run_id": "r", "changes": {"execution": {"due_at": due_at}}}
    if kind == "step_scheduled":
        about = {"step": {"run_id": "r"}}
    return {
        "kind": f"{kind}",
        "flow_id": FLOW_ID,
        "at": instant(MORNING + at_ms),
        "actor": actor,
        "payload_json": about | payload,
    }


LAPSED = event("step_retried", 2_001, TIMER, reason="lease expired")


def audit(*events: dict[str, Any], stops: tuple[Stop, ...] = ()) -> StepAudit:
    made = StepAudit(list(stops))
    for one in events:
        made.take(one)
    made.end()
    return made


def test_a_step_that_ends_once_is_in_order() -> None:
    seen = audit(
        event("created", 0, "agent"),
        event("step_observed", 0, "agent"),
        event("step_scheduled", 0, "agent"),
        event("step_started", 0),
        LAPSED,
        event("step_started", 3_000, OTHER),
        event("step_extended", 3_500, OTHER),
        event("step_succeeded", 4_000, OTHER),
    )

    assert seen.violations == []
    assert seen.counts["step_started"] == 2
    assert seen.counts["leases expired"] == 1
    assert "step_observed" not in seen.counts


def test_a_step_that_an_owner_tries_again_may_end_again() -> None:
    once = (
        event("step_scheduled", 0),
        event("step_started", 0),
        event("step_failed", 1, reason="x"),
    )
    again = event("step_retried", 2, "agent", reason=None)
    twice = (event("step_started", 3), event("step_succeeded", 4))

    assert audit(*once, again, *twice).violations == []
    (found,) = audit(*once, event("step_succeeded", 4)).violations
    assert "ended twice" in found


def test_a_step_that_has_not_ended_is_told() -> None:
    (found,) = audit(event("step_scheduled", 0), event("step_started", 0)).violations
    assert found == f"1 steps have not ended, such as r of flow {FLOW_ID}."


@pytest.mark.parametrize(
    ("from_ms", "until_ms", "found"),
    [
        (500, 2_500, True),  # its lease ended while it was stopped
        (500, 1_500, False),  # it was continued in time
        (2_100, 4_000, False),  # it was stopped later
    ],
)
def test_what_an_executor_records_that_was_stopped_past_its_lease_is_told(
    from_ms: int, until_ms: int, found: bool
) -> None:
    stop = Stop(HOLDER, MORNING + from_ms, MORNING + until_ms)
    late = (
        event("step_scheduled", 0),
        event("step_started", 0),
        LAPSED,
        event("step_succeeded", 4_500),
    )

    assert bool(audit(*late, stops=(stop,)).violations) is found
    assert not audit(*late, stops=(stop._replace(holder=OTHER),)).violations
