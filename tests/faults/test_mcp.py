"""Tasks of MCP outlive every part: the server, worker, executor and broker are killed amid them."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx2
import pytest
from mcp import Client
from mcp.client import advertise
from mcp.shared.exceptions import MCPError

from processor.adapters.kafka.admin.topic_admin import create_topics
from processor.client import AuditStream
from processor.embedded.broker import EmbeddedBroker, embedded_broker, free_port
from processor.mcp.tasks.progress import CONTROLLER
from processor.mcp.tasks.protocol import EXTENSION
from processor.settings import Settings
from tests.support.machine import patience
from tests.support.mcp_tasks import called, gotten, updated
from tests.support.observed_deployment import observing
from tests.support.processes import ForkedWorker, ProgramProcess, workers
from tests.support.views import views

PARTITIONS = 2
OWNER = "agent"
PATIENCE_S = patience(90)
"""For one call, of which every part may be killed in turn, the broker too."""
TOOLS = {
    "tools": [
        {
            "name": "convert",
            "description": "Convert a file.",
            "inputSchema": {"type": "object", "properties": {"file": {"type": "string"}}},
            "maxAttempts": 100,
            "leaseMs": 2000,
            "backoffMs": 0,
        }
    ]
}
SCHEMA = {"type": "object", "properties": {"page": {"type": "integer"}}}
QUESTION = {
    "resultType": "input_required",
    "inputRequests": {
        "page": {
            "method": "elicitation/create",
            "params": {"mode": "form", "message": "Which?", "requestedSchema": SCHEMA},
        }
    },
}
HANDLER = f"""#!/bin/sh
case "$(cat)" in
*inputResponses*) echo '"converted"' ;;
*) echo '{json.dumps(QUESTION)}' ;;
esac
"""


@dataclass
class Place:
    """All that takes part, as processes."""

    broker: EmbeddedBroker
    settings: Settings
    parts: dict[str, ForkedWorker]
    url: str
    killed: Counter[str] = field(default_factory=Counter)

    async def kill(self, name: str) -> None:
        """Kill a part, and start it again."""
        self.killed[name] += 1
        if name == "broker":
            await self.broker.kill()
            await self.broker.start()
        else:
            await self.parts[name].kill()
            await self.parts[name].start()


@asynccontextmanager
async def running(broker: EmbeddedBroker, prefix: str, home: Path) -> AsyncIterator[Place]:
    """A deployment with an MCP server and an executor; nothing of it outlives the block."""
    (home / "tools.json").write_text(json.dumps(TOOLS))
    (home / "handler").write_text(HANDLER)
    (home / "handler").chmod(0o755)
    async with AsyncExitStack() as stack:
        settings = Settings(
            bootstrap_servers=broker.bootstrap, topic_prefix=prefix, partitions=PARTITIONS
        )
        await create_topics(settings)
        where = home, broker.bootstrap, prefix
        (worker,) = await stack.enter_async_context(workers(1, *where, PARTITIONS=str(PARTITIONS)))
        (view,) = await stack.enter_async_context(views(1, *where, free_port))
        parts: dict[str, Any] = {"worker": worker}
        address = f"127.0.0.1:{free_port()}"
        tools = str(home / "tools.json")
        commands = {
            "mcp": ("mcp", "--write", "--http", "--owner", OWNER, "--tools", tools),
            "executor": ("step", "run", "--task", "convert", "--", str(home / "handler")),
        }
        near = view.url.removeprefix("http://")
        for name, arguments in commands.items():
            place = home, broker.bootstrap, prefix, arguments
            part = ProgramProcess(name, *place, MCP_HTTP=address, VIEWS_HTTP=near)
            parts[name] = part
            stack.push_async_callback(ended, part)
        for part in (view, *parts.values()):
            await part.start()
        await worker.until_ready()
        await view.until(lambda _: True, "/ready")
        yield Place(broker, settings, parts, f"http://{address}/mcp")


async def ended(part: ForkedWorker) -> None:
    if part.running:
        await part.kill()


class PersistentClient:
    """A client that connects again, and repeats a call, until it gets a result."""

    def __init__(self, url: str) -> None:
        self._url = url

    async def until_done(self, request: Callable[[Client], Awaitable[dict[str, Any]]]) -> Any:
        async with asyncio.timeout(PATIENCE_S):
            while True:
                try:
                    async with Client(
                        self._url, extensions=[advertise(EXTENSION)], mode="2026-07-28"
                    ) as client:
                        return await request(client)
                except* (httpx2.HTTPError, OSError, MCPError) as failed:
                    refused = failed.subgroup(_is_final)
                    if refused is not None:
                        raise AssertionError(refused.exceptions) from None
                await asyncio.sleep(0.1)

    async def call(self, nth: int, key: str) -> str:
        """Call the tool; the task's id."""
        arguments = {"file": f"file {nth}"}
        made = await self.until_done(lambda c: called(c, "convert", arguments, key=key))
        return str(made["taskId"])

    async def update(self, task_id: str, responses: dict[str, Any]) -> None:
        await self.until_done(lambda client: updated(client, task_id, responses))

    async def until_status(self, task_id: str, status: str) -> dict[str, Any]:
        async with asyncio.timeout(PATIENCE_S):
            while True:
                task: dict[str, Any] = await self.until_done(lambda c: gotten(c, task_id))
                if task["status"] == status:
                    return task
                assert task["status"] in ("working", "input_required"), task
                await asyncio.sleep(0.1)


