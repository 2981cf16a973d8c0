"""Tools with an operator's authority: cancel by filter, resume, redrive; a dry run comes first."""

from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Annotated, Any, Final

import orjson
from mcp_types import CallToolResult
from pydantic import Field, JsonValue

from processor.contract.flow import FlowStatus
from processor.contract.values import Timestamp
from processor.mcp.flow_session import FlowSession
from processor.mcp.tools.results import outcome_result, refusal, result
from processor.mcp.tools.tool import Arguments, FlowId, FlowTool, Permission, flow_tool

CANCEL_MAX: Final = 200
OPEN: Final = ("created", "running", "waiting")


class PlannedArguments(Arguments):
    reason: Annotated[str, Field(min_length=1, max_length=4096)]
    """The reason, for the record."""
    plan: str | None = None
    """The `plan` of the dry run. Without it the call is a dry run: it changes nothing."""


class CancelWhereArguments(PlannedArguments):
    owner: str | None = None
    """Only flows of this session."""
    controller: str | None = None
    """Only flows with this controller."""
    status: FlowStatus | None = None
    """Only flows in this status."""
    q: str | None = None
    """Only flows with these words in their goal."""
    updated_before: Timestamp | None = None
    """Only flows that have not changed since this time. With a time zone."""


async def cancel_where(session: FlowSession, given: CancelWhereArguments) -> CallToolResult:
    """Cancel all flows that match, at most 200, as an operator. The first call is a dry run that
    returns a plan. Call again with this plan after the user has agreed, to carry it out."""
    found = await _matching(session, given)
    if len(found) > CANCEL_MAX:
        return refusal("too_many", f"More than {CANCEL_MAX} flows match; narrow the filter.")
    plan = _plan("cancel_where", [(one["id"], one["revision"]) for one in found])
    if given.plan is None:
        facts = {"dry_run": True, "plan": plan, "flows": [one["id"] for one in found]}
        return result(facts, [{"id": one["id"], "goal": one["goal"]} for one in found])
    if given.plan != plan:
        return _stale()
    done = {
        one["id"]: await session.act(
            "cancel", one["id"], reason=given.reason, expected_revision=one["revision"]
        )
        for one in found
    }
    return result({"cancelled": {flow_id: outcome.verdict for flow_id, outcome in done.items()}})


async def _matching(
    session: FlowSession, given: CancelWhereArguments
) -> Sequence[Mapping[str, Any]]:
    query = {
        **given.model_dump(mode="json", include={"owner", "controller", "q", "updated_before"}),
        "status": given.status or ",".join(OPEN),
    }
    found: list[Mapping[str, Any]] = []
    cursor = None
    while len(found) <= CANCEL_MAX:
        page = await session.get("flows", **query, limit=CANCEL_MAX, cursor=cursor)
        found += page["items"]
        if (cursor := page["next_cursor"]) is None:
            break
    return sorted(found, key=lambda one: str(one["id"]))


class ResumeArguments(PlannedArguments):
    flow_id: FlowId
    patch: dict[str, JsonValue] | None = None
    """Merged into the flow's state."""


async def resume(session: FlowSession, given: ResumeArguments) -> CallToolResult:
    """Resume a waiting flow of any session, as an operator. The first call is a dry run that
    returns a plan. Call again with this plan after the user has agreed, to carry it out."""
    flow = (await session.read(given.flow_id))["flow"]
    plan = _plan("resume", [given.flow_id, flow["revision"], given.patch])
    if given.plan not in (None, plan):
        return _stale()
    outcome = await session.act(
        "resume",
        given.flow_id,
        reason=given.reason,
        expected_revision=flow["revision"],
        state_patch=given.patch,
        dry_run=True if given.plan is None else None,
    )
    more = {} if given.plan is not None else {"dry_run": True, "plan": plan}
    return outcome_result(outcome, **more)


class RedriveArguments(PlannedArguments):
    partition: Annotated[int, Field(ge=0)]
    """The partition of the dead letter."""
    offset: Annotated[int, Field(ge=0)]
    """The offset of the dead letter."""


async def redrive(session: FlowSession, given: RedriveArguments) -> CallToolResult:
    """Send a dead letter back to the topic that it came from, as an operator. The first call is a
    dry run that shows the dead letter and returns a plan. Call again with this plan after the user
    has agreed, to carry it out."""
    token = session.settings.views_operator_token
    if token is None:
        return refusal(
            "no_operator_token",
            "redrive needs TASKFLOW_VIEWS_OPERATOR_TOKEN; set it to the views' token.",
        )
    path = f"deadletters/{given.partition}/{given.offset}/redrive"
    body = {"issued_by": f"operator:{session.owner}"[:256], "reason": given.reason}
    shown = await session.views.post(path, {**body, "dry_run": True}, token)
    plan = _plan("redrive", [given.partition, given.offset, shown["value"]])
    if given.plan is None:
        facts = {"dry_run": True, "plan": plan, "code": shown["code"], "topic": shown["topic"]}
        return result(facts, {"value": shown["value"], "stays": shown["stays"]})
    if given.plan != plan:
        return _stale()
    done = await session.views.post(path, body, token, wait="10s")
    outcome = done["outcome"]
    names = ("verdict", "code", "message", "flow_id", "status", "revision", "allowed")
    return result({name: outcome[name] for name in names})


def _plan(tool: str, what: Any) -> str:
    """Return a digest of the tool and of everything that it would change."""
    return blake2b(orjson.dumps([tool, what]), digest_size=8).hexdigest()


def _stale() -> CallToolResult:
    message = "The flows have changed since the dry run; nothing was done. Make a dry run again."
    return refusal("stale_plan", message)


OPERATOR_TOOLS: Final[tuple[FlowTool, ...]] = (
    flow_tool(cancel_where, CancelWhereArguments, Permission.OPERATE, destructive=True),
    flow_tool(resume, ResumeArguments, Permission.OPERATE),
    flow_tool(redrive, RedriveArguments, Permission.OPERATE),
)
