"""Decide a command: checks 8 to 17 of the contract in their order, then the facts that follow."""

import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, Final, NamedTuple, assert_never

import orjson

from processor.contract.commands import (
    CONTROL_ONLY,
    Command,
    CommandKind,
    CreateManaged,
    CreateMirrored,
    RecordStepObservation,
)
from processor.contract.events import EventKind
from processor.contract.flow import Flow, FlowStatus, FlowStep
from processor.contract.outcomes import Code
from processor.contract.values import RESULT_MAX_BYTES, STATE_MAX_BYTES, instant, parse_timestamp
from processor.domain import evolve
from processor.domain.evolve import STATE_UPDATED
from processor.domain.facts import Fact, new_fact
from processor.domain.transitions import (
    GONE,
    OPEN_TO_ALL,
    OWNER,
    TERMINAL,
    Authority,
    destination,
    refusal,
)

DAY_MS: Final = 86_400_000
KINDS_BY_NAME: Final[Mapping[str, CommandKind]] = MappingProxyType(
    {str(kind): kind for kind in CommandKind}
)


@dataclass(frozen=True, slots=True)
class Limits:
    """What a deployment may set. Times in milliseconds of the broker's clock."""

    timer_max_horizon_ms: int = 30 * DAY_MS


DEFAULT_LIMITS: Final = Limits()


NO_DETAILS: Final[dict[str, Any]] = {}
"""Never changed; a proxy would cost as much again."""


class Decision(NamedTuple):
    """Accepted with its facts, in order, or refused with a code and its details."""

    facts: tuple[Fact, ...] = ()
    code: Code | None = None
    details: dict[str, Any] = NO_DETAILS

    @property
    def accepted(self) -> bool:
        return self.code is None


# As rows.new_flow_row.
_accepted: Final[Callable[[tuple[tuple[Fact, ...], None, dict[str, Any]]], Decision]] = partial(
    tuple.__new__, Decision
)
ACCEPTED_AS_IS: Final = Decision()
"""Accepted, and nothing happened."""


def rejected(code: Code, **details: Any) -> Decision:
    return Decision(code=code, details=details)


def decide(
    command: Command,
    flow: Flow | None,
    at_ms: int,
    *,
    authority: Authority = Authority.OWNER,
    step: FlowStep | None = None,
    limits: Limits = DEFAULT_LIMITS,
) -> Decision:
    """What `command`, appended by the broker at `at_ms`, does to `flow` (None: unknown).

    `step` is the step that a `record_step_observation` names, if the flow has it. A dry run is
    decided like any other: what to do with the facts is the caller's.
    """
    kind = KINDS_BY_NAME[command.kind]
    if authority is OWNER and kind in CONTROL_ONLY:
        return rejected(Code.FORBIDDEN)
    if command.expires_at is not None and at_ms > parse_timestamp(command.expires_at):
        return rejected(Code.EXPIRED, expires_at=command.expires_at)
    if command.kind == "create_managed" or command.kind == "create_mirrored":
        return _decide_create(command, flow, at_ms, authority)
    if flow is None:
        return rejected(Code.NOT_FOUND)
    if (
        authority is OWNER
        and command.issued_by != flow.owner_session_key
        and kind not in OPEN_TO_ALL
    ):
        return rejected(Code.NOT_OWNER)
    expected = command.expected_revision
    if expected is not None and expected != flow.revision:
        return rejected(Code.REVISION_MISMATCH, expected=expected, actual=flow.revision)
    if (code := refusal(kind, flow.status, flow.cancel_requested)) is not None:
        if code is not Code.ILLEGAL_TRANSITION:
            return rejected(code)
        to = GONE if kind is CommandKind.PRUNE else destination(kind, flow.status, False)
        return rejected(code, **{"from": str(flow.status), "to": to and str(to)})
    return _follow(command, flow, at_ms, step, limits)


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
    if (too_large := _oversize(state, STATE_MAX_BYTES, "state_json")) is not None:
        return too_large
    created = Fact(EventKind.CREATED, command.flow_id, at, 0, FlowStatus.CREATED, payload)
    if command.kind == "create_managed":
        return Decision((created,))
    started = Fact(EventKind.STARTED, command.flow_id, at, 1, FlowStatus.RUNNING, {})
    return Decision((created, started))


