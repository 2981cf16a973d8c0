"""`set_waiting`, and what ends a wait: `resume`, `resume_external`, `wake`."""

from typing import Any

import pytest

from processor.contract import Code, instant
from processor.domain.decide import decide
from processor.domain.decision import Limits, rejected
from tests.support.builders import (
    DAY_MS,
    HOUR_MS,
    NOON,
    accepted,
    cancel,
    create,
    decided,
    external_event,
    fail,
    given,
    manual,
    request_cancel,
    resume,
    resume_external,
    set_waiting,
    start,
    timer,
    wake,
)

RUNNING = given(create(state_json={"n": 1}), start())
HORIZON_MS = 30 * DAY_MS


def waiting(wait: Any) -> Any:
    return given(create(state_json={"n": 1}), start(), set_waiting(wait))


# -- set_waiting --


@pytest.mark.parametrize(
    "wait",
    [
        timer(NOON + 1),
        external_event(),
        external_event(timeout_at_ms=NOON + 1),
        manual(),
        manual(NOON + HORIZON_MS),
    ],
)
def test_the_wait_is_kept_while_the_flow_waits(wait: Any) -> None:
    flow = accepted(set_waiting(wait), RUNNING)
    assert (flow.status, flow.wait_json) == ("waiting", wait)


def test_an_absent_timeout_is_not_stored() -> None:
    flow = accepted(set_waiting({"kind": "manual", "timeout_at": None}), RUNNING)
    assert flow.wait_json == {"kind": "manual"}


def test_a_time_is_stored_in_the_one_form_in_which_times_are_written() -> None:
    flow = accepted(
        set_waiting({"kind": "timer", "at": "2026-05-29T01:30:00.123987+02:00"}), RUNNING
    )
    assert flow.wait_json == {"kind": "timer", "at": "2026-05-28T23:30:00.123Z"}


@pytest.mark.parametrize(
    ("wait", "field"),
    [
        (timer(NOON), "wait.at"),
        (timer(NOON - HOUR_MS), "wait.at"),
        (manual(NOON), "wait.timeout_at"),
        (external_event(timeout_at_ms=NOON), "wait.timeout_at"),
    ],
)
def test_a_time_that_is_not_after_the_append_time_is_refused(wait: Any, field: str) -> None:
    decision = decided(set_waiting(wait), RUNNING)
    problem = "must lie after the time at which the broker appended the command"
    assert decision == rejected(Code.INVALID_DATA, field=field, problem=problem)


@pytest.mark.parametrize("build", [timer, manual, lambda at: external_event(timeout_at_ms=at)])
def test_a_time_past_the_horizon_is_refused(build: Any) -> None:
    assert decided(set_waiting(build(NOON + HORIZON_MS)), RUNNING).accepted
    assert decided(set_waiting(build(NOON + HORIZON_MS + 1)), RUNNING).code == Code.INVALID_DATA


def test_the_horizon_is_the_deployments_to_set() -> None:
    limits = Limits(timer_max_horizon_ms=HOUR_MS)
    nearer, further = set_waiting(timer(NOON + HOUR_MS)), set_waiting(timer(NOON + HOUR_MS + 1))
    assert decide(nearer, RUNNING, NOON, limits=limits).accepted
    assert decide(further, RUNNING, NOON, limits=limits).code == Code.INVALID_DATA


def test_only_a_running_flow_begins_to_wait() -> None:
    decision = decided(set_waiting(), given(create()))
    expected = {"from": "created", "to": "waiting"}
    assert decision == rejected(Code.ILLEGAL_TRANSITION, **expected)


# -- resume --


@pytest.mark.parametrize("wait", [timer(NOON + 1), external_event(), manual()])
def test_its_owner_may_resume_a_flow_from_any_wait(wait: Any) -> None:
    flow = accepted(resume(state_patch={"m": 2}), waiting(wait))
    assert (flow.status, flow.wait_json, flow.state_json) == ("running", None, {"n": 1, "m": 2})


