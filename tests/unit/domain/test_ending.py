"""`finish`, `fail`, and `prune`, which takes what has ended."""

from typing import Any

import pytest

from processor.contract import Code, instant
from processor.domain.decision import rejected
from processor.domain.evolve import fold
from tests.support.builders import (
    NOON,
    accepted,
    cancel,
    create,
    decided,
    fail,
    finish,
    given,
    prune,
    request_cancel,
    set_waiting,
    start,
    update,
)

RUNNING = given(create(state_json={"n": 1}), start())
WAITING = given(create(), start(), set_waiting())


def test_a_finished_flow_has_its_final_state_merged() -> None:
    flow = accepted(finish(final_state={"summary": "done"}), RUNNING)
    assert (flow.status, flow.state_json) == ("finished", {"n": 1, "summary": "done"})


def test_a_finish_without_a_final_state_leaves_the_state() -> None:
    (fact,) = decided(finish(), RUNNING).facts
    assert fact.payload == {"final_state": None}
    assert accepted(finish(final_state=None), RUNNING).state_json == {"n": 1}


@pytest.mark.parametrize("flow", [given(create()), WAITING], ids=lambda f: f.status)
def test_only_a_running_flow_finishes(flow: Any) -> None:
    expected = {"from": str(flow.status), "to": "finished"}
    assert decided(finish(), flow) == rejected(Code.ILLEGAL_TRANSITION, **expected)


@pytest.mark.parametrize("flow", [RUNNING, WAITING], ids=lambda f: f.status)
def test_a_failed_flow_says_why_and_when(flow: Any) -> None:
    failed = accepted(fail("downstream 503"), flow)
    assert failed.status == "failed"
    assert failed.state_json["failure"] == {"reason": "downstream 503", "at": instant(NOON)}


def test_the_event_of_a_failure_holds_its_reason_only() -> None:
    (fact,) = decided(fail("x"), RUNNING).facts
    assert fact.payload == {"reason": "x"}


def test_a_state_that_is_no_object_gives_way_to_the_failure() -> None:
    flow = given(create(state_json=[1]), start())
    assert accepted(fail("x"), flow).state_json.keys() == {"failure"}


def test_a_full_state_does_not_keep_a_flow_from_failing() -> None:
    largest = {"x": "y" * (256 * 1024 - len('{"x":""}'))}
    full = given(create(state_json=largest), start())
    assert not decided(update({"z": 1}), full).accepted
    assert decided(fail("x"), full).accepted


def test_a_flow_that_has_not_started_does_not_fail() -> None:
    expected = {"from": "created", "to": "failed"}
    assert decided(fail(), given(create())) == rejected(Code.ILLEGAL_TRANSITION, **expected)


@pytest.mark.parametrize(
    "past",
    [[start(), finish()], [start(), fail()], [cancel()], [request_cancel(), cancel()]],
    ids=["finished", "failed", "cancelled", "cancelled as asked"],
)
def test_what_has_ended_can_be_pruned(past: Any) -> None:
    flow = given(create(), *past)
    decision = decided(prune(), flow)
    (fact,) = decision.facts
    assert (fact.kind, fact.payload, fact.revision, fact.status) == (
        "pruned",
        {},
        flow.revision,
        flow.status,
    )
    assert fold(flow, decision.facts) is None


@pytest.mark.parametrize("flow", [given(create()), RUNNING, WAITING], ids=lambda f: f.status)
def test_what_lives_cannot_be_pruned(flow: Any) -> None:
    expected = {"from": str(flow.status), "to": "gone"}
    assert decided(prune(), flow) == rejected(Code.ILLEGAL_TRANSITION, **expected)


def test_after_a_prune_the_id_starts_anew() -> None:
    ended = given(create(), cancel())
    assert fold(ended, decided(prune(), ended).facts) is None
    assert accepted(create(), None).revision == 0
