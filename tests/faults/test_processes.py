"""One worker as several processes: one of them killed, their parent killed, and good order."""

import asyncio
import os
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp
import psutil

from processor.adapters.kafka.admin.topic_admin import create_topics
from processor.embedded.broker import EmbeddedBroker
from processor.settings import Settings
from tests.support.load import under_load
from tests.support.machine import patience
from tests.support.observed_deployment import observing
from tests.support.processes import WorkerProcess, log_lines

PARTITIONS = 4
PATIENCE_S = patience(30.0)


class Family(WorkerProcess):
    """`taskflow worker --processes 2`, with the address that it says it answers at."""

    def _arguments(self) -> tuple[str, ...]:
        return ("worker", "--processes", "2")

    def children(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children()

    async def until_ready(self, *, times: int = 1) -> None:
        await self.until_printed('"worker started"', times=3 * times)
        deadline_s = time.monotonic() + PATIENCE_S
        while not (await self.report())["ready"]:
            assert time.monotonic() < deadline_s, self.output()[-4000:]
            await asyncio.sleep(0.05)

    async def report(self) -> dict[str, Any]:
        async with aiohttp.ClientSession() as session, session.get(f"{self.url}/ready") as response:
            body: dict[str, Any] = await response.json()
            return body

    @property
    def url(self) -> str:
        *_, newest = (line["http"] for line in log_lines(self) if "processes" in line)
        return f"http://{newest}"


async def gone(processes: list[psutil.Process]) -> None:
    """Wait until none of `processes` runs, zombies aside."""

    def runs(process: psutil.Process) -> bool:
        with suppress(psutil.NoSuchProcess):
            return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
        return False

    deadline_s = time.monotonic() + PATIENCE_S
    while any(map(runs, processes)):
        assert time.monotonic() < deadline_s, processes
        await asyncio.sleep(0.02)


async def test_a_killed_process_is_started_again_and_a_killed_parent_takes_all_along(
    broker: EmbeddedBroker, prefix: str, tmp_path: Path
) -> None:
    await create_topics(
        Settings(bootstrap_servers=broker.bootstrap, topic_prefix=prefix, partitions=PARTITIONS)
    )
    worker = Family("family", tmp_path, broker.bootstrap, prefix, HTTP="127.0.0.1:0")
    async with observing(broker.bootstrap, prefix, PARTITIONS) as observer:
        try:
            await worker.start()
            await worker.until_ready()
            async with under_load(broker.bootstrap, prefix, seed=4, per_s=50) as load:
                (one, other) = worker.children()
                os.kill(one.pid, signal.SIGKILL)
                await worker.until_printed("a process of the worker ended and is started again")
                await gone([one])
                await worker.until_ready()
                report = await worker.report()
                assert list(report["partitions"]) == ["0", "1", "2", "3"]
                assert sorted(p["restarts"] for p in report["processes"].values()) == [0, 1]
                assert other.is_running()

                family = worker.children()
                await worker.kill()
                await gone(family)

                await worker.start()
                await worker.until_ready(times=2)
                await load.until_acknowledged(100)
            world = await observer.settled([worker.state_dir], timeout_s=PATIENCE_S)
            family = worker.children()
            assert await worker.end() == 0
            await gone(family)
        finally:
            if worker.running:
                await worker.kill()

    assert observer.decided >= load.acknowledged
    world.assert_clean()
    assert "table removed" not in worker.output()


async def test_a_process_that_is_refused_ends_the_worker(
    broker: EmbeddedBroker, prefix: str, tmp_path: Path
) -> None:
    worker = Family("family", tmp_path, broker.bootstrap, prefix)
    await worker.start()
    code = await asyncio.wait_for(worker.process.wait(), PATIENCE_S)
    assert code == 1
    assert f"{prefix}.commands does not exist" in worker.output()
    assert "Traceback" not in worker.output()
