"""Brokers of three are lost under load, one by one and two at a time, and leaders move."""

import asyncio
import random
from pathlib import Path

import pytest
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from processor.adapters.kafka.admin.topic_admin import (
    check_topics,
    create_topics,
    ensure_topics,
    open_admin,
    topic_configs,
)
from processor.contract.topics import COMMANDS, MIN_INSYNC, Topics
from processor.embedded.cluster import embedded_cluster
from processor.settings import Settings
from processor.testing.chaos.replicas import Replicas
from tests.support.load import under_load
from tests.support.log_files import foreign_writers
from tests.support.machine import patience
from tests.support.observed_deployment import observing
from tests.support.processes import workers

PARTITIONS = 2
NOTHING_S = 1.0
"""For so long nothing is acknowledged where too few replicas are in sync."""


async def acknowledge_with_one_replica(settings: Settings) -> None:
    """As Kafka's default has it."""
    topic = Topics(settings.topic_prefix).commands
    wanted = {**COMMANDS.replicated(3), MIN_INSYNC: "1"}
    async with open_admin(settings) as admin:
        await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic, configs=wanted)])
    async with asyncio.timeout(patience(10)):
        while (await topic_configs(settings, [topic]))[topic][MIN_INSYNC] != "1":  # noqa: ASYNC110
            await asyncio.sleep(0.02)


@pytest.mark.soak
async def test_nothing_is_lost_with_a_broker_and_commands_wait_for_the_second_one(
    prefix: str, tmp_path: Path
) -> None:
    """Four JVMs start, and two are lost: what becomes of an in-sync set takes three brokers."""
    async with embedded_cluster(data_dir=tmp_path / "brokers") as cluster:
        first, second, third = cluster.brokers
        settings = Settings(
            bootstrap_servers=cluster.bootstrap,
            topic_prefix=prefix,
            partitions=PARTITIONS,
            replication_factor=3,
        )
        await create_topics(settings)
        replicas = Replicas(cluster.brokers)
        async with workers(
            2, tmp_path, cluster.bootstrap, prefix, PARTITIONS=f"{PARTITIONS}"
        ) as pair:
            await asyncio.gather(*(worker.start() for worker in pair))
            await asyncio.gather(*(worker.until_ready() for worker in pair))
            async with under_load(cluster.bootstrap, prefix, seed=5, per_s=50) as load:
                await load.until_further(50)
                assert await replicas.move_leaders(random.Random(1)) > 0
                await load.until_further(50)

                await first.kill()
                for _ in range(10):  # metadata still names it, and any broker may be asked
                    assert await check_topics(settings) == []
                await load.until_further(50)
                second.pause()
                await replicas.until(
                    third,
                    "the third one is alone",
                    lambda seen: all(one.insync == (third.node_id,) for one in seen),
                    timeout_s=patience(30),
                )
                await asyncio.sleep(NOTHING_S)  # what was under way is acknowledged
                before = len(load.acknowledged)
                await asyncio.sleep(NOTHING_S)
                assert len(load.acknowledged) == before

                second.resume()
                await load.until_further(50)
                await first.start()
                await replicas.until_whole(timeout_s=patience(40))
            async with observing(cluster.bootstrap, prefix, PARTITIONS) as observer:
                world = await observer.settled([w.state_dir for w in pair], timeout_s=patience(40))
            assert [await worker.end() for worker in pair] == [0, 0]
        assert await check_topics(settings) == []
        await acknowledge_with_one_replica(settings)
        (mismatch,) = await ensure_topics(settings)  # a worker starts, and warns

        assert observer.decided >= load.acknowledged
        world.assert_clean()
        for broker in cluster.brokers:
            assert foreign_writers(broker.data_dir, prefix, PARTITIONS) == []
        assert str(mismatch) == (
            f"{prefix}.commands: min.insync.replicas is 1, must be at least 2; what is "
            "acknowledged may be lost with one broker"
        )
        assert "--add-config min.insync.replicas=2`" in mismatch.cure
