"""An agent's tasks as flows: the engine in memory, the SDK's request handler, two replicas."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

import pytest
from a2a.server.cluster import TaskVersion
from a2a.server.events import Event
from a2a.types import (
    CancelTaskRequest,
    GetTaskRequest,
    ListTasksRequest,
    Message,
    SendMessageRequest,
    SubscribeToTaskRequest,
    Task,
    TaskArtifactUpdateEvent,
    TaskState,
    TaskStatus,
    TaskStatusUpdateEvent,
)
from a2a.utils.errors import TaskNotFoundError, UnsupportedOperationError

from processor.a2a import FlowAgent, event_stream, flow_agent
from processor.a2a.documents import version_of
from processor.a2a.request_handler import command_id_of
from processor.a2a.task_keeper import TaskKeeper
from processor.client import CurrentFlow, FlowClient
from processor.contract import FlowStatus, StepStatus
from processor.runtime import end_tasks
from processor.testing.fake.taskflow import TaskflowFake
from tests.support.a2a_agent import CARD, WordsAgent, caller, request, state_name, user_message

ALICE = caller()
FLOW = "6f1f3a52-0000-4000-8000-000000000001"


@asynccontextmanager
async def replica(fake: TaskflowFake, agent: WordsAgent) -> AsyncIterator[FlowAgent]:
    async with FlowAgent("words", agent, CARD, fake.settings, lease_ms=5_000) as running:
        yield running


@asynccontextmanager
async def two_replicas(fake: TaskflowFake) -> AsyncIterator[tuple[FlowAgent, FlowAgent]]:
    async with replica(fake, WordsAgent()) as first, replica(fake, WordsAgent()) as second:
        yield first, second


async def sent(replica: FlowAgent, text: str, *, task_id: str = "") -> Task:
    result = await replica.handler.on_message_send(request(text, task_id=task_id), ALICE)
    assert isinstance(result, Task)
    return result


async def submit(agent: FlowAgent, message: Message) -> Task:
    """Save its task, as a replica does that is killed right after it."""
    task = Task(
        id=message.task_id,
        context_id="c",
        status=TaskStatus(state=TaskState.TASK_STATE_SUBMITTED),
        history=[message],
    )
    await agent.store.save(task, prev_version=TaskVersion.MISSING, context=ALICE)
    return task


@pytest.mark.parametrize(
    ("text", "state", "status"),
    [
        ("a done", "COMPLETED", "finished"),
        ("ask", "INPUT_REQUIRED", "waiting"),
        ("auth", "AUTH_REQUIRED", "waiting"),
        ("give-up", "FAILED", "failed"),
        ("reject", "REJECTED", "failed"),
        ("a", "WORKING", "running"),
    ],
)
async def test_the_flow_is_where_the_task_is(
    taskflow_fake: TaskflowFake, text: str, state: str, status: str
) -> None:
    async with replica(taskflow_fake, WordsAgent()) as agent:
        task = await sent(agent, text)
        await taskflow_fake.advance(timedelta(seconds=5))
        assert state_name(task.status.state) == state
        flow = taskflow_fake.flow(task.id)
    assert flow is not None
    assert flow.status == status
    runs = [step for step in taskflow_fake.steps(task.id).values() if step.runtime == "managed"]
    assert [(run.status, run.result_json) for run in runs] == [
        (StepStatus.SUCCEEDED, {"state": f"TASK_STATE_{state}"})
    ]
    assert (await taskflow_fake.verify()).ok


async def test_a_task_that_was_asked_goes_on(taskflow_fake: TaskflowFake) -> None:
    async with two_replicas(taskflow_fake) as (first, second):
        asked = await sent(first, "a ask")
        done = await sent(second, "more done", task_id=asked.id)
        again = await first.handler.on_get_task(GetTaskRequest(id=asked.id), ALICE)
    assert again == done
    assert [part.text for part in done.artifacts[0].parts] == ["a", "part 0"]
    assert [message.parts[0].text for message in done.history] == ["a ask", "ask?", "more done"]


async def test_a_message_that_is_sent_twice_is_worked_on_once(taskflow_fake: TaskflowFake) -> None:
    first_agent, second_agent = WordsAgent(), WordsAgent()
    async with (
        replica(taskflow_fake, first_agent) as first,
        replica(taskflow_fake, second_agent) as second,
    ):
        message_id = "5f0c9a7e-9a35-4c0e-8f30-0b1f3c3f8a01"
        results = await asyncio.gather(
            *(
                handler.on_message_send(request("a done", message_id=message_id), ALICE)
                for handler in (first.handler, second.handler)
            )
        )
        await taskflow_fake.advance(timedelta(hours=2))  # past the dedupe window
        late = await second.handler.on_message_send(request("a done", message_id=message_id), ALICE)
    assert results[0] == results[1] == late
    assert len(first_agent.runs + second_agent.runs) == 1
    flow_id = late.id if isinstance(late, Task) else ""
    scheduled = [e for e in taskflow_fake.events(flow_id) if e.kind == "step_scheduled"]
    assert [event.command_id for event in scheduled] == [message_id]


async def test_each_replica_follows_what_another_one_does(taskflow_fake: TaskflowFake) -> None:
    agent = WordsAgent()
    async with replica(taskflow_fake, agent) as first, replica(taskflow_fake, agent) as second:
        stream = first.handler.on_message_send_stream(request("a wait more done"), ALICE)
        task = await anext(stream)
        assert isinstance(task, Task)
        await taskflow_fake.settle()
        other = second.handler.on_subscribe_to_task(SubscribeToTaskRequest(id=task.id), ALICE)
        snapshot = await anext(other)
        agent.go_on.set()
        here = [kind_of(event) async for event in stream]
        there = [kind_of(event) async for event in other]
    assert isinstance(snapshot, Task)
    assert [part.text for part in snapshot.artifacts[0].parts] == ["a"]
    assert here == ["WORKING", "a", "part 2", "COMPLETED"]
    assert there == ["part 2", "COMPLETED"]


async def test_the_events_since_a_version_come_once_after_all_replicas_were_gone(
    taskflow_fake: TaskflowFake,
) -> None:
    async with replica(taskflow_fake, WordsAgent()) as first:
        task = await sent(first, "a more more ask")
        since = {
            nth: [e async for e in first.events.follow(task.id, nth, until=always)]
            for nth in range(7)
        }
    await taskflow_fake.advance(timedelta(hours=5))
    async with replica(taskflow_fake, WordsAgent()) as second:
        for nth, events in since.items():
            found = [e async for e in second.events.follow(task.id, nth, until=always)]
            assert found == events
            assert [event.nth for event in found] == list(range(nth + 1, 7))


async def test_a_replica_that_has_seen_only_the_newest_events_reads_the_older_ones(
    taskflow_fake: TaskflowFake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_stream, "RECENT_EVENTS_MAX", 2)
    async with replica(taskflow_fake, WordsAgent()) as first:
        task = await sent(first, "a ask")
        async with replica(taskflow_fake, WordsAgent()) as second:
            await sent(first, "more more ask", task_id=task.id)
            await taskflow_fake.settle()
            current = first.store.flows.get(task.id)
            assert current is not None
            newest = version_of(current)
            for nth in range(newest + 1):
                for agent in (first, second):
                    follow = agent.events.follow(task.id, nth, until=always)
                    found = [event.nth async for event in follow]
                    # The user's second message is a save that no subscriber receives.
                    assert found == [n for n in range(nth + 1, newest + 1) if n != 5]


async def test_messages_to_one_task_are_worked_on_one_after_another(
    taskflow_fake: TaskflowFake,
) -> None:
    agent = WordsAgent()
    async with replica(taskflow_fake, agent) as first, replica(taskflow_fake, agent) as second:
        stream = first.handler.on_message_send_stream(request("wait a"), ALICE)
        task = await anext(stream)
        assert isinstance(task, Task)
        sending = asyncio.create_task(sent(second, "b done", task_id=task.id))
        await taskflow_fake.settle()
        assert len(agent.runs) == 1
        agent.go_on.set()
        kinds = [kind_of(event) async for event in stream]
        done = await sending
    assert kinds == ["WORKING", "a"]
    assert [artifact.parts[0].text for artifact in done.artifacts] == ["b"]
    assert [message.parts[0].text for message in done.history] == ["wait a", "b done"]


async def test_a_message_whose_taker_was_gone_halfway_is_taken_once(
    taskflow_fake: TaskflowFake, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def gone(flow_id: str, message_id: str) -> None:
        raise RuntimeError("killed")

    async with replica(taskflow_fake, WordsAgent()) as first:
        asked = await sent(first, "ask")
        for params in (request("a done"), request("a done", task_id=asked.id)):
            with monkeypatch.context() as killed:
                killed.setattr(first.handler, "schedule", gone)
                with pytest.raises(RuntimeError, match="killed"):
                    await first.handler.on_message_send(copy_of(params), ALICE)
            task = await first.handler.on_message_send(copy_of(params), ALICE)
            assert isinstance(task, Task)
            assert [m.message_id for m in task.history].count(params.message.message_id) == 1
            assert state_name(task.status.state) == "COMPLETED"


def copy_of(params: SendMessageRequest) -> SendMessageRequest:
    """As it comes from the network once more."""
    copied = SendMessageRequest()
    copied.CopyFrom(params)
    return copied


async def test_a_task_is_cancelled_through_any_replica(taskflow_fake: TaskflowFake) -> None:
    agent = WordsAgent()
    async with replica(taskflow_fake, agent) as first, replica(taskflow_fake, agent) as second:
        stream = first.handler.on_message_send_stream(request("a wait done"), ALICE)
        task = await anext(stream)
        assert isinstance(task, Task)
        await taskflow_fake.settle()
        await second.handler.on_cancel_task(CancelTaskRequest(id=task.id), ALICE)
        kinds = [kind_of(event) async for event in stream]
        await taskflow_fake.settle()
    assert kinds[-1] == "CANCELED"
    assert agent.cancelled == [task.id]
    flow = taskflow_fake.flow(task.id)
    assert flow is not None
    assert flow.status is FlowStatus.CANCELLED


async def test_an_operator_who_asks_for_the_end_gets_it(taskflow_fake: TaskflowFake) -> None:
    agent = WordsAgent()
    async with replica(taskflow_fake, agent) as running:
        stream = running.handler.on_message_send_stream(request("wait done"), ALICE)
        task = await anext(stream)
        assert isinstance(task, Task)
        await taskflow_fake.settle()
        await running.store.send(
            {"kind": "request_cancel", "flow_id": task.id, "issued_by": running.store.session}
        )
        kinds = [kind_of(event) async for event in stream]
    assert kinds[-1] == "CANCELED"


async def test_a_task_is_seen_by_its_owner_alone(taskflow_fake: TaskflowFake) -> None:
    async with replica(taskflow_fake, WordsAgent()) as agent:
        task = await sent(agent, "ask")
        bob = caller("bob")
        with pytest.raises(TaskNotFoundError):
            await agent.handler.on_get_task(GetTaskRequest(id=task.id), bob)
        with pytest.raises(TaskNotFoundError):
            await agent.handler.on_message_send(request("done", task_id=task.id), bob)
        assert (await agent.store.list(ListTasksRequest(), bob)).total_size == 0
        assert (await agent.store.list(ListTasksRequest(), ALICE)).tasks[0].id == task.id


async def test_a_task_that_nobody_has_is_not_found(taskflow_fake: TaskflowFake) -> None:
    async with replica(taskflow_fake, WordsAgent()) as agent:
        for task_id in ("6f1f3a52-0000-4000-8000-000000000001", "no UUID"):
            with pytest.raises(TaskNotFoundError):
                await agent.handler.on_get_task(GetTaskRequest(id=task_id), ALICE)


async def test_a_task_that_has_ended_takes_no_message(taskflow_fake: TaskflowFake) -> None:
    async with replica(taskflow_fake, WordsAgent()) as agent:
        task = await sent(agent, "done")
        with pytest.raises(UnsupportedOperationError):
            await sent(agent, "more", task_id=task.id)


async def test_a_broken_agent_fails_its_task_after_its_attempts(
    taskflow_fake: TaskflowFake,
) -> None:
    agent = WordsAgent()
    async with replica(taskflow_fake, agent) as running:
        sending = asyncio.create_task(sent(running, "a break"))
        await taskflow_fake.advance(timedelta(minutes=1))
        task = await sending
        await taskflow_fake.advance(timedelta(minutes=1))
    assert len(agent.runs) == 3
    assert state_name(task.status.state) == "FAILED"
    assert len(task.artifacts) == 1
    flow = taskflow_fake.flow(task.id)
    assert flow is not None
    assert flow.status is FlowStatus.FAILED


async def test_a_run_whose_process_is_gone_is_made_again_elsewhere(
    taskflow_fake: TaskflowFake,
) -> None:
    lost, agent = WordsAgent(), WordsAgent()
    agent.go_on.set()
    first = FlowAgent("words", lost, CARD, taskflow_fake.settings, lease_ms=5_000)
    await first.__aenter__()
    stream = first.handler.on_message_send_stream(request("a wait done"), ALICE)
    task = await anext(stream)
    assert isinstance(task, Task)
    await taskflow_fake.settle()
    await stop_dead(first)
    async with replica(taskflow_fake, agent) as second:
        await taskflow_fake.advance(timedelta(seconds=10))
        found = await second.handler.on_get_task(GetTaskRequest(id=task.id), ALICE)
    assert found is not None
    assert state_name(found.status.state) == "COMPLETED"
    assert lost.runs == agent.runs == [found.history[0].message_id]


async def test_a_message_that_nobody_was_to_work_on_is_found(taskflow_fake: TaskflowFake) -> None:
    async with replica(taskflow_fake, WordsAgent()) as agent:
        message = user_message("a done", task_id="6f1f3a52-0000-4000-8000-000000000002")
        task = await submit(agent, message)
        await taskflow_fake.advance(timedelta(seconds=5))
        found = await agent.handler.on_get_task(GetTaskRequest(id=task.id), ALICE)
    assert found is not None
    assert state_name(found.status.state) == "COMPLETED"


async def test_a_flow_that_is_no_task_leaves_the_tasks_alone(taskflow_fake: TaskflowFake) -> None:
    """Any producer may name the agent as the controller of its flow."""
    async with FlowClient(session="somebody") as client, replica(taskflow_fake, WordsAgent()) as r:
        for controller in ("a2a/words", "a2a/words/push"):
            await client.create("odd", controller=controller, state=["no object"])
        await taskflow_fake.advance(timedelta(seconds=5))
        task = await sent(r, "a done")
    assert state_name(task.status.state) == "COMPLETED"


async def test_a_replica_that_is_cancelled_while_it_drains_leaves_nothing_behind(
    taskflow_fake: TaskflowFake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flow_agent, "DRAIN_TIMEOUT_S", 0.1)
    agent = FlowAgent("words", WordsAgent(), CARD, taskflow_fake.settings)
    await agent.__aenter__()
    params = request("wait")
    params.configuration.return_immediately = True
    await agent.handler.on_message_send(params, ALICE)
    await taskflow_fake.settle()
    closing = asyncio.create_task(agent.__aexit__(None, None, None))
    await asyncio.sleep(0)

    closing.cancel()

    await asyncio.wait([closing])
    assert closing.cancelled()
    assert all(task.done() for task in agent._tasks)


@pytest.mark.parametrize(
    "trouble",
    [UnsupportedOperationError("The message was refused."), TimeoutError(), KeyError("status")],
)
async def test_a_flow_that_cannot_be_moved_leaves_the_others_their_keeper(
    taskflow_fake: TaskflowFake, trouble: Exception
) -> None:
    kept: list[str] = []

    async def schedule(flow_id: str, message_id: str) -> None:
        kept.append(message_id)
        if len(kept) == 1:
            raise trouble

    async with replica(taskflow_fake, WordsAgent()) as agent:
        keeper = TaskKeeper(agent.store, schedule, grace_s=0.1)
        keeping = asyncio.create_task(keeper.run())
        for nth in range(2):
            message = user_message("a done", task_id=f"6f1f3a52-0000-4000-8000-00000000000{nth}")
            await submit(agent, message)
        await taskflow_fake.advance(timedelta(seconds=5))
        assert not keeping.done()
        await end_tasks(keeping)
    assert len(set(kept)) == 2


async def test_who_reads_the_history_holds_no_second_copy_of_what_comes(
    taskflow_fake: TaskflowFake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_stream, "RECENT_EVENTS_MAX", 1)
    async with replica(taskflow_fake, WordsAgent()) as agent:
        task = await sent(agent, "a ask")
        follow = agent.events.follow(task.id, 0)
        first = await anext(follow)
        assert first.nth == 1
        assert not agent.events._subscriptions
        await follow.aclose()


def always(current: CurrentFlow) -> bool:
    return True


async def stop_dead(agent: FlowAgent) -> None:
    """End a replica's tasks as kill -9 would, without a word to the executor's group."""
    for task in agent._tasks:
        task.cancel()
    await asyncio.gather(*agent._tasks, return_exceptions=True)
    assert agent._worker is not None
    attempts = list(agent._worker._attempts)
    for attempt in attempts:
        attempt.cancel()
    await asyncio.gather(*attempts, return_exceptions=True)


def kind_of(event: Event) -> str:
    """The state or the text that an event brings."""
    if isinstance(event, TaskStatusUpdateEvent):
        return state_name(event.status.state)
    if isinstance(event, TaskArtifactUpdateEvent):
        text: str = event.artifact.parts[0].text
        return text
    return type(event).__name__


async def test_a_message_that_was_refused_is_refused_again(taskflow_fake: TaskflowFake) -> None:
    """As after an operator's cancel between the message and its step."""
    async with replica(taskflow_fake, WordsAgent()) as agent:
        task = await sent(agent, "ask")
        async with FlowClient(taskflow_fake.settings) as operator:
            cancel = {"kind": "cancel", "flow_id": task.id, "issued_by": "operator:kate"}
            await operator.send(cancel, control=True)
        for _ in range(2):
            await taskflow_fake.advance(timedelta(minutes=1))
            with pytest.raises(UnsupportedOperationError, match="refused"):
                await agent.handler.schedule(task.id, "late message")


def test_messages_that_differ_have_commands_that_differ() -> None:
    one = "6F1F3A52-0000-4000-8000-00000000000A"

    assert command_id_of(FLOW, one) != command_id_of(FLOW, one.lower()) == one.lower()
