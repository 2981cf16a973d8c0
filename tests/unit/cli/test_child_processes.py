"""Processes that `up` and `demo` run."""

import asyncio
import os
import signal
from pathlib import Path

from processor.cli.common.child_processes import ChildProcess, child_worker
from processor.runtime import end_tasks


async def test_a_child_that_cannot_end_is_killed_when_its_user_is_cancelled_again(
    tmp_path: Path,
) -> None:
    """Views that start, and whose broker ends, outlived an interrupted demo by 20 s."""
    started = asyncio.get_running_loop().create_future()

    async def use() -> None:
        async with child_worker(os.environ, tmp_path / "log") as child:
            started.set_result(child)
            await asyncio.Event().wait()

    using = asyncio.create_task(use())
    child: ChildProcess = await started
    os.kill(child.process.pid, signal.SIGSTOP)
    # As long as it runs, SIGTERM may reach it before the stop does.
    stopped = os.WSTOPPED | os.WNOWAIT
    await asyncio.to_thread(os.waitid, os.P_PID, child.process.pid, stopped)
    await end_tasks(using, again_s=0.1)

    assert child.process.returncode == -signal.SIGKILL
