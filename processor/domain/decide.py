"""Decide a command: checks 8 to 17 of the contract in their order, then the facts that follow."""

from typing import assert_never

from processor.contract.commands import (
    Command,
    CommandKind,
    CreateManaged,
    CreateMirrored,
    RecordStepObservation,
    SetWaiting,
)
from processor.contract.events import EventKind
from processor.contract.flow import FlowStatus
from processor.contract.outcomes import Code
from processor.contract.values import (
    PROMPT_MAX_BYTES,
    RESULT_MAX_BYTES,
    STATE_MAX_BYTES,
    instant,
    parse_timestamp,
)
from processor.domain.decide_steps import (
    cancelled_with_flow,
    decide_step,
    resumed_by_steps,
    step_exists,
    step_id,
    too_many_steps,
)
from processor.domain.decision import (
    ACCEPTED_AS_IS,
    DEFAULT_LIMITS,
    Decision,
    Limits,
    changed,
    happened,
    oversize,
    rejected,
    size_bytes,
    time_problem,
)
from processor.domain.evolve import (
    CANCEL_REQUESTED,
    CANCELLED,
    FAILED,
    FINISHED,
    RESUMED,
    STARTED,
    STATE_UPDATED,
    WAITING,
)
from processor.domain.facts import Fact
from processor.domain.flow import Flow
from processor.domain.steps import NO_STEPS, FlowSteps
from processor.domain.transitions import (
    GONE,
    OWNER,
    RULES,
    TERMINAL,
    Authority,
    destination,
)
from processor.domain.waits import join_holds


def decide(
    command: Command,
    flow: Flow | None,
    at_ms: int,
    *,
    authority: Authority = Authority.OWNER,
    steps: FlowSteps = NO_STEPS,
    limits: Limits = DEFAULT_LIMITS,
) -> Decision:
    """Decide what `command`, appended by the broker at `at_ms`, does to `flow` (None: unknown).

    `steps` are the flow's steps, as far as the command needs them. A dry run is decided like any
    other: what to do with the facts is the caller's.
    """
    rules = RULES[command.kind]
    if authority is OWNER and rules.control_only:
        return rejected(Code.FORBIDDEN)
    if command.expires_at is not None and at_ms > parse_timestamp(command.expires_at):
        return rejected(Code.EXPIRED, expires_at=command.expires_at)
    if command.kind == "create_managed" or command.kind == "create_mirrored":
        return _decide_create(command, flow, at_ms, authority)
    if flow is None:
        return rejected(Code.NOT_FOUND)
    if authority is OWNER and command.issued_by != flow.owner_session_key and not rules.open_to_all:
        return rejected(Code.NOT_OWNER)
    expected = command.expected_revision
    if expected is not None and expected != flow.revision:
        return rejected(Code.REVISION_MISMATCH, expected=expected, actual=flow.revision)
    code = rules.refusals[flow.cancel_requested, flow.status._value_]
    if code is not None:
        if code is not Code.ILLEGAL_TRANSITION:
            return rejected(code)
        kind = rules.kind
        to = GONE if kind is CommandKind.PRUNE else destination(kind, flow.status, False)
        return rejected(code, **{"from": str(flow.status), "to": to and str(to)})
    return _follow(command, flow, at_ms, authority, steps, limits)


def _decide_create(
    command: CreateManaged | CreateMirrored, flow: Flow | None, at_ms: int, authority: Authority
) -> Decision:
    if flow is not None:
        return rejected(Code.ALREADY_EXISTS)
    owner = command.owner_session_key or command.issued_by
    if authority is OWNER and owner != command.issued_by:
        return rejected(Code.NOT_OWNER)
    if command.expected_revision is not None:
        return rejected(Code.REVISION_MISMATCH, expected=command.expected_revision, actual=None)
    at = instant(at_ms)
    state = {} if command.state_json is None else command.state_json
    payload = {
        "controller_id": command.controller_id,
        "goal": command.goal,
        "owner_session_key": owner,
        "requester_origin": command.requester_origin,
        "current_step": command.current_step or "init",
        "state_json": state,
    }
    if (too_large := oversize(state, STATE_MAX_BYTES, "state_json")) is not None:
        return too_large
    created = Fact(EventKind.CREATED, command.flow_id, at, 0, FlowStatus.CREATED, payload)
    if command.kind == "create_managed":
        return Decision((created,))
    started = Fact(EventKind.STARTED, command.flow_id, at, 1, FlowStatus.RUNNING, {})
    return Decision((created, started))


