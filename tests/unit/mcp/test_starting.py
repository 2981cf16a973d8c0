"""What an MCP server is started with: a file of tools, an address, a name for each tool."""

import asyncio
import json
import re
from pathlib import Path

import pytest
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


async def test_what_keeps_a_tool_from_an_outcome_is_a_value() -> None:
    """The client is one in this process; the views are not there."""
    async with asking(NOWHERE) as views:
        server = make_server(FlowSession(Settings(), views, owner="ann"), Permission.READ)
        async with Client(server) as client:
            result = await client.call_tool("list_mine", {})

    assert result.is_error
    assert result.structured_content["code"] == "NoViews"
    assert result.structured_content["may_try_again"] is True
