"""An owner that sleeps past its session, and wakes up when its partitions are another's."""

import asyncio
from pathlib import Path

from processor.adapters.kafka.admin.topic_admin import create_topics
from processor.embedded.broker import EmbeddedBroker
from processor.settings import Settings
from tests.support.load import under_load
from tests.support.log_files import foreign_writers, owners, until_in_transaction
from tests.support.machine import patience
from tests.support.observed_deployment import observing
from tests.support.processes import SESSION_TIMEOUT_S, owner_of, until_assigned, workers

PARTITIONS = 4
HELD = "K4:delay=100ms@*"
"""Each transaction stays open for a moment: a light load has the owners in one nearly always."""


async def test_the_late_owner_writes_nothing_and_rejoins(
    broker: EmbeddedBroker, prefix: str, tmp_path: Path
) -> None:
    await create_topics(
        Settings(bootstrap_servers=broker.bootstrap, topic_prefix=prefix, partitions=PARTITIONS)
    )
    async with (
        workers(2, tmp_path, broker.bootstrap, prefix, FAULTS=HELD) as pair,
        observing(broker.bootstrap, prefix, PARTITIONS) as observer,
    ):
        await asyncio.gather(*(worker.start() for worker in pair))
        await asyncio.gather(*(worker.until_ready() for worker in pair))
        async with under_load(broker.bootstrap, prefix, seed=4, per_s=100) as load:
            for late, other in (pair, reversed(pair)):
                await until_assigned(PARTITIONS, pair)
                await asyncio.sleep(0.5)
                mine = next(p for p in range(PARTITIONS) if owner_of(p, pair) is late)
                await until_in_transaction(broker.data_dir, f"{prefix}.outcomes", mine)
                late.pause()
                await until_assigned(PARTITIONS, [other])
                await asyncio.sleep(SESSION_TIMEOUT_S / 2)
                late.resume()
            await until_assigned(PARTITIONS, pair)
            # `other` goes, and the one that was late decides everything alone.
            assert await other.end() == 0
            await load.send(50)
        world = await observer.settled([w.state_dir for w in pair], timeout_s=patience(30))
        assert late.running
        assert await late.end() == 0

    assert observer.decided >= load.acknowledged
    world.assert_clean()
    assert foreign_writers(broker.data_dir, prefix, PARTITIONS) == []
    written_by, interrupted = owners(broker.data_dir, prefix, PARTITIONS)
    print(f"{written_by} owners, {interrupted} of their transactions ended by another")
