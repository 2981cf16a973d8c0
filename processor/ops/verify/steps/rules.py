"""Managed steps once more, from the contract's text alone: moves, events, leases, joins.

Documents are JSON objects; times are milliseconds of the broker's clock.
"""

from collections.abc import Mapping
from typing import Any, Final

from processor.contract.values import instant, parse_timestamp
from processor.ops.verify.contract import Doc, step_id

LIVE: Final = frozenset({"pending", "running"})
ENDED: Final = frozenset({"succeeded", "failed", "cancelled"})
UNSUCCESSFUL: Final = frozenset({"failed", "cancelled"})
DAY_MS: Final = 86_400_000
HOUR_MS: Final = 3_600_000
LEASE_MS, BACKOFF_MS, ATTEMPTS = 300_000, 1_000, 3

ORIGINS: Final[Mapping[str, frozenset[str]]] = {
    # command: the step's statuses from which it is taken
    "start_step": frozenset({"pending"}),
    "extend_step": frozenset({"running"}),
    "complete_step": LIVE,
    "fail_step": frozenset({"running"}),
    "release_step": frozenset({"running"}),
    "cancel_step": LIVE,
    "retry_step": frozenset({"pending"}) | UNSUCCESSFUL,
    "wake_step": LIVE,
}
COMMANDS: Final = ORIGINS.keys() | {"schedule_step"}
HELD: Final = frozenset({"extend_step", "complete_step", "fail_step", "release_step"})
DURING_CANCEL: Final = frozenset(
    {"extend_step", "complete_step", "fail_step", "cancel_step", "wake_step"}
)
MOVES: Final[Mapping[str, tuple[frozenset[str], str | None, frozenset[str]]]] = {
    # event: from, to (None: the status stays), what it sets beside `updated_at` and `execution`
    "step_started": (frozenset({"pending"}), "running", frozenset({"status", "child_session_key"})),
    "step_extended": (frozenset({"running"}), None, frozenset()),
    "step_released": (
        frozenset({"running"}),
        "pending",
        frozenset({"status", "child_session_key"}),
    ),
    "step_retried": (
        LIVE | UNSUCCESSFUL,
        "pending",
        frozenset({"status", "child_session_key", "result_json"}),
    ),
    "step_dispatched": (frozenset({"pending"}), None, frozenset()),
    "step_succeeded": (LIVE, "succeeded", frozenset({"status", "result_json"})),
    "step_failed": (LIVE, "failed", frozenset({"status", "result_json"})),
    "step_cancelled": (LIVE, "cancelled", frozenset({"status"})),
}
EVENTS: Final = MOVES.keys() | {"step_scheduled"}
OFFERS: Final = frozenset({"step_scheduled", "step_released", "step_retried", "step_dispatched"})
"""Events that leave a step pending; it is offered then, unless its `offers` are 0."""
MORE: Final[Mapping[str, frozenset[str]]] = {
    # event: what its payload holds beside `run_id` and `changes`
    "step_retried": frozenset({"reason"}),
    "step_failed": frozenset({"reason"}),
    "step_cancelled": frozenset({"by"}),
}
STEP_FIELDS: Final = frozenset(
    [
        *("id", "flow_id", "runtime", "child_session_key", "run_id", "task", "status"),
        *("result_json", "created_at", "updated_at", "input_json", "execution"),
    ]
)
EXECUTION_FIELDS: Final = frozenset(
    [
        *("attempt", "max_attempts", "lease_ms", "backoff_ms", "offers", "due_at", "timeout_at"),
        *("progress", "last_failure"),
    ]
)


def shaped(event: Doc) -> bool:
    """Whether the payload of a step's event has the fields that its kind says."""
    payload, kind = event["payload_json"], event["kind"]
    if kind == "step_scheduled":
        step = payload.get("step")
        return (
            payload.keys() == {"step"}
            and isinstance(step, dict)
            and step.keys() == STEP_FIELDS
            and isinstance(step["run_id"], str)
            and _executes(step["execution"])
        )
    changes = payload.get("changes")
    return (
        payload.keys() == {"run_id", "changes"} | MORE.get(kind, frozenset())
        and isinstance(payload["run_id"], str)
        and isinstance(changes, dict)
        and changes.keys() == MOVES[kind][2] | {"updated_at", "execution"}
        and _executes(changes["execution"])
    )


