"""Commands about managed steps: what is checked in which order, and what each leads to."""

from typing import Any

import pytest

from processor.contract import Code, StepStatus, instant
from processor.contract.commands import MODELS
from processor.contract.values import LIVE_INPUTS_MAX_BYTES
from processor.domain import executions
from processor.domain.decision import Limits
from processor.domain.steps import step_due_ms
from processor.domain.transitions import OPERATOR, OWNER
from tests.support.builders import (
    DAY_MS,
    EXECUTOR,
    HOUR_MS,
    MINUTE_MS,
    MORNING,
    NOON,
    STRANGER,
    cancel,
    cancel_step,
    complete_step,
    create,
    extend_step,
    fail,
    fail_step,
    finish,
    observe,
    release_step,
    request_cancel,
    retry_step,
    schedule_step,
    set_waiting,
    start,
    start_step,
    steps,
    update,
    wake,
    wake_step,
)
from tests.support.flow_history import FlowHistory

LONG_AGO = "2020-01-01T00:00:00Z"
TOO_LARGE = "x" * 64 * 1024


def given(*commands: Any, limits: Any = None) -> Any:
    history = FlowHistory() if limits is None else FlowHistory(limits=limits)
    return history.given(create(), start(), *commands)


def scheduled(**fields: Any) -> Any:
    return given(schedule_step(**fields))


def started(**fields: Any) -> Any:
    return given(schedule_step(**fields), start_step())


def kinds(decision: Any) -> Any:
    return [str(fact.kind) for fact in decision.facts]


# -- the order of the checks --


def test_a_start_whose_faults_are_mended_one_by_one_falls_one_check_later_each_time() -> None:
    later = {"not_before": instant(NOON + 1)}
    ended = scheduled(**later).given(cancel())
    pending = scheduled(**later).given(request_cancel())
    stale = {"expected_revision": 9}
    found = [
        ended.decide(start_step("none", expires_at=LONG_AGO, **stale)).code,
        ended.decide(start_step("none", **stale)).code,
        ended.decide(start_step("none")).code,
        pending.decide(start_step("none")).code,
        scheduled(**later).decide(start_step("none")).code,
        started(**later | {"not_before": None}).decide(start_step()).code,
        scheduled(**later).decide(start_step()).code,
        scheduled().decide(start_step()).code,
    ]
    assert found == [
        Code.EXPIRED,
        Code.REVISION_MISMATCH,
        Code.ALREADY_TERMINAL,
        Code.CANCEL_PENDING,
        Code.STEP_NOT_FOUND,
        Code.ILLEGAL_TRANSITION,
        Code.NOT_DUE,
        None,
    ]


def test_a_result_whose_faults_are_mended_one_by_one_falls_one_check_later_each_time() -> None:
    ended = started().given(complete_step())
    found = [
        started().decide(complete_step("none", result_json=TOO_LARGE)).code,
        ended.decide(complete_step(attempt=2, result_json=TOO_LARGE)).code,
        started().decide(complete_step(attempt=2, result_json=TOO_LARGE)).code,
        started().decide(complete_step(result_json=TOO_LARGE)).code,
        started().decide(complete_step()).code,
    ]
    assert found == [
        Code.STEP_NOT_FOUND,
        Code.ILLEGAL_TRANSITION,
        Code.NOT_HOLDER,
        Code.STATE_TOO_LARGE,
        None,
    ]


def test_a_schedule_whose_faults_are_mended_one_by_one_falls_one_check_later_each_time() -> None:
    one = Limits(flow_steps_max=1)
    past = {"timeout_at": instant(NOON)}
    full = given(schedule_step(), limits=one)
    found = [
        full.decide(schedule_step(issued_by=STRANGER, expected_revision=9)).code,
        full.decide(schedule_step(expected_revision=9)).code,
        full.decide(schedule_step(input_json=TOO_LARGE, **past)).code,
        full.decide(schedule_step("other", input_json=TOO_LARGE, **past)).code,
        full.decide(schedule_step("other", input_json=TOO_LARGE)).code,
        full.decide(schedule_step("other")).code,
        given(limits=one).decide(schedule_step("other")).code,
    ]
    assert found == [
        Code.NOT_OWNER,
        Code.REVISION_MISMATCH,
        Code.STEP_EXISTS,
        Code.INVALID_DATA,
        Code.STATE_TOO_LARGE,
        Code.TOO_MANY_STEPS,
        None,
    ]


def test_an_observation_looks_at_the_step_then_at_its_size_then_at_the_number() -> None:
    full = given(schedule_step(), limits=Limits(flow_steps_max=1))
    found = [
        full.decide(observe("r1", result_json=TOO_LARGE)).code,
        full.decide(observe("other", result_json=TOO_LARGE)).code,
        full.decide(observe("other")).code,
    ]
    assert found == [Code.STEP_EXISTS, Code.STATE_TOO_LARGE, Code.TOO_MANY_STEPS]


