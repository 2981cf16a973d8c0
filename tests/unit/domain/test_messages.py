"""One sentence for each outcome, with the details that are really given."""

import string

import pytest

from processor.contract import Code, CommandKind
from processor.domain import messages
from processor.domain.transitions import Authority
from tests.support.builders import (
    NOON,
    STRANGER,
    cancel,
    create,
    decided,
    external_event,
    given,
    observe,
    prune,
    request_cancel,
    resume,
    resume_external,
    set_waiting,
    start,
    timer,
    update,
    wake,
)

SECRET = "hunter2"
RUNNING = given(create(), start())
WAITING = given(create(), start(), set_waiting(external_event(correlation_id=SECRET)))
LARGE = SECRET * 64 * 1024
OWNER = {"authority": Authority.OWNER}

REFUSED = [
    (decided(wake(), RUNNING, **OWNER), "This kind is only taken from the control topic."),
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
def test_a_refusal_is_said_in_one_sentence_without_the_payload(decision, sentence):
    message = messages.refused(decision.code, decision.details)
    assert message == sentence
    assert SECRET not in message
    assert SECRET not in str(decision.details)


def test_every_code_of_the_domain_is_among_them():
    decided_by_domain = set(Code) - {
        Code.TOO_LARGE,
        Code.MALFORMED,
        Code.UNSUPPORTED_VERSION,
        Code.INVALID_COMMAND,
        Code.INVALID_KEY,
        Code.IDEMPOTENCY_CONFLICT,
        Code.INTERNAL_ERROR,
    }
    assert {decision.code for decision, _ in REFUSED} == decided_by_domain


@pytest.mark.parametrize("code", list(Code))
def test_every_code_has_a_sentence(code):
    names = ("problem", "from", "field", "size_bytes", "limit_bytes")
    sentence = messages.refused(code, dict.fromkeys(names, "x"))
    assert sentence[0] in string.ascii_uppercase + "x"
    assert sentence.endswith(".")


def test_every_kind_that_is_accepted_has_a_sentence():
    assert messages.ACCEPTED.keys() == set(CommandKind)
    assert all(sentence.endswith(".") for sentence in messages.ACCEPTED.values())
