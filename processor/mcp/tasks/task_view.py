"""Convert the flow of a task to a task of the protocol. Pure."""

from collections.abc import Mapping
from typing import Any, Final

import orjson
from mcp_types import INTERNAL_ERROR, CallToolResult, TextContent
from pydantic import ValidationError

from processor.contract import parse_timestamp
from processor.contract.flow import FlowStatus
from processor.mcp.tasks.progress import TaskFlow, failure_of, is_question
from processor.mcp.tasks.protocol import (
    CancelledTask,
    CompletedTask,
    FailedTask,
    InputRequiredTask,
    Task,
    WorkingTask,
    tool_result,
)

POLL_MS: Final = 1_000
"""Milliseconds after which a client should ask again."""


def task_of(task: TaskFlow, retain_ms: int | None) -> Task:
    """Return the task; `retain_ms` is how long a flow is kept after its end (None: for ever).

    `ttl_ms` is None until the task has ended, then the time from its creation until its flow may be
    pruned.
    """
    flow, last = task.flow, task.last
    common = {
        "task_id": flow["id"],
        "created_at": flow["created_at"],
        "last_updated_at": max([flow["updated_at"], *(step["updated_at"] for step in task.calls)]),
        "ttl_ms": None,
        "poll_interval_ms": POLL_MS,
    }
    match flow["status"]:
        case FlowStatus.FINISHED | FlowStatus.FAILED | FlowStatus.CANCELLED:
            if retain_ms is not None:
                lived = parse_timestamp(flow["updated_at"]) - parse_timestamp(flow["created_at"])
                common["ttl_ms"] = lived + retain_ms
            return _ended(task, common)
        case FlowStatus.WAITING:
            known = task.responses
            if open_ := {k: v for k, v in task.questions.items() if k not in known}:
                return InputRequiredTask(**common, input_requests=open_)
    message = "Cancelling." if flow["cancel_requested"] else _message(last)
    return WorkingTask(**common, status_message=message)


def _ended(task: TaskFlow, common: dict[str, Any]) -> Task:
    flow, last = task.flow, task.last
    if flow["status"] == FlowStatus.CANCELLED:
        return CancelledTask(**common)
    if last is not None and last["status"] == "failed" and flow["status"] == FlowStatus.FAILED:
        # A failure of the tool, not of the protocol, is a result.
        return CompletedTask(**common, result=_on_the_wire(_failure(failure_of(last))))
    if flow["status"] == FlowStatus.FINISHED:
        value = None if last is None else last["result_json"]
        return CompletedTask(**common, result=_on_the_wire(result_of(value)))
    state = flow["state_json"]
    failure = state.get("failure") if isinstance(state, Mapping) else None
    reason = str(failure["reason"]) if isinstance(failure, Mapping) else "The task failed."
    return FailedTask(
        **common, status_message=reason, error={"code": INTERNAL_ERROR, "message": reason}
    )


def result_of(value: Any) -> CallToolResult:
    """Return a step's result for the client: a CallToolResult as it is, any other value as
    structured content and as text."""
    if isinstance(value, Mapping) and "content" in value and not is_question(value):
        try:
            return tool_result(value)
        except ValidationError:
            pass
    if value is None:
        return CallToolResult(content=[])
    text = value if isinstance(value, str) else orjson.dumps(value).decode()
    return CallToolResult(
        content=[TextContent(text=text)],
        structured_content=None if isinstance(value, str) else value,
    )


def _failure(reason: str) -> CallToolResult:
    return CallToolResult(content=[TextContent(text=reason)], is_error=True)


def _on_the_wire(result: CallToolResult) -> dict[str, Any]:
    return result.model_dump(mode="json", by_alias=True, exclude_none=True, exclude={"result_type"})


def _message(step: Mapping[str, Any] | None) -> str:
    """Return the progress that the executor reported, else what the call waits for."""
    if step is None:
        return "Accepted."
    execution = step["execution"]
    tries = f"attempt {max(execution['attempt'], 1)} of {execution['max_attempts']}"
    if (progress := execution["progress"]) is not None:
        return progress if isinstance(progress, str) else orjson.dumps(progress).decode()
    if step["status"] == "running":
        return f"An executor is working on it, {tries}."
    if step["status"] != "pending":
        return "An executor has ended the step."
    if (failure := execution["last_failure"]) is not None:
        return f"Will be tried again after {tries} failed: {failure['reason']}"
    return "Waits for an executor."