def _follow(
    command: Command,
    flow: Flow,
    at_ms: int,
    authority: Authority,
    steps: FlowSteps,
    limits: Limits,
) -> Decision:
    """Check what each kind checks of its own: 16 and 17, of steps 15 too. Then what happens."""
    at = instant(at_ms)

    match command.kind:
        case "update_state":
            update = {"patch": command.patch, "next_step": command.next_step}
            return changed(flow, at, STATE_UPDATED, None, update)
        case "start_running":
            return happened(flow, at, STARTED, FlowStatus.RUNNING, {})
        case "set_waiting":
            return _wait(command, flow, at_ms, steps, limits)
        case "resume":
            resume = {"by": "command", "state_patch": command.state_patch}
            return changed(flow, at, RESUMED, FlowStatus.RUNNING, resume)
        case "resume_external":
            wait_json = flow.wait_json
            if (wait_json["kind"], wait_json.get("topic"), wait_json.get("correlation_id")) != (
                "external_event",
                command.topic,
                command.correlation_id,
            ):
                return rejected(Code.WAIT_MISMATCH, waits_for=wait_json["kind"])
            patch = None if command.payload is None else {"resume_event": command.payload}
            resume = {"by": "external_event", "state_patch": patch}
            return changed(flow, at, RESUMED, FlowStatus.RUNNING, resume)
        case "finish":
            final = {"final_state": command.final_state}
            return _with_steps(changed(flow, at, FINISHED, FlowStatus.FINISHED, final), steps)
        case "fail":
            reason = {"reason": command.reason}
            return _with_steps(happened(flow, at, FAILED, FlowStatus.FAILED, reason), steps)
        case "request_cancel":
            if flow.cancel_requested or flow.status in TERMINAL:
                return ACCEPTED_AS_IS
            return happened(flow, at, CANCEL_REQUESTED, None, {})
        case "cancel":
            return _cancelled(flow, at, steps)
        case "wake":
            if flow.cancel_requested:
                return _cancelled(flow, at, steps)
            wait_json = flow.wait_json
            is_timer = wait_json["kind"] == "timer"
            due = wait_json.get("at" if is_timer else "timeout_at")
            if due is None:
                return rejected(Code.WAIT_MISMATCH, waits_for=wait_json["kind"])
            if at_ms < parse_timestamp(due):
                return rejected(Code.NOT_DUE, due=due)
            resume = {"by": "timer" if is_timer else "timeout", "state_patch": None}
            return happened(flow, at, RESUMED, FlowStatus.RUNNING, resume)
        case "record_step_observation":
            return _observe(command, flow, at, steps, limits)
        case (
            "schedule_step"
            | "start_step"
            | "extend_step"
            | "complete_step"
            | "fail_step"
            | "release_step"
            | "cancel_step"
            | "retry_step"
            | "wake_step"
        ):
            return decide_step(command, flow, steps, at_ms, authority=authority, limits=limits)
        case "prune":
            return Decision((Fact(EventKind.PRUNED, flow.id, at, flow.revision, flow.status, {}),))
        case "create_managed" | "create_mirrored":
            raise AssertionError("creates are decided before there is a flow")
        case _:
            assert_never(command)


def _wait(
    command: SetWaiting, flow: Flow, at_ms: int, steps: FlowSteps, limits: Limits
) -> Decision:
    at, wait = instant(at_ms), command.wait
    written = wait.model_dump(exclude_none=True)
    field_name = "at" if wait.kind == "timer" else "timeout_at"
    if (until := written.get(field_name)) is not None:
        problem = time_problem(parse_timestamp(until), at_ms, limits)
        if problem is not None:
            return rejected(Code.INVALID_DATA, field=f"wait.{field_name}", problem=problem)
    if (prompt := written.get("prompt")) is not None and (
        size := size_bytes(prompt)
    ) > PROMPT_MAX_BYTES:
        problem = f"takes {size} bytes of at most {PROMPT_MAX_BYTES}"
        return rejected(Code.INVALID_DATA, field="wait.prompt", problem=problem)
    waiting = happened(flow, at, WAITING, FlowStatus.WAITING, {"wait": written})
    if wait.kind != "steps":
        return waiting
    if not set(wait.run_ids or ()) <= steps.listed.keys():
        problem = "names a step that is not a managed one of the flow"
        return rejected(Code.INVALID_DATA, field="wait.run_ids", problem=problem)
    if not join_holds(written, steps.totals, steps.listed):
        return waiting
    (fact,) = waiting.facts
    return Decision((fact, resumed_by_steps(flow.id, at, fact.revision + 1)))


def _cancelled(flow: Flow, at: str, steps: FlowSteps) -> Decision:
    decision = happened(flow, at, CANCELLED, FlowStatus.CANCELLED, {})
    return _with_steps(decision, steps)


def _with_steps(end: Decision, steps: FlowSteps) -> Decision:
    """The end of a flow, followed by that of its live steps."""
    if not steps.live or end.code is not None:
        return end
    (fact,) = end.facts
    return end._replace(facts=(fact, *(cancelled_with_flow(step, fact) for step in steps.live)))


def _observe(
    command: RecordStepObservation, flow: Flow, at: str, steps: FlowSteps, limits: Limits
) -> Decision:
    step = steps.named
    if step is not None and step.runtime == "managed":
        return step_exists(step)
    if (too_large := oversize(command.result_json, RESULT_MAX_BYTES, "result_json")) is not None:
        return too_large
    if step is None and (too_many := too_many_steps(steps.totals, limits)) is not None:
        return too_many
    child = command.child_session_key
    written = {
        "id": step.id if step else step_id(flow.id, command.run_id),
        "flow_id": flow.id,
        "runtime": "mirrored",
        "child_session_key": step.child_session_key if child is None and step else child,
        "run_id": command.run_id,
        "task": command.task,
        "status": str(command.status),
        "result_json": command.result_json,
        "created_at": step.created_at if step else at,
        "updated_at": at,
    }
    fact = Fact(EventKind.STEP_OBSERVED, flow.id, at, flow.revision, flow.status, {"step": written})
    return Decision((fact,))
