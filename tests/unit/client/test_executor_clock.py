"""What an executor records counts, whatever its own clock says."""

import asyncio
from datetime import timedelta

import pytest

from processor.client import FlowClient, Step, StepWorker
from processor.contract.values import DAY_MS
from processor.testing.fake import TaskflowFake
from processor.testing.fake.connection import FakeConnection


@pytest.mark.parametrize("ahead_ms", [-DAY_MS, DAY_MS])
async def test_an_executor_whose_clock_is_a_day_off_does_its_step(
    taskflow_fake: TaskflowFake, monkeypatch: pytest.MonkeyPatch, ahead_ms: int
) -> None:
    async def handler(step: Step) -> int:
        await step.progress({"at": "work"})
        await asyncio.sleep(3600)
        return step.attempt

    right = FakeConnection.now_ms
    async with FlowClient() as client:
        flow = await client.create("be done", running=True)
        await flow.schedule("one", "work", lease=timedelta(minutes=1))
    monkeypatch.setattr(FakeConnection, "now_ms", lambda self: right(self) + ahead_ms)
    async with StepWorker({"work": handler}, group="workers") as worker:
        working = asyncio.create_task(worker.run())
        await taskflow_fake.advance(timedelta(hours=2))
        worker.stop()
        await working

    step = taskflow_fake.steps(flow.id)["one"]
    assert (step.status, step.result_json) == ("succeeded", 1)
