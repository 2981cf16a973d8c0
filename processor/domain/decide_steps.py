"""Checks 15 to 17 of the contract for commands about managed steps, and the facts that follow."""

from collections.abc import Callable
from functools import partial
from hashlib import sha1
from typing import Any, Final, NamedTuple, assert_never, cast

from processor.contract.commands import (
    ExtendStep,
    FailStep,
    HeldStep,
    RetryStep,
    ScheduleStep,
    StartStep,
    StepCommand,
)
from processor.contract.events import EventKind
from processor.contract.outcomes import Code
from processor.contract.steps import StepStatus
from processor.contract.values import (
    INPUT_MAX_BYTES,
    LIVE_INPUTS_MAX_BYTES,
    LIVE_STEPS_MAX,
    PROGRESS_MAX_BYTES,
    RESULT_MAX_BYTES,
    instant,
    parse_timestamp,
)
from processor.domain import executions
from processor.domain.decision import (
    NO_DETAILS,
    Decision,
    Limits,
    horizon_problem,
    new_decision,
    over_limit,
    oversize,
    rejected,
    size_bytes,
    time_problem,
)
from processor.domain.evolve import evolve_step, failure
from processor.domain.facts import Fact, new_fact
from processor.domain.flow import Flow
from processor.domain.step import Execution, ManagedStep, Step
from processor.domain.steps import FlowSteps, StepTotals, execution_doc, input_bytes
from processor.domain.transitions import OWNER, RUNNING, STEP_MOVES, WAITING, Authority
from processor.domain.waits import join_holds

LEASE_EXPIRED: Final = "lease expired"
TIMEOUT: Final = "timeout"


class _Subject(NamedTuple):
    """The managed step that a command names, its flow, and the command's append time."""

    flow: Flow
    steps: FlowSteps
    step: ManagedStep
    at_ms: int

    @property
    def execution(self) -> Execution:
        return self.step.execution

    def fact(self, kind: EventKind, execution: Execution, **changes: Any) -> Fact:
        """The step's execution becomes `execution`, and other fields what `changes` says."""
        flow, _, step, at_ms = self
        at = changes["updated_at"] = instant(at_ms)
        changes["execution"] = execution_doc(execution)
        payload = {"run_id": step.run_id, "changes": changes}
        return new_fact((kind, flow.id, at, flow.revision, flow.status, payload))


# As rows.new_flow_row.
_new_subject: Final[Callable[[tuple[Flow, FlowSteps, ManagedStep, int]], _Subject]] = partial(
    tuple.__new__, _Subject
)


def decide_step(
    command: StepCommand,
    flow: Flow,
    steps: FlowSteps,
    at_ms: int,
    *,
    authority: Authority,
    limits: Limits,
) -> Decision:
    """Decide what `command` does to the step that it names, once `flow` lets it pass."""
    step = steps.named
    if command.kind == "schedule_step":
        if step is not None:
            return step_exists(step)
        return _schedule(command, flow, steps.totals, at_ms, limits)
    if step is None or step.runtime != "managed":
        return rejected(Code.STEP_NOT_FOUND)
    move = STEP_MOVES[command.kind]
    if step.status not in move.origins:
        to = move.to and str(move.to)
        return rejected(Code.ILLEGAL_TRANSITION, **{"from": str(step.status), "to": to})
    subject = _new_subject((flow, steps, step, at_ms))
    if move.held and not _is_held(cast(HeldStep, command), step, authority):
        attempt, due_at = step.execution.attempt, step.execution.due_at
        return rejected(Code.NOT_HOLDER, attempt=attempt, due_at=due_at)
    match command.kind:
        case "start_step":
            return _start(command, subject)
        case "extend_step":
            return _extend(command, subject)
        case "complete_step":
            result = command.result_json
            if (too_large := oversize(result, RESULT_MAX_BYTES, "result_json")) is not None:
                return too_large
            fact = subject.fact(
                EventKind.STEP_SUCCEEDED,
                executions.ended(step.execution),
                status="succeeded",
                result_json=result,
            )
            return _with_join(subject, fact)
        case "fail_step":
            return _fail(command, subject)
        case "release_step":
            execution = step.execution.changed({"max_attempts": step.execution.max_attempts + 1})
            offered = executions.offered(execution, at_ms, offers=1)
            fact = subject.fact(
                EventKind.STEP_RELEASED, offered, status="pending", child_session_key=None
            )
            return Decision((fact,))
        case "cancel_step":
            return _cancelled(subject, by="command")
        case "retry_step":
            return _retry(command, subject)
        case "wake_step":
            return _wake(subject)
        case _:
            assert_never(command)


def _is_held(command: HeldStep, step: ManagedStep, authority: Authority) -> bool:
    """Whether the sender may speak for the attempt that it names."""
    return command.attempt == step.execution.attempt and (
        authority is not OWNER or command.issued_by == step.child_session_key
    )


# -- The kinds --


