"""`taskflow replay to` and `group` on a real broker: killed in the middle, started again, and a
group that somebody is in."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaError

from processor.adapters.kafka.admin.topic_admin import create_topics
from processor.embedded.broker import EmbeddedBroker
from processor.ops.replay.selection import Mark, mark_of
from processor.settings import Settings
from tests.support.examples import started
from tests.support.forked_program import program
from tests.support.processes import environment
from tests.support.random_histories import random_history
from tests.support.recorded_deployment import Recorded

PARTITIONS = 2
HISTORY = random_history(2_000, seed=9, partitions=PARTITIONS)
RATE, SEEN = "40", 40
"""Events a second, and how many are awaited: long before it is through with the thousand."""


class Deployment:
    """Topics whose audit holds HISTORY's, and the program on them."""

    def __init__(self, bootstrap: str, prefix: str, home: Path) -> None:
        self.bootstrap = bootstrap
        self.prefix = prefix
        self.audit = f"{prefix}.audit"
        self.env = environment(bootstrap, prefix, home)
        self.offsets: dict[int, list[int]] = {}
        """Of the events, by partition."""

    def running(self, *arguments: str) -> AbstractAsyncContextManager[asyncio.subprocess.Process]:
        command = (sys.executable, "-m", "processor", "replay", *arguments)
        return started(command, cwd=Path.cwd(), environ=self.env)

    async def replay(self, *arguments: str) -> tuple[int, list[Any], str]:
        """Exit code, what was printed, what was said."""
        done = await program(self.env, "replay", *arguments)
        assert "Traceback" not in done.err, done.err
        return done.code, [*map(json.loads, done.out.splitlines())], done.err

    async def topic(self, name: str, partitions: int, **configs: str) -> str:
        admin = AIOKafkaAdminClient(bootstrap_servers=self.bootstrap)
        await admin.start()
        try:
            full = f"{self.prefix}-{name}"
            # What some tests write there is older than Kafka keeps anything by default.
            topic = NewTopic(full, partitions, 1, topic_configs={"retention.ms": "-1", **configs})
            await admin.create_topics([topic])
        finally:
            await admin.close()
        for _ in range(200):
            # A new topic's partitions are led a moment later than they are there.
            if await self.is_led(full, partitions):
                return full
            await asyncio.sleep(0.05)
        raise AssertionError(f"nobody leads {full}")

    async def is_led(self, topic: str, partitions: int) -> bool:
        async with self.reading(topic, partitions) as consumer:
            try:
                await consumer.end_offsets(consumer.assignment())
            except KafkaError:
                return False
            return True

    async def publish(self, records: Iterable[tuple[str, int, Any, Any]]) -> list[Any]:
        """Topic, partition, record, headers; where they lie."""
        producer = AIOKafkaProducer(bootstrap_servers=self.bootstrap)
        await producer.start()
        try:
            sent = [
                await producer.send(
                    *(topic, record.value, record.key),
                    partition=partition,
                    headers=[*headers],
                    timestamp_ms=record.timestamp,  # of the target: the audit's are the broker's
                )
                for topic, partition, record, headers in records
            ]
            return await asyncio.gather(*sent)
        finally:
            await producer.stop()

    @asynccontextmanager
    async def reading(self, topic: str, partitions: int) -> AsyncIterator[AIOKafkaConsumer]:
        consumer = AIOKafkaConsumer(
            bootstrap_servers=self.bootstrap, isolation_level="read_committed"
        )
        await consumer.start()
        try:
            consumer.assign([TopicPartition(topic, p) for p in range(partitions)])
            await consumer.seek_to_beginning()
            yield consumer
        finally:
            await consumer.stop()

    async def all_of(self, topic: str, partitions: int) -> list[Any]:
        """The committed records."""
        async with self.reading(topic, partitions) as consumer:
            found, ends = [], await consumer.end_offsets(consumer.assignment())
            for tp, end in ends.items():
                while await consumer.position(tp) < end:
                    for records in (await consumer.getmany(tp, timeout_ms=500)).values():
                        found += records
        return found


@pytest.fixture
async def deployment(broker: EmbeddedBroker, prefix: str, tmp_path: Path) -> Deployment:
    made = Deployment(broker.bootstrap, prefix, tmp_path)
    settings = Settings(
        bootstrap_servers=broker.bootstrap, topic_prefix=prefix, partitions=PARTITIONS
    )
    await create_topics(settings)
    await publish_audit(made, HISTORY)
    return made


async def publish_audit(deployment: Deployment, history: Recorded) -> None:
    for partition in range(PARTITIONS):
        lie = await deployment.publish(
            (deployment.audit, partition, record, record.headers)
            for record in history.of("audit", partition)
        )
        deployment.offsets[partition] = [at.offset for at in lie]


def marks(records: Iterable[Any]) -> dict[int, list[int]]:
    """The offsets that were repeated, by source partition, in their order."""
    found: dict[int, list[int]] = {}
    for record in records:
        mark = mark_of(record.headers)
        assert mark is not None
        found.setdefault(mark.partition, []).append(mark.offset)
    return found


