"""`create_managed` and `create_mirrored`."""

from processor.contract import Code, instant
from processor.domain.decision import rejected
from processor.domain.flow import Flow
from tests.support.builders import (
    FLOW_ID,
    NOON,
    OWNER,
    accepted,
    create,
    create_mirrored,
    decided,
    given,
)


def test_a_managed_flow_is_created_at_revision_zero() -> None:
    flow = accepted(create(current_step="classify", state_json={"n": 1}), None)
    assert flow == Flow(
        id=FLOW_ID,
        controller_id="kate/inbox",
        goal="triage inbox",
        owner_session_key=OWNER,
        requester_origin="user-1",
        current_step="classify",
        state_json={"n": 1},
        wait_json=None,
        status=flow.status,
        cancel_requested=False,
        revision=0,
        created_at=instant(NOON),
        updated_at=instant(NOON),
    )
    assert flow.status == "created"


def test_a_mirrored_flow_runs_at_once_at_revision_one() -> None:
    decision = decided(create_mirrored(), None)
    assert [(f.kind, f.revision, f.status) for f in decision.facts] == [
        ("created", 0, "created"),
        ("started", 1, "running"),
    ]


def test_what_is_not_given_has_its_default() -> None:
    flow = given(create())
    assert (flow.current_step, flow.state_json, flow.owner_session_key) == ("init", {}, OWNER)


def test_null_is_the_default_too() -> None:
    flow = given(create(current_step=None, state_json=None, owner_session_key=None))
    assert (flow.current_step, flow.state_json, flow.owner_session_key) == ("init", {}, OWNER)


def test_the_event_holds_what_a_fold_needs() -> None:
    (fact,) = decided(create(state_json=[1]), None).facts
    assert fact.payload == {
        "controller_id": "kate/inbox",
        "goal": "triage inbox",
        "owner_session_key": OWNER,
        "requester_origin": "user-1",
        "current_step": "init",
        "state_json": [1],
    }


def test_any_json_may_be_the_state() -> None:
    for state in (0, False, "", [], [None], 1.5):
        assert given(create(state_json=state)).state_json == state


def test_a_state_of_256_kib_is_the_largest() -> None:
    limit = 256 * 1024
    assert decided(create(state_json="x" * (limit - 2)), None).accepted
    assert decided(create(state_json="x" * (limit - 1)), None) == rejected(
        Code.STATE_TOO_LARGE, field="state_json", size_bytes=limit + 1, limit_bytes=limit
    )


def test_a_state_is_measured_as_it_would_be_written() -> None:
    # Two bytes each in UTF-8, never escaped.
    assert decided(create(state_json="é" * (128 * 1024 - 1)), None).accepted
    assert not decided(create(state_json="é" * (128 * 1024)), None).accepted
