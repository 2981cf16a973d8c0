"""`taskflow mcp` as its users run it: the official client, on stdio and by HTTP."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest_asyncio
from mcp import Client, StdioServerParameters
from mcp.client.streamable_http import streamable_http_client

from processor.client import Step, StepWorker
from processor.settings import Settings
from tests.support.forked_program import inherited
from tests.support.mcp_server import facts
from tests.support.mcp_tasks import TaskListener, called, until
from tests.support.processes import ProgramProcess
from tests.support.views import running_views
from tests.support.worker import running_worker

ROOT = Path(__file__).parents[2]
TOOLS = {
    "tools": [
        {
            "name": "double",
            "description": "Double a number.",
            "inputSchema": {"type": "object", "properties": {"of": {"type": "integer"}}},
        }
    ]
}
TOKEN = "a token of sixteen"


@dataclass(frozen=True)
class Place:
    """A worker and views that run; `environ` names them."""

    settings: Settings
    home: Path
    views: str

    @property
    def environ(self) -> dict[str, str]:
        return {
            **inherited(),
            "TASKFLOW_BOOTSTRAP_SERVERS": self.settings.bootstrap_servers,
            "TASKFLOW_TOPIC_PREFIX": self.settings.topic_prefix,
            "TASKFLOW_VIEWS_HTTP": self.views.removeprefix("http://"),
            "PYTHONPATH": str(ROOT),
        }

    def stdio(self, *arguments: str) -> StdioServerParameters:
        command = ["-m", "processor", "mcp", *arguments]
        return StdioServerParameters(command=sys.executable, args=command, env=self.environ)


@pytest_asyncio.fixture
async def place(
    settings: Settings, tmp_path: Path, unused_tcp_port_factory: Callable[[], int]
) -> AsyncIterator[Place]:
    async with (
        running_worker(settings),
        running_views(settings, tmp_path, unused_tcp_port_factory()) as url,
    ):
        yield Place(settings, tmp_path, url)


async def test_a_flow_is_found_again_by_the_next_server(place: Place) -> None:
    start = {"key": "inbox", "goal": "Triage the inbox"}
    async with Client(place.stdio("--write", "--owner", "ann")) as client:
        started = facts(await client.call_tool("start", start))
        waiting = {"expected_revision": 1, "kind": "external_event", "topic": "mail"}
        waiting |= {"flow_id": started["flow_id"], "correlation_id": "4711"}
        waited = facts(await client.call_tool("wait", waiting))
        # Reads include what was written here; those of the next server need not.
        await client.call_tool("status", {"flow_id": started["flow_id"]})
    async with Client(place.stdio("--owner", "ann")) as client:
        listed = facts(await client.call_tool("list_mine", {"waiting": "external_event"}))
        explained = facts(await client.call_tool("why", {"flow_id": started["flow_id"]}))
        names = {tool.name for tool in (await client.list_tools()).tools}

    assert waited["status"] == "waiting"
    assert started["flow_id"] in [one["id"] for one in listed["flows"]]
    assert explained["untrusted"]["data"]["wait"]["correlation_id"] == "4711"
    assert names == {"status", "list_mine", "history", "why"}


async def test_a_task_by_http_is_listened_to_and_wants_its_token(
    place: Place, unused_tcp_port_factory: Callable[[], int]
) -> None:
    (place.home / "tools.json").write_text(json.dumps(TOOLS))
    address = f"127.0.0.1:{unused_tcp_port_factory()}"
    url = f"http://{address}/mcp"

    async def double(step: Step) -> dict[str, int]:
        return {"is": 2 * int(step.input["of"])}

    async with (
        serving(place, MCP_HTTP=address, MCP_TOKEN=TOKEN),
        StepWorker({"double": double}, group="doublers", settings=place.settings) as executor,
    ):
        working = asyncio.create_task(executor.run())
        async with httpx2.AsyncClient() as stranger:
            refused = await stranger.post(url, json={})
        listener = TaskListener()
        headers = {"Authorization": f"Bearer {TOKEN}"}
        async with (
            httpx2.AsyncClient(headers=headers) as http,
            Client(streamable_http_client(url, http_client=http), extensions=[listener]) as client,
        ):
            made = await called(client, "double", {"of": 21})
            listening = asyncio.create_task(listener.listen(client, made["taskId"]))
            await listener.ended.wait()
            done = await until(client, made["taskId"], "completed")
            listening.cancel()
            await asyncio.wait((listening,))
        executor.stop()
        await working

    assert refused.status_code == 401
    assert done["result"]["structuredContent"] == {"is": 42}
    assert listener.tasks[-1]["result"] == done["result"]


@asynccontextmanager
async def serving(place: Place, **settings: str) -> AsyncIterator[None]:
    """`taskflow mcp --http` with the tools, until the block ends; it ends well."""
    arguments = ["mcp", "--write", "--http", "--owner", "ann"]
    arguments += ["--tools", str(place.home / "tools.json")]
    settings |= {"VIEWS_HTTP": place.views.removeprefix("http://")}
    known = place.settings
    brokers, prefix = known.bootstrap_servers, known.topic_prefix
    server = ProgramProcess("mcp", place.home, brokers, prefix, arguments, **settings)
    await server.start()
    try:
        await server.until_printed("serving ann's flows at")
        yield
        assert await server.end() == 0, server.output()
    finally:
        if server.running:
            await server.kill()