def _executes(execution: Any) -> bool:
    return (
        isinstance(execution, dict)
        and execution.keys() == EXECUTION_FIELDS
        and all(
            type(execution[name]) is int
            for name in ("attempt", "max_attempts", "lease_ms", "backoff_ms", "offers")
        )
    )


def run_id_of(event: Doc) -> str:
    payload = event["payload_json"]
    return str(payload["step"]["run_id"] if "step" in payload else payload["run_id"])


def due_ms(execution: Doc) -> int:
    return parse_timestamp(execution["due_at"])


def timed_out(execution: Doc, at_ms: int) -> bool:
    until: str | None = execution["timeout_at"]
    return until is not None and parse_timestamp(until) <= at_ms


def is_held_by(command: Doc, step: Doc, *, by_owner: bool) -> bool:
    """Whether a command names the step's attempt and, from `commands`, comes from its holder."""
    return command.get("attempt") == step["execution"]["attempt"] and (
        not by_owner or command.get("issued_by") == step["child_session_key"]
    )


def is_due(command: Doc, step: Doc, at_ms: int) -> bool:
    """Whether a start or a wake of a step comes at its time."""
    execution = step["execution"]
    if command.get("kind") == "start_step" and execution["offers"] > 0:
        return True
    return execution["due_at"] is None or due_ms(execution) <= at_ms


def caused(command: Doc, step: Doc | None, cancel_requested: bool, at_ms: int) -> str | None:
    """The event that an accepted command about a step causes; None: none."""
    kind = command["kind"]
    simple = {
        "schedule_step": "step_scheduled",
        "start_step": "step_started",
        "complete_step": "step_succeeded",
        "release_step": "step_released",
        "cancel_step": "step_cancelled",
        "retry_step": "step_retried",
    }
    if kind in simple or step is None:
        return simple.get(kind)
    execution = step["execution"]
    used_up = execution["attempt"] >= execution["max_attempts"] or cancel_requested
    if kind == "extend_step":
        return "step_extended" if _extends(command, execution, at_ms) else None
    if kind == "fail_step":
        return "step_failed" if used_up or command.get("retry") is False else "step_retried"
    if timed_out(execution, at_ms):
        return "step_failed"
    if step["status"] == "running":
        return "step_failed" if used_up else "step_retried"
    return "step_cancelled" if cancel_requested else "step_dispatched"


def _extends(command: Doc, execution: Doc, at_ms: int) -> bool:
    if "progress_json" in command:
        return True
    left_ms = due_ms(execution) - at_ms
    extended = _until(execution, at_ms + execution["lease_ms"])
    return bool(2 * left_ms <= execution["lease_ms"] and extended != execution["due_at"])


def details(command: Doc, step: Doc, cancel_requested: bool, at_ms: int) -> Doc:
    """`details` of the outcome of an accepted command about a step."""
    execution, kind = step["execution"], command["kind"]
    renewed = _until(execution, at_ms + execution["lease_ms"])
    if kind == "start_step":
        return {"attempt": execution["attempt"] + 1, "due_at": renewed}
    if kind == "extend_step":
        due_at = renewed if _extends(command, execution, at_ms) else execution["due_at"]
        stated = {"attempt": execution["attempt"], "due_at": due_at}
        return {**stated, "cancel_requested": cancel_requested}
    return {}


