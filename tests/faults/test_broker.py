"""The broker dies, stops and comes back, again and again, under load."""

import asyncio

from processor.adapters.kafka.admin import create_topics
from processor.broker import embedded_broker
from processor.settings import Settings
from tests.support.checker import assert_clean
from tests.support.load import under_load
from tests.support.log_files import foreign_hands
from tests.support.processes import workers
from tests.support.world import observing

PARTITIONS = 4


async def test_workers_come_back_by_themselves(prefix, tmp_path):
    async with embedded_broker(data_dir=tmp_path / "broker") as broker:
        await create_topics(
            Settings(bootstrap_servers=broker.bootstrap, topic_prefix=prefix, partitions=PARTITIONS)
        )
        async with workers(2, tmp_path, broker.bootstrap, prefix) as pair:
            await asyncio.gather(*(worker.start() for worker in pair))
            await asyncio.gather(*(worker.until_ready() for worker in pair))
            async with under_load(broker.bootstrap, prefix, seed=5, per_s=300) as load:
                for end in (broker.kill, broker.stop, broker.kill):
                    acknowledged = len(load.acknowledged)
                    await asyncio.sleep(1)
                    await end()
                    await asyncio.sleep(1)
                    await broker.start()
                    async with asyncio.timeout(30):
                        while len(load.acknowledged) < acknowledged + 400:  # noqa: ASYNC110
                            await asyncio.sleep(0.05)
            async with observing(broker.bootstrap, prefix, PARTITIONS) as observer:
                world = await observer.settled([w.state_dir for w in pair], timeout_s=40)
            assert [worker.running for worker in pair] == [True, True]
            assert [await worker.end() for worker in pair] == [0, 0]

        assert observer.answered >= load.acknowledged
        assert_clean(world)
        assert foreign_hands(broker.data_dir, prefix, PARTITIONS) == []
