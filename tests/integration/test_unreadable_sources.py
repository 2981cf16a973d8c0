"""What a worker that runs cannot read: topics that go away, records that are hidden."""

import asyncio
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession
from aiokafka import AIOKafkaProducer

from processor.embedded.broker import free_port
from processor.settings import Settings
from tests.integration.test_recovery import PATIENCE_S, Cluster, cluster
from tests.support.worker import running_worker
from tests.unit.commands import create

__all__ = ["cluster"]


async def report(cluster: Cluster) -> tuple[int, dict[str, Any]]:
    """What `/ready` answers."""
    async with ClientSession() as client, client.get(f"http://{cluster.settings.http}/ready") as no:
        return no.status, await no.json()


async def until_reported(cluster: Cluster, holds: Any) -> dict[str, Any]:
    state: dict[str, Any] = {}
    try:
        async with asyncio.timeout(PATIENCE_S):
            while True:
                _, state = await report(cluster)
                if holds(state):
                    return state
                await asyncio.sleep(0.1)
    except TimeoutError:
        raise AssertionError(f"not reported within {PATIENCE_S} s: {state}") from None


async def deleted(cluster: Cluster, topic: str) -> None:
    async with cluster.admin() as admin:
        await admin.delete_topics([topic])
    state = await until_reported(cluster, lambda state: state["missing"])
    assert not state["ready"]
    assert topic in state["missing"]
    assert "`taskflow topics create` makes what is missing" in state["missing"]
    status, _ = await report(cluster)
    assert status == 503


@pytest.mark.parametrize(
    "topic", ["commands", pytest.param("control", marks=pytest.mark.soak), "outcomes"]
)
async def test_a_topic_that_comes_back_is_worked_on_without_a_restart(
    cluster: Cluster, topic: str
) -> None:
    async with running_worker(cluster.settings):
        await deleted(cluster, getattr(cluster.topics, topic))
        code, _, err = await cluster.taskflow("topics", "create")
        assert code == 0, err

        await until_reported(cluster, lambda state: state["ready"])
        await cluster.send(*(create(number) for number in range(16)))
        await cluster.decided(16)
        status, _ = await report(cluster)
        assert status == 200


async def test_a_topic_that_was_made_anew_is_named_with_its_repair(cluster: Cluster) -> None:
    async with running_worker(cluster.settings):
        await cluster.send(create(1), create(2))
        await cluster.decided(2)
        await deleted(cluster, cluster.topics.commands)
        await cluster.taskflow("topics", "create")

        def lost(state: dict[str, Any]) -> bool:
            return "recreated" in str(state["partitions"].get("0", {}).get("error"))

        state = await until_reported(cluster, lost)
        assert not state["ready"]
        error = state["partitions"]["0"]["error"]
        assert cluster.topics.commands in error
        assert "`taskflow rebuild --skip-lost --partition 0`" in error

        await cluster.send(create(3))
        code, _, err = await cluster.taskflow("rebuild", "--skip-lost", "--partition", "0", "--yes")
        assert code == 0, err
        await until_reported(cluster, lambda state: state["ready"])
        await cluster.decided(3)


async def test_a_worker_without_partitions_is_ready(cluster: Cluster, tmp_path: Path) -> None:
    """Of two workers on one partition one has nothing to do."""
    http = f"127.0.0.1:{free_port()}"
    settings = Settings(
        bootstrap_servers=cluster.settings.bootstrap_servers,
        topic_prefix=cluster.settings.topic_prefix,
        partitions=1,
        state_dir=tmp_path / "spare",
        http=http,
    )
    spare = Cluster(settings, cluster.topics)

    reports: list[tuple[int, dict[str, Any]]] = []

    def settled() -> bool:
        partitions = sorted(list(state["partitions"]) for _, state in reports)
        return partitions == [[], ["0"]] and [status for status, _ in reports] == [200, 200]

    async with running_worker(cluster.settings), running_worker(spare.settings):
        with suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE_S):
                # The group's word comes to one after the other.
                while not settled():
                    reports = [await report(one) for one in (cluster, spare)]
        assert settled(), reports


async def test_commands_behind_a_foreign_transaction_are_said(cluster: Cluster) -> None:
    """Of five acknowledged commands nothing can be read until it ends."""
    foreign = AIOKafkaProducer(
        bootstrap_servers=cluster.settings.bootstrap_servers, transactional_id="somebody else"
    )
    async with running_worker(cluster.settings):
        await foreign.start()
        await foreign.begin_transaction()
        await foreign.send_and_wait(cluster.topics.commands, b"{}", b"k")
        await cluster.send(*(create(number) for number in range(5)))

        def is_said(state: dict[str, Any]) -> bool:
            partition = state["partitions"]["0"]
            return bool(partition["waits"]) and partition["lag"] == 6

        state = await until_reported(cluster, is_said)
        assert (
            f"open on {cluster.topics.commands} partition 0 from offset 0 on"
            in (state["partitions"]["0"]["waits"])
        )
        url = f"http://{cluster.settings.http}/metrics"
        async with ClientSession() as client, client.get(url) as response:
            assert 'taskflow_lag_records{partition="0"} 6.0' in await response.text()
        _, out, _ = await cluster.taskflow("doctor")
        lag = [row for row in map(json.loads, out.splitlines()) if row["check"] == "lag"]
        assert "6 offsets of commands or control lie behind an open transaction" in lag[0]["what"]

        await foreign.abort_transaction()
        await cluster.decided(5)
    await foreign.stop()
