"""Run the MCP server of `taskflow mcp`, on standard streams or by streamable HTTP."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from mcp.server.lowlevel import Server

from processor.cli.common.output import say
from processor.cli.common.runner import WrongUse
from processor.cli.common.service_address import views_url
from processor.client.flow_client import default_session
from processor.client.http.views_client import asking
from processor.mcp.flow_session import FlowSession
from processor.mcp.http_server import serve_http
from processor.mcp.server import make_server
from processor.mcp.stdio_server import serve_stdio
from processor.mcp.tasks.executor_tool import ToolsUnusable, read_tools
from processor.mcp.tasks.extension import TasksExtension
from processor.mcp.tasks.task_driver import TaskDriver
from processor.mcp.tasks.task_store import TaskStore
from processor.mcp.tools.tool import Permission
from processor.runtime import end_tasks
from processor.settings import Settings

VIEWS_TIMEOUT_S: Final = 15.0
"""Longer than the views may take to show earlier writes."""
OTHERWISE: Final = "TASKFLOW_MCP_HTTP to another address"


@dataclass(frozen=True, slots=True)
class McpChoice:
    """The options of `taskflow mcp`."""

    write: bool
    operator: bool
    owner: str | None
    tools: Path | None
    views: str | None

    @property
    def permission(self) -> Permission:
        if self.operator:
            return Permission.OPERATE
        return Permission.WRITE if self.write else Permission.READ


async def serve_mcp(
    settings: Settings, chosen: McpChoice, stop: asyncio.Event, *, http: bool
) -> None:
    """Serve until `stop` is set, or standard input ends.

    Raises WrongUse, ToolsUnusable, AddressInUse.
    """
    async with _server(settings, chosen) as (server, session):
        if http:
            await serve_http(
                server,
                settings.mcp_http,
                settings.mcp_token,
                stop,
                otherwise=OTHERWISE,
                on_ready=lambda url: say(f"serving {session.owner}'s flows at {url}"),
            )
            return
        await serve_stdio(server, stop)


@asynccontextmanager
async def _server(
    settings: Settings, chosen: McpChoice
) -> AsyncIterator[tuple[Server[Any], FlowSession]]:
    tools = [] if chosen.tools is None else read_tools(chosen.tools)
    owner = chosen.owner or settings.mcp_owner or default_session()
    if not 1 <= len(owner) <= 256:
        raise WrongUse("--owner must have 1 to 256 characters.")
    async with AsyncExitStack() as stack:
        url = views_url(settings, chosen.views)
        asked = asking(url, settings.views_read_token, timeout_s=VIEWS_TIMEOUT_S)
        views = await stack.enter_async_context(asked)
        session = FlowSession(settings, views, owner=owner, operator=chosen.operator)
        await stack.enter_async_context(session)
        if not tools:
            yield make_server(session, chosen.permission), session
            return
        store = TaskStore(session)
        driver = TaskDriver(store)
        extension = TasksExtension(store, tools, driver)
        try:
            server = make_server(session, chosen.permission, extension)
        except ValueError as error:
            raise ToolsUnusable(f"{chosen.tools}: {error}.") from None
        driving = asyncio.create_task(driver.run())
        try:
            yield server, session
        finally:
            await end_tasks(driving)
