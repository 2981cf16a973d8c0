"""Two replicas of an A2A agent on one prefix: what one has begun the other one ends."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
from a2a.client import Client, ClientConfig, ClientFactory
from a2a.server.cluster import TaskVersion
from a2a.types import (
    AgentCard,
    GetTaskRequest,
    StreamResponse,
    SubscribeToTaskRequest,
    TaskState,
)

from processor.a2a import FlowEventStream
from processor.client import CurrentFlows
from processor.embedded.broker import EmbeddedBroker, free_port
from processor.settings import Settings
from tests.support.a2a_agent import CARD, request, state_name
from tests.support.machine import patience
from tests.support.processes import WorkerProcess
from tests.support.worker import running_worker

MESSAGE = "5f0c9a7e-9a35-4c0e-8f30-0b1f3c3f8a01"


class Replica(WorkerProcess):
    """`python -m tests.support.a2a_server`."""

    def __init__(self, name: str, home: Path, settings: Settings, *, hangs: bool) -> None:
        super().__init__(name, home, settings.bootstrap_servers, settings.topic_prefix)
        self.port = free_port()
        self._hangs = hangs

    def _program(self) -> tuple[str, ...]:
        return ("-m", "tests.support.a2a_server")

    def _arguments(self) -> tuple[str, ...]:
        return (str(self.port), *(("--hangs",) if self._hangs else ()))

    async def until_serving(self, http: httpx.AsyncClient) -> None:
        async with asyncio.timeout(patience(60)):
            while True:
                assert self.running, self.output()
                try:
                    await http.get(f"http://127.0.0.1:{self.port}/.well-known/agent-card.json")
                    return
                except httpx.TransportError:
                    await asyncio.sleep(0.1)

    def client(self, http: httpx.AsyncClient) -> Client:
        card = AgentCard()
        card.CopyFrom(CARD)
        card.supported_interfaces[0].url = f"http://127.0.0.1:{self.port}/"
        return ClientFactory(ClientConfig(httpx_client=http)).create(card)


@asynccontextmanager
async def serving(replica: Replica, http: httpx.AsyncClient) -> AsyncIterator[Client]:
    """A client of the replica, which is killed at the end."""
    await replica.start()
    try:
        await replica.until_serving(http)
        yield replica.client(http)
    finally:
        await replica.kill()


def what(response: StreamResponse) -> str:
    if response.HasField("status_update"):
        return state_name(response.status_update.status.state)
    if response.HasField("artifact_update"):
        text: str = response.artifact_update.artifact.parts[0].text
        return text
    return "Task"


async def test_a_task_goes_on_where_its_replica_was_killed(
    broker: EmbeddedBroker, prefix: str, tmp_path: Path
) -> None:
    """Takes 6 s of CPU: two servers that import the SDK."""
    settings = Settings(
        bootstrap_servers=broker.bootstrap,
        topic_prefix=prefix,
        partitions=2,
        state_dir=tmp_path / "state",
        http=None,
    )
    first = Replica("first", tmp_path, settings, hangs=True)
    second = Replica("second", tmp_path, settings, hangs=False)
    async with (
        running_worker(settings),
        httpx.AsyncClient(timeout=patience(60)) as http,
        serving(first, http) as here,
    ):
        sending = here.send_message(request("a wait done", message_id=MESSAGE))
        task_id = (await anext(sending)).task.id
        begun = [what(response) async for response in _to(sending, "a")]
        async with serving(second, http) as there:
            following = there.subscribe(SubscribeToTaskRequest(id=task_id))
            snapshot = (await anext(following)).task
            await first.kill()
            followed = [what(response) async for response in following]
            found = await there.get_task(GetTaskRequest(id=task_id))
            again = there.send_message(request("a wait done", message_id=MESSAGE))
            repeated = [response.task async for response in again]
        async with CurrentFlows(settings) as flows:
            history = FlowEventStream(flows).follow(task_id, TaskVersion(0), until=lambda _: True)
            recorded = [event.nth async for event in history]
    assert [artifact.parts[0].text for artifact in snapshot.artifacts] == ["a"]
    assert begun == ["WORKING", "a"]
    assert followed == ["WORKING", "a", "COMPLETED"]
    assert found.status.state == TaskState.TASK_STATE_COMPLETED
    assert repeated == [found]
    assert recorded == list(range(1, len(recorded) + 1))
    assert len(recorded) == 1 + len(begun) + len(followed)


async def _to(responses: AsyncIterator[StreamResponse], last: str) -> AsyncIterator[StreamResponse]:
    async for response in responses:
        yield response
        if what(response) == last:
            return
