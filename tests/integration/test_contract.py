"""Random traffic of a foreign client through a real worker on a real Kafka: all that is written is
what the contract, read once more by itself, says of the records as the broker has them."""

import asyncio
import itertools
import random
from collections import Counter
from pathlib import Path

from confluent_kafka import Producer

from processor.embedded.broker import EmbeddedBroker
from processor.ops.verify.contract import home_of
from processor.settings import Settings
from processor.testing.memory.record import Appended
from tests.support.builders import DAY_MS, HOUR_MS
from tests.support.machine import patience
from tests.support.observed_deployment import observing
from tests.support.reference_assertions import read_partition
from tests.support.reference_model import Contract
from tests.support.traffic import Life
from tests.support.worker import running_worker

PARTITIONS = 2
ROUNDS, RECORDS = 6, 60
CODECS = ("none", "gzip", "snappy", "lz4", "zstd")
PARTITIONERS = ("consistent_random", "murmur2_random")


def contract(partition: int) -> Contract:
    return Contract(partition, lambda key: home_of(key, PARTITIONS), HOUR_MS, 30 * DAY_MS)


class Foreigner:
    """librdkafka with each codec, with its own hash and Kafka's, and with transactions of which
    every third is aborted."""

    def __init__(self, bootstrap: str, prefix: str) -> None:
        about = {"bootstrap.servers": bootstrap, "message.max.bytes": 2 * 1024 * 1024}
        self._prefix = prefix
        self._producers = [
            Producer({**about, "compression.type": codec, "partitioner": partitioner})
            for codec, partitioner in itertools.product(CODECS, PARTITIONERS)
        ]
        self._transactional = Producer({**about, "transactional.id": f"{prefix}-foreign"})
        self._transactional.init_transactions()
        self._count = 0

    def send(self, records: list[Appended]) -> None:
        self._count += 1
        producer = self._producers[self._count % len(self._producers)]
        if self._count % 3 == 0:
            producer = self._transactional
            producer.begin_transaction()
        for record in records:
            topic = self._prefix + record.topic.removeprefix("t")
            producer.produce(topic, record.value, record.key, headers=list(record.headers))
        assert producer.flush(30) == 0
        if self._count % 9 == 0:
            producer.abort_transaction()
        elif self._count % 3 == 0:
            producer.commit_transaction()


async def test_what_a_foreign_client_sends_is_answered_as_the_contract_says(
    broker: EmbeddedBroker, prefix: str, tmp_path: Path
) -> None:
    settings = Settings(
        bootstrap_servers=broker.bootstrap,
        topic_prefix=prefix,
        partitions=PARTITIONS,
        state_dir=tmp_path,
        http=None,
    )
    rng, sender = random.Random(5), Life(contract(0))
    async with (
        running_worker(settings),
        observing(broker.bootstrap, prefix, PARTITIONS) as observer,
    ):
        foreigner = await asyncio.to_thread(Foreigner, broker.bootstrap, prefix)
        for _ in range(ROUNDS):
            world = await observer.catch_up()
            now_ms = max((r.timestamp for r in world.all_of("outcomes")), default=sender.at_ms)
            sender.at_ms = max(sender.at_ms, now_ms)
            some = [sender.go_on(rng.getrandbits(32)) for _ in range(RECORDS)]
            for start in range(0, RECORDS, 5):
                await asyncio.to_thread(foreigner.send, some[start : start + 5])
        world = await observer.settled([tmp_path], timeout_s=patience(30))

    world.assert_clean()
    verdicts: Counter[str] = Counter()
    for partition in range(PARTITIONS):
        all_expected = read_partition(world, partition, contract(partition))
        verdicts.update(expected.outcome["verdict"] for expected in all_expected)
    assert verdicts.keys() == {"accepted", "rejected", "duplicate", "quarantined", "forwarded"}