def _schedule(
    command: ScheduleStep, flow: Flow, totals: StepTotals, at_ms: int, limits: Limits
) -> Decision:
    not_before_ms = None if command.not_before is None else parse_timestamp(command.not_before)
    if command.timeout_at is not None:
        problem = time_problem(parse_timestamp(command.timeout_at), at_ms, limits)
        if problem is not None:
            return rejected(Code.INVALID_DATA, field="timeout_at", problem=problem)
    if not_before_ms is not None:
        problem = horizon_problem(not_before_ms, at_ms, limits)
        if problem is not None:
            return rejected(Code.INVALID_DATA, field="not_before", problem=problem)
    size = size_bytes(command.input_json)
    refused = (
        over_limit(size, INPUT_MAX_BYTES, "input_json")
        or _no_room_for_input(size, totals)
        or _too_many_live(totals)
        or too_many_steps(totals, limits)
    )
    if refused is not None:
        return refused
    execution = Execution.of(
        {
            "attempt": 0,
            "max_attempts": command.max_attempts or 3,
            "lease_ms": command.lease_ms or 300_000,
            "backoff_ms": 1_000 if command.backoff_ms is None else command.backoff_ms,
            "offers": 0,
            "due_at": None,
            "timeout_at": command.timeout_at,
            "progress": None,
            "last_failure": None,
        }
    )
    if not_before_ms is not None and not_before_ms > at_ms:
        execution = executions.delayed(execution, not_before_ms)
    else:
        execution = executions.offered(execution, at_ms, offers=1)
    at = instant(at_ms)
    step = {
        "id": step_id(flow.id, command.run_id),
        "flow_id": flow.id,
        "runtime": "managed",
        "child_session_key": None,
        "run_id": command.run_id,
        "task": command.task,
        "status": "pending",
        "result_json": None,
        "created_at": at,
        "updated_at": at,
        "input_json": command.input_json,
        "execution": execution_doc(execution),
    }
    scheduled = (EventKind.STEP_SCHEDULED, flow.id, at, flow.revision, flow.status, {"step": step})
    return new_decision(((new_fact(scheduled),), None, NO_DETAILS, flow))


def _start(command: StartStep, subject: _Subject) -> Decision:
    execution, at_ms = subject.execution, subject.at_ms
    if execution.offers == 0 and at_ms < executions.due_ms(execution):
        return rejected(Code.NOT_DUE, due=execution.due_at)
    attempt = execution.attempt + 1
    leased = executions.leased(execution, at_ms, attempt=attempt)
    fact = subject.fact(
        EventKind.STEP_STARTED, leased, status="running", child_session_key=command.issued_by
    )
    details = {"attempt": attempt, "due_at": leased.due_at}
    return new_decision(((fact,), None, details, subject.flow))


def _extend(command: ExtendStep, subject: _Subject) -> Decision:
    execution, progress = subject.execution, command.progress_json
    too_large = oversize(progress, PROGRESS_MAX_BYTES, "progress_json")
    if too_large is not None:
        return too_large
    extended = executions.leased(execution, subject.at_ms, attempt=execution.attempt)
    if progress is not None:
        extended = extended.changed({"progress": progress})
    elif (
        2 * (executions.due_ms(execution) - subject.at_ms) > execution.lease_ms
        or extended.due_at == execution.due_at
    ):
        extended = execution
    details = {
        "attempt": extended.attempt,
        "due_at": extended.due_at,
        "cancel_requested": subject.flow.cancel_requested,
    }
    if extended is execution:
        return Decision(details=details)
    return Decision((subject.fact(EventKind.STEP_EXTENDED, extended),), None, details)


def _fail(command: FailStep, subject: _Subject) -> Decision:
    if command.retry is False:
        return _failed(subject, command.reason)
    delay_ms = command.retry_after_ms
    if delay_ms is None:
        delay_ms = executions.backoff_ms(subject.step)
    return _try_again(subject, command.reason, delay_ms, holder=None)


def _retry(command: RetryStep, subject: _Subject) -> Decision:
    step, totals = subject.step, subject.steps.totals
    if step.status is not StepStatus.PENDING:
        size = input_bytes(step)
        refused = _no_room_for_input(size, totals) or _too_many_live(totals)
        if refused is not None:
            return refused
    execution = step.execution
    attempts = execution.attempt + (command.attempts or 1)
    execution = execution.changed(
        {"max_attempts": max(execution.max_attempts, attempts), "timeout_at": None}
    )
    offered = executions.offered(execution, subject.at_ms, offers=1)
    return Decision((_retried(subject, offered, reason=None, holder=None),))


