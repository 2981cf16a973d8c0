"""Managed steps once more, from the contract's text: fields, checks 15 to 17, events, joins."""

import uuid
from collections.abc import Iterator
from typing import Any

from tests.support.reference_values import (
    REQUIRED,
    Doc,
    Refused,
    anything,
    compact,
    fits,
    is_integer,
    is_text,
    is_time,
    milliseconds,
    written,
)

DAY_MS, HOUR_MS = 86_400_000, 3_600_000
Events = list[tuple[str, Doc]]


def between(low: int, high: int) -> Any:
    return lambda value: is_integer(value) and low <= value <= high


RUN_ID = {"run_id": (is_text, REQUIRED)}
HELD = {**RUN_ID, "attempt": (between(0, 2**53 - 1), REQUIRED)}
FIELDS: dict[str, dict[str, Any]] = {
    "schedule_step": {
        **RUN_ID,
        "task": (is_text, REQUIRED),
        "input_json": (anything, None),
        "not_before": (is_time, None),
        "timeout_at": (is_time, None),
        "max_attempts": (between(1, 100), 3),
        "lease_ms": (between(1_000, DAY_MS), 300_000),
        "backoff_ms": (between(0, DAY_MS), 1_000),
    },
    "start_step": RUN_ID,
    "extend_step": {**HELD, "progress_json": (anything, None)},
    "complete_step": {**HELD, "result_json": (anything, None)},
    "fail_step": {
        **HELD,
        "reason": (lambda v: is_text(v, 4096), REQUIRED),
        "retry": (lambda v: isinstance(v, bool), True),
        "retry_after_ms": (between(0, DAY_MS), None),
    },
    "release_step": HELD,
    "cancel_step": RUN_ID,
    "retry_step": {**RUN_ID, "attempts": (between(1, 100), 1)},
    "wake_step": RUN_ID,
}
TO_ALL = {"start_step", "extend_step", "complete_step", "fail_step", "release_step"}
DURING_CANCEL = {"extend_step", "complete_step", "fail_step", "cancel_step", "wake_step"}
MOVES: dict[str, tuple[set[str], str | None]] = {
    "start_step": ({"pending"}, "running"),
    "extend_step": ({"running"}, None),
    "complete_step": ({"running", "pending"}, "succeeded"),
    "fail_step": ({"running"}, None),
    "release_step": ({"running"}, "pending"),
    "cancel_step": ({"pending", "running"}, "cancelled"),
    "retry_step": ({"pending", "failed", "cancelled"}, "pending"),
    "wake_step": ({"pending", "running"}, None),
}
JOIN = {
    "run_ids": (
        lambda v: (
            isinstance(v, list)
            and 1 <= len(v) <= 100
            and all(map(is_text, v))
            and len(set(v)) == len(v)
        ),
        None,
    ),
    "mode": (lambda v: isinstance(v, str) and v in ("all", "all_or_failure", "any"), None),
    "timeout_at": (is_time, None),
}


def is_live(step: Doc) -> bool:
    return step["runtime"] == "managed" and step["status"] in ("pending", "running")


def after_step(step: Doc | None, kind: str, payload: Doc) -> Doc:
    """The step after an event of its."""
    if kind in ("step_observed", "step_scheduled"):
        return dict(payload["step"])
    assert step is not None
    return {**step, **payload["changes"]}


def steps_after(steps: dict[str, Doc], events: Events) -> dict[str, Doc]:
    steps = dict(steps)
    for kind, payload in events:
        if kind.startswith("step_"):
            run_id = payload["step"]["run_id"] if "step" in payload else payload["run_id"]
            steps[run_id] = after_step(steps.get(run_id), kind, payload)
    return steps


def work_of(event: Doc, step: Doc) -> Doc | None:
    """The work item of an event, after which its step is `step`; None: it offers nothing."""
    offering = {"step_scheduled", "step_released", "step_retried", "step_dispatched"}
    if event["kind"] not in offering or step["execution"]["offers"] == 0:
        return None
    return {
        **{name: step[name] for name in ("flow_id", "run_id", "task", "input_json")},
        **{name: step["execution"][name] for name in ("max_attempts", "lease_ms")},
        "attempt": step["execution"]["attempt"] + 1,
        "event_id": event["id"],
        "at": event["at"],
    }


def details_of(command: Doc, flow: Doc, steps: dict[str, Doc]) -> Doc:
    """What an accepted command's outcome says in `details`; `steps` are those after it."""
    if command["kind"] not in ("start_step", "extend_step"):
        return {}
    execution = steps[command["run_id"]]["execution"]
    details = {name: execution[name] for name in ("attempt", "due_at")}
    if command["kind"] == "extend_step":
        details["cancel_requested"] = flow["cancel_requested"]
    return details


