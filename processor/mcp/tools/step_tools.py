"""The tool that schedules managed steps, and does steps as an executor."""

from typing import Annotated, Any, Final, Literal

from mcp_types import CallToolResult
from pydantic import Field, JsonValue

from processor.mcp.flow_session import FlowSession
from processor.mcp.tools.results import outcome_result, refusal
from processor.mcp.tools.tool import Arguments, FlowId, FlowTool, Permission, flow_tool

Name = Annotated[str, Field(min_length=1, max_length=256)]


class StepsArguments(Arguments):
    flow_id: FlowId
    action: Literal["schedule", "start", "complete", "fail"]
    run_id: Name
    """The step's name within its flow; you choose it when you schedule the step."""
    task: Name | None = None
    """schedule: the task, by the name that executors use."""
    input: JsonValue = None
    """schedule: the input for the executor."""
    max_attempts: Annotated[int, Field(ge=1, le=100)] | None = None
    """schedule: the number of attempts; by default 3."""
    lease_seconds: Annotated[int, Field(ge=1, le=86_400)] | None = None
    """schedule: the lease of an attempt in seconds; by default 300."""
    attempt: Annotated[int, Field(ge=1)] | None = None
    """start: the number of the new attempt, one more than the step has had. complete, fail: the
    attempt that you started."""
    result: JsonValue = None
    """complete: the result."""
    reason: Annotated[str, Field(min_length=1, max_length=4096)] | None = None
    """fail: the reason."""
    retry: bool = True
    """fail: whether another attempt may succeed."""


_NEEDED: Final = {
    "schedule": ("task",),
    "start": ("attempt",),
    "complete": ("attempt",),
    "fail": ("attempt", "reason"),
}


async def steps(session: FlowSession, given: StepsArguments) -> CallToolResult:
    """Schedule a managed step of a flow for executors; or do a step yourself: start it, then
    complete or fail it before its lease ends. status shows the steps of a flow."""
    if missing := [name for name in _NEEDED[given.action] if getattr(given, name) is None]:
        named = " and ".join(missing)
        return refusal("invalid_arguments", f"{given.action} needs {named}.")
    fields: dict[str, Any] = {"run_id": given.run_id}
    identity: dict[str, Any] = {}
    match given.action:
        case "schedule":
            lease = None if given.lease_seconds is None else given.lease_seconds * 1000
            fields |= {"task": given.task, "input_json": given.input, "lease_ms": lease}
            fields["max_attempts"] = given.max_attempts
        case "start":
            # The start commands of all attempts have the same fields.
            identity = {"attempt": given.attempt}
        case "complete":
            fields |= {"attempt": given.attempt, "result_json": given.result}
        case "fail":
            fields |= {"attempt": given.attempt, "reason": given.reason, "retry": given.retry}
    kind = f"{given.action}_step"
    return outcome_result(await session.send(kind, given.flow_id, identity=identity, **fields))


STEP_TOOLS: Final[tuple[FlowTool, ...]] = (flow_tool(steps, StepsArguments, Permission.WRITE),)
