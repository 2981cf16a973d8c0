"""The fixture of the test kit that is a real deployment."""

import asyncio

from processor.client import AuditStream, FlowClient, Step, StepWorker
from processor.testing.broker import TaskflowBroker
from processor.testing.plugin import taskflow_broker
from tests.support.machine import patience

__all__ = ["taskflow_broker"]


async def test_a_flow_with_a_step_lives_on_it(taskflow_broker: TaskflowBroker) -> None:
    async def double(step: Step) -> int:
        return 2 * int(step.input)

    settings = taskflow_broker.settings
    async with (
        FlowClient(settings) as client,
        StepWorker({"double": double}, group="doublers", settings=settings) as worker,
    ):
        working = asyncio.create_task(worker.run())
        flow = await client.create("double", running=True)
        await flow.schedule("one", "double", 21)
        await flow.join()
        async with asyncio.timeout(patience(60)):
            await flow.until("running")
        assert await flow.results() == {"one": 42}
        worker.stop()
        await working
    async with AuditStream(settings, follow=False, flow_id=flow.id) as stream:
        assert [event.kind async for event in stream][-1] == "resumed"