class Deciding:
    """One command about a step of `flow`, at its append time."""

    def __init__(
        self,
        command: Doc,
        flow: Doc,
        steps: dict[str, Doc],
        at_ms: int,
        *,
        from_owner: bool,
        horizon_ms: int,
        steps_max: int,
    ) -> None:
        self.command, self.flow, self.steps, self.at_ms = command, flow, steps, at_ms
        self.from_owner, self.horizon_ms, self.steps_max = from_owner, horizon_ms, steps_max
        self.at = written(at_ms)

    def events(self) -> Events:
        command = self.command
        kind, step = command["kind"], self.steps.get(command["run_id"])
        if kind == "schedule_step":
            if step is not None:
                raise Refused("step_exists", taken(step))
            return self.scheduled()
        if step is None or step["runtime"] != "managed":
            raise Refused("step_not_found")
        origins, to = MOVES[kind]
        if step["status"] not in origins:
            raise Refused("illegal_transition", {"from": step["status"], "to": to})
        execution = dict(step["execution"])
        if "attempt" in command and (
            command["attempt"] != execution["attempt"]
            or (self.from_owner and command["issued_by"] != step["child_session_key"])
        ):
            details = {name: execution[name] for name in ("attempt", "due_at")}
            raise Refused("not_holder", details)
        return list(getattr(self, kind)(step, execution))

    # What happens

    def scheduled(self) -> Events:
        command, at_ms = self.command, self.at_ms
        timeout_at, not_before = (
            None if name not in command else milliseconds(command[name])
            for name in ("timeout_at", "not_before")
        )
        if timeout_at is not None and timeout_at <= at_ms:
            raise Refused("invalid_data")
        if max(timeout_at or 0, not_before or 0) > at_ms + self.horizon_ms:
            raise Refused("invalid_data")
        task_input = fits(command.get("input_json"), 64)
        self.room_for(task_input)
        if len(self.steps) >= self.steps_max:
            raise Refused("too_many_steps")
        execution = {
            "attempt": 0,
            "max_attempts": command.get("max_attempts", 3),
            "lease_ms": command.get("lease_ms", 300_000),
            "backoff_ms": command.get("backoff_ms", 1_000),
            "offers": 0,
            "due_at": None,
            "timeout_at": None if timeout_at is None else written(timeout_at),
            "progress": None,
            "last_failure": None,
        }
        if not_before is not None and not_before > at_ms:
            self.due(execution, not_before)
        else:
            self.offer(execution, 1)
        step = {
            "id": str(uuid.uuid5(uuid.UUID(self.flow["id"]), command["run_id"])),
            "flow_id": self.flow["id"],
            "runtime": "managed",
            "child_session_key": None,
            "run_id": command["run_id"],
            "task": command["task"],
            "status": "pending",
            "result_json": None,
            "created_at": self.at,
            "updated_at": self.at,
            "input_json": task_input,
            "execution": execution,
        }
        return [("step_scheduled", {"step": step})]

    def start_step(self, _step: Doc, execution: Doc) -> Iterator[tuple[str, Doc]]:
        if execution["offers"] == 0 and self.at_ms < when(execution):
            raise Refused("not_due")
        execution |= {"attempt": execution["attempt"] + 1, "offers": 0}
        self.due(execution, self.at_ms + execution["lease_ms"])
        holder = self.command["issued_by"]
        yield self.event("step_started", execution, status="running", child_session_key=holder)

    def extend_step(self, _step: Doc, execution: Doc) -> Iterator[tuple[str, Doc]]:
        progress, before = self.command.get("progress_json"), dict(execution)
        fits(progress, 4)
        self.due(execution, self.at_ms + execution["lease_ms"])
        if progress is not None:
            execution["progress"] = progress
        elif (when(before) - self.at_ms) * 2 > execution["lease_ms"] or execution == before:
            return
        yield self.event("step_extended", execution)

    def complete_step(self, _step: Doc, execution: Doc) -> Iterator[tuple[str, Doc]]:
        result = fits(self.command.get("result_json"), 64)
        execution["due_at"] = None
        yield self.event("step_succeeded", execution, status="succeeded", result_json=result)

    def fail_step(self, step: Doc, execution: Doc) -> Iterator[tuple[str, Doc]]:
        reason, after = self.command["reason"], self.command.get("retry_after_ms")
        if not self.command.get("retry", True):
            yield self.failed(execution, reason)
        else:
            yield self.again(step, execution, reason, after, None)

    def release_step(self, _step: Doc, execution: Doc) -> Iterator[tuple[str, Doc]]:
        execution["max_attempts"] += 1
        self.offer(execution, 1)
        yield self.event("step_released", execution, status="pending", child_session_key=None)

    def cancel_step(self, _step: Doc, execution: Doc) -> Iterator[tuple[str, Doc]]:
        yield cancelled(self.command["run_id"], execution, self.at, "command")

    def retry_step(self, step: Doc, execution: Doc) -> Iterator[tuple[str, Doc]]:
        if step["status"] != "pending":
            self.room_for(step["input_json"])
        attempts = execution["attempt"] + self.command.get("attempts", 1)
        execution["max_attempts"] = max(execution["max_attempts"], attempts)
        execution["timeout_at"] = None
        self.offer(execution, 1)
        yield self.retried(execution, None, None)

    def wake_step(self, step: Doc, execution: Doc) -> Iterator[tuple[str, Doc]]:
        if self.at_ms < when(execution):
            raise Refused("not_due")
        timeout_at = execution["timeout_at"]
        if timeout_at is not None and (milliseconds(timeout_at) or 0) <= self.at_ms:
            yield self.failed(execution, "timeout")
        elif step["status"] == "running":
            yield self.again(step, execution, "lease expired", None, step["child_session_key"])
        elif self.flow["cancel_requested"]:
            yield cancelled(self.command["run_id"], execution, self.at, "flow")
        else:
            self.offer(execution, execution["offers"] + 1)
            yield self.event("step_dispatched", execution)

    # Their parts

    def again(
        self, step: Doc, execution: Doc, reason: str, after_ms: int | None, holder: str | None
    ) -> tuple[str, Doc]:
        used_up = execution["attempt"] >= execution["max_attempts"]
        if used_up or self.flow["cancel_requested"]:
            return self.failed(execution, reason)
        if after_ms is None:
            backoff = execution["backoff_ms"]
            after_ms = min(backoff * 2 ** (execution["attempt"] - 1), max(backoff, HOUR_MS))
            after_ms = after_ms * (1024 - int(step["id"][:2], 16)) // 1024
        if after_ms == 0:
            self.offer(execution, 1)
        else:
            execution["offers"] = 0
            self.due(execution, self.at_ms + after_ms)
        execution["last_failure"] = {"reason": reason, "at": self.at}
        return self.retried(execution, reason, holder)

    def retried(self, execution: Doc, reason: str | None, holder: str | None) -> tuple[str, Doc]:
        changes = {"status": "pending", "child_session_key": holder, "result_json": None}
        kind, payload = self.event("step_retried", execution, **changes)
        return kind, {**payload, "reason": reason}

    def failed(self, execution: Doc, reason: str) -> tuple[str, Doc]:
        failure = {"reason": reason, "at": self.at}
        execution |= {"due_at": None, "last_failure": failure}
        result = {"failure": failure}
        kind, payload = self.event("step_failed", execution, status="failed", result_json=result)
        return kind, {**payload, "reason": reason}

    def event(self, kind: str, execution: Doc, **changes: Any) -> tuple[str, Doc]:
        changes |= {"updated_at": self.at, "execution": execution}
        return kind, {"run_id": self.command["run_id"], "changes": changes}

    def offer(self, execution: Doc, offers: int) -> None:
        execution["offers"] = offers
        self.due(execution, self.at_ms + min(execution["lease_ms"] * 2 ** (offers - 1), DAY_MS))

    def due(self, execution: Doc, at_ms: int) -> None:
        timeout_at = execution["timeout_at"]
        latest = at_ms if timeout_at is None else milliseconds(timeout_at) or 0
        execution["due_at"] = written(min(at_ms, latest))

    def room_for(self, task_input: Any) -> None:
        inputs = [step["input_json"] for step in self.steps.values() if is_live(step)]
        if sum(len(compact(one)) for one in [*inputs, task_input]) > 4 * 1024 * 1024:
            raise Refused("state_too_large")
        if len(inputs) >= 1_000:
            raise Refused("too_many_steps")


