"""Workers that come and go while commands go on coming."""

import asyncio
from pathlib import Path

from processor.adapters.kafka.admin.topic_admin import create_topics
from processor.embedded.broker import EmbeddedBroker
from processor.settings import Settings
from tests.support.load import under_load
from tests.support.log_files import foreign_writers
from tests.support.machine import patience
from tests.support.observed_deployment import observing
from tests.support.processes import workers

PARTITIONS = 4
TURNS = 2


async def test_a_worker_that_joins_and_leaves_every_two_seconds(
    broker: EmbeddedBroker, prefix: str, tmp_path: Path
) -> None:
    await create_topics(
        Settings(bootstrap_servers=broker.bootstrap, topic_prefix=prefix, partitions=PARTITIONS)
    )
    async with (
        workers(2, tmp_path, broker.bootstrap, prefix) as (stays, comes),
        observing(broker.bootstrap, prefix, PARTITIONS) as observer,
    ):
        await stays.start()
        await stays.until_ready()
        async with under_load(broker.bootstrap, prefix, seed=2, per_s=50) as load:
            for turn in range(1, TURNS + 1):
                await comes.start()
                await comes.until_ready(times=turn)
                await asyncio.sleep(1)
                assert await comes.end() == 0
                await asyncio.sleep(1)
        world = await observer.settled([stays.state_dir, comes.state_dir], timeout_s=patience(30))
        assert await stays.end() == 0

    assert observer.decided >= load.acknowledged
    world.assert_clean()
    assert foreign_writers(broker.data_dir, prefix, PARTITIONS) == []
