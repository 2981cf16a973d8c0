"""What is missing on a real Kafka: topics cut and recreated, offsets and ids deleted, partitions
added; and `taskflow rebuild`, as an operator uses it."""

import asyncio
import json
import shutil
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions
from aiokafka.admin.records_to_delete import RecordsToDelete

from processor.adapters.kafka.admin.topic_admin import create_topics
from processor.adapters.kafka.errors import TopicsWrong
from processor.adapters.kafka.reader.topic_reader import read
from processor.adapters.sqlite import table_path
from processor.contract.topics import Topics
from processor.embedded.broker import EmbeddedBroker, free_port
from processor.settings import Settings
from processor.worker import composition as bootstrap
from tests.support.forked_program import Result, program
from tests.support.load import under_load
from tests.support.machine import patience
from tests.support.processes import environment
from tests.support.worker import running_worker
from tests.unit.commands import create, life

PATIENCE_S = patience(30.0)


@dataclass(frozen=True, slots=True)
class Cluster:
    """One partition on the session's broker, and what an operator does to it."""

    settings: Settings
    topics: Topics

    def path(self) -> Path:
        return table_path(self.settings.state_dir, self.settings.topic_prefix, 0)

    async def send(self, *commands: dict[str, Any]) -> None:
        producer = AIOKafkaProducer(bootstrap_servers=self.settings.bootstrap_servers)
        await producer.start()
        try:
            for one in commands:
                key, value = one["flow_id"].encode(), json.dumps(one).encode()
                await producer.send_and_wait(self.topics.commands, value, key)
        finally:
            await producer.stop()

    async def outcomes(self) -> list[Any]:
        return [json.loads(r.value or b"") async for r in read(self.settings, self.topics.outcomes)]

    async def decided(self, count: int) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while len(await self.outcomes()) < count:  # noqa: ASYNC110 (Kafka tells nobody)
                await asyncio.sleep(0.1)

    @asynccontextmanager
    async def admin(self) -> AsyncIterator[AIOKafkaAdminClient]:
        admin = AIOKafkaAdminClient(bootstrap_servers=self.settings.bootstrap_servers)
        await admin.start()
        try:
            yield admin
        finally:
            await admin.close()

    async def make_anew(self, topic: str) -> None:
        async with self.admin() as admin:
            await admin.delete_topics([topic])
            async with asyncio.timeout(PATIENCE_S):
                while topic in await admin.list_topics():  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
        async with asyncio.timeout(PATIENCE_S):
            while topic not in await create_topics(self.settings):  # noqa: ASYNC110
                await asyncio.sleep(0.05)

    async def taskflow(self, *arguments: str) -> Result:
        """The program's exit code, and what it wrote."""
        settings = self.settings
        where = environment(
            settings.bootstrap_servers,
            settings.topic_prefix,
            settings.state_dir,
            PARTITIONS=str(settings.partitions),
        )
        return await program(where, *arguments)

    @asynccontextmanager
    async def blocked_worker(self, words: str) -> AsyncIterator[str]:
        """A worker whose partition has stopped with `words`; all that it says."""
        stop = asyncio.Event()
        worker = asyncio.create_task(bootstrap.run_worker(self.settings, stop=stop))
        try:
            yield await self._blocked_report(words)
        finally:
            stop.set()
            await worker

    async def _blocked_report(self, words: str) -> str:
        async with asyncio.timeout(PATIENCE_S), ClientSession() as client:
            while True:
                try:
                    async with client.get(f"http://{self.settings.http}/ready") as response:
                        report = await response.json()
                except OSError:
                    report = {"partitions": {}}
                for partition in report["partitions"].values():
                    output = f"{partition['error']} {partition['waits']}"
                    if words in output:
                        return output
                await asyncio.sleep(0.1)


@pytest.fixture
def cluster(broker: EmbeddedBroker, prefix: str, tmp_path: Path) -> Cluster:
    settings = Settings(
        bootstrap_servers=broker.bootstrap,
        topic_prefix=prefix,
        partitions=1,
        state_dir=tmp_path / "state",
        http=f"127.0.0.1:{free_port()}",
    )
    return Cluster(settings, Topics(prefix))


async def test_tables_made_anew_from_state_and_from_audit_are_the_live_ones(
    cluster: Cluster,
) -> None:
    bootstrap_servers, prefix = cluster.settings.bootstrap_servers, cluster.settings.topic_prefix
    async with running_worker(cluster.settings):
        async with under_load(bootstrap_servers, prefix, seed=5, per_s=200) as load:
            await load.until_acknowledged(300)
        await cluster.decided(len(load.acknowledged))
        code, _, err = await cluster.taskflow("rebuild", "--check")
        assert (code, "A worker uses" in err) == (1, True)

    for source in ("state", "audit"):
        code, out, err = await cluster.taskflow("rebuild", "--check", "--from", source)
        assert code == 0, err
        (row,) = map(json.loads, out.splitlines())
        assert row["difference"] is None
        assert min(row["flows"], row["steps"], row["outcomes"]) > 0

    with closing(sqlite3.connect(cluster.path())) as db:
        edited = db.execute("UPDATE flow SET updated_at = 'x' WHERE n = (SELECT min(n) FROM flow)")
        assert edited.rowcount == 1
        db.commit()
    code, _, err = await cluster.taskflow("rebuild", "--check")
    assert code == 1
    assert "updated_at is x, rebuilt 20" in err
    assert "`taskflow rebuild --partition 0` rebuilds it" in err

    code, _, err = await cluster.taskflow("rebuild", "--partition", "0")
    assert (code, "take --yes" in err) == (2, True)
    assert (await cluster.taskflow("rebuild", "--partition", "0", "--yes"))[0] == 0
    assert (await cluster.taskflow("rebuild", "--check", "--from", "audit"))[0] == 0
    assert [path.name for path in cluster.settings.state_dir.iterdir() if path.is_dir()] == []