def test_wake_step_is_forbidden_on_commands() -> None:
    assert scheduled().decide(wake_step(), authority=OWNER).code == Code.FORBIDDEN


@pytest.mark.parametrize("kind", ["start_step", "cancel_step", "retry_step", "wake_step"])
def test_a_flow_that_has_ended_takes_no_step_command(kind: str) -> None:
    ended = scheduled().given(finish())
    command = {
        "start_step": start_step,
        "cancel_step": cancel_step,
        "retry_step": retry_step,
        "wake_step": wake_step,
    }[kind]()
    assert ended.decide(command).code == Code.ALREADY_TERMINAL


@pytest.mark.parametrize(
    "command", [schedule_step("r2"), cancel_step(), retry_step()], ids=lambda c: c.kind
)
def test_only_the_owner_or_an_operator_may(command: Any) -> None:
    strange = command.model_copy(update={"issued_by": STRANGER})
    assert scheduled().decide(strange).code == Code.NOT_OWNER
    assert scheduled().decide(strange, authority=OPERATOR).accepted


# -- bounds --


def test_a_thousand_live_steps_are_the_most_and_one_that_ends_makes_room() -> None:
    history = given(*(schedule_step(f"r{n}") for n in range(1_000)))
    refused = history.decide(schedule_step("more"))
    assert refused.code == Code.TOO_MANY_STEPS
    assert refused.details == {"field": "live_steps", "limit": 1_000}
    history.given(cancel_step("r7"))
    assert history.decide(schedule_step("more")).accepted
    history.given(schedule_step("more"))
    assert history.decide(retry_step("r7")).code == Code.TOO_MANY_STEPS
    assert history.decide(retry_step("r8")).accepted


def test_four_mib_of_live_inputs_are_the_most_and_null_counts_four_bytes() -> None:
    full = given(*(schedule_step(f"r{n}", input_json="x" * 65_534) for n in range(64)))
    assert full.totals.live_bytes == LIVE_INPUTS_MAX_BYTES
    assert full.decide(schedule_step("null")).code == Code.STATE_TOO_LARGE
    full.given(cancel_step("r0"))
    full.given(schedule_step("null"))
    assert full.totals.live_bytes == LIVE_INPUTS_MAX_BYTES - 65_536 + 4
    assert full.decide(retry_step("r0")).code == Code.STATE_TOO_LARGE


def test_an_input_of_64_kib_is_the_largest() -> None:
    assert given().decide(schedule_step(input_json="x" * 65_534)).accepted
    assert given().decide(schedule_step(input_json="x" * 65_535)).code == Code.STATE_TOO_LARGE


def test_progress_of_4_kib_is_the_largest() -> None:
    assert started().decide(extend_step(progress_json="x" * 4_094)).accepted
    refused = started().decide(extend_step(progress_json="x" * 4_095))
    assert refused.code == Code.STATE_TOO_LARGE


# -- offers, leases, backoff --


def test_a_step_that_nobody_starts_is_offered_after_ever_longer_times_up_to_a_day() -> None:
    execution = scheduled(lease_ms=MINUTE_MS).managed("r1").execution
    waits = [
        executions.due_ms(executions.offered(execution, NOON, offers=n)) - NOON
        for n in (1, 2, 3, 11, 12, 1_000_000)
    ]
    assert waits[:3] == [MINUTE_MS, 2 * MINUTE_MS, 4 * MINUTE_MS]
    assert waits[3:] == [1024 * MINUTE_MS, DAY_MS, DAY_MS]


@pytest.mark.parametrize(
    ("attempt", "backoff_ms", "whole_ms"),
    [
        (1, 1_000, 1_000),
        (2, 1_000, 2_000),
        (12, 1_000, 2_048_000),
        (13, 1_000, HOUR_MS),
        (10**9, 1_000, HOUR_MS),
        (1, 2 * HOUR_MS, 2 * HOUR_MS),
        (5, 2 * HOUR_MS, 2 * HOUR_MS),
        (9, 0, 0),
    ],
)
def test_backoff_doubles_up_to_an_hour_less_up_to_a_quarter(
    attempt: int, backoff_ms: Any, whole_ms: Any
) -> None:
    step = scheduled().managed("r1")
    execution = step.execution.changed({"attempt": attempt, "backoff_ms": backoff_ms})
    for first_byte in (0, 1, 255):
        other = step.changed({"id": f"{first_byte:02x}{step.id[2:]}", "execution": execution})
        assert executions.backoff_ms(other) == whole_ms * (1024 - first_byte) // 1024


def test_no_due_at_lies_behind_the_timeout() -> None:
    timeout_at = instant(MORNING + 2_000)
    history = scheduled(timeout_at=timeout_at, lease_ms=MINUTE_MS, backoff_ms=MINUTE_MS)
    assert history.managed("r1").execution.due_at == timeout_at
    history.given(start_step(), at=MORNING)
    assert history.managed("r1").execution.due_at == timeout_at
    history.given(extend_step(progress_json=1), at=MORNING + 1)
    assert history.managed("r1").execution.due_at == timeout_at
    history.given(fail_step(), at=MORNING + 2)
    assert history.managed("r1").execution.due_at == timeout_at
    history.given(wake_step(), at=MORNING + 2_000)
    assert history.managed("r1").status is StepStatus.FAILED
    assert step_due_ms(history.managed("r1")) is None