def _is_final(error: BaseException) -> bool:
    """Whether an error says that a call is wrong: then a task was lost."""
    return isinstance(error, MCPError) and error.code == -32602


async def test_kills_between_calls_lose_no_task_and_do_none_twice(
    broker: EmbeddedBroker, prefix: str, tmp_path: Path
) -> None:
    """Six seconds of CPU: four processes, three of them twice."""
    async with running(broker, prefix, tmp_path) as place:
        await outlive(place, ["mcp", "executor", "worker"])


@pytest.mark.soak
@pytest.mark.timeout(1200)
async def test_kills_of_every_part_between_any_two_calls(prefix: str, tmp_path: Path) -> None:
    async with (
        embedded_broker(data_dir=tmp_path / "broker") as broker,
        running(broker, prefix, tmp_path) as place,
    ):
        await outlive(place, ["mcp", "executor", "worker", "broker"] * 13)


async def outlive(place: Place, names: list[str]) -> None:
    """Have tasks done amid kills of these parts, and look at what was recorded."""
    tasks = await through_kills(place, PersistentClient(place.url), list(names))
    known = place.settings
    async with observing(known.bootstrap_servers, known.topic_prefix, PARTITIONS) as observer:
        state_dirs = [place.parts["worker"].state_dir]
        world = await observer.settled(state_dirs, timeout_s=patience(60))
    world.assert_clean()
    events = await events_by_flow(known)

    assert place.killed == Counter(names)
    assert events.keys() == tasks.keys(), "a task was lost, or made twice"
    for task_id, kinds in events.items():
        once = ("created", "waiting", "resumed", "finished")
        assert [kinds[kind] for kind in once] == [1] * len(once), (task_id, kinds)
        assert kinds["step_scheduled"] == kinds["step_succeeded"] == 2, (task_id, kinds)


async def through_kills(place: Place, client: PersistentClient, left: list[str]) -> dict[str, Any]:
    """Tasks from their call to their result, with a kill before each step of it, until none is
    left; the results by task."""
    results: dict[str, Any] = {}

    async def kill_next() -> None:
        if left:
            await place.kill(left.pop(0))

    while left:
        key, nth = str(uuid4()), len(results)
        task_id = await client.call(nth, key)
        await kill_next()
        assert await client.call(nth, key) == task_id
        await kill_next()
        asked = await client.until_status(task_id, "input_required")
        (question,) = asked["inputRequests"]
        await kill_next()
        await client.update(task_id, {question: {"action": "accept", "content": {"page": nth}}})
        await client.update(task_id, {question: {"action": "decline"}})  # too late
        await kill_next()
        done = await client.until_status(task_id, "completed")
        assert done["result"]["content"][0]["text"] == "converted"
        results[task_id] = done
    return results


async def events_by_flow(settings: Settings) -> dict[str, Counter[str]]:
    """How often what happened to each flow of a task."""
    found: dict[str, Counter[str]] = {}
    async with AuditStream(settings, follow=False) as stream:
        async for event in stream:
            if event.kind == "created":
                assert event.model_dump(mode="json")["payload_json"]["controller_id"] == CONTROLLER
            found.setdefault(event.flow_id, Counter())[event.kind] += 1
    return found