async def test_killed_in_the_middle_and_started_again_no_event_is_missing_and_none_is_doubled(
    deployment: Deployment,
) -> None:
    target = await deployment.topic("target", PARTITIONS)
    total = sum(map(len, deployment.offsets.values()))

    async with (
        deployment.running("to", target, "--yes", "--rate", RATE) as process,
        deployment.reading(target, PARTITIONS) as consumer,
    ):
        seen = 0
        while seen < SEEN:
            assert process.returncode is None
            batches = await consumer.getmany(timeout_ms=200)
            seen += sum(map(len, batches.values()))
        process.kill()
        await process.wait()
    before = len(await deployment.all_of(target, PARTITIONS))
    assert SEEN <= before < total
    code, (previewed,), _ = await deployment.replay("to", target, "--dry-run", "--rate", RATE)
    assert (code, previewed["events"]) == (0, total - before)
    assert any(one["resumed"] for one in previewed["ranges"].values())
    code, (report,), err = await deployment.replay("to", target, "--yes")
    assert code == 0, err
    assert (report["run"], report["replayed"]) == (previewed["run"], total - before)

    records = await deployment.all_of(target, PARTITIONS)
    assert marks(records) == deployment.offsets
    originals = {
        (record.partition, record.offset): record
        for record in await deployment.all_of(deployment.audit, PARTITIONS)
    }
    for record in records:
        mark = mark_of(record.headers)
        assert mark is not None
        assert (mark.run, mark.topic) == (report["run"], deployment.audit)
        original = originals[mark.partition, mark.offset]
        assert record.partition == original.partition
        assert (record.key, record.value) == (original.key, original.value)
        assert record.timestamp == original.timestamp
        assert record.headers[:-1] == original.headers
    code, (again,), _ = await deployment.replay("to", target, "--yes")
    assert (code, again["replayed"]) == (0, 0)


async def test_a_run_whose_offsets_kafka_forgot_goes_on_by_the_marks_on_its_target(
    deployment: Deployment,
) -> None:
    target = await deployment.topic("smaller", 1)
    done = {partition: offsets[:100] for partition, offsets in deployment.offsets.items()}
    await deployment.publish(
        (target, 0, record, [*record.headers, mark.header()])
        for partition, offsets in done.items()
        for record, offset in zip(HISTORY.of("audit", partition), offsets, strict=False)
        for mark in [Mark("billing", deployment.audit, partition, offset)]
    )

    code, (report,), err = await deployment.replay("to", target, "--yes", "--run", "billing")

    assert code == 0, err
    total = sum(map(len, deployment.offsets.values()))
    assert report["replayed"] == total - sum(map(len, done.values()))
    assert marks(await deployment.all_of(target, 1)) == deployment.offsets


async def test_a_topic_that_would_replace_times_or_go_by_them_is_refused(
    deployment: Deployment,
) -> None:
    stamped = await deployment.topic("own", 1, **{"message.timestamp.type": "LogAppendTime"})

    refused = await deployment.replay("to", stamped, "--yes")
    short = await deployment.topic("short", 1, **{"retention.ms": "1"})
    removed = await deployment.replay("to", short, "--dry-run")
    missing = await deployment.replay("to", "nowhere", "--yes")

    assert refused[0] == removed[0] == missing[0] == 1
    assert "would remove them soon. Set it to -1" in removed[2]
    assert "Set it to CreateTime" in refused[2]
    assert missing[2].startswith("nowhere does not exist")
    assert "makes it, with message.timestamp.type=CreateTime" in missing[2]
    target = await deployment.topic("partitions", 1)
    far = await deployment.replay("to", target, "--offsets", "9:0-1", "--yes")
    assert (far[0], far[2]) == (2, f"There is no partition 9 of {deployment.audit} among 2.\n")
    group = await deployment.replay("group", "g", "--to", "end", "--topic", "nowhere", "--yes")
    assert (group[0], group[2]) == (1, "nowhere does not exist.\n")


async def test_a_group_is_set_back_by_time_unless_somebody_is_in_it(deployment: Deployment) -> None:
    group = f"{deployment.prefix}-billing"
    consumer = AIOKafkaConsumer(
        deployment.audit,
        bootstrap_servers=deployment.bootstrap,
        group_id=group,
        auto_offset_reset="earliest",
        enable_auto_commit=False,
    )
    await consumer.start()
    try:
        while not await consumer.getmany(timeout_ms=500):
            pass
        await consumer.seek_to_end()
        ends = {tp: await consumer.position(tp) for tp in consumer.assignment()}
        await consumer.commit(ends)

        code, _, err = await deployment.replay("group", group, "--to", "beginning", "--yes")

        assert code == 1
        assert "has a live member (" in err
        assert "Nothing was changed" in err
    finally:
        await consumer.stop()

    code, shown, _ = await deployment.replay("group", group, "--to", "beginning", "--dry-run")
    assert (code, [line["then"] for line in shown]) == (0, [0, 0])
    now = {TopicPartition(deployment.audit, line["partition"]): line["now"] for line in shown}
    assert now == ends
    code, lines, err = await deployment.replay("group", group, "--to", "2020-01-01T00:00:00Z", "-y")
    assert code == 0, err
    assert [(line["then"], line["set"]) for line in lines] == [(0, True), (0, True)]
    code, lines, _ = await deployment.replay("group", group, "--to", "end", "--dry-run")
    assert {line["now"] for line in lines} == {0}
    assert [line["then"] for line in lines] == [ends[tp] for tp in sorted(ends)]