async def test_commands_that_were_deleted_undecided(cluster: Cluster) -> None:
    async with running_worker(cluster.settings):
        await cluster.send(create(1))
        await cluster.decided(1)
    await cluster.send(create(2), create(3))
    async with cluster.admin() as admin:
        tp = TopicPartition(cluster.topics.commands, 0)
        await admin.delete_records({tp: RecordsToDelete(before_offset=2)})

    async with cluster.blocked_worker("begins at offset 2, but 1 is next") as output:
        assert "`taskflow rebuild --skip-lost --partition 0`" in output
        code, out, _ = await cluster.taskflow("rebuild", "--skip-lost", "--dry-run")
        assert code == 0
        assert json.loads(out)["to"] == {"commands": 2, "control": 0}
        assert len(await cluster.outcomes()) == 1
        code, _, err = await cluster.taskflow("rebuild", "--skip-lost", "--partition", "0", "--yes")
        assert code == 0, err
        # The worker that runs goes on by itself.
        await cluster.decided(2)
        code, _, err = await cluster.taskflow("rebuild", "--skip-lost", "--yes")
        assert (code, "Nothing is lost" in err) == (0, True)

    assert [one["source"]["offset"] for one in await cluster.outcomes()] == [0, 2]


@pytest.mark.parametrize("new", [1, 4])
async def test_a_topic_of_commands_that_was_made_anew(cluster: Cluster, new: int) -> None:
    async with running_worker(cluster.settings):
        await cluster.send(create(1), create(2))
        await cluster.decided(2)
    await cluster.make_anew(cluster.topics.commands)
    await cluster.send(*(create(10 + n) for n in range(new)))

    async with cluster.blocked_worker("recreated. `taskflow rebuild --skip-lost --partition 0`"):
        code, _, err = await cluster.taskflow("rebuild", "--skip-lost", "--yes")
        assert code == 0, err
        await cluster.decided(2 + new)

    assert [one["source"]["offset"] for one in await cluster.outcomes()] == [0, 1, *range(new)]


async def test_a_state_topic_that_was_made_anew(cluster: Cluster, tmp_path: Path) -> None:
    async with running_worker(cluster.settings):
        await cluster.send(*life(1), *life(2))
        await cluster.decided(8)
    await cluster.make_anew(cluster.topics.state)
    shutil.rmtree(cluster.settings.state_dir)

    async with cluster.blocked_worker("`taskflow rebuild --restore-state --partition 0`"):
        for _ in range(2):
            code, out, err = await cluster.taskflow(
                "rebuild", "--restore-state", "--partition", "0", "--yes"
            )
            assert code == 0, err
            assert (json.loads(out)["flows"], json.loads(out)["steps"]) == (2, 2)
        await cluster.send(create(3))
        await cluster.decided(9)

    code, out, err = await cluster.taskflow("rebuild", "--check", "--from", "audit")
    assert code == 0, err
    assert json.loads(out)["flows"] == 3


async def test_group_offsets_that_lie(cluster: Cluster) -> None:
    async with running_worker(cluster.settings):
        await cluster.send(create(1), create(2))
        await cluster.decided(2)
    for offset in (0, 999_999):
        consumer = AIOKafkaConsumer(
            bootstrap_servers=cluster.settings.bootstrap_servers,
            group_id=cluster.settings.group_id,
            enable_auto_commit=False,
        )
        await consumer.start()
        tp = TopicPartition(cluster.topics.commands, 0)
        consumer.assign([tp])
        await consumer.commit({tp: offset})
        await consumer.stop()
        before = len(await cluster.outcomes())
        async with running_worker(cluster.settings):
            await cluster.send(create(100 + before))
            await cluster.decided(before + 1)

    offsets = [one["source"]["offset"] for one in await cluster.outcomes()]
    assert offsets == [0, 1, 2, 3]


async def test_a_worker_ends_when_partitions_are_added(cluster: Cluster) -> None:
    await create_topics(cluster.settings)
    stop, ready = asyncio.Event(), asyncio.Event()
    worker = asyncio.create_task(bootstrap.run_worker(cluster.settings, stop=stop, ready=ready))
    await ready.wait()

    async with cluster.admin() as admin:
        await admin.create_partitions({cluster.topics.audit: NewPartitions(2)})

    with pytest.raises(TopicsWrong, match=r"audit now has 2 partitions instead of 1.*can never"):
        await asyncio.wait_for(worker, PATIENCE_S)


async def test_a_foreign_transaction_is_waited_for_and_told(cluster: Cluster) -> None:
    async with running_worker(cluster.settings):
        await cluster.send(create(1))
        await cluster.decided(1)
    foreign = AIOKafkaProducer(
        bootstrap_servers=cluster.settings.bootstrap_servers, transactional_id="somebody else"
    )
    await foreign.start()
    await foreign.begin_transaction()
    await foreign.send_and_wait(cluster.topics.audit, b"{}", b"k")

    async with cluster.blocked_worker("kafka-transactions.sh") as output:
        assert f"--topic {cluster.topics.audit} --partition 0 --start-offset" in output
        await foreign.abort_transaction()
        await cluster.send(create(2))
        await cluster.decided(2)
    await foreign.stop()
