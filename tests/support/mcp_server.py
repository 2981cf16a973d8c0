"""The MCP server in this process, over the engine in memory and the real API of views."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

from mcp import Client
from mcp.client import ClientExtension
from mcp.server.lowlevel import Server
from mcp_types import CallToolResult

from processor.client.http.views_client import asking
from processor.mcp.flow_session import FlowSession
from processor.mcp.server import make_server
from processor.mcp.tasks.executor_tool import ExecutorTool
from processor.mcp.tasks.extension import TasksExtension
from processor.mcp.tasks.task_driver import TaskDriver
from processor.mcp.tasks.task_store import TaskStore
from processor.mcp.tools.tool import Permission
from processor.runtime import end_tasks
from processor.testing.fake import TaskflowFake
from tests.support.machine import patience
from tests.support.served_views import acting

OWNER = "ann"
T = TypeVar("T")
OPERATOR_TOKEN = "a token of the operators"


@asynccontextmanager
async def serving_mcp(
    fake: TaskflowFake,
    url: str,
    *,
    owner: str = OWNER,
    permission: Permission = Permission.WRITE,
    tools: Sequence[ExecutorTool] = (),
) -> AsyncIterator[Server[Any]]:
    """A server for one session, whose tasks are followed inside the block."""
    settings = fake.settings.model_copy(update={"views_operator_token": _secret(OPERATOR_TOKEN)})
    async with AsyncExitStack() as stack:
        views = await stack.enter_async_context(asking(url, timeout_s=patience(15.0)))
        operator = permission is Permission.OPERATE
        session = FlowSession(settings, views, owner=owner, operator=operator)
        await stack.enter_async_context(session)
        if not tools:
            yield make_server(session, permission)
            return
        store = TaskStore(session)
        driver = TaskDriver(store)
        driving = asyncio.create_task(driver.run())
        try:
            yield make_server(session, permission, TasksExtension(store, tools, driver))
        finally:
            await end_tasks(driving)


@asynccontextmanager
async def mcp_client(
    folder: Path,
    fake: TaskflowFake,
    *,
    extension: ClientExtension | None = None,
    mode: str = "auto",
    **options: Any,
) -> AsyncIterator[Client]:
    """The official client of such a server; it declares an extension if one is given."""
    async with (
        acting(folder, fake, views_operator_token=OPERATOR_TOKEN) as here,
        serving_mcp(fake, here.url, **options) as server,
        Client(server, extensions=[extension] if extension else None, mode=mode) as client,
    ):
        if events := fake.events():
            assert await here.view.includes([events[-1].id], patience(5.0))
        yield client


@asynccontextmanager
async def in_a_task(context: AbstractAsyncContextManager[T]) -> AsyncIterator[T]:
    """Enter and leave a context in one task, as anyio wants it; fixtures do so in two."""
    entered: asyncio.Future[T] = asyncio.get_running_loop().create_future()
    leave = asyncio.Event()

    async def hold() -> None:
        async with context as value:
            entered.set_result(value)
            await leave.wait()

    holding = asyncio.create_task(hold())
    await asyncio.wait((holding, entered), return_when=asyncio.FIRST_COMPLETED)
    try:
        if not holding.done():
            yield entered.result()
    finally:
        leave.set()
        await holding


def facts(result: CallToolResult) -> dict[str, Any]:
    """The structured content of a result."""
    content = result.structured_content
    assert isinstance(content, dict), result
    return content


def _secret(text: str) -> Any:
    from pydantic import SecretStr

    return SecretStr(text)