def test_an_extension_that_would_move_nothing_is_accepted_without_an_event() -> None:
    history = started(timeout_at=instant(MORNING + 3_000), lease_ms=MINUTE_MS)
    decision = history.decide(extend_step(), at=MORNING + 2_999)
    assert decision.accepted
    assert decision.facts == ()
    assert decision.details["due_at"] == instant(MORNING + 3_000)


@pytest.mark.parametrize(("left_ms", "events"), [(2_501, 0), (2_500, 1), (-7, 1)])
def test_an_extension_counts_once_half_of_the_lease_is_over(left_ms: int, events: int) -> None:
    history = started(lease_ms=5_000)
    decision = history.decide(extend_step(), at=MORNING + 5_000 - left_ms)
    assert len(decision.facts) == events


# -- ends --


@pytest.mark.parametrize(
    ("end", "event"),
    [(finish(), "finished"), (fail(), "failed"), (cancel(), "cancelled")],
    ids=["finish", "fail", "cancel"],
)
def test_live_steps_end_with_their_flow_in_order_of_their_run_ids_bytes(
    end: Any, event: str
) -> None:
    run_ids = ["\U0001f600", "b", "a", "\uffff", "ended"]
    history = given(*map(schedule_step, run_ids), cancel_step("ended"), observe("seen"))
    decision = history.send(end)
    assert kinds(decision) == [event, *["step_cancelled"] * 4]
    assert [fact.payload["run_id"] for fact in decision.facts[1:]] == [
        "a",
        "b",
        "\uffff",
        "\U0001f600",
    ]
    assert {fact.payload["by"] for fact in decision.facts[1:]} == {"flow"}
    assert {(f.revision, f.status) for f in decision.facts} == {(2, history.flow.status)}
    assert history.totals.live == 0


def test_a_refused_end_ends_no_step() -> None:
    decision = scheduled().decide(finish(final_state="x" * 256 * 1024))
    assert (decision.code, decision.facts) == (Code.STATE_TOO_LARGE, ())


def test_a_wake_that_cancels_takes_the_live_steps_along() -> None:
    history = scheduled().given(set_waiting(), request_cancel())
    assert kinds(history.send(wake())) == ["cancelled", "step_cancelled"]


@pytest.mark.parametrize(
    "command",
    [
        complete_step(),
        fail_step(retry=False),
        cancel_step(),
    ],
    ids=lambda command: command.kind,
)
def test_the_event_that_ends_the_last_step_resumes_the_join(command: Any) -> None:
    history = started().given(set_waiting(steps()))
    decision = history.send(command)
    assert kinds(decision)[1:] == ["resumed"]
    assert decision.facts[1].payload == {"by": "steps", "state_patch": None}
    assert history.flow.revision == 3
    assert history.flow.wait_json is None


def test_a_pending_cancel_keeps_a_join_from_being_resumed() -> None:
    history = started().given(set_waiting(steps()), request_cancel())
    assert kinds(history.send(complete_step())) == ["step_succeeded"]
    assert history.flow.status == "waiting"


def test_a_join_that_holds_is_resumed_as_it_begins() -> None:
    assert kinds(given().send(set_waiting(steps()))) == ["waiting", "resumed"]
    ended = started().given(complete_step())
    assert kinds(ended.send(set_waiting(steps("r1", mode="any")))) == ["waiting", "resumed"]


def test_an_observed_step_neither_ends_nor_holds_up_a_join() -> None:
    history = scheduled().given(observe("seen", status="running"), set_waiting(steps()))
    assert kinds(history.send(observe("seen", status="failed"))) == ["step_observed"]
    assert kinds(history.send(cancel_step())) == ["step_cancelled", "resumed"]


def test_a_step_leaves_the_flow_as_it_is() -> None:
    history = given()
    flow = history.flow
    history.given(schedule_step(), start_step(), release_step(), start_step(), at=NOON)
    assert history.flow is flow
    assert history.managed("r1").child_session_key == EXECUTOR
    assert history.decide(update({}, expected_revision=1)).accepted


def test_every_step_command_that_names_an_attempt_is_checked_for_its_holder() -> None:
    named = {kind for kind, model in MODELS.items() if "attempt" in model.model_fields}
    assert named == {"extend_step", "complete_step", "fail_step", "release_step"}
    for command in (extend_step, complete_step, fail_step, release_step):
        assert started().decide(command(issued_by=STRANGER)).code == Code.NOT_HOLDER
        assert started().decide(command(attempt=0)).code == Code.NOT_HOLDER
        assert started().decide(command(issued_by=STRANGER), authority=OPERATOR).accepted
