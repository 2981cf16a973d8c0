"""What holds for every flow, whatever is sent to it."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import orjson
from hypothesis import given

from processor.contract import CONTROL_ONLY, Code, Command, FlowStatus
from processor.domain import messages
from processor.domain.decide import decide
from processor.domain.decision import Decision
from processor.domain.evolve import STEP_KINDS, evolve
from processor.domain.flow import Flow
from processor.domain.step import Step
from processor.domain.transitions import CREATES, STEP_COMMANDS, TERMINAL, Authority, allowed
from processor.engine.codec import fact_of
from processor.engine.encoding import encode
from tests.support.flow_history import FlowHistory
from tests.support.strategies import Sent, lives, sent_commands

Steps = dict[str, Step]


class Moment(NamedTuple):
    """One decision in the life of a flow, with its steps before and after."""

    before: Flow | None
    command: Command
    authority: Authority
    at_ms: int
    decision: Decision
    after: Flow | None
    steps_before: Steps
    steps: Steps


def life_of(history: list[Sent]) -> Iterator[Moment]:
    """Decide `history` one by one, as a partition does."""
    life = FlowHistory()
    for command, at_ms, authority in history:
        before, steps_before = life.flow, dict(life.steps)
        decision = life.send(command, at=at_ms, authority=authority)
        steps = dict(life.steps)
        yield Moment(before, command, authority, at_ms, decision, life.flow, steps_before, steps)


@given(lives())
def test_folding_the_events_gives_the_flow_and_the_steps_that_were_decided(
    history: list[Sent],
) -> None:
    moments = list(life_of(history))
    folded = FlowHistory()
    for fact in [fact for moment in moments for fact in moment.decision.facts]:
        event = orjson.loads(encode({**fact._asdict(), "payload_json": fact.payload}))
        folded.fold([fact_of(event)])
    assert folded.flow == (moments[-1].after if moments else None)
    assert folded.steps == (moments[-1].steps if moments else {})


@given(lives())
def test_a_refusal_says_why_and_has_no_facts(history: list[Sent]) -> None:
    for moment in life_of(history):
        decision = moment.decision
        if decision.code is not None:
            assert decision.facts == ()
            kind = moment.command.kind
            assert messages.refused(decision.code, decision.details, kind).endswith(".")
            assert moment.after is moment.before


@given(lives())
def test_nothing_leads_past_a_terminal_status(history: list[Sent]) -> None:
    for before, *_, after, _, _ in life_of(history):
        if before is not None and before.status in TERMINAL:
            assert after is None or after == before


@given(lives())
def test_the_revision_grows_by_one_with_each_change_and_by_nothing_else(
    history: list[Sent],
) -> None:
    for before, command, *_, decision, after, _, _ in life_of(history):
        if before is None:
            if after is not None:
                assert after.revision == (1 if command.kind == "create_mirrored" else 0)
        elif after is not None:
            changes = sum(f.kind not in STEP_KINDS for f in decision.facts)
            assert after.revision == before.revision + changes
            assert (after != before) == (changes > 0)


@given(lives())
def test_each_fact_carries_the_revision_and_status_that_follow_from_it(history: list[Sent]) -> None:
    for before, *_, decision, _, _, _ in life_of(history):
        flow = before
        for fact in decision.facts:
            after = evolve(flow, fact)
            stands = flow if after is None else after
            assert stands is not None
            assert (fact.revision, fact.status) == (stands.revision, stands.status)
            flow = after


@given(lives())
def test_a_flow_waits_for_something_exactly_while_it_is_waiting(history: list[Sent]) -> None:
    for *_, after, _, _ in life_of(history):
        if after is not None:
            assert (after.wait_json is not None) == (after.status is FlowStatus.WAITING)


@given(lives())
def test_a_request_to_cancel_is_never_forgotten(history: list[Sent]) -> None:
    for before, *_, after, _, _ in life_of(history):
        if before is not None and after is not None and before.cancel_requested:
            assert after.cancel_requested


@given(lives())
def test_times_are_append_times_and_creation_is_never_rewritten(history: list[Sent]) -> None:
    for before, *_, after, _, _ in life_of(history):
        if before is not None and after is not None:
            assert after.created_at == before.created_at
            assert (after.updated_at == before.updated_at) or after.revision > before.revision


@given(lives(), sent_commands())
def test_what_is_allowed_is_never_refused_for_the_status_and_vice_versa(
    history: list[Sent], sent: Any
) -> None:
    flow: Flow | None = None
    for moment in life_of(history):
        flow = moment.after
    command, at_ms, authority = sent
    # Nothing before check 13 is to decide.
    command = command.model_copy(update={"expected_revision": None, "expires_at": None})
    if flow is None or command.kind in CREATES | STEP_COMMANDS:
        return
    if authority is Authority.OWNER:
        if command.kind in CONTROL_ONLY:
            assert command.kind not in allowed(flow, authority)
            return
        command = command.model_copy(update={"issued_by": flow.owner_session_key})
    code = decide(command, flow, at_ms, authority=authority).code
    refused_for_its_status = code in {
        Code.ALREADY_TERMINAL,
        Code.CANCEL_PENDING,
        Code.ILLEGAL_TRANSITION,
    }
    assert (command.kind in allowed(flow, authority)) is not refused_for_its_status


@given(lives())
def test_deciding_is_a_function_of_what_it_is_given(history: list[Sent]) -> None:
    once = [moment.decision for moment in life_of(history)]
    assert once == [moment.decision for moment in life_of(history)]
