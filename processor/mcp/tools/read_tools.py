"""Tools that read flows: status, list_mine, history, why."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final, Literal

from mcp_types import CallToolResult
from pydantic import Field

from processor.client.http.views_client import Document
from processor.contract.flow import FlowStatus
from processor.mcp.flow_session import FlowSession
from processor.mcp.tools.results import result
from processor.mcp.tools.tool import Arguments, FlowId, FlowTool, Permission, flow_tool

STEPS_SHOWN: Final = 50
EVENTS_EXPLAINED: Final = 5
TOOL_OF: Final[Mapping[str, str]] = {
    "start_running": "advance (begin)",
    "update_state": "advance",
    "resume": "advance (resume)",
    "set_waiting": "wait",
    "finish": "finish",
    "fail": "fail",
    "cancel": "cancel",
    "request_cancel": "cancel (request_only)",
}
"""By kind of command, the tool that sends it."""

_LISTED: Final = ("id", "status", "revision", "updated_at")
_LISTED_DATA: Final = ("id", "goal", "current_step", "wait_json")

Limit = Annotated[int, Field(ge=1, le=200)]


class FlowArguments(Arguments):
    flow_id: FlowId


async def status(session: FlowSession, given: FlowArguments) -> CallToolResult:
    """Show a flow as it is now: status, revision, state, wait, the newest steps, and the commands
    that it takes."""
    found = await session.read(given.flow_id)
    flow, newest = found["flow"], found["steps"][-STEPS_SHOWN:]
    written = ("goal", "current_step", "state_json", "wait_json", "controller_id")
    data = {name: flow[name] for name in written}
    facts = {**_facts(found), "steps_total": found["steps_total"]}
    return result(facts, {**data, "owner": flow["owner_session_key"], "steps": newest})


class ListArguments(Arguments):
    status: FlowStatus | None = None
    """Only flows in this status."""
    waiting: Literal["timer", "external_event", "manual", "steps", "any"] | None = None
    """Only flows that wait for this."""
    limit: Limit = 20
    cursor: str | None = None
    """`next_cursor` of the previous page."""


async def list_mine(session: FlowSession, given: ListArguments) -> CallToolResult:
    """List the flows of this session, the newest change first."""
    query = given.model_dump(mode="json")
    page = await session.get("flows", owner=session.owner, **query)
    items = page["items"]
    facts = [{name: one[name] for name in _LISTED} for one in items]
    data = [{name: one[name] for name in _LISTED_DATA} for one in items]
    return result({"flows": facts, "next_cursor": page["next_cursor"]}, data)


class HistoryArguments(FlowArguments):
    newest_first: bool = True
    limit: Limit = 20
    cursor: str | None = None
    """`next_cursor` of the previous page."""


async def history(session: FlowSession, given: HistoryArguments) -> CallToolResult:
    """Show the events of a flow, with their time and actor."""
    await session.read(given.flow_id)
    page = await _events(session, given.flow_id, given.limit, given.cursor, given.newest_first)
    facts = [_event(event) for event in page["items"]]
    data = [
        {"id": event["id"], "actor": event["actor"], "payload": event["payload_json"]}
        for event in page["items"]
    ]
    return result({"events": facts, "next_cursor": page["next_cursor"]}, data)


async def why(session: FlowSession, given: FlowArguments) -> CallToolResult:
    """Explain a flow: its status, its wait, its last events, and the tools that it takes now."""
    found = await session.read(given.flow_id)
    page = await _events(session, given.flow_id, EVENTS_EXPLAINED, None, True)
    wait = found["flow"]["wait_json"]
    facts = {
        **_facts(found),
        "because": " ".join(_sentences(found)),
        "tools": _tools(found),
        "last_events": [_event(event) for event in page["items"]],
    }
    failures = {
        step["run_id"]: step["execution"]["last_failure"]
        for step in found["steps"]
        if (step.get("execution") or {}).get("last_failure")
    }
    data = {"wait": wait, "last_failures": failures}
    return result(facts, data if wait or failures else None)


def _facts(found: Document) -> dict[str, Any]:
    flow = found["flow"]
    names = ("status", "revision", "cancel_requested", "created_at", "updated_at")
    facts = {name: flow[name] for name in names}
    return {"flow_id": flow["id"], **facts, "allowed": found["allowed"]}


def _tools(found: Document) -> list[str]:
    """The tools that the flow takes now. `allowed` has no commands about steps, which depend on
    the step."""
    tools = [TOOL_OF[kind] for kind in found["allowed"] if kind in TOOL_OF]
    takes_steps = "cancel" in found["allowed"] and not found["flow"]["cancel_requested"]
    return [*tools, "steps"] if takes_steps else tools


def _event(event: Mapping[str, Any]) -> dict[str, Any]:
    return {name: event[name] for name in ("id", "kind", "at", "revision", "status")}


async def _events(
    session: FlowSession, flow_id: str, limit: int, cursor: str | None, newest_first: bool
) -> Document:
    order = "desc" if newest_first else "asc"
    path = f"flows/{flow_id}/history"
    return await session.get(path, limit=limit, cursor=cursor, order=order)


def _sentences(found: Document) -> Sequence[str]:
    """Sentences about a flow's status, without text of others."""
    flow = found["flow"]
    said = [f"It is {flow['status']} since {flow['updated_at']}, at revision {flow['revision']}."]
    if (wait := flow["wait_json"]) is not None:
        said.append(_of_wait(wait))
    if flow["cancel_requested"]:
        said.append("A cancel was requested: it takes only commands that lead to its end.")
    if counts := Counter(step["status"] for step in found["steps"]):
        shown = ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
        said.append(f"Its steps: {shown}.")
    return said


def _of_wait(wait: Mapping[str, Any]) -> str:
    ends = wait.get("at") or wait.get("timeout_at")
    until = "" if ends is None else f" It ends by itself at {ends}."
    match wait["kind"]:
        case "timer":
            return f"It waits for a time.{until}"
        case "external_event":
            return f"It waits for an external event with its topic and correlation id.{until}"
        case "steps":
            return f"It waits for steps to end.{until}"
        case _:
            return f"It waits for its owner or an operator to resume it.{until}"


READ_TOOLS: Final[tuple[FlowTool, ...]] = (
    flow_tool(status, FlowArguments, Permission.READ),
    flow_tool(list_mine, ListArguments, Permission.READ),
    flow_tool(history, HistoryArguments, Permission.READ),
    flow_tool(why, FlowArguments, Permission.READ),
)
