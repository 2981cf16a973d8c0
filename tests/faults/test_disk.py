"""Disks that take no more or are slow; tables that are damaged, lost or older than the topic."""

import resource
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from processor.adapters.kafka.admin.topic_admin import create_topics
from processor.embedded.broker import EmbeddedBroker
from processor.settings import Settings
from processor.testing.chaos.worker_process import flip
from tests.support.load import under_load
from tests.support.machine import patience
from tests.support.observed_deployment import observing
from tests.support.processes import WorkerProcess, workers

PARTITIONS = 2
PATIENCE_S = patience(45.0)
RESTORED_LINE = '"the table was restored from the state topic"'
REMOVED = '"table removed; it is restored from Kafka"'
FILE_MAX_BYTES = 16 * 1024
"""More than the worker logs before the disk is full, and half of what SQLite allocates when it
opens a table."""


def largest(worker: WorkerProcess) -> Any:
    return max(worker.state_dir.glob("*.db"), key=lambda path: path.stat().st_size)


async def test_a_table_survives_its_disk(
    broker: EmbeddedBroker, prefix: str, tmp_path: Path
) -> None:
    await create_topics(
        Settings(bootstrap_servers=broker.bootstrap, topic_prefix=prefix, partitions=PARTITIONS)
    )
    async with (
        workers(1, tmp_path, broker.bootstrap, prefix, PARTITIONS=f"{PARTITIONS}") as (worker,),
        observing(broker.bootstrap, prefix, PARTITIONS) as observer,
    ):
        worker.choose(INSTANCE_ID="one")
        await worker.start()
        await worker.until_ready()
        async with under_load(broker.bootstrap, prefix, seed=14, per_s=200):
            await observer.catch_up()
            older = tmp_path / "older"

            # Writing fails: nothing is decided on a table that is not level.
            pid = worker.process.pid
            _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (FILE_MAX_BYTES, hard))
            await worker.until_printed("TableFailed", times=2)
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (hard, hard))
            await worker.until_printed('"the partition is taken over"', times=PARTITIONS + 1)

            # A table as it was long ago comes back; from here on the disk is slow, too.
            await worker.kill()
            worker.choose(FAULTS="K8:delay=30ms@*")
            shutil.copytree(worker.state_dir, older)
            await worker.start()
            await worker.until_ready(times=2)
            await worker.kill()
            shutil.rmtree(worker.state_dir)
            shutil.move(older, worker.state_dir)
            await worker.start()
            await worker.until_ready(times=3)

            # A page of it turns bad; it is lost altogether.
            await worker.kill()
            path = largest(worker)
            with closing(sqlite3.connect(path)) as db:
                db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
                ((root,),) = db.execute("SELECT rootpage FROM sqlite_master WHERE name = 'flow'")
            flip(path, (root - 1) * 4096, 0xFF)
            thrown_away = worker.output().count(REMOVED)
            await worker.start()
            await worker.until_printed(REMOVED, times=thrown_away + 1)
            await worker.until_ready(times=4)
            await worker.kill()
            for path in worker.state_dir.glob("*.db*"):
                path.unlink()
            restored = worker.output().count(RESTORED_LINE)
            await worker.start()
            await worker.until_printed(RESTORED_LINE, times=restored + PARTITIONS)
        world = await observer.settled([worker.state_dir], timeout_s=PATIENCE_S)
        assert await worker.end() == 0

    world.assert_clean()
