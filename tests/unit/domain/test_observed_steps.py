"""`record_step_observation`."""

from typing import Any
from uuid import UUID, uuid5

import pytest

from processor.contract import Code, StepStatus, instant
from processor.domain.decision import rejected
from processor.domain.step import ObservedStep
from tests.support.builders import (
    FLOW_ID,
    MORNING,
    NOON,
    accepted,
    cancel,
    create,
    decided,
    given,
    given_step,
    observe,
    request_cancel,
    start,
)
from tests.support.flow_history import FlowHistory

RUNNING = given(create(), start())


def test_a_first_observation_makes_a_mirrored_step() -> None:
    step = given_step(observe("run-1", "classify", "succeeded", result_json={"n": 10}), RUNNING)
    assert step == ObservedStep(
        id=str(uuid5(UUID(FLOW_ID), "run-1")),
        flow_id=FLOW_ID,
        runtime="mirrored",
        child_session_key=None,
        run_id="run-1",
        task="classify",
        status=StepStatus.SUCCEEDED,
        result_json={"n": 10},
        created_at=instant(MORNING),
        updated_at=instant(MORNING),
    )


@pytest.mark.parametrize("status", list(StepStatus))
def test_a_step_may_be_seen_in_any_status(status: Any) -> None:
    assert given_step(observe(status=str(status)), RUNNING).status is status


def next_observation(first: Any, second: Any) -> Any:
    (fact,) = FlowHistory(RUNNING).given(first).decide(second).facts
    return fact.payload["step"]


def test_a_later_observation_replaces_what_it_says() -> None:
    step = next_observation(
        observe(task="a", status="pending"), observe(task="b", status="running")
    )
    assert (step["task"], step["status"]) == ("b", "running")
    assert step["id"] == str(uuid5(UUID(FLOW_ID), "run-1"))
    assert (step["created_at"], step["updated_at"]) == (instant(MORNING), instant(NOON))


@pytest.mark.parametrize("fields", [{}, {"child_session_key": None}])
def test_an_absent_child_session_key_keeps_the_old_one(fields: Any) -> None:
    step = next_observation(observe(child_session_key="k"), observe(**fields))
    assert step["child_session_key"] == "k"


def test_a_new_child_session_key_replaces_the_old_one() -> None:
    step = next_observation(observe(child_session_key="k"), observe(child_session_key="l"))
    assert step["child_session_key"] == "l"


@pytest.mark.parametrize("fields", [{}, {"result_json": None}])
def test_an_absent_result_clears_the_old_one(fields: Any) -> None:
    step = next_observation(observe(result_json={"n": 1}), observe(**fields))
    assert step["result_json"] is None


@pytest.mark.parametrize(
    "flow",
    [RUNNING, given(create(), cancel()), given(create(), start(), request_cancel())],
    ids=["running", "terminal", "cancel pending"],
)
def test_recording_a_step_leaves_the_flow_untouched_at_any_time(flow: Any) -> None:
    (fact,) = decided(observe(), flow).facts
    assert (fact.revision, fact.status) == (flow.revision, flow.status)
    assert accepted(observe(), flow) == flow


def test_a_result_of_64_kib_is_the_largest() -> None:
    limit = 64 * 1024
    assert decided(observe(result_json="x" * (limit - 2)), RUNNING).accepted
    assert decided(observe(result_json="x" * (limit - 1)), RUNNING) == rejected(
        Code.STATE_TOO_LARGE, field="result_json", size_bytes=limit + 1, limit_bytes=limit
    )