def _wake(subject: _Subject) -> Decision:
    step, at_ms = subject.step, subject.at_ms
    execution = step.execution
    if at_ms < executions.due_ms(execution):
        return rejected(Code.NOT_DUE, due=execution.due_at)
    if executions.timed_out(execution, at_ms):
        return _failed(subject, TIMEOUT)
    if step.status is StepStatus.RUNNING:
        delay_ms = executions.backoff_ms(step)
        return _try_again(subject, LEASE_EXPIRED, delay_ms, holder=step.child_session_key)
    if subject.flow.cancel_requested:
        return _cancelled(subject, by="flow")
    offered = executions.offered(execution, at_ms, offers=execution.offers + 1)
    return Decision((subject.fact(EventKind.STEP_DISPATCHED, offered),))


# -- What they lead to --


def _try_again(subject: _Subject, reason: str, delay_ms: int, *, holder: str | None) -> Decision:
    """After `delay_ms`, unless the attempts are used up or a cancel is pending."""
    at_ms = subject.at_ms
    execution = executions.failed(subject.execution, reason, at_ms)
    if subject.flow.cancel_requested or execution.attempt >= execution.max_attempts:
        return _failed(subject, reason)
    if delay_ms:
        execution = executions.delayed(execution, at_ms + delay_ms)
    else:
        execution = executions.offered(execution, at_ms, offers=1)
    return Decision((_retried(subject, execution, reason=reason, holder=holder),))


def _retried(
    subject: _Subject, execution: Execution, *, reason: str | None, holder: str | None
) -> Fact:
    fact = subject.fact(
        EventKind.STEP_RETRIED,
        execution,
        status="pending",
        child_session_key=holder,
        result_json=None,
    )
    fact.payload["reason"] = reason
    return fact


def _failed(subject: _Subject, reason: str) -> Decision:
    execution = executions.failed(subject.execution, reason, subject.at_ms)
    fact = subject.fact(
        EventKind.STEP_FAILED,
        executions.ended(execution),
        status="failed",
        result_json=failure(reason, instant(subject.at_ms)),
    )
    fact.payload["reason"] = reason
    return _with_join(subject, fact)


def _cancelled(subject: _Subject, *, by: str) -> Decision:
    execution = executions.ended(subject.execution)
    fact = subject.fact(EventKind.STEP_CANCELLED, execution, status="cancelled")
    fact.payload["by"] = by
    return _with_join(subject, fact)


def _with_join(subject: _Subject, end: Fact) -> Decision:
    """The end of the step, followed by that of the join that it makes hold."""
    flow, steps, step, _ = subject
    if flow.status is not WAITING or flow.cancel_requested or flow.wait_json["kind"] != "steps":
        return new_decision(((end,), None, NO_DETAILS, flow))
    after = evolve_step(step, end)
    listed = {**steps.listed, step.run_id: after.status}
    if not join_holds(flow.wait_json, steps.totals.after(step, after), listed):
        return Decision((end,))
    return Decision((end, resumed_by_steps(flow.id, end.at, flow.revision + 1)))


def resumed_by_steps(flow_id: str, at: str, revision: int) -> Fact:
    """The end of a join."""
    payload = {"by": "steps", "state_patch": None}
    return Fact(EventKind.RESUMED, flow_id, at, revision, RUNNING, payload)


def cancelled_with_flow(step: ManagedStep, end: Fact) -> Fact:
    """The end of a live step, which the `end` of its flow brings."""
    changes = {
        "status": "cancelled",
        "updated_at": end.at,
        "execution": execution_doc(executions.ended(step.execution)),
    }
    payload = {"run_id": step.run_id, "changes": changes, "by": "flow"}
    return end._replace(kind=EventKind.STEP_CANCELLED, payload=payload)


# -- Checks that others share --


def step_exists(step: Step) -> Decision:
    """Check 15 of a run id that is taken."""
    status = str(step.status)
    return rejected(Code.STEP_EXISTS, runtime=step.runtime, task=step.task, status=status)


def too_many_steps(totals: StepTotals, limits: Limits) -> Decision | None:
    """Check 17 of one more step of any kind."""
    if totals.steps < limits.flow_steps_max:
        return None
    return rejected(Code.TOO_MANY_STEPS, field="steps", limit=limits.flow_steps_max)


def _too_many_live(totals: StepTotals) -> Decision | None:
    if totals.live < LIVE_STEPS_MAX:
        return None
    return rejected(Code.TOO_MANY_STEPS, field="live_steps", limit=LIVE_STEPS_MAX)


def _no_room_for_input(size: int, totals: StepTotals) -> Decision | None:
    return over_limit(totals.live_bytes + size, LIVE_INPUTS_MAX_BYTES, "live_inputs")


def step_id(flow_id: str, run_id: str) -> str:
    """UUIDv5 of the run id in the namespace of the flow's id (RFC 9562)."""
    # `uuid.uuid5`, without the objects in between: that takes three times as long.
    digest = sha1(bytes.fromhex(flow_id.replace("-", "")) + run_id.encode()).hexdigest()
    variant = "89ab"[int(digest[16], 16) & 3]
    return f"{digest[:8]}-{digest[8:12]}-5{digest[13:16]}-{variant}{digest[17:20]}-{digest[20:32]}"