def payload_of(event_kind: str, command: Doc, flow_id: str, step: Doc | None, at_ms: int) -> Doc:
    """What an event of this kind must hold if `command`, appended at `at_ms`, caused it; `step` is
    what it was before, which only `step_scheduled` does without."""
    at = instant(at_ms)
    if step is None:
        return {"step": _scheduled(command, flow_id, at_ms)}
    execution = dict(step["execution"])
    changes: Doc = {"updated_at": at, "execution": execution}
    payload: Doc = {"run_id": step["run_id"], "changes": changes}
    if (to := MOVES[event_kind][1]) is not None:
        changes["status"] = to
    match event_kind:
        case "step_started":
            execution |= {"attempt": execution["attempt"] + 1, "offers": 0}
            execution["due_at"] = _until(execution, at_ms + execution["lease_ms"])
            changes["child_session_key"] = command.get("issued_by")
        case "step_extended":
            execution["due_at"] = _until(execution, at_ms + execution["lease_ms"])
            execution["progress"] = command.get("progress_json", execution["progress"])
        case "step_released":
            execution["max_attempts"] += 1
            _offer(execution, 1, at_ms)
            changes["child_session_key"] = None
        case "step_dispatched":
            _offer(execution, execution["offers"] + 1, at_ms)
        case "step_retried":
            changes["result_json"] = None
            payload["reason"] = _retry(command, step, execution, at_ms)
            lapsed = command["kind"] == "wake_step"
            changes["child_session_key"] = step["child_session_key"] if lapsed else None
        case "step_succeeded":
            execution["due_at"] = None
            changes["result_json"] = command.get("result_json")
        case "step_failed":
            expired = "timeout" if timed_out(execution, at_ms) else "lease expired"
            reason = command["reason"] if command["kind"] == "fail_step" else expired
            failure = {"reason": reason, "at": at}
            execution |= {"due_at": None, "last_failure": failure}
            changes["result_json"] = {"failure": failure}
            payload["reason"] = reason
        case "step_cancelled":
            execution["due_at"] = None
            payload["by"] = "command" if command["kind"] == "cancel_step" else "flow"
    return payload


def _retry(command: Doc, step: Doc, execution: Doc, at_ms: int) -> str | None:
    """Make `execution` that of a step which is tried again; why."""
    if command["kind"] == "retry_step":
        attempts = execution["attempt"] + command.get("attempts", 1)
        execution["max_attempts"] = max(execution["max_attempts"], attempts)
        execution["timeout_at"] = None
        _offer(execution, 1, at_ms)
        return None
    base = execution["backoff_ms"]
    delay = min(base * 2 ** (execution["attempt"] - 1), max(base, HOUR_MS))
    delay = delay * (1024 - int(step["id"][:2], 16)) // 1024
    if command["kind"] == "fail_step":
        delay = command.get("retry_after_ms", delay)
    if delay == 0:
        _offer(execution, 1, at_ms)
    else:
        execution |= {"offers": 0, "due_at": _until(execution, at_ms + delay)}
    reason = str(command["reason"]) if command["kind"] == "fail_step" else "lease expired"
    execution["last_failure"] = {"reason": reason, "at": instant(at_ms)}
    return reason


def _scheduled(command: Doc, flow_id: str, at_ms: int) -> Doc:
    at, run_id = instant(at_ms), command["run_id"]
    execution: Doc = {
        "attempt": 0,
        "max_attempts": command.get("max_attempts", ATTEMPTS),
        "lease_ms": command.get("lease_ms", LEASE_MS),
        "backoff_ms": command.get("backoff_ms", BACKOFF_MS),
        "offers": 0,
        "due_at": None,
        "timeout_at": _time(command, "timeout_at"),
        "progress": None,
        "last_failure": None,
    }
    not_before = _time(command, "not_before")
    if not_before is not None and not_before > at:
        execution["due_at"] = _until(execution, parse_timestamp(not_before))
    else:
        _offer(execution, 1, at_ms)
    return {
        "id": step_id(flow_id, run_id),
        "flow_id": flow_id,
        "runtime": "managed",
        "child_session_key": None,
        "run_id": run_id,
        "task": command.get("task"),
        "status": "pending",
        "result_json": None,
        "created_at": at,
        "updated_at": at,
        "input_json": command.get("input_json"),
        "execution": execution,
    }


def _time(command: Doc, name: str) -> str | None:
    return instant(parse_timestamp(command[name])) if name in command else None


def _offer(execution: Doc, offers: int, at_ms: int) -> None:
    wait = min(execution["lease_ms"] * 2 ** (offers - 1), DAY_MS)
    execution |= {"offers": offers, "due_at": _until(execution, at_ms + wait)}


def _until(execution: Doc, at_ms: int) -> str:
    """A time, unless the step's timeout comes first."""
    return min(instant(at_ms), execution["timeout_at"] or "~")


def join_over(wait: Doc, statuses: Mapping[str, int]) -> bool:
    """Whether a join is over; `statuses` counts the managed steps for which it waits by status."""
    ended = sum(count for status, count in statuses.items() if status in ENDED)
    mode = wait.get("mode", "all")
    if mode == "any":
        return ended > 0
    if mode == "all_or_failure" and any(statuses.get(status) for status in UNSUCCESSFUL):
        return True
    return ended == sum(statuses.values())
