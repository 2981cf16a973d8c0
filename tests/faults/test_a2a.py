"""Two replicas of an A2A agent on one prefix: what one has begun the other one ends."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import uuid4

import httpx
import pytest
from a2a.client import Client, ClientConfig, ClientFactory
from a2a.client.errors import A2AClientError
from a2a.types import (
    AgentCard,
    GetTaskRequest,
    StreamResponse,
    SubscribeToTaskRequest,
    Task,
    TaskState,
)

from processor.a2a import FlowEventStream
from processor.client import CurrentFlows
from processor.embedded.broker import EmbeddedBroker, free_port
from processor.settings import Settings
from tests.support.a2a_agent import CARD, request, state_name
from tests.support.machine import patience, stretched
from tests.support.processes import WorkerProcess
from tests.support.worker import running_worker

ENDS = (TaskState.TASK_STATE_COMPLETED, TaskState.TASK_STATE_FAILED)
KILLS = 20
LEASE_S = stretched(4.0)
"""Shorter, a busy machine and not a kill would end a run."""
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
        lease_ms = round(LEASE_S * 1000)
        return (str(self.port), str(lease_ms), *(("--hangs",) if self._hangs else ()))

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
    """A client of the replica, which is stopped at the end, unless it was killed."""
    await replica.start()
    try:
        await replica.until_serving(http)
        yield replica.client(http)
        if replica.running:
            await replica.end()
            assert "drained" in replica.output()
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
            history = FlowEventStream(flows).follow(task_id, 0, until=lambda _: True)
            recorded = [event.nth async for event in history]
    assert [artifact.parts[0].text for artifact in snapshot.artifacts] == ["a"]
    assert begun == ["WORKING", "a"]
    assert followed == ["WORKING", "a", "COMPLETED"]
    assert found.status.state == TaskState.TASK_STATE_COMPLETED
    assert repeated == [found]
    assert recorded == list(range(1, len(recorded) + 1))
    assert len(recorded) == 1 + len(begun) + len(followed)


@pytest.mark.soak
@pytest.mark.timeout(600)
async def test_tasks_outlive_twenty_kills_of_their_replicas(
    broker: EmbeddedBroker, prefix: str, tmp_path: Path
) -> None:
    """Each client sends its message to one replica or the other until it has the end of its task;
    the replicas are killed in turn."""
    settings = Settings(
        bootstrap_servers=broker.bootstrap,
        topic_prefix=prefix,
        partitions=4,
        state_dir=tmp_path / "state",
        http=None,
    )
    replicas = [Replica(f"replica-{n}", tmp_path, settings, hangs=False) for n in range(2)]
    tasks: dict[str, Task] = {}

    async def insist(http: httpx.AsyncClient, message_id: str) -> None:
        nth = 0
        while message_id not in tasks:
            nth += 1
            client = replicas[nth % 2].client(http)
            message = request("a more more wait more done", message_id=message_id)
            try:
                async for response in client.send_message(message):
                    status = response.status_update.status if what(response) != "Task" else None
                    state = response.task.status.state if status is None else status.state
                    if state in ENDS:
                        task_id = response.status_update.task_id or response.task.id
                        tasks[message_id] = await client.get_task(GetTaskRequest(id=task_id))
            except (httpx.HTTPError, A2AClientError):
                await asyncio.sleep(0.1)

    async with (
        running_worker(settings),
        httpx.AsyncClient(timeout=patience(60)) as http,
        asyncio.TaskGroup() as group,
    ):
        for replica in replicas:
            await replica.start()
        try:
            for replica in replicas:
                await replica.until_serving(http)
            rounds = []
            for kill in range(KILLS):
                sent = [str(uuid4()) for _ in range(5)]
                rounds += [group.create_task(insist(http, message_id)) for message_id in sent]
                victim = replicas[kill % 2]
                await asyncio.sleep(random.Random(kill).uniform(0.0, 0.5))
                await victim.kill()
                await victim.start()
                await victim.until_serving(http)
            await asyncio.wait(rounds)
        finally:
            for replica in replicas:
                await replica.kill()
        async with CurrentFlows(settings) as flows:
            events = FlowEventStream(flows)
            for message_id, task in tasks.items():
                current = flows.get(task.id)
                assert current is not None
                runs = [s for s in current.steps.values() if s.runtime == "managed"]
                assert [run.run_id for run in runs] == [f"message {message_id}"]
                follow = events.follow(task.id, 0, until=lambda _: True)
                recorded = [event.nth async for event in follow]
                assert recorded == list(range(1, len(recorded) + 1))
                texts = [part.text for part in task.artifacts[0].parts]
                assert task.status.state == TaskState.TASK_STATE_COMPLETED
                assert texts == ["a", "part 1", "part 2", "part 4"]
    assert len(tasks) == KILLS * 5
    assert len({task.id for task in tasks.values()}) == len(tasks)


async def _to(responses: AsyncIterator[StreamResponse], last: str) -> AsyncIterator[StreamResponse]:
    async for response in responses:
        yield response
        if what(response) == last:
            return
