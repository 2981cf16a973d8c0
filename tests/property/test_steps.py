"""What holds for every managed step, whatever is sent to its flow."""

from typing import Any

import orjson
from hypothesis import given

from processor.contract import EventKind, FlowStatus
from processor.contract.commands import CompleteStep, ExtendStep, FailStep, ReleaseStep
from processor.contract.steps import LIVE
from processor.domain.evolve import STEP_KINDS, evolve_step
from processor.domain.facts import Fact
from processor.domain.step import ManagedStep, Step
from processor.domain.steps import NO_TOTALS, run_id_of
from processor.domain.transitions import OWNER, TERMINAL
from processor.engine.encoding import step_doc
from tests.property.test_domain import life_of
from tests.support.flow_history import FlowHistory
from tests.support.reference_steps import join_is_over
from tests.support.strategies import lives, step_lives

ENDS = {EventKind.STEP_SUCCEEDED, EventKind.STEP_FAILED, EventKind.STEP_CANCELLED}


OfAnAttempt = ExtendStep | CompleteStep | FailStep | ReleaseStep


def changes_of(moment: Any) -> list[tuple[Fact, Step | None, Step]]:
    """Each fact about a step, with the step before and after it."""
    steps, found = dict(moment.steps_before), []
    for fact in moment.decision.facts:
        if fact.kind in STEP_KINDS:
            was = steps.get(run_id_of(fact))
            steps[run_id_of(fact)] = now = evolve_step(was, fact)
            found.append((fact, was, now))
    return found


def managed(steps: dict[str, Step]) -> list[ManagedStep]:
    return [step for step in steps.values() if isinstance(step, ManagedStep)]


@given(lives() | step_lives())
def test_what_is_counted_of_the_steps_is_what_there_is(history: Any) -> None:
    totals = NO_TOTALS
    for moment in life_of(history):
        for _, was, now in changes_of(moment):
            totals = totals.after(was, now)
        if any(fact.kind is EventKind.PRUNED for fact in moment.decision.facts):
            totals = NO_TOTALS
        assert totals == FlowHistory(moment.after, moment.steps).totals


@given(lives() | step_lives())
def test_only_the_holder_of_an_attempt_records_what_came_of_it(history: Any) -> None:
    for moment in life_of(history):
        command = moment.command
        if not isinstance(command, OfAnAttempt) or moment.authority is not OWNER:
            continue
        for _, was, _ in changes_of(moment):
            assert isinstance(was, ManagedStep)
            assert command.issued_by == was.child_session_key
            assert command.attempt == was.execution.attempt


@given(lives() | step_lives())
def test_a_step_that_has_ended_is_only_tried_again_by_command(history: Any) -> None:
    for moment in life_of(history):
        for fact, was, _ in changes_of(moment):
            if isinstance(was, ManagedStep) and was.status not in LIVE:
                assert (fact.kind, moment.command.kind) == (EventKind.STEP_RETRIED, "retry_step")


@given(lives() | step_lives())
def test_an_attempt_begins_with_a_start_and_with_nothing_else(history: Any) -> None:
    for moment in life_of(history):
        for fact, was, now in changes_of(moment):
            if isinstance(was, ManagedStep) and isinstance(now, ManagedStep):
                begun = fact.kind is EventKind.STEP_STARTED
                assert now.execution.attempt == was.execution.attempt + begun
                assert now.execution.max_attempts >= was.execution.max_attempts
                assert not begun or was.status == "pending"


@given(lives() | step_lives())
def test_a_live_step_is_looked_at_by_its_timeout_and_an_ended_one_never(history: Any) -> None:
    for moment in life_of(history):
        for step in managed(moment.steps):
            execution = step.execution
            assert (execution.due_at is None) == (step.status not in LIVE)
            if execution.due_at is not None and execution.timeout_at is not None:
                assert execution.due_at <= execution.timeout_at
            if step.status == "running":
                assert execution.offers == 0
                assert step.child_session_key is not None


@given(lives() | step_lives())
def test_no_step_outlives_its_flow_and_none_ends_with_it_out_of_order(history: Any) -> None:
    for moment in life_of(history):
        if moment.after is not None and moment.after.status in TERMINAL:
            assert not [step for step in managed(moment.steps) if step.status in LIVE]
        ended = [run_id_of(f) for f in moment.decision.facts if f.payload.get("by") == "flow"]
        assert ended == sorted(ended, key=str.encode)


@given(lives() | step_lives())
def test_a_join_waits_exactly_until_it_holds(history: Any) -> None:
    for moment in life_of(history):
        facts, flow = moment.decision.facts, moment.after
        steps = {run_id: orjson.loads(step_doc(step)) for run_id, step in moment.steps.items()}
        if any(fact.payload.get("by") == "steps" for fact in facts):
            assert moment.before is not None
            wait = moment.before.wait_json or facts[0].payload["wait"]
            assert join_is_over(wait, steps)
            assert not moment.before.cancel_requested
        elif flow is not None and flow.status is FlowStatus.WAITING and not flow.cancel_requested:
            wait = flow.wait_json
            assert wait["kind"] != "steps" or not join_is_over(wait, steps)


@given(lives() | step_lives())
def test_a_step_moves_neither_revision_nor_time_of_its_flow(history: Any) -> None:
    for moment in life_of(history):
        facts = moment.decision.facts
        if facts and all(fact.kind in STEP_KINDS for fact in facts):
            assert moment.after == moment.before
