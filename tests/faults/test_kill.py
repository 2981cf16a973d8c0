"""kill -9 of workers at random moments, while commands go on coming."""

import asyncio
import random
from pathlib import Path

import pytest

from processor.adapters.kafka.admin.topic_admin import create_topics
from processor.embedded.broker import EmbeddedBroker
from processor.settings import Settings
from tests.support.load import under_load
from tests.support.log_files import foreign_writers, owners, until_in_transaction
from tests.support.machine import patience
from tests.support.observed_deployment import observing
from tests.support.processes import owner_of, workers

PARTITIONS = 4
HELD = "K4:delay=100ms@*"
"""Each transaction stays open for a moment: a light load has the owners in one nearly always."""


@pytest.mark.parametrize("count", [4, pytest.param(20, marks=pytest.mark.soak)])
async def test_kills_cost_nothing_but_time(
    broker: EmbeddedBroker, prefix: str, tmp_path: Path, count: int
) -> None:
    await create_topics(
        Settings(bootstrap_servers=broker.bootstrap, topic_prefix=prefix, partitions=PARTITIONS)
    )
    chance = random.Random(9)
    async with (
        workers(2, tmp_path, broker.bootstrap, prefix, FAULTS=HELD) as pair,
        observing(broker.bootstrap, prefix, PARTITIONS) as observer,
    ):
        pair[1].choose(INSTANCE_ID="two")  # a static member comes back before it is missed
        await asyncio.gather(*(worker.start() for worker in pair))
        await pair[0].until_ready()
        async with under_load(broker.bootstrap, prefix, seed=9, per_s=100) as load:
            for number in range(count):
                # From before it has joined the group to long after: at any point of its life,
                await asyncio.sleep(chance.uniform(0.2, 2.6))
                victim = chance.choice(pair)
                if number % 2:  # and in the middle of a transaction
                    partition = chance.randrange(PARTITIONS)
                    await until_in_transaction(broker.data_dir, f"{prefix}.outcomes", partition)
                    victim = owner_of(partition, pair)
                await victim.kill()
                await victim.start()
            await load.until_acknowledged(30 * count)
        world = await observer.settled([w.state_dir for w in pair], timeout_s=patience(30))
        codes = [await worker.end() for worker in pair]

    assert codes == [0, 0]
    assert observer.decided >= load.acknowledged
    world.assert_clean()
    assert foreign_writers(broker.data_dir, prefix, PARTITIONS) == []
    written_by, interrupted = owners(broker.data_dir, prefix, PARTITIONS)
    assert written_by > count
    assert interrupted > 0
    print(f"{written_by} owners, {interrupted} of their transactions ended by another")
