"""Checks that every command must pass before its own meaning is looked at: 8 to 12."""

from typing import Any

import pytest

from processor.contract import Code, instant
from processor.domain.decision import rejected
from processor.domain.transitions import Authority
from tests.support.builders import (
    NOON,
    OPERATOR,
    OWNER,
    STRANGER,
    accepted,
    cancel,
    create,
    create_mirrored,
    decided,
    external_event,
    fail,
    finish,
    given,
    observe,
    prune,
    refusal_of,
    request_cancel,
    resume,
    resume_external,
    set_waiting,
    start,
    update,
    wake,
)

RUNNING = given(create(), start())


@pytest.mark.parametrize("command", [wake(), prune()], ids=lambda c: c.kind)
def test_a_control_only_kind_on_commands_is_forbidden_even_for_the_owner(command: Any) -> None:
    assert decided(command, RUNNING, authority=Authority.OWNER) == rejected(Code.FORBIDDEN)


def test_a_command_that_was_appended_after_its_expiry_is_refused() -> None:
    command = update({}, expires_at=instant(NOON - 1))
    assert decided(command, RUNNING) == rejected(Code.EXPIRED, expires_at=instant(NOON - 1))


def test_a_command_that_was_appended_at_its_expiry_is_in_time() -> None:
    assert decided(update({}, expires_at=instant(NOON)), RUNNING).accepted


@pytest.mark.parametrize("command", [create(), create_mirrored()], ids=lambda c: c.kind)
def test_a_flow_is_created_once(command: Any) -> None:
    assert decided(command, RUNNING) == rejected(Code.ALREADY_EXISTS)


@pytest.mark.parametrize(
    "command",
    [
        start(),
        set_waiting(),
        resume(),
        resume_external(),
        finish(),
        fail(),
        request_cancel(),
        cancel(),
        update({}),
        observe(),
        wake(),
        prune(),
    ],
    ids=lambda c: c.kind,
)
def test_a_flow_that_is_not_there_takes_nothing_but_a_create(command: Any) -> None:
    assert decided(command, None) == rejected(Code.NOT_FOUND)


@pytest.mark.parametrize(
    "command",
    [
        start(issued_by=STRANGER),
        set_waiting(issued_by=STRANGER),
        resume(issued_by=STRANGER),
        finish(issued_by=STRANGER),
        fail(issued_by=STRANGER),
        request_cancel(issued_by=STRANGER),
        cancel(issued_by=STRANGER),
        update({}, issued_by=STRANGER),
    ],
    ids=lambda c: c.kind,
)
def test_only_the_owner_changes_a_flow_through_commands(command: Any) -> None:
    assert decided(command, RUNNING) == rejected(Code.NOT_OWNER)


def test_anyone_may_observe_a_step() -> None:
    assert decided(observe(issued_by=STRANGER), RUNNING).accepted


def test_anyone_who_knows_the_correlation_id_may_deliver_the_event() -> None:
    waiting = given(create(), start(), set_waiting(external_event()))
    assert decided(resume_external(issued_by=STRANGER), waiting).accepted


def test_an_operator_needs_no_ownership() -> None:
    command = cancel(issued_by=OPERATOR)
    assert decided(command, RUNNING, authority=Authority.OPERATOR).accepted


def test_on_commands_a_flow_is_created_for_its_sender_only() -> None:
    assert decided(create(owner_session_key=STRANGER), None) == rejected(Code.NOT_OWNER)
    assert decided(create(owner_session_key=OWNER), None).accepted


def test_an_operator_may_create_a_flow_for_somebody_else() -> None:
    command = create(issued_by=OPERATOR, owner_session_key=OWNER)
    flow = accepted(command, None, authority=Authority.OPERATOR)
    assert flow.owner_session_key == OWNER


def test_a_stale_revision_is_refused_and_changes_nothing() -> None:
    decision = decided(update({"x": 1}, expected_revision=0), RUNNING)
    assert decision == rejected(Code.REVISION_MISMATCH, expected=0, actual=1)


def test_a_revision_from_the_future_is_refused_too() -> None:
    decision = decided(update({"x": 1}, expected_revision=2), RUNNING)
    assert decision == rejected(Code.REVISION_MISMATCH, expected=2, actual=1)


def test_the_expected_revision_is_taken() -> None:
    assert decided(update({"x": 1}, expected_revision=1), RUNNING).accepted


@pytest.mark.parametrize("revision", [0, 1])
def test_a_create_expects_no_revision(revision: int) -> None:
    decision = decided(create(expected_revision=revision), None)
    assert decision == rejected(Code.REVISION_MISMATCH, expected=revision, actual=None)


def test_nulls_in_optional_fields_are_as_good_as_nothing() -> None:
    nulls = {"expected_revision": None, "expires_at": None, "dry_run": None, "schema_version": None}
    assert refusal_of(start(**nulls), given(create())) is None
