"""Flows in memory: what is known begins with `state`, and is level with the audit from there on."""

import asyncio
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import pytest

from processor.client import AuditGap, CurrentFlow, CurrentFlows, FlowClient
from processor.contract import Topics
from processor.settings import Settings
from processor.testing.fake.taskflow import TaskflowFake


def names(flows: CurrentFlows) -> set[str]:
    return {current.flow.goal for current in flows}


def same(fake: TaskflowFake, current: CurrentFlow | None) -> bool:
    """Whether the flow is as the processor's own table has it."""
    assert current is not None
    flow = fake.flow(current.flow.id)
    assert flow is not None
    steps = {run_id: step.model_dump() for run_id, step in fake.steps(flow.id).items()}
    here = {run_id: document(step) for run_id, step in current.steps.items()}
    return flow.model_dump(mode="json") == current.flow.document() and here == steps


def document(step: Any) -> dict[str, Any]:
    if step.runtime == "mirrored":
        return dict(vars(step))
    return {**vars(step), "execution": vars(step.execution)}


async def test_flows_are_as_the_processor_has_them(taskflow_fake: TaskflowFake) -> None:
    async with FlowClient() as client:
        before = await client.create("before", running=True)
        await before.schedule("a", "task", {"n": 1})
        async with CurrentFlows() as flows:
            await before.schedule("b", "task")
            await before.update({"n": 2})
            after = await client.create("after")
            await taskflow_fake.settle()
            assert names(flows) == {"before", "after"}
            assert same(taskflow_fake, flows.get(before.id))
            assert same(taskflow_fake, flows.get(after.id))
        await before.cancel_step("a")
        await before.cancel()
        async with CurrentFlows() as flows:
            assert same(taskflow_fake, flows.get(before.id))


async def test_a_listener_that_fails_at_a_flow_keeps_the_others_from_nobody(
    taskflow_fake: TaskflowFake,
) -> None:
    received: list[str] = []

    def fails(before: Any, after: CurrentFlow | None, event: Mapping[str, Any]) -> None:
        assert after is not None
        received.append(after.flow.state_json["name"])

    async with FlowClient() as client, CurrentFlows() as flows:
        flows.listen(fails)
        flows.listen(lambda before, after, event: received.append(event["kind"]))
        await client.create("odd", state=["no object"])
        flow = await client.create("even", state={"name": "even"})
        await taskflow_fake.settle()
        assert same(taskflow_fake, flows.get(flow.id))
    assert received == ["created", "even", "created"]


async def test_only_what_is_wanted_is_kept(taskflow_fake: TaskflowFake) -> None:
    async with FlowClient() as client:
        await client.create("mine 1")
        await client.create("other 1")
        async with CurrentFlows(keep=lambda flow: flow.goal.startswith("mine")) as flows:
            await client.create("mine 2")
            other = await client.create("other 2")
            await other.start()
            await taskflow_fake.settle()
            assert names(flows) == {"mine 1", "mine 2"}


async def test_what_happens_while_it_starts_is_met_once(
    taskflow_fake: TaskflowFake, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    async with FlowClient() as client:
        flow = await client.create("x", running=True)
        read_state = CurrentFlows._read_state

        async def late(self: CurrentFlows) -> None:
            await flow.update({"n": 1})  # the audit is open, and `state` not yet read
            await read_state(self)

        monkeypatch.setattr(CurrentFlows, "_read_state", late)
        flows = CurrentFlows()
        flows.listen(lambda before, after, event: seen.append(event["kind"]))
        async with flows:
            await flow.finish()
            await taskflow_fake.settle()
            assert same(taskflow_fake, flows.get(flow.id))
    assert seen == ["finished"]


async def test_a_flow_that_is_pruned_is_gone(taskflow_fake: TaskflowFake) -> None:
    seen: list[tuple[bool, bool, str]] = []

    def listener(
        before: CurrentFlow | None, after: CurrentFlow | None, event: Mapping[str, Any]
    ) -> None:
        seen.append((before is None, after is None, event["kind"]))

    async with CurrentFlows() as flows, FlowClient() as client:
        flows.listen(listener)
        flow = await client.create("short", running=True)
        await flow.finish()
        waiting = asyncio.create_task(flows.until(flow.id, lambda current: current is None))
        await taskflow_fake.advance(timedelta(days=31))
        assert await waiting is None
        assert names(flows) == set()
    async with CurrentFlows() as flows:
        assert flows.get(flow.id) is None
    assert seen == [
        (True, False, "created"),
        (False, False, "started"),
        (False, False, "finished"),
        (False, True, "pruned"),
    ]


async def test_an_audit_that_cannot_be_read_ends_all_that_wait(
    taskflow_fake: TaskflowFake,
) -> None:
    async with CurrentFlows() as flows, FlowClient() as client:
        flow = await client.create("x")
        await taskflow_fake.settle()
        waiting = asyncio.create_task(flows.until(flow.id, lambda current: False))
        await taskflow_fake.settle()
        settings: Settings = taskflow_fake.settings
        log = taskflow_fake.kafka.log(Topics(settings.topic_prefix).audit, 0)
        lost = list(log.committed(log.start, log.end))[-1]
        taskflow_fake.kafka.append(
            Topics(settings.topic_prefix).audit, 0, lost.key, lost.value, lost.headers
        )
        with pytest.raises(AuditGap):
            await waiting
        with pytest.raises(AuditGap):
            flows.get(flow.id)
