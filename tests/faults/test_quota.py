"""A quota of the broker: the worker is held back, says so, and loses nothing."""

import re
import time
from pathlib import Path

import aiohttp
import pytest

from processor.adapters.kafka.admin.topic_admin import create_topics
from processor.adapters.kafka.client_config import client_id
from processor.embedded.broker import EmbeddedBroker
from processor.settings import Settings
from tests.support.load import under_load
from tests.support.log_files import foreign_writers
from tests.support.machine import patience
from tests.support.observed_deployment import observing
from tests.support.processes import WorkerProcess, workers
from tests.support.quotas import limit

BYTES_PER_S = 60_000
PATIENCE_S = patience(60.0)
MEMORY_MAX_KIB = 300 * 1024
METRIC = r'^taskflow_commit_seconds_(count|bucket{le="1.0"}) (\S+)$'


@pytest.mark.soak
async def test_a_worker_under_a_quota_waits_for_the_broker_and_loses_nothing(
    broker: EmbeddedBroker, prefix: str, tmp_path: Path, unused_tcp_port: int
) -> None:
    settings = Settings(
        bootstrap_servers=broker.bootstrap,
        topic_prefix=prefix,
        partitions=1,
        state_dir=tmp_path / "w0",
    )
    await create_topics(settings)
    # What it may write: an average over ten seconds; who exceeds it is not heard for a while.
    await limit(
        broker.bootstrap, client_id(settings, "owner-0"), producer_byte_rate=float(BYTES_PER_S)
    )
    async with (
        workers(1, tmp_path, broker.bootstrap, prefix, WorkerProcess, PARTITIONS="1") as (worker,),
        observing(broker.bootstrap, prefix, 1) as observer,
    ):
        worker.choose(
            HTTP=f"127.0.0.1:{unused_tcp_port}", COMPRESSION="none", BATCH_MAX_RECORDS="100"
        )
        await worker.start()
        await worker.until_ready()
        async with (
            aiohttp.ClientSession() as session,
            under_load(broker.bootstrap, prefix, seed=17, per_s=250) as load,
        ):
            deadline = time.monotonic() + PATIENCE_S
            while not await held_back(session, f"http://127.0.0.1:{unused_tcp_port}/metrics"):
                assert time.monotonic() < deadline, "the quota is not felt"
                await observer.catch_up()
        await limit(
            broker.bootstrap, client_id(settings, "owner-0"), producer_byte_rate=1_000_000_000.0
        )
        world = await observer.settled([worker.state_dir], timeout_s=PATIENCE_S)
        memory_kib = peak_kib(worker.process.pid)
        assert await worker.end() == 0

    assert observer.decided >= load.acknowledged
    world.assert_clean()
    assert foreign_writers(broker.data_dir, prefix, 1) == []
    assert memory_kib < MEMORY_MAX_KIB


async def held_back(session: aiohttp.ClientSession, url: str) -> bool:
    """Whether a transaction took longer than a second."""
    async with session.get(url) as response:
        counts = [float(count) for _, count in re.findall(METRIC, await response.text(), re.M)]
    return len(set(counts)) == 2


def peak_kib(pid: int) -> int:
    (line,) = re.findall(r"^VmHWM:\s+(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.M)
    return int(line)
