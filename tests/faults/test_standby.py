"""kill -9 of an owner whose partitions another worker has followed: nothing is restored."""

import asyncio
import time
from pathlib import Path
from typing import Any

from processor.adapters.kafka.admin.topic_admin import create_topics
from processor.embedded.broker import EmbeddedBroker
from processor.partition.standby import LOOK_EVERY_S
from processor.settings import Settings
from tests.support.load import under_load
from tests.support.machine import patience
from tests.support.observed_deployment import observing
from tests.support.processes import assigned_to, log_lines, until_assigned, workers

PARTITIONS = 4
TAKEN_OVER = "the partition is taken over"
FOLLOWS = "the standby follows"


async def test_who_follows_takes_over_with_a_warm_table(
    broker: EmbeddedBroker, prefix: str, tmp_path: Path
) -> None:
    await create_topics(
        Settings(bootstrap_servers=broker.bootstrap, topic_prefix=prefix, partitions=PARTITIONS)
    )
    async with (
        workers(2, tmp_path, broker.bootstrap, prefix, STANDBY="1") as pair,
        observing(broker.bootstrap, prefix, PARTITIONS) as observer,
    ):
        await asyncio.gather(*(worker.start() for worker in pair))
        await asyncio.gather(*(worker.until_ready() for worker in pair))
        for worker in pair:
            await worker.until_printed(FOLLOWS, times=PARTITIONS // 2)
        async with under_load(broker.bootstrap, prefix, seed=11, per_s=150) as load:
            victim, other = pair
            await load.send(200)
            await until_decided(observer, load)
            await until_assigned(PARTITIONS, pair)
            followed = set(assigned_to(victim))
            assert len(followed) == PARTITIONS // 2
            before = len([*log_lines(other)])
            await victim.kill()
            taken: dict[int, str] = {}
            async with asyncio.timeout(patience(30)):
                while not taken.keys() >= followed:
                    await asyncio.sleep(0.02)
                    since = [*log_lines(other)][before:]
                    lines = (line for line in since if line["message"] == TAKEN_OVER)
                    taken = {line["partition"]: line["table"] for line in lines}
            assert set(taken.values()) == {"caught up"}
            assert not [line for line in since if "restored" in str(line["message"])]
            # It comes back, and gets back its share; the other goes on following it.
            follows = other.output().count(FOLLOWS)
            await victim.start()
            await other.until_printed(FOLLOWS, times=follows + PARTITIONS // 2)
        world = await observer.settled([w.state_dir for w in pair], timeout_s=patience(30))
        deadline = time.monotonic() + patience(30)
        while not all_level(world):
            assert time.monotonic() < deadline, [table.position for table in world.tables]
            await asyncio.sleep(0.1)
            world = await observer.settled([w.state_dir for w in pair], timeout_s=patience(30))
        codes = [await worker.end() for worker in pair]

    assert codes == [0, 0]
    assert observer.decided >= load.acknowledged
    # Every table is compared with the fold of the audit: the owners' and the others'.
    world.assert_clean()


async def until_decided(observer: Any, load: Any) -> None:
    """All that is acknowledged has an outcome, and the followers have looked since."""
    wanted = set(load.acknowledged)
    while not observer.decided >= wanted:
        await observer.catch_up()
        await asyncio.sleep(0.1)
    await asyncio.sleep(LOOK_EVERY_S)


def all_level(world: Any) -> bool:
    tables = [
        table.position.next_event_id == world.newest_cursor(table.partition)["next_event_id"]
        for table in world.tables
    ]
    return len(tables) == 2 * PARTITIONS and all(tables)
