"""The store and the stream serve the SDK's own request handler, in two replicas."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from a2a.server.request_handlers import DefaultRequestHandler
from a2a.types import (
    CancelTaskRequest,
    GetTaskRequest,
    SubscribeToTaskRequest,
    Task,
    TaskArtifactUpdateEvent,
    TaskState,
)

from processor.a2a import FlowEventStream, FlowTaskStore
from processor.client import CurrentFlows, FlowClient
from processor.testing.fake.taskflow import TaskflowFake
from tests.support.a2a_agent import CARD, WordsAgent, caller, request, state_name

ALICE = caller()


@asynccontextmanager
async def sdk_handler(
    fake: TaskflowFake, agent: WordsAgent
) -> AsyncIterator[DefaultRequestHandler]:
    async with (
        FlowClient(fake.settings, session="a2a/words") as client,
        CurrentFlows(fake.settings) as flows,
    ):
        store = FlowTaskStore(client, flows, "words")
        handler = DefaultRequestHandler(agent, store, CARD, event_stream=FlowEventStream(flows))
        yield handler
        await handler.aclose()


async def test_what_one_replica_runs_another_one_follows_and_goes_on_with(
    taskflow_fake: TaskflowFake,
) -> None:
    agent = WordsAgent()
    async with (
        sdk_handler(taskflow_fake, agent) as here,
        sdk_handler(taskflow_fake, agent) as there,
    ):
        sending = here.on_message_send_stream(request("wait a ask"), ALICE)
        first = await anext(sending)
        task_id = first.id if isinstance(first, Task) else first.task_id
        await taskflow_fake.settle()
        following = there.on_subscribe_to_task(SubscribeToTaskRequest(id=task_id), ALICE)
        snapshot = await anext(following)
        agent.go_on.set()
        rest = [event async for event in sending]
        followed = [event async for event in following]
        more = request("more done", task_id=task_id)
        more.message.context_id = snapshot.context_id if isinstance(snapshot, Task) else ""
        done = await there.on_message_send(more, ALICE)
        found = await here.on_get_task(GetTaskRequest(id=task_id), ALICE)
        await taskflow_fake.settle()
    assert isinstance(snapshot, Task)
    assert not snapshot.artifacts
    assert followed == rest[1:]  # behind the start of the work
    assert type(followed[0]) is TaskArtifactUpdateEvent
    assert isinstance(done, Task)
    assert found == done
    assert state_name(done.status.state) == "COMPLETED"
    flow = taskflow_fake.flow(task_id)
    assert flow is not None
    assert flow.status == "finished"


async def test_another_replica_cancels_what_one_runs(taskflow_fake: TaskflowFake) -> None:
    agent = WordsAgent()
    async with (
        sdk_handler(taskflow_fake, agent) as here,
        sdk_handler(taskflow_fake, agent) as there,
    ):
        sending = here.on_message_send_stream(request("wait a done"), ALICE)
        first = await anext(sending)
        task_id = first.id if isinstance(first, Task) else first.task_id
        await taskflow_fake.settle()
        await there.on_cancel_task(CancelTaskRequest(id=task_id), ALICE)
        agent.go_on.set()
        events = [event async for event in sending]
        found = await there.on_get_task(GetTaskRequest(id=task_id), ALICE)
    assert found is not None
    assert found.status.state == TaskState.TASK_STATE_CANCELED
    assert not found.artifacts
    assert all(not isinstance(event, TaskArtifactUpdateEvent) for event in events)