def test_a_resume_without_a_patch_leaves_the_state() -> None:
    (fact,) = decided(resume(), waiting(manual())).facts
    assert fact.payload == {"by": "command", "state_patch": None}
    assert accepted(resume(), waiting(manual())).state_json == {"n": 1}


def test_a_running_flow_is_not_resumed() -> None:
    expected = {"from": "running", "to": "running"}
    assert decided(resume(), RUNNING) == rejected(Code.ILLEGAL_TRANSITION, **expected)


# -- resume_external --


def test_the_event_that_is_waited_for_resumes_the_flow_with_its_payload() -> None:
    (fact,) = decided(resume_external(payload={"a": 42}), waiting(external_event())).facts
    assert fact.payload == {"by": "external_event", "state_patch": {"resume_event": {"a": 42}}}
    flow = accepted(resume_external(payload={"a": 42}), waiting(external_event()))
    assert flow.state_json == {"n": 1, "resume_event": {"a": 42}}


@pytest.mark.parametrize("fields", [{}, {"payload": None}])
def test_an_event_without_payload_leaves_the_state(fields: Any) -> None:
    (fact,) = decided(resume_external(**fields), waiting(external_event())).facts
    assert fact.payload == {"by": "external_event", "state_patch": None}


@pytest.mark.parametrize("payload", [0, False, "", [], {}])
def test_an_empty_payload_is_a_payload(payload: Any) -> None:
    flow = accepted(resume_external(payload=payload), waiting(external_event()))
    assert flow.state_json == {"n": 1, "resume_event": payload}


@pytest.mark.parametrize(
    ("command", "wait"),
    [
        (resume_external(topic="other"), external_event()),
        (resume_external(correlation_id="other"), external_event()),
        (resume_external(), manual()),
        (resume_external(), timer(NOON + 1)),
    ],
)
def test_another_event_than_the_one_waited_for_is_refused(command: Any, wait: Any) -> None:
    decision = decided(command, waiting(wait))
    assert decision == rejected(Code.WAIT_MISMATCH, waits_for=wait["kind"])


# -- wake --


@pytest.mark.parametrize(
    ("wait", "by"),
    [
        (timer(NOON), "timer"),
        (manual(NOON), "timeout"),
        (external_event(timeout_at_ms=NOON), "timeout"),
    ],
)
def test_a_wake_ends_a_wait_whose_time_has_come(wait: Any, by: str) -> None:
    (fact,) = decided(wake(), waiting(wait)).facts
    assert (fact.kind, fact.payload) == ("resumed", {"by": by, "state_patch": None})
    assert accepted(wake(), waiting(wait)).wait_json is None


def test_a_wake_before_its_time_is_not_due() -> None:
    decision = decided(wake(), waiting(timer(NOON + 1)))
    assert decision == rejected(Code.NOT_DUE, due=instant(NOON + 1))


@pytest.mark.parametrize("wait", [manual(), external_event()])
def test_a_wait_without_a_time_is_not_woken(wait: Any) -> None:
    decision = decided(wake(), waiting(wait))
    assert decision == rejected(Code.WAIT_MISMATCH, waits_for=wait["kind"])


@pytest.mark.parametrize("wait", [manual(), external_event(), timer(NOON + 1), timer(NOON)])
def test_a_wake_cancels_a_waiting_flow_that_was_asked_to_cancel(wait: Any) -> None:
    pending = accepted(request_cancel(), waiting(wait))
    flow = accepted(wake(), pending)
    assert (flow.status, flow.wait_json, flow.cancel_requested) == ("cancelled", None, True)


@pytest.mark.parametrize("command", [fail(), cancel()], ids=lambda c: c.kind)
def test_whatever_ends_the_wait_clears_it(command: Any) -> None:
    assert accepted(command, waiting(manual())).wait_json is None
