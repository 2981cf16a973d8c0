"""Find flows by asking the views.

A pipe is answered from tables and topics instead: exactly, and with all that there is of a flow.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from math import inf
from typing import Any, Final, TypeVar

import orjson

from processor.cli.common.service_address import views_url
from processor.cli.flow.lookup import Found
from processor.client.http.views_client import Document, NoViews, ViewsClient, asking
from processor.contract.flow import Flow, FlowStatus
from processor.ops.conditions import Condition
from processor.settings import Settings

PAGE: Final = 200
QUERY_MAX: Final = 256
"""Limit of the characters of a search."""
OF_A_FLOW: Final = frozenset(Flow.model_fields)

T = TypeVar("T")


async def shown_flows(
    settings: Settings,
    *,
    owner: str | None,
    status: FlowStatus | None,
    where: Sequence[Condition] = (),
    waiting: bool,
    limit: int,
) -> list[Flow] | None:
    """As `list_flows`, or with `waiting` as `list_waiting`, but without their states, which are
    null here; None where no views can say, or they would not look at every flow."""
    conditions = " ".join(map(str, where)) or None
    if conditions is not None and len(conditions) > QUERY_MAX:
        return None

    async def listed(views: ViewsClient) -> list[Flow] | None:
        query: dict[str, str | None] = {"owner": owner, "status": status, "q": conditions}
        if not waiting:
            return await _flows(views, query, limit)
        # Those whose wait has an end come first; only then those that wait for ever.
        found = await _flows(views, {**query, "sort": "wait"}, limit)
        if found is None or len(found) == limit:
            return found
        others = await _flows(views, {**query, "waiting": "any"}, limit)
        if others is None:
            return None
        known = {flow.id for flow in found}
        return [*found, *(flow for flow in others if flow.id not in known)][:limit]

    return await _asked(settings, listed)


async def shown_ids(settings: Settings, prefix: str, limit: int) -> list[str] | None:
    """Up to `limit` flow ids that begin with `prefix`, in order; None if no views can tell."""

    async def found(views: ViewsClient) -> list[str] | None:
        flows = await _flows(views, {"q": prefix}, limit)
        return None if flows is None else sorted(flow.id for flow in flows)

    return await _asked(settings, found)


async def shown_flow(settings: Settings, flow_id: str) -> Found | None:
    """The flow without its chain, which is empty here; None where no views know it."""

    async def found(views: ViewsClient) -> Found | None:
        flow = await views.get(f"flows/{flow_id}")
        if not flow or not _is_fresh(flow) or len(flow["steps"]) < flow["steps_total"]:
            return None
        return Found(flow["flow"], flow["last_event_id"], "", flow["steps"])

    return await _asked(settings, found)


async def shown_history(settings: Settings, flow_id: str) -> list[Document] | None:
    """All FlowEvents of the flow, those of a pruned one, too; None where no views know it."""

    async def found(views: ViewsClient) -> list[Document] | None:
        return await _pages(views, f"flows/{flow_id}/history", {}) or None

    return await _asked(settings, found)


async def _asked(
    settings: Settings, work: Callable[[ViewsClient], Awaitable[T | None]]
) -> T | None:
    """What `work` gets from views of our topics that are up to date; None where there are none."""
    try:
        async with asking(views_url(settings), settings.views_read_token) as views:
            if not await views.are_of(settings):
                return None
            found = await work(views)
    except NoViews:
        return None
    return found


async def _flows(
    views: ViewsClient, query: Mapping[str, str | None], limit: int
) -> list[Flow] | None:
    """Up to `limit` flows; None if a page is not up to date."""
    found = await _pages(views, "flows", query, limit)
    return None if found is None else [_flow(summary) for summary in found]


async def _pages(
    views: ViewsClient, path: str, query: Mapping[str, str | None], limit: float = inf
) -> list[Document] | None:
    """Up to `limit` items; None if there is nothing at `path`, or a page is out of date or
    incomplete."""
    found: list[Document] = []
    cursor = None
    while len(found) < limit:
        wanted = int(min(PAGE, limit - len(found)))
        page = await views.get(path, **query, limit=wanted, cursor=cursor)
        if not page or not _is_fresh(page) or not page.get("searched_all", True):
            return None
        found += page["items"]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    return found


def _is_fresh(page: Mapping[str, Any]) -> bool:
    view = page["view"]
    return bool(view["complete"]) and view["behind"] == 0


def _flow(summary: Mapping[str, Any]) -> Flow:
    fields = {name: value for name, value in summary.items() if name in OF_A_FLOW}
    return Flow.model_validate_json(orjson.dumps({**fields, "state_json": None}))
