"""Two groups on one prefix, by mistake: each is given all partitions, and they take turns."""

import asyncio
from pathlib import Path

from processor.adapters.kafka.admin.topic_admin import create_topics
from processor.embedded.broker import EmbeddedBroker
from processor.settings import Settings
from tests.support.load import under_load
from tests.support.log_files import foreign_writers, owners
from tests.support.machine import patience
from tests.support.observed_deployment import observing
from tests.support.processes import workers

PARTITIONS = 2
TAKEN_OVER = '"the partition is taken over"'


async def test_they_take_turns_and_nothing_is_decided_twice(
    broker: EmbeddedBroker, prefix: str, tmp_path: Path
) -> None:
    await create_topics(
        Settings(bootstrap_servers=broker.bootstrap, topic_prefix=prefix, partitions=PARTITIONS)
    )
    async with (
        workers(2, tmp_path, broker.bootstrap, prefix, PARTITIONS=f"{PARTITIONS}") as pair,
        observing(broker.bootstrap, prefix, PARTITIONS) as observer,
    ):
        right, wrong = pair
        wrong.choose(GROUP_ID=f"{prefix}-by-mistake")
        async with under_load(broker.bootstrap, prefix, seed=15, per_s=200) as load:
            await asyncio.gather(right.start(), wrong.start())
            # Each has the partitions again after the other had them.
            for worker in pair:
                await worker.until_printed(TAKEN_OVER, times=3 * PARTITIONS)
            # Who is soon interrupted may have written nothing.
            async with asyncio.timeout(patience(30)):
                while owners(broker.data_dir, prefix, PARTITIONS)[0] <= 2 * PARTITIONS:  # noqa: ASYNC110
                    await asyncio.sleep(0.2)
            await wrong.kill()
        world = await observer.settled([right.state_dir], timeout_s=patience(30))
        assert await right.end() == 0

    assert observer.decided >= load.acknowledged
    world.assert_clean()
    assert foreign_writers(broker.data_dir, prefix, PARTITIONS) == []