def when(execution: Doc) -> int:
    return milliseconds(execution["due_at"]) or 0


def taken(step: Doc) -> Doc:
    return {name: step[name] for name in ("runtime", "task", "status")}


def cancelled(run_id: str, execution: Doc, at: str, by: str) -> tuple[str, Doc]:
    execution = {**execution, "due_at": None}
    changes = {"status": "cancelled", "updated_at": at, "execution": execution}
    return "step_cancelled", {"run_id": run_id, "changes": changes, "by": by}


def ended_with_flow(steps: dict[str, Doc], at: str) -> Events:
    """The end of the live steps of a flow that has ended."""
    live = sorted((one for one in steps if is_live(steps[one])), key=str.encode)
    return [cancelled(run_id, steps[run_id]["execution"], at, "flow") for run_id in live]


def join_is_over(wait: Doc, steps: dict[str, Doc]) -> bool:
    managed = [step for step in steps.values() if step["runtime"] == "managed"]
    if "run_ids" in wait:
        managed = [step for step in managed if step["run_id"] in wait["run_ids"]]
    ended = [step for step in managed if not is_live(step)]
    if wait.get("mode") == "any":
        return len(ended) > 0
    if wait.get("mode") == "all_or_failure" and any(s["status"] != "succeeded" for s in ended):
        return True
    return len(ended) == len(managed)


def check_join(wait: Doc, steps: dict[str, Doc]) -> None:
    for run_id in wait.get("run_ids", ()):
        if run_id not in steps or steps[run_id]["runtime"] != "managed":
            raise Refused("invalid_data")
