"""The fake decides as a deployment does, and its time goes as a test moves it."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from processor.client import (
    AuditStream,
    CommandRefused,
    FlowClient,
    GiveUp,
    Step,
    StepWorker,
    TopicsWrong,
)
from processor.contract.steps import ManagedStep
from processor.settings import load_settings
from processor.testing.fake import TaskflowFake

DAY = timedelta(days=1)


def kinds(fake: TaskflowFake) -> list[str]:
    return [str(event.kind) for event in fake.events()]


async def test_a_wait_of_thirty_days_ends_at_its_time(taskflow_fake: TaskflowFake) -> None:
    async with FlowClient() as client:
        flow = await client.create("remind me")
        await flow.start()
        began = taskflow_fake.now
        await flow.wait_until(30 * DAY)

        await taskflow_fake.advance(30 * DAY - timedelta(minutes=1))
        assert kinds(taskflow_fake) == ["created", "started", "waiting"]
        await taskflow_fake.advance(timedelta(minutes=1))

        assert kinds(taskflow_fake)[-1] == "resumed"
        resumed = datetime.fromisoformat(taskflow_fake.events()[-1].at)
        assert timedelta(0) <= resumed - began - 30 * DAY < timedelta(seconds=5)
        assert await flow.until("running") == "running"
        await flow.finish({"done": True})
    assert (await taskflow_fake.verify()).ok


async def test_refusals_are_those_of_a_deployment(taskflow_fake: TaskflowFake) -> None:
    async with FlowClient() as client:
        flow = await client.create("a flow")
        with pytest.raises(CommandRefused, match="illegal_transition"):
            await flow.finish()
        with pytest.raises(CommandRefused, match="already_exists"):
            await client.create("a flow", flow_id=flow.id)
    assert [outcome.verdict for outcome in taskflow_fake.outcomes(flow.id)] == [
        *("accepted", "rejected", "rejected")
    ]


async def test_a_step_is_retried_after_its_backoff(taskflow_fake: TaskflowFake) -> None:
    seen: list[tuple[int, Any]] = []

    async def handler(step: Step) -> dict[str, int]:
        seen.append((step.attempt, step.last_progress))
        await step.progress(step.attempt)
        if step.attempt == 1:
            raise OSError("no route to host")
        return {"attempts": step.attempt}

    async with FlowClient() as client, StepWorker({"call": handler}, group="callers") as worker:
        working = asyncio.create_task(worker.run())
        flow = await client.create("call once more", running=True)
        await flow.schedule("first", "call", backoff=timedelta(hours=1))
        await flow.join()
        await taskflow_fake.settle()
        assert seen == [(1, None)]

        await taskflow_fake.advance(timedelta(hours=2))

        assert seen == [(1, None), (2, 1)]
        assert taskflow_fake.flow(flow.id).status == "running"  # type: ignore[union-attr]
        assert await flow.results() == {"first": {"attempts": 2}}
        worker.stop()
        await working
    assert (await taskflow_fake.verify()).ok


async def test_a_lease_is_kept_for_as_long_as_the_handler_runs(taskflow_fake: TaskflowFake) -> None:
    async def handler(step: Step) -> str:
        await asyncio.sleep(3600)
        return "slept"

    async with FlowClient() as client, StepWorker({"sleep": handler}, group="sleepers") as worker:
        working = asyncio.create_task(worker.run())
        flow = await client.create("sleep", running=True)
        await flow.schedule("long", "sleep", lease=timedelta(minutes=1))
        await taskflow_fake.advance(timedelta(minutes=59))
        assert kinds(taskflow_fake).count("step_started") == 1

        await taskflow_fake.advance(timedelta(minutes=2))

        assert kinds(taskflow_fake)[-1] == "step_succeeded"
        worker.stop()
        await working


async def test_a_lease_that_nobody_keeps_ends(taskflow_fake: TaskflowFake) -> None:
    async with FlowClient() as client:
        flow = await client.create("abandon", running=True)
        await flow.schedule("one", "any", lease=timedelta(minutes=1), max_attempts=2)
        start = {"kind": "start_step", "flow_id": flow.id, "run_id": "one", "issued_by": "me"}
        await client.send(start)

        await taskflow_fake.advance(timedelta(minutes=2))

        step = taskflow_fake.steps(flow.id)["one"]
        assert isinstance(step, ManagedStep)
        assert step.status == "pending"
        assert step.execution.last_failure is not None
        assert step.execution.last_failure.reason == "lease expired"


async def test_executors_of_a_group_share_the_work(taskflow_fake: TaskflowFake) -> None:
    done: list[str] = []

    def handler(name: str) -> Any:
        async def handle(step: Step) -> None:
            done.append(name)
            await asyncio.sleep(1)

        return handle

    def worker(name: str) -> StepWorker:
        return StepWorker({"work": handler(name)}, group="workers", concurrency=1)

    async with FlowClient() as client, worker("one") as one, worker("two") as two:
        working = [asyncio.create_task(each.run()) for each in (one, two)]
        flow = await client.create("share", running=True)
        for number in range(4):
            await flow.schedule(f"run-{number}", "work")
        await taskflow_fake.advance(timedelta(seconds=5))
        assert sorted(done) == ["one", "one", "two", "two"]
        one.stop()
        two.stop()
        await asyncio.gather(*working)


async def test_a_step_that_gives_up_ends_the_join(taskflow_fake: TaskflowFake) -> None:
    async def handler(step: Step) -> None:
        raise GiveUp("nothing to do")

    async with FlowClient() as client, StepWorker({"try": handler}, group="g") as worker:
        working = asyncio.create_task(worker.run())
        flow = await client.create("give up", running=True)
        await flow.schedule("one", "try")
        await flow.join(mode="all_or_failure")
        assert await flow.until("running") == "running"
        assert taskflow_fake.steps(flow.id)["one"].status == "failed"
        worker.stop()
        await working


async def test_the_audit_is_followed_and_replayed(taskflow_fake: TaskflowFake) -> None:
    async with FlowClient() as client, AuditStream() as stream:
        flow = await client.create("watched")
        await flow.start()
        followed = [(await anext(stream)).kind for _ in range(2)]
        async with AuditStream(follow=False, flow_id=flow.id) as replay:
            replayed = [event.kind async for event in replay]
        async with AuditStream(follow=False, start=stream.position) as rest:
            assert [event async for event in rest] == []
    assert followed == replayed == ["created", "started"]


def test_it_survives_the_end_of_a_loop(taskflow_fake: TaskflowFake) -> None:
    async def create() -> str:
        async with FlowClient() as client:
            flow = await client.create("outlive")
            await flow.start()
            await flow.wait_until(DAY)
            await taskflow_fake.advance(timedelta(hours=23))
            return flow.id

    async def wake() -> None:
        await taskflow_fake.advance(timedelta(hours=2))

    flow_id = asyncio.run(create())
    asyncio.run(wake())

    assert taskflow_fake.flow(flow_id).status == "running"  # type: ignore[union-attr]


async def test_of_two_loops_at_a_time_the_second_is_refused(taskflow_fake: TaskflowFake) -> None:
    await taskflow_fake.settle()
    with pytest.raises(RuntimeError, match="one event loop at a time"):
        await asyncio.to_thread(asyncio.run, taskflow_fake.settle())


async def test_topics_of_another_prefix_are_not_there(taskflow_fake: TaskflowFake) -> None:
    settings = taskflow_fake.settings.model_copy(update={"topic_prefix": "other"})
    async with FlowClient(settings) as client:
        with pytest.raises(TopicsWrong, match=r"other\.outcomes does not exist"):
            await client.create("nowhere")


def test_the_environment_names_it_while_the_test_lasts(taskflow_fake: TaskflowFake) -> None:
    assert load_settings().bootstrap_servers == taskflow_fake.settings.bootstrap_servers


async def test_its_time_is_that_of_day(taskflow_fake: TaskflowFake) -> None:
    assert abs(taskflow_fake.now - datetime.now(UTC)) < timedelta(minutes=1)
