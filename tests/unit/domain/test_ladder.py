"""The order of the checks: of two that fail, the earlier decides."""

from typing import Any

import pytest

from processor.contract import Code
from processor.domain.transitions import Authority
from tests.support.builders import (
    NOON,
    STRANGER,
    cancel,
    create,
    external_event,
    finish,
    given,
    observe,
    refusal_of,
    request_cancel,
    resume,
    resume_external,
    set_waiting,
    start,
    timer,
    update,
    wake,
)

LONG_AGO = "2020-01-01T00:00:00Z"
TOO_LARGE = {"x": "y" * 256 * 1024}
OWNER, OPERATOR = Authority.OWNER, Authority.OPERATOR

RUNGS = [
    ("8 forbidden", {Code.FORBIDDEN}),
    ("9 expired", {Code.EXPIRED}),
    ("10 existence", {Code.ALREADY_EXISTS, Code.NOT_FOUND}),
    ("11 not_owner", {Code.NOT_OWNER}),
    ("12 revision_mismatch", {Code.REVISION_MISMATCH}),
    ("13 already_terminal", {Code.ALREADY_TERMINAL}),
    ("14 cancel_pending", {Code.CANCEL_PENDING}),
    (
        "15 illegal_transition",
        {Code.ILLEGAL_TRANSITION, Code.STEP_EXISTS, Code.STEP_NOT_FOUND},
    ),
    ("16 the wait, the lease", {Code.WAIT_MISMATCH, Code.NOT_DUE, Code.NOT_HOLDER}),
    ("17 the data", {Code.INVALID_DATA, Code.STATE_TOO_LARGE, Code.TOO_MANY_STEPS}),
]

RUNNING = [create(), start()]
WAITING = [create(), start(), set_waiting(external_event())]
ENDED_WHILE_CANCEL_PENDING = [create(), start(), request_cancel(), cancel()]

# The flow's past; (topic, command with two faults); the same without the first fault, where the
# first can be had without the second; codes of both faults.
PAIRS = [
    (
        RUNNING,
        (OWNER, wake(expires_at=LONG_AGO)),
        (OPERATOR, wake(expires_at=LONG_AGO)),
        (Code.FORBIDDEN, Code.EXPIRED),
    ),
    (
        RUNNING,
        (OWNER, create(expires_at=LONG_AGO)),
        (OWNER, create()),
        (Code.EXPIRED, Code.ALREADY_EXISTS),
    ),
    ([], (OWNER, start(expires_at=LONG_AGO)), (OWNER, start()), (Code.EXPIRED, Code.NOT_FOUND)),
    (
        RUNNING,
        (OWNER, create(owner_session_key=STRANGER)),
        None,
        (Code.ALREADY_EXISTS, Code.NOT_OWNER),
    ),
    ([], (OWNER, start(issued_by=STRANGER)), None, (Code.NOT_FOUND, Code.NOT_OWNER)),
    (
        RUNNING,
        (OWNER, update({}, issued_by=STRANGER, expected_revision=9)),
        (OWNER, update({}, expected_revision=9)),
        (Code.NOT_OWNER, Code.REVISION_MISMATCH),
    ),
    (
        [],
        (OWNER, create(owner_session_key=STRANGER, expected_revision=0)),
        (OPERATOR, create(owner_session_key=STRANGER, expected_revision=0)),
        (Code.NOT_OWNER, Code.REVISION_MISMATCH),
    ),
    (
        [*RUNNING, finish()],
        (OWNER, update({}, expected_revision=9)),
        (OWNER, update({})),
        (Code.REVISION_MISMATCH, Code.ALREADY_TERMINAL),
    ),
    (
        ENDED_WHILE_CANCEL_PENDING,
        (OWNER, update({})),
        None,
        (Code.ALREADY_TERMINAL, Code.CANCEL_PENDING),
    ),
    (
        [*RUNNING, request_cancel()],
        (OWNER, resume()),
        None,
        (Code.CANCEL_PENDING, Code.ILLEGAL_TRANSITION),
    ),
    (
        RUNNING,
        (OWNER, resume_external(correlation_id="other")),
        None,
        (Code.ILLEGAL_TRANSITION, Code.WAIT_MISMATCH),
    ),
    (
        WAITING,
        (OWNER, resume_external(correlation_id="other", payload=TOO_LARGE)),
        (OWNER, resume_external(payload=TOO_LARGE)),
        (Code.WAIT_MISMATCH, Code.STATE_TOO_LARGE),
    ),
]


def rung_of(code: Code) -> int:
    (number,) = (i for i, (_, codes) in enumerate(RUNGS) if code in codes)
    return number


@pytest.mark.parametrize(
    ("past", "faulty", "mended", "codes"),
    PAIRS,
    ids=[f"{first} before {second}" for *_, (first, second) in PAIRS],
)
def test_of_two_faults_the_one_that_is_checked_first_decides(
    past: Any, faulty: Any, mended: Any, codes: Any
) -> None:
    flow = given(*past) if past else None
    authority, command = faulty
    assert refusal_of(command, flow, at=NOON, authority=authority) == codes[0]
    if mended is not None:
        authority, command = mended
        assert refusal_of(command, flow, at=NOON, authority=authority) == codes[1]


def test_every_pair_of_neighbouring_checks_is_walked() -> None:
    walked = {(rung_of(first), rung_of(second)) for *_, (first, second) in PAIRS}
    assert walked == {(i, i + 1) for i in range(len(RUNGS) - 1)}


def test_a_command_whose_faults_are_mended_one_by_one_falls_one_check_later_each_time() -> None:
    waiting = given(create(), start(), set_waiting(external_event()))
    pending = given(create(), start(), request_cancel())
    ended = given(*ENDED_WHILE_CANCEL_PENDING)
    stale = {"expected_revision": 9}
    strange = {"issued_by": STRANGER, **stale}
    expired = {"expires_at": LONG_AGO, **strange}
    found = [
        refusal_of(update(TOO_LARGE, **expired), ended),
        refusal_of(update(TOO_LARGE, **strange), ended),
        refusal_of(update(TOO_LARGE, **stale), ended),
        refusal_of(update(TOO_LARGE), ended),
        refusal_of(finish(final_state=TOO_LARGE), pending),
        refusal_of(finish(final_state=TOO_LARGE), waiting),
        refusal_of(resume_external("other", payload=TOO_LARGE), waiting),
        refusal_of(resume_external(payload=TOO_LARGE), waiting),
    ]
    assert found == [
        Code.EXPIRED,
        Code.NOT_OWNER,
        Code.REVISION_MISMATCH,
        Code.ALREADY_TERMINAL,
        Code.CANCEL_PENDING,
        Code.ILLEGAL_TRANSITION,
        Code.WAIT_MISMATCH,
        Code.STATE_TOO_LARGE,
    ]


def test_a_wake_that_is_not_due_on_a_running_flow_is_an_illegal_transition() -> None:
    assert refusal_of(wake(), given(*RUNNING)) == Code.ILLEGAL_TRANSITION


def test_a_time_in_the_past_is_looked_at_after_the_transition() -> None:
    assert refusal_of(set_waiting(timer(NOON)), given(create())) == Code.ILLEGAL_TRANSITION


def test_a_result_that_is_too_large_is_looked_at_after_the_revision() -> None:
    too_large = observe(result_json="x" * 64 * 1024, expected_revision=9)
    assert refusal_of(too_large, given(*RUNNING)) == Code.REVISION_MISMATCH
