"""Requests between workers and broker that are refused, cut off, late, lost or never answered."""

import asyncio
from pathlib import Path
from typing import Any

from processor.adapters.kafka.admin.topic_admin import create_topics
from processor.embedded.broker import EmbeddedBroker
from processor.settings import Settings
from processor.testing.chaos.proxy import KINDS, Fate, proxied
from tests.support.load import under_load
from tests.support.log_files import foreign_writers
from tests.support.machine import patience
from tests.support.observed_deployment import observing
from tests.support.processes import workers
from tests.support.proxy import foul

PARTITIONS = 2
PATIENCE_S = patience(120.0)
"""A silent connection is given up after aiokafka's 40 s, unless heartbeats or commits use it, and
several may fall silent."""
COMMITS_MEET = (Fate.CUT, Fate.REFUSE, Fate.HOLD, Fate.SWALLOW, Fate.LATE, Fate.SILENCE)
OTHERS = ("Produce", "AddPartitionsToTxn", "InitProducerId", "Fetch", "OffsetCommit", "Heartbeat")


async def test_whatever_becomes_of_a_request_nothing_is_lost(
    broker: EmbeddedBroker, prefix: str, tmp_path: Path
) -> None:
    await create_topics(
        Settings(bootstrap_servers=broker.bootstrap, topic_prefix=prefix, partitions=PARTITIONS)
    )
    async with (
        proxied(broker.bootstrap) as proxy,
        workers(1, tmp_path, proxy.bootstrap, prefix, PARTITIONS=f"{PARTITIONS}") as (worker,),
        observing(broker.bootstrap, prefix, PARTITIONS) as observer,
    ):
        worker.choose(INSTANCE_ID="one", COMMIT_TIMEOUT="1s", WATCHDOG_TIMEOUT="3s")
        await worker.start()
        await worker.until_ready()
        async with under_load(broker.bootstrap, prefix, seed=13, per_s=20) as load:
            # The commit itself, by each way in which it can go wrong; the late one only after
            # another producer has begun the next transaction.
            for fate in COMMITS_MEET:
                proxy.decide_once(KINDS["EndTxn"], fate, late_s=1.5)
                await until(lambda fate=fate: proxy.befallen["EndTxn", fate.name] > 0)
                await until_decided(observer, len(observer.decided) + 10)
                if fate is Fate.HOLD:
                    await proxy.release()
            # Then everything, at random.
            proxy.weather = foul(0.05, seed=13, kinds=OTHERS, late_max_s=0.5)
            seen = proxy.befallen.total()
            await until(lambda: proxy.befallen.total() > seen + 15)
            proxy.forget()
        world = await observer.settled([worker.state_dir], timeout_s=PATIENCE_S)
        assert worker.running
        assert await worker.end() == 0

    print(dict(proxy.befallen))
    assert observer.decided >= load.acknowledged
    world.assert_clean()
    assert foreign_writers(broker.data_dir, prefix, PARTITIONS) == []


async def until(so: Any) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not so():  # noqa: ASYNC110 (a counter of the proxy's)
            await asyncio.sleep(0.02)


async def until_decided(observer: Any, count: Any) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while len(observer.decided) < count:
            await observer.catch_up()
            await asyncio.sleep(0.2)
