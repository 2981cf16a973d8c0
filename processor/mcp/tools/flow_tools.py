"""Tools that change a flow of the session: start, advance, wait, finish, fail, cancel."""

from typing import Annotated, Any, Final, Literal

from mcp_types import CallToolResult
from pydantic import Field, JsonValue

from processor.contract import instant
from processor.contract.values import Timestamp
from processor.mcp.flow_session import FlowSession
from processor.mcp.tools.results import outcome_result, refusal
from processor.mcp.tools.tool import (
    Arguments,
    FlowId,
    FlowTool,
    Permission,
    Revision,
    flow_tool,
)

WAIT_MAX_S: Final = 100 * 365 * 86_400
"""More than any deployment allows, and still a time that can be written."""

Text = Annotated[str, Field(min_length=1, max_length=256)]
Long = Annotated[str, Field(min_length=1, max_length=4096)]


class StartArguments(Arguments):
    key: Annotated[str, Field(min_length=1, max_length=128)]
    """Your name for this piece of work, such as `invoices-2026-11`. The same key is the same flow:
    call again with it after a crash or a missing outcome."""
    goal: Long
    """The goal of the flow, for people."""
    state: dict[str, JsonValue] | None = None
    """Data that you need when you continue later."""
    step: Text | None = None
    """Your next step, in your words."""


async def start(session: FlowSession, given: StartArguments) -> CallToolResult:
    """Start a flow: a long-lived task of this session, in status running. It survives crashes, and
    list_mine finds it again. Refused with already_exists if the key was used."""
    return outcome_result(
        await session.send(
            "create_mirrored",
            session.flow_id("flow", given.key),
            controller_id=session.owner,
            goal=given.goal,
            requester_origin="mcp",
            current_step=given.step,
            state_json=given.state,
        )
    )


class AdvanceArguments(Arguments):
    flow_id: FlowId
    expected_revision: Revision
    patch: dict[str, JsonValue] = Field(default_factory=dict)
    """Merged into the flow's state, key by key at the top level."""
    step: Text | None = None
    """Your next step, in your words."""
    begin: bool = False
    """Let a created flow run; takes no other argument but the flow and its revision."""
    resume: bool = False
    """Let a waiting flow run again; takes no `step`."""


async def advance(session: FlowSession, given: AdvanceArguments) -> CallToolResult:
    """Record progress: merge a patch into the state of a flow and name the next step; or begin a
    created flow; or resume a waiting one."""
    fields: dict[str, Any] = {"expected_revision": given.expected_revision}
    if given.begin:
        if given.patch or given.step is not None or given.resume:
            return refusal(
                "invalid_arguments",
                "begin takes no patch, step or resume; call advance again for them.",
            )
        return outcome_result(await session.send("start_running", given.flow_id, **fields))
    if given.resume:
        if given.step is not None:
            return refusal("invalid_arguments", "resume takes no step; call advance again for it.")
        fields["state_patch"] = given.patch or None
        return outcome_result(await session.send("resume", given.flow_id, **fields))
    fields |= {"patch": given.patch, "next_step": given.step}
    return outcome_result(await session.send("update_state", given.flow_id, **fields))


class WaitArguments(Arguments):
    flow_id: FlowId
    expected_revision: Revision
    kind: Literal["timer", "external_event", "manual", "steps"]
    """What ends the wait: a time, an external event, a person or you, or the flow's steps."""
    until: Timestamp | None = None
    """timer: when the wait ends; other kinds: when it ends at the latest. With a time zone."""
    for_seconds: Annotated[float, Field(gt=0, le=WAIT_MAX_S)] | None = None
    """The same as seconds from now; give only one of the two."""
    topic: Annotated[str, Field(min_length=1, max_length=512)] | None = None
    """external_event: the kind of event."""
    correlation_id: Annotated[str, Field(min_length=1, max_length=512)] | None = None
    """external_event: the event's key. Anyone who knows it may end the wait."""
    prompt: JsonValue = None
    """Information for the person or program that ends the wait, such as a question."""
    run_ids: Annotated[list[Text], Field(min_length=1, max_length=100)] | None = None
    """steps: the names of the steps; by default all."""
    mode: Literal["all", "all_or_failure", "any"] | None = None
    """steps: wait until all have ended, until all have ended or one failed, or until one has
    ended."""


async def wait(session: FlowSession, given: WaitArguments) -> CallToolResult:
    """Make a running flow wait, for any time. No program of yours needs to run meanwhile."""
    if given.until is not None and given.for_seconds is not None:
        return refusal("invalid_arguments", "Give `until` or for_seconds, not both.")
    at = given.until
    if given.for_seconds is not None:
        at = instant(await session.now_ms() + round(given.for_seconds * 1000))
    ends = {"at" if given.kind == "timer" else "timeout_at": at}
    named = given.model_dump(include={"topic", "correlation_id", "prompt", "run_ids", "mode"})
    described = {name: value for name, value in {**named, **ends}.items() if value is not None}
    return outcome_result(
        await session.send(
            "set_waiting",
            given.flow_id,
            wait={"kind": given.kind, **described},
            expected_revision=given.expected_revision,
        )
    )


class FinishArguments(Arguments):
    flow_id: FlowId
    expected_revision: Revision
    result: dict[str, JsonValue] | None = None
    """The flow's result; merged into its state."""


async def finish(session: FlowSession, given: FinishArguments) -> CallToolResult:
    """Finish a running flow whose goal is reached. Steps that have not ended are cancelled."""
    fields: dict[str, Any] = {"final_state": given.result}
    fields["expected_revision"] = given.expected_revision
    return outcome_result(await session.send("finish", given.flow_id, **fields))


class FailArguments(Arguments):
    flow_id: FlowId
    expected_revision: Revision
    reason: Long
    """Why its goal cannot be reached."""


async def fail(session: FlowSession, given: FailArguments) -> CallToolResult:
    """Fail a running or waiting flow whose goal cannot be reached."""
    fields: dict[str, Any] = {"reason": given.reason}
    fields["expected_revision"] = given.expected_revision
    return outcome_result(await session.send("fail", given.flow_id, **fields))


class CancelArguments(Arguments):
    flow_id: FlowId
    expected_revision: Revision
    request_only: bool = False
    """Only request the cancel: a program that works on the flow sees the request and ends it."""


async def cancel(session: FlowSession, given: CancelArguments) -> CallToolResult:
    """Cancel a flow of this session that has not ended, and its steps."""
    kind = "request_cancel" if given.request_only else "cancel"
    fields: dict[str, Any] = {"expected_revision": given.expected_revision}
    return outcome_result(await session.send(kind, given.flow_id, **fields))


FLOW_TOOLS: Final[tuple[FlowTool, ...]] = (
    flow_tool(start, StartArguments, Permission.WRITE),
    flow_tool(advance, AdvanceArguments, Permission.WRITE),
    flow_tool(wait, WaitArguments, Permission.WRITE),
    flow_tool(finish, FinishArguments, Permission.WRITE, destructive=True),
    flow_tool(fail, FailArguments, Permission.WRITE, destructive=True),
    flow_tool(cancel, CancelArguments, Permission.WRITE, destructive=True),
)
