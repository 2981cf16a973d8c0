"""`request_cancel` and `cancel`."""

from dataclasses import replace
from typing import Any

import pytest

from processor.contract import Code, instant
from processor.domain.decision import ACCEPTED_AS_IS, rejected
from tests.support.builders import (
    NOON,
    accepted,
    cancel,
    create,
    decided,
    fail,
    finish,
    given,
    observe,
    request_cancel,
    resume,
    set_waiting,
    start,
    update,
)

LIVE = [given(create()), given(create(), start()), given(create(), start(), set_waiting())]
ENDED = [given(create(), start(), finish()), given(create(), start(), fail())]
ENDED += [given(create(), cancel())]


@pytest.mark.parametrize("flow", LIVE, ids=lambda f: f.status)
def test_a_request_leaves_the_status_and_is_remembered(flow: Any) -> None:
    after = accepted(request_cancel(), flow)
    assert after == replace(
        flow, cancel_requested=True, revision=flow.revision + 1, updated_at=instant(NOON)
    )


@pytest.mark.parametrize("flow", LIVE, ids=lambda f: f.status)
def test_a_second_request_is_accepted_and_nothing_happens(flow: Any) -> None:
    assert decided(request_cancel(), accepted(request_cancel(), flow)) == ACCEPTED_AS_IS


@pytest.mark.parametrize("flow", ENDED, ids=lambda f: f.status)
def test_a_request_to_a_flow_that_has_ended_is_accepted_and_nothing_happens(flow: Any) -> None:
    assert decided(request_cancel(), flow) == ACCEPTED_AS_IS


@pytest.mark.parametrize("flow", LIVE, ids=lambda f: f.status)
@pytest.mark.parametrize("asked", [False, True], ids=["unasked", "asked"])
def test_any_live_flow_can_be_cancelled(flow: Any, asked: bool) -> None:
    if asked:
        flow = accepted(request_cancel(), flow)
    after = accepted(cancel(), flow)
    assert (after.status, after.wait_json, after.cancel_requested) == ("cancelled", None, asked)


@pytest.mark.parametrize("flow", ENDED, ids=lambda f: f.status)
def test_what_has_ended_is_not_cancelled(flow: Any) -> None:
    assert decided(cancel(), flow) == rejected(Code.ALREADY_TERMINAL)


@pytest.mark.parametrize(
    ("flow", "command"),
    [
        (LIVE[0], start()),
        (LIVE[1], update({"x": 1})),
        (LIVE[1], set_waiting()),
        (LIVE[1], finish()),
        (LIVE[1], fail()),
        (LIVE[2], resume()),
        (LIVE[2], fail()),
    ],
    ids=lambda x: getattr(x, "kind", ""),
)
def test_with_a_cancel_pending_the_work_does_not_go_on(flow: Any, command: Any) -> None:
    assert decided(command, accepted(request_cancel(), flow)) == rejected(Code.CANCEL_PENDING)


def test_with_a_cancel_pending_steps_are_still_observed() -> None:
    assert decided(observe(), accepted(request_cancel(), LIVE[1])).accepted
