"""Two workers under one instance id."""

import asyncio
from pathlib import Path

from processor.adapters.kafka.admin.topic_admin import create_topics
from processor.embedded.broker import EmbeddedBroker
from processor.settings import Settings
from tests.support.load import under_load
from tests.support.machine import patience
from tests.support.processes import SESSION_TIMEOUT_S, workers

PARTITIONS = 2


async def test_the_one_that_came_later_ends_with_a_sentence_and_the_first_goes_on(
    broker: EmbeddedBroker, prefix: str, tmp_path: Path
) -> None:
    await create_topics(
        Settings(bootstrap_servers=broker.bootstrap, topic_prefix=prefix, partitions=PARTITIONS)
    )
    async with workers(
        2, tmp_path, broker.bootstrap, prefix, INSTANCE_ID="same", PARTITIONS=str(PARTITIONS)
    ) as (first, later):
        await first.start()
        await first.until_ready()
        async with under_load(broker.bootstrap, prefix, seed=3, per_s=20):
            # Who has held the name for a session takes it back.
            await asyncio.sleep(1.5 * SESSION_TIMEOUT_S)
            await later.start()
            async with asyncio.timeout(patience(40)):
                assert await later.process.wait() == 1
        assert first.running
        assert await first.end() == 0

    assert "this one stops. Each worker needs an id of its own." in later.output()
    for output in (first.output(), later.output()):
        for word in ("Traceback", "never retrieved"):
            assert word not in output, output[max(0, output.index(word) - 300) :][:2000]
