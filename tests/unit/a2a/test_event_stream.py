"""What a replica holds in memory for those who follow tasks, and what becomes of one who does not
keep up."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest
from a2a.server.cluster import TaskVersion
from a2a.server.request_handlers.response_helpers import build_error_response
from a2a.types import Task

from processor.a2a import FlowAgent, StreamEnded, SubscriberBehind, event_stream
from processor.a2a.documents import SavedEvent
from processor.client import AuditGap, CurrentFlow, FlowClient
from processor.contract import Topics
from processor.testing.fake.taskflow import TaskflowFake
from tests.support.a2a_agent import CARD, WordsAgent, caller, request


async def sent(agent: FlowAgent, text: str, *, task_id: str = "") -> Task:
    result = await agent.handler.on_message_send(request(text, task_id=task_id), caller())
    assert isinstance(result, Task)
    return result


async def extend(taken: list[SavedEvent], stream: AsyncIterator[SavedEvent]) -> None:
    async for event in stream:
        taken.append(event)


def always(current: CurrentFlow) -> bool:
    return True


async def test_a_subscriber_that_falls_behind_is_ended_and_can_go_on_from_where_it_was(
    taskflow_fake: TaskflowFake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_stream, "SUBSCRIBER_EVENTS_MAX", 2)
    async with FlowAgent("words", WordsAgent(), CARD, taskflow_fake.settings) as agent:
        task = await sent(agent, "a ask")
        stalled = agent.events.follow(task.id, 1)
        taken = [await anext(stalled)]
        await sent(agent, "more more more ask", task_id=task.id)
        (subscription,) = agent.events._subscriptions[task.id]
        assert not subscription._events
        with pytest.raises(SubscriberBehind, match="Subscribe again") as behind:
            await extend(taken, stalled)
        (info,) = build_error_response("1", behind.value)["error"]["data"]
        assert info["metadata"] == {"after": str(behind.value.after)}
        assert not agent.events._subscriptions
        again = agent.events.follow(task.id, behind.value.after, until=always)
        await extend(taken, again)
        whole = agent.events.follow(task.id, 1, until=always)
        assert taken == [event async for event in whole]


async def test_a_subscriber_ends_with_the_error_of_an_audit_that_cannot_be_followed(
    taskflow_fake: TaskflowFake,
) -> None:
    settings = taskflow_fake.settings
    async with FlowAgent("words", WordsAgent(), CARD, settings) as agent:
        task = await sent(agent, "a ask")
        taken: list[SavedEvent] = []
        following = asyncio.create_task(extend(taken, agent.events.follow(task.id, 1)))
        await taskflow_fake.settle()
        assert not following.done()
        topic = Topics(settings.topic_prefix).audit
        log = taskflow_fake.kafka.log(topic, 0)
        last = list(log.committed(log.start, log.end))[-1]
        taskflow_fake.kafka.append(topic, 0, last.key, last.value, last.headers)
        last_nth = taken[-1].nth
        sentence = rf"must come next\. The subscriber has all events up to number {last_nth}\. Sub"
        with pytest.raises(StreamEnded, match=sentence) as ended:
            await following
        (info,) = build_error_response("1", ended.value)["error"]["data"]
        assert info["metadata"] == {"after": str(last_nth)}
        assert isinstance(ended.value.__cause__, AuditGap)
        assert not agent.events._subscriptions
        with pytest.raises(StreamEnded, match="up to number 3"):
            await anext(agent.events.subscribe(task.id, after=TaskVersion(3)))


async def test_recent_events_are_kept_up_to_a_size_and_read_from_the_audit_beyond_it(
    taskflow_fake: TaskflowFake, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with FlowAgent("words", WordsAgent(), CARD, taskflow_fake.settings) as agent:
        first = await sent(agent, "a more more ask")
        recent = agent.events._recent.get(first.id)
        assert recent is not None
        assert recent.size_bytes == sum(one.event.ByteSize() for one in recent.events)
        monkeypatch.setattr(event_stream, "RECENT_MAX_BYTES", recent.size_bytes)
        second = await sent(agent, "b ask")
        assert agent.events._recent.get(first.id) is None
        assert agent.events._recent.get(second.id) is not None
        follow = agent.events.follow(first.id, 0, until=always)
        assert [event.nth async for event in follow] == [1, 2, 3, 4, 5, 6]


async def test_nothing_of_a_task_stays_in_memory_once_it_was_pruned(
    taskflow_fake: TaskflowFake,
) -> None:
    async with FlowAgent("words", WordsAgent(), CARD, taskflow_fake.settings) as agent:
        task = await sent(agent, "a done")
        assert list(agent.store.flows)
        async with FlowClient(taskflow_fake.settings) as client:
            prune = {"kind": "prune", "flow_id": task.id, "issued_by": "operator"}
            await client.send(prune, control=True)
        await agent.store.flows.until(task.id, lambda current: current is None)
        await taskflow_fake.advance(timedelta(seconds=5))
        assert not list(agent.store.flows)
        assert agent.events._recent.get(task.id) is None
        assert not agent.events._subscriptions
        assert not agent._keeper._touched