def _follow(
    command: Command, flow: Flow, at_ms: int, step: FlowStep | None, limits: Limits
) -> Decision:
    """Checks 16 and 17, which each kind has of its own, and what happens if they pass."""
    at = instant(at_ms)

    match command.kind:
        case "update_state":
            patch = command.patch
            return _to_state(
                flow,
                at,
                evolve.merge(flow.state_json, patch),
                STATE_UPDATED,
                None,
                {"patch": patch, "next_step": command.next_step},
            )
        case "start_running":
            return _happened(flow, at, EventKind.STARTED, FlowStatus.RUNNING, {})
        case "set_waiting":
            written = command.wait.model_dump(exclude_none=True)
            field_name = "at" if command.wait.kind == "timer" else "timeout_at"
            if (until := written.get(field_name)) is not None:
                problem = _time_problem(parse_timestamp(until), at_ms, limits)
                if problem is not None:
                    return rejected(Code.INVALID_DATA, field=f"wait.{field_name}", problem=problem)
            return _happened(flow, at, EventKind.WAITING, FlowStatus.WAITING, {"wait": written})
        case "resume":
            return _to_state(
                flow,
                at,
                evolve.merge_if_any(flow.state_json, command.state_patch),
                EventKind.RESUMED,
                FlowStatus.RUNNING,
                {"by": "command", "state_patch": command.state_patch},
            )
        case "resume_external":
            wait_json = flow.wait_json
            if (wait_json["kind"], wait_json.get("topic"), wait_json.get("correlation_id")) != (
                "external_event",
                command.topic,
                command.correlation_id,
            ):
                return rejected(Code.WAIT_MISMATCH, waits_for=wait_json["kind"])
            patch = None if command.payload is None else {"resume_event": command.payload}
            return _to_state(
                flow,
                at,
                evolve.merge_if_any(flow.state_json, patch),
                EventKind.RESUMED,
                FlowStatus.RUNNING,
                {"by": "external_event", "state_patch": patch},
            )
        case "finish":
            return _to_state(
                flow,
                at,
                evolve.merge_if_any(flow.state_json, command.final_state),
                EventKind.FINISHED,
                FlowStatus.FINISHED,
                {"final_state": command.final_state},
            )
        case "fail":
            reason = {"reason": command.reason}
            return _happened(flow, at, EventKind.FAILED, FlowStatus.FAILED, reason)
        case "request_cancel":
            if flow.cancel_requested or flow.status in TERMINAL:
                return ACCEPTED_AS_IS
            return _happened(flow, at, EventKind.CANCEL_REQUESTED, None, {})
        case "cancel":
            return _happened(flow, at, EventKind.CANCELLED, FlowStatus.CANCELLED, {})
        case "wake":
            if flow.cancel_requested:
                return _happened(flow, at, EventKind.CANCELLED, FlowStatus.CANCELLED, {})
            wait_json = flow.wait_json
            is_timer = wait_json["kind"] == "timer"
            due = wait_json.get("at" if is_timer else "timeout_at")
            if due is None:
                return rejected(Code.WAIT_MISMATCH, waits_for=wait_json["kind"])
            if at_ms < parse_timestamp(due):
                return rejected(Code.NOT_DUE, due=due)
            by = "timer" if is_timer else "timeout"
            return _happened(
                flow, at, EventKind.RESUMED, FlowStatus.RUNNING, {"by": by, "state_patch": None}
            )
        case "record_step_observation":
            return _observe(command, flow, at, step)
        case "prune":
            return Decision((Fact(EventKind.PRUNED, flow.id, at, flow.revision, flow.status, {}),))
        case "create_managed" | "create_mirrored":
            raise AssertionError("creates are decided before there is a flow")
        case _:
            assert_never(command)


def _happened(
    flow: Flow, at: str, kind: EventKind, to: FlowStatus | None, payload: dict[str, Any]
) -> Decision:
    """`to` None: the status stays."""
    fact = new_fact((kind, flow.id, at, flow.revision + 1, to or flow.status, payload))
    return _accepted(((fact,), None, NO_DETAILS))


def _to_state(
    flow: Flow,
    at: str,
    state: Any,
    kind: EventKind,
    to: FlowStatus | None,
    payload: dict[str, Any],
) -> Decision:
    """As `_happened`, if the new `state` is small enough."""
    # What stays as it is was small enough when it was written (a failure may exceed).
    if state is not flow.state_json:
        too_large = _oversize(state, STATE_MAX_BYTES, "state_json")
        if too_large is not None:
            return too_large
    return _happened(flow, at, kind, to, payload)


def _observe(
    command: RecordStepObservation, flow: Flow, at: str, step: FlowStep | None
) -> Decision:
    if (too_large := _oversize(command.result_json, RESULT_MAX_BYTES, "result_json")) is not None:
        return too_large
    child = command.child_session_key
    written = {
        "id": step.id if step else str(uuid.uuid5(uuid.UUID(flow.id), command.run_id)),
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


def _time_problem(until_ms: int, at_ms: int, limits: Limits) -> str | None:
    if until_ms <= at_ms:
        return "must lie after the time at which the broker appended the command"
    if until_ms > at_ms + limits.timer_max_horizon_ms:
        return "lies further ahead than this deployment allows"
    return None


def _oversize(value: Any, limit_bytes: int, field_name: str) -> Decision | None:
    """Check 17 for a size: as the value would be written."""
    size = len(orjson.dumps(value))
    if size <= limit_bytes:
        return None
    return rejected(
        Code.STATE_TOO_LARGE, field=field_name, size_bytes=size, limit_bytes=limit_bytes
    )
