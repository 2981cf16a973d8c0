"""The state machine: which status leads where, and that every kind keeps to it."""

from typing import Any

import pytest

from processor.contract import CONTROL_ONLY, CommandKind, FlowStatus
from processor.domain.transitions import (
    ANY_TIME,
    CREATES,
    DURING_CANCEL,
    KINDS,
    LIVE,
    MOVES,
    STEP_COMMANDS,
    TERMINAL,
    Authority,
    allowed,
    destination,
    refusal,
)
from tests.support.builders import (
    cancel,
    create,
    fail,
    finish,
    given,
    request_cancel,
    set_waiting,
    start,
)

LEGAL = {
    ("created", "running"),
    ("running", "waiting"),
    ("running", "finished"),
    ("running", "failed"),
    ("waiting", "running"),
    ("waiting", "failed"),
    ("created", "cancelled"),
    ("running", "cancelled"),
    ("waiting", "cancelled"),
}


def test_the_legal_moves_are_these_nine_and_no_other() -> None:
    moves = {(str(origin), str(to)) for origin, tos in MOVES.items() for to in tos}
    assert moves == LEGAL


def test_cancelled_finished_and_failed_are_the_terminal_statuses() -> None:
    assert {"cancelled", "finished", "failed"} == TERMINAL


def test_every_kind_but_the_creates_has_its_place_in_the_table() -> None:
    assert set(CommandKind) == KINDS.keys() | CREATES


@pytest.mark.parametrize("cancel_requested", [False, True])
@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("status", list(FlowStatus))
def test_what_is_not_refused_is_a_legal_move_or_stays(
    kind: CommandKind, status: Any, cancel_requested: bool
) -> None:
    if refusal(kind, status, cancel_requested) is None:
        to = destination(kind, status, cancel_requested)
        assert to is None or to in MOVES[status]


@pytest.mark.parametrize("kind", sorted(KINDS.keys() - ANY_TIME))
@pytest.mark.parametrize("status", sorted(TERMINAL))
def test_a_terminal_flow_refuses_whatever_would_change_it(kind: str, status: Any) -> None:
    assert refusal(kind, status, False) == "already_terminal"


@pytest.mark.parametrize("status", sorted(LIVE))
def test_with_a_cancel_pending_only_what_cancels_goes_on(status: Any) -> None:
    passing = {k for k in KINDS.keys() - DURING_CANCEL if refusal(k, status, True) is None}
    assert passing == ({"cancel", "wake"} if status == "waiting" else {"cancel"})


@pytest.mark.parametrize("status", sorted(LIVE))
def test_with_a_cancel_pending_what_runs_may_end_and_nothing_begins(status: Any) -> None:
    passing = {k for k in STEP_COMMANDS if refusal(k, status, True) is None}
    assert passing == {"extend_step", "complete_step", "fail_step", "cancel_step", "wake_step"}


@pytest.mark.parametrize("status", sorted(LIVE))
def test_a_live_flow_is_not_pruned(status: Any) -> None:
    assert refusal(CommandKind.PRUNE, status, False) == "illegal_transition"
    assert refusal(CommandKind.PRUNE, status, True) == "illegal_transition"


@pytest.mark.parametrize(
    ("past", "kinds"),
    [
        (
            [],
            [
                "cancel",
                "record_step_observation",
                "request_cancel",
                "start_running",
                "update_state",
            ],
        ),
        (
            [start()],
            [
                "cancel",
                "fail",
                "finish",
                "record_step_observation",
                "request_cancel",
                "set_waiting",
                "update_state",
            ],
        ),
        (
            [start(), set_waiting()],
            [
                "cancel",
                "fail",
                "record_step_observation",
                "request_cancel",
                "resume",
                "resume_external",
                "update_state",
            ],
        ),
        ([start(), request_cancel()], ["cancel", "record_step_observation", "request_cancel"]),
        ([start(), finish()], ["record_step_observation", "request_cancel"]),
        ([start(), fail()], ["record_step_observation", "request_cancel"]),
        ([cancel()], ["record_step_observation", "request_cancel"]),
    ],
    ids=["created", "running", "waiting", "cancel pending", "finished", "failed", "cancelled"],
)
def test_an_owner_is_told_what_the_flow_takes_now(past: Any, kinds: Any) -> None:
    assert list(allowed(given(create(), *past), Authority.OWNER)) == kinds


def test_only_an_operator_is_told_of_control_only_kinds() -> None:
    waiting = given(create(), start(), set_waiting())
    ended = given(create(), cancel())
    for flow, kind in ((waiting, "wake"), (ended, "prune")):
        assert kind in allowed(flow, Authority.OPERATOR)
        assert not CONTROL_ONLY.intersection(allowed(flow, Authority.OWNER))
