"""Managed steps in the demo: two executors do a flow's steps, and one of them is killed."""

import asyncio
import sys
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Final

from processor.cli.common.child_processes import child_executor
from processor.client import FlowClient
from processor.settings import Settings

TASK: Final = "resize"
STEPS: Final = 3
LEASE: Final = timedelta(seconds=1)
SESSION: Final = "2s"
"""Executors of the demo are missed sooner than the usual 10 s."""
TIMEOUT_S: Final = 60.0
PROGRAM: Final = (sys.executable, "-c", "import time; time.sleep(0.5); print(input())")


async def killed_executor(
    settings: Settings, directory: Path, environment: Mapping[str, str], flow_id: str
) -> None:
    """Run a flow with STEPS steps, and kill the first executor amid one."""
    environment = {**environment, "TASKFLOW_SESSION_TIMEOUT": SESSION}
    async with (
        asyncio.timeout(TIMEOUT_S),
        child_executor(TASK, PROGRAM, environment, directory / "executor-1.log") as first,
        FlowClient(settings, session="session:pictures") as client,
    ):
        flow = await client.create(
            "Resize three pictures", flow_id=flow_id, controller="pictures", origin="upload"
        )
        await flow.start()
        for nth in range(STEPS):
            await flow.schedule(f"picture-{nth}", TASK, {"picture": nth}, lease=LEASE)
        await flow.join()
        async for event in flow.events(follow=True):
            if event.kind == "step_started":
                first.process.kill()
                break
        async with child_executor(TASK, PROGRAM, environment, directory / "executor-2.log"):
            await flow.until("running")
            await flow.finish()
