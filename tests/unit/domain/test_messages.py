"""One sentence for each outcome, with the details that are really given."""

import string
from typing import Any

import pytest

from processor.contract import Code, CommandKind, instant
from processor.domain import messages
from processor.domain.decision import Limits
from processor.domain.transitions import Authority
from tests.support.builders import (
    NOON,
    STRANGER,
    cancel,
    create,
    decided,
    extend_step,
    external_event,
    given,
    manual,
    observe,
    prune,
    request_cancel,
    resume,
    resume_external,
    schedule_step,
    set_waiting,
    start,
    start_step,
    steps,
    timer,
    update,
    wake,
    wake_step,
)
from tests.support.flow_history import FlowHistory

SECRET = "hunter2"
RUNNING = given(create(), start())
WAITING = given(create(), start(), set_waiting(external_event(correlation_id=SECRET)))
LARGE = SECRET * 64 * 1024

REFUSED = [
    (
        decided(wake(), RUNNING, authority=Authority.OWNER),
        "This kind is only taken from the control topic.",
    ),
    (
        decided(start(expires_at="2020-01-01T00:00:00Z"), RUNNING),
        "The broker appended the command after its expires_at.",
    ),
    (decided(create(), RUNNING), "A flow with this id exists already."),
    (decided(start(), None), "There is no flow with this id."),
    (
        decided(start(issued_by=STRANGER), RUNNING),
        "Only the flow's owner may send this command.",
    ),
    (
        decided(update({}, expected_revision=7), RUNNING),
        "The flow is not at the expected revision.",
    ),
    (
        decided(start(), given(create(), cancel())),
        "The flow has ended and takes no more changes.",
    ),
    (
        decided(update({}), given(create(), request_cancel())),
        "Cancellation was requested; only a cancel goes on from here.",
    ),
    (decided(resume(), RUNNING), "A flow that is running does not take this command."),
    (decided(prune(), RUNNING), "A flow that is running does not take this command."),
    (decided(resume_external(), WAITING), "The flow waits for something else."),
    (
        decided(wake(), given(create(), start(), set_waiting(timer(NOON + 1)))),
        "The wait is not over yet.",
    ),
    (
        decided(set_waiting(timer(NOON)), RUNNING),
        "The time must lie after the time at which the broker appended the command.",
    ),
    (
        decided(set_waiting(timer(NOON + 10**11)), RUNNING),
        "The time lies further ahead than this deployment allows.",
    ),
    (
        decided(update(LARGE), RUNNING),
        f"state_json would take {len(LARGE) + 2} bytes of at most 262144.",
    ),
    (
        decided(observe(result_json=LARGE), RUNNING),
        f"result_json would take {len(LARGE) + 2} bytes of at most 65536.",
    ),
]


@pytest.mark.parametrize(
    ("decision", "sentence"), REFUSED, ids=[str(decision.code) for decision, _ in REFUSED]
)
def test_a_refusal_is_said_in_one_sentence_without_the_payload(
    decision: Any, sentence: Any
) -> None:
    message = messages.refused(decision.code, decision.details)
    assert message == sentence
    assert SECRET not in message
    assert SECRET not in str(decision.details)


PENDING = FlowHistory().given(create(), start(), schedule_step())
LATER = FlowHistory().given(create(), start(), schedule_step(not_before=instant(NOON + 1)))
STARTED = FlowHistory().given(create(), start(), schedule_step(), start_step())
FULL = FlowHistory(limits=Limits(flow_steps_max=1)).given(create(), start(), observe())
CROWDED = FlowHistory().given(create(), start(), *(schedule_step(str(n)) for n in range(1000)))
HEAVY = FlowHistory().given(
    create(), start(), *(schedule_step(str(n), input_json="x" * 65534) for n in range(64))
)
REFUSED_STEPS = [
    (PENDING, schedule_step(), "The flow has a step with this run_id already."),
    (PENDING, observe("r1"), "The flow has a step with this run_id already."),
    (PENDING, start_step("r2"), "The flow has no managed step with this run_id."),
    (PENDING, extend_step(), "A step that is pending does not take this command."),
    (LATER, wake_step(), "The step is not due yet."),
    (STARTED, extend_step(attempt=2), "The sender does not hold the step in this attempt."),
    (FULL, observe("run-2"), "The flow has as many steps as it may have, 1."),
    (FULL, schedule_step(), "The flow has as many steps as it may have, 1."),
    (
        CROWDED,
        schedule_step(),
        "The flow has as many steps that have not ended as it may have, 1000.",
    ),
    (
        HEAVY,
        schedule_step(),
        "The inputs of the flow's live steps would take 4194308 bytes of at most 4194304.",
    ),
    (
        PENDING,
        schedule_step("r2", not_before=instant(NOON + 10**11)),
        "The time lies further ahead than this deployment allows.",
    ),
    (
        PENDING,
        set_waiting({**manual(), "prompt": "x" * 16383}),
        "The prompt takes 16385 bytes of at most 16384.",
    ),
    (
        PENDING,
        set_waiting(steps("r2")),
        "The join names a step that is not a managed one of the flow.",
    ),
]


@pytest.mark.parametrize(
    ("history", "command", "sentence"),
    REFUSED_STEPS,
    ids=[f"{number} {command.kind}" for number, (_, command, _) in enumerate(REFUSED_STEPS)],
)
def test_so_is_a_refusal_that_is_about_steps(history: Any, command: Any, sentence: Any) -> None:
    _, code, details, _ = history.decide(command)
    assert messages.refused(code, details, command.kind) == sentence


def test_every_code_of_the_domain_is_among_them() -> None:
    decided_by_domain = set(Code) - {
        Code.TOO_LARGE,
        Code.MALFORMED,
        Code.UNSUPPORTED_VERSION,
        Code.INVALID_COMMAND,
        Code.INVALID_KEY,
        Code.IDEMPOTENCY_CONFLICT,
        Code.INTERNAL_ERROR,
    }
    of_steps = {history.decide(command).code for history, command, _ in REFUSED_STEPS}
    assert {decision.code for decision, _ in REFUSED} | of_steps == decided_by_domain


@pytest.mark.parametrize("code", list(Code))
def test_every_code_has_a_sentence(code: Any) -> None:
    names = ("problem", "from", "field", "size_bytes", "limit_bytes", "limit")
    sentence = messages.refused(code, dict.fromkeys(names, "x"))
    assert sentence[0] in string.ascii_uppercase + "x"
    assert sentence.endswith(".")


def test_every_kind_that_is_accepted_has_a_sentence() -> None:
    assert messages.ACCEPTED.keys() == set(CommandKind)
    assert all(sentence.endswith(".") for sentence in messages.ACCEPTED.values())
