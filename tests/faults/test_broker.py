"""The broker dies, stops and comes back, again and again, under load; and amid a verification."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from processor.adapters.kafka.admin.topic_admin import create_topics
from processor.cli.common.history import PartitionLog
from processor.cli.verify.execute import LocalTables
from processor.contract.topics import Topics
from processor.embedded.broker import embedded_broker
from processor.engine.codec import Record
from processor.ops.verify.report import Report
from processor.ops.verify.scope import Scope
from processor.ops.verify.verify import verify as verified
from processor.settings import Settings
from tests.support.load import under_load
from tests.support.log_files import foreign_writers
from tests.support.machine import patience
from tests.support.observed_deployment import observing
from tests.support.processes import workers

PARTITIONS = 2


@pytest.mark.parametrize("end", ["kill", pytest.param("stop", marks=pytest.mark.soak)])
async def test_workers_come_back_by_themselves(prefix: str, tmp_path: Path, end: str) -> None:
    async with embedded_broker(data_dir=tmp_path / "broker") as broker:
        await create_topics(
            Settings(bootstrap_servers=broker.bootstrap, topic_prefix=prefix, partitions=PARTITIONS)
        )
        async with workers(
            2, tmp_path, broker.bootstrap, prefix, PARTITIONS=f"{PARTITIONS}"
        ) as pair:
            await asyncio.gather(*(worker.start() for worker in pair))
            await asyncio.gather(*(worker.until_ready() for worker in pair))
            async with under_load(broker.bootstrap, prefix, seed=5, per_s=50) as load:
                await load.until_acknowledged(100)
                await getattr(broker, end)()
                await asyncio.sleep(1)  # they meet nobody
                await broker.start()
                await load.until_further(100)
            async with observing(broker.bootstrap, prefix, PARTITIONS) as observer:
                world = await observer.settled([w.state_dir for w in pair], timeout_s=patience(40))
            assert [worker.running for worker in pair] == [True, True]
            assert [await worker.end() for worker in pair] == [0, 0]

        assert observer.decided >= load.acknowledged
        world.assert_clean()
        assert foreign_writers(broker.data_dir, prefix, PARTITIONS) == []


async def test_a_verification_waits_for_the_broker_and_finds_the_same(
    prefix: str, tmp_path: Path
) -> None:
    async with embedded_broker(data_dir=tmp_path / "broker") as broker:
        settings = Settings(
            bootstrap_servers=broker.bootstrap,
            topic_prefix=prefix,
            partitions=1,
            state_dir=tmp_path / "verified",
        )
        await create_topics(settings)
        async with (
            workers(1, tmp_path, broker.bootstrap, prefix, PARTITIONS="1") as (worker,),
            observing(broker.bootstrap, prefix, 1) as observer,
        ):
            await worker.start()
            await worker.until_ready()
            async with under_load(broker.bootstrap, prefix, seed=7) as load:
                await load.send(1_000)
            await observer.settled([worker.state_dir], timeout_s=patience(30))
            assert await worker.end() == 0

        scope = Scope(
            topics=Topics(prefix),
            partitions=1,
            window_ms=settings.dedupe_window_ms,
            at_rest=True,
            grace_s=30,
        )
        starting: list[asyncio.Task[None]] = []

        class Cut(PartitionLog):
            """Stops the broker behind the first records, and starts it while it is missed."""

            def __init__(self, *where: Any) -> None:
                super().__init__(*where)
                self._whole, self.read = self.read, self._cut

            async def _cut(
                self, topic: str, start: int, end: int
            ) -> AsyncGenerator[Sequence[Record], None]:
                async for records in self._whole(topic, start, end):
                    yield records
                    if not starting:
                        await broker.stop()
                        starting.append(asyncio.create_task(broker.start()))

        async def verify(kind: type[PartitionLog]) -> Report:
            @asynccontextmanager
            async def logs(partition: int) -> AsyncIterator[PartitionLog]:
                log = kind(settings, partition)
                try:
                    yield log
                finally:
                    await log.close()

            return await verified(scope, logs, [LocalTables(settings)])

        before = await verify(PartitionLog)
        during = await verify(Cut)
        await asyncio.gather(*starting)

    assert before.ok
    assert before.counts["outcomes"] >= 1_000
    assert starting, "it was stopped amid the verification"
    assert during.as_json() == before.as_json()
