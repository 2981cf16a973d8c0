"""What an MCP server is started with: a file of tools, an address, a name for each tool."""

import asyncio
import json
import re
from pathlib import Path
from uuid import UUID

import pytest
from aiohttp import ClientSession
from mcp import Client

from processor.client.http.views_client import asking
from processor.mcp.flow_session import FlowSession
from processor.mcp.http_server import serve_http
from processor.mcp.server import make_server
from processor.mcp.tasks.executor_tool import ToolsUnusable, read_tools
from processor.mcp.tasks.extension import TasksExtension
from processor.mcp.tasks.task_driver import TaskDriver
from processor.mcp.tasks.task_store import TaskStore
from processor.mcp.tools.tool import Permission
from processor.settings import Address, BadSetting, Settings

PAGE = Path(__file__).parents[3] / "processor" / "docs" / "mcp.md"
NOWHERE = "http://127.0.0.1:1"
SCHEMA = {"type": "object"}


def tool_file(folder: Path, *tools: object) -> Path:
    path = folder / "tools.json"
    path.write_text(json.dumps({"tools": tools}))
    return path


def test_the_file_of_tools_that_is_documented_can_be_read(tmp_path: Path) -> None:
    _, example = re.findall(r"```json\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    (tmp_path / "tools.json").write_text(example)
    (tool,) = read_tools(tmp_path / "tools.json")

    assert (tool.name, tool.step_task, tool.max_attempts) == ("convert", "convert", 3)
    assert tool.fault({"document": "a.pdf"}) is None
    assert tool.fault({}) == "$: 'document' is a required property"


@pytest.mark.parametrize(
    ("tool", "problem"),
    [
        ({"name": "a"}, "tools.0.description"),
        ({"name": "a b", "description": "x", "inputSchema": SCHEMA}, "tools.0.name"),
        ({"name": "a", "description": "x", "inputSchema": {}}, "must have the type object"),
        (
            {"name": "a", "description": "x", "inputSchema": {**SCHEMA, "required": "b"}},
            "no JSON Schema",
        ),
        (
            {
                "name": "a",
                "description": "x",
                "inputSchema": {**SCHEMA, "properties": {"requestState": {}}},
            },
            "no property requestState",
        ),
    ],
)
def test_a_tool_that_cannot_be_is_named(
    tmp_path: Path, tool: dict[str, object], problem: str
) -> None:
    with pytest.raises(ToolsUnusable, match=re.escape(problem)):
        read_tools(tool_file(tmp_path, tool))


async def test_a_name_is_one_tools(tmp_path: Path) -> None:
    tool = {"name": "start", "description": "x", "inputSchema": SCHEMA}
    with pytest.raises(ToolsUnusable, match="two tools start"):
        read_tools(tool_file(tmp_path, tool, tool))
    tools = read_tools(tool_file(tmp_path, tool))
    async with asking(NOWHERE) as views:
        session = FlowSession(Settings(), views, owner="ann")
        store = TaskStore(session)
        extension = TasksExtension(store, tools, TaskDriver(store))
        with pytest.raises(ValueError, match="one of taskflow's own"):
            make_server(session, Permission.WRITE, extension)


async def test_an_address_that_others_reach_needs_a_token() -> None:
    async with asking(NOWHERE) as views:
        server = make_server(FlowSession(Settings(), views, owner="ann"), Permission.READ)
        with pytest.raises(BadSetting, match="TASKFLOW_MCP_TOKEN"):
            await serve_http(
                server,
                Address("0.0.0.0", 0),
                None,
                asyncio.Event(),
                otherwise="",
                on_ready=lambda url: None,
            )


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.5"])
async def test_a_page_whose_name_resolves_to_this_machine_is_refused(host: str) -> None:
    """Without a token it could ask for what the session has."""
    at: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    stop = asyncio.Event()
    async with asking(NOWHERE) as views, ClientSession() as page:
        server = make_server(FlowSession(Settings(), views, owner="ann"), Permission.READ)
        serving = asyncio.create_task(
            serve_http(server, Address(host, 0), None, stop, otherwise="", on_ready=at.set_result)
        )
        url = await at
        rebound = {"Host": "page.example:8903"}
        statuses = []
        for headers in ({}, rebound, {"Origin": "http://page.example"}):
            async with page.post(url, json={}, headers=headers) as response:
                statuses.append(response.status)
        stop.set()
        await serving
    assert statuses[0] not in (403, 421)
    assert statuses[1:] == [421, 403]


async def test_what_keeps_a_tool_from_an_outcome_is_a_value() -> None:
    """The client is one in this process; the views are not there."""
    async with asking(NOWHERE) as views:
        server = make_server(FlowSession(Settings(), views, owner="ann"), Permission.READ)
        async with Client(server) as client:
            result = await client.call_tool("list_mine", {})

    assert result.is_error
    assert result.structured_content["code"] == "NoViews"
    assert result.structured_content["may_try_again"] is True


@pytest.mark.parametrize("seconds", [1e300, "inf"])
async def test_a_wait_that_no_calendar_has_is_refused(seconds: object) -> None:
    asked = {"flow_id": str(UUID(int=1)), "expected_revision": 1, "kind": "timer"}
    async with asking(NOWHERE) as views:
        server = make_server(FlowSession(Settings(), views, owner="ann"), Permission.WRITE)
        async with Client(server) as client:
            result = await client.call_tool("wait", {**asked, "for_seconds": seconds})

    assert result.structured_content["code"] == "invalid_arguments"
