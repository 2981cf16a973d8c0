"""Managed steps on topics that change: `steps` that grows under a worker, and a repartition."""

import json
import time
from pathlib import Path
from typing import Any

from aiokafka import AIOKafkaProducer

from processor.adapters.kafka.admin.topic_admin import create_topics
from processor.contract.values import instant
from processor.embedded.broker import EmbeddedBroker
from processor.engine.partitioner import partition_of
from processor.settings import Settings
from processor.testing.memory.deployment import Deployment
from tests.faults.test_steps import PARTITIONS, PATIENCE_S, events, send
from tests.support.builders import DAY_MS, steps
from tests.support.checked_deployment import CheckedDeployment
from tests.support.forked_program import program
from tests.support.observed_deployment import observing
from tests.support.processes import environment, workers
from tests.unit.commands import create, flow_id, schedule, start, step

GROWN = 5
LEASE_MS = 600_000


def items(world: Deployment) -> list[tuple[int, Any]]:
    """Each work item with the partition on which it lies."""
    return [
        (record.partition, json.loads(record.value or b""))
        for number in range(world.steps_partitions or 0)
        for record in world.of("steps", number)
    ]


async def settled(
    broker: EmbeddedBroker, prefix: str, partitions: int, state_dir: Path
) -> CheckedDeployment:
    async with observing(broker.bootstrap, prefix, partitions) as observer:
        return await observer.settled([state_dir], timeout_s=PATIENCE_S)


async def test_steps_grows_under_a_worker_that_goes_on(
    broker: EmbeddedBroker, prefix: str, tmp_path: Path
) -> None:
    settings = Settings(
        bootstrap_servers=broker.bootstrap, topic_prefix=prefix, partitions=PARTITIONS
    )
    await create_topics(settings)
    grown = settings.model_copy(update={"steps_partitions": GROWN})
    runs = [f"r{n}" for n in range(20)]
    async with (
        workers(1, tmp_path, broker.bootstrap, prefix, PARTITIONS=f"{PARTITIONS}") as (worker,),
        AIOKafkaProducer(bootstrap_servers=broker.bootstrap) as producer,
    ):
        await worker.start()
        await worker.until_ready()
        await send(producer, prefix, create(1), start(1))
        await send(producer, prefix, *(schedule(1, f"a{run}") for run in runs))
        await settled(broker, prefix, PARTITIONS, worker.state_dir)
        await create_topics(grown)
        await send(producer, prefix, *(schedule(1, f"b{run}") for run in runs))
        under_it = await settled(broker, prefix, PARTITIONS, worker.state_dir)
        # It learns of the new partitions with its next look at the topics, or at its next start.
        assert await worker.end() == 0
        worker.choose(STEPS_PARTITIONS=f"{GROWN}")
        await worker.start()
        await worker.until_ready(times=2)
        await send(producer, prefix, *(schedule(1, f"c{run}") for run in runs))
        world = await settled(broker, prefix, PARTITIONS, worker.state_dir)
        env = environment(broker.bootstrap, prefix, worker.state_dir)
        done = await program(env, "verify", "--at-rest")
        assert await worker.end() == 0

    assert under_it.steps_partitions == world.steps_partitions == GROWN
    under_it.assert_clean()
    world.assert_clean()
    assert done.code == 0, done.out + done.err
    found = items(world)
    assert {item["run_id"] for _, item in found} == {f"{x}{run}" for x in "abc" for run in runs}
    for partition, item in found:
        if item["run_id"].startswith("c"):
            key = f"{item['flow_id']}/{item['run_id']}".encode()
            assert partition == partition_of(key, GROWN)
    assert {partition for partition, _ in found} == set(range(GROWN))


async def test_a_repartition_takes_live_steps_along(
    broker: EmbeddedBroker, prefix: str, tmp_path: Path
) -> None:
    """One is offered, one is held, one waits for its next attempt, one for its time; a flow waits
    for one; one has ended."""
    settings = Settings(
        bootstrap_servers=broker.bootstrap, topic_prefix=prefix, partitions=PARTITIONS
    )
    await create_topics(settings)
    later_ms = int(time.time() * 1000) + DAY_MS
    new = f"{prefix}-new"
    lasting: dict[str, Any] = {"lease_ms": LEASE_MS, "backoff_ms": LEASE_MS}
    async with (
        workers(1, tmp_path, broker.bootstrap, prefix, PARTITIONS=f"{PARTITIONS}") as (worker,),
        AIOKafkaProducer(bootstrap_servers=broker.bootstrap) as producer,
    ):
        await worker.start()
        await worker.until_ready()
        for number in range(6):
            await send(producer, prefix, create(number), start(number))
            await send(producer, prefix, schedule(number, input_json={"n": number}, **lasting))
        await send(producer, prefix, step("start_step", 1), step("start_step", 2))
        await send(producer, prefix, step("fail_step", 2, attempt=1, reason="503"))
        await send(producer, prefix, {**schedule(3, "later"), "not_before": instant(later_ms)})
        await send(producer, prefix, {**start(4), "kind": "set_waiting", "wait": steps("r")})
        await send(producer, prefix, step("start_step", 5), step("complete_step", 5, attempt=1))
        await settled(broker, prefix, PARTITIONS, worker.state_dir)
        assert await worker.end() == 0
    env = environment(broker.bootstrap, prefix, tmp_path / "none", PARTITIONS=f"{PARTITIONS}")
    home = tmp_path / "new"
    home.mkdir()
    ended = await program(env, "repartition", "--to", "3", "--prefix", new, "--yes")
    assert ended.code == 0, ended.out + ended.err

    async with (
        workers(1, home, broker.bootstrap, new, PARTITIONS="3") as (worker,),
        AIOKafkaProducer(bootstrap_servers=broker.bootstrap) as producer,
    ):
        await worker.start()
        await worker.until_ready()
        moved = await settled(broker, new, 3, worker.state_dir)
        await send(producer, new, step("extend_step", 1, attempt=1, progress_json=1))
        await send(producer, new, step("complete_step", 1, attempt=1))
        for number in (0, 4):
            await send(producer, new, step("start_step", number, issued_by="executor:2"))
            done = step("complete_step", number, attempt=1, issued_by="executor:2")
            await send(producer, new, done)
        await send(producer, new, step("start_step", 2), step("complete_step", 5, attempt=1))
        world = await settled(broker, new, 3, worker.state_dir)
        assert await worker.end() == 0

    moved.assert_clean()
    world.assert_clean()
    offered = {flow_id(number) for number in (0, 3, 4)}
    assert {item["flow_id"] for _, item in items(moved)} == offered
    assert {item["run_id"] for _, item in items(moved)} == {"r"}
    last = {
        (event["flow_id"], event["kind"])
        for event in events(world)
        if event["kind"] in ("step_succeeded", "resumed")
    }
    assert last == {(flow_id(4), "resumed")} | {
        (flow_id(number), "step_succeeded") for number in (0, 1, 4, 5)
    }
    outcomes = [json.loads(record.value or b"") for record in world.all_of("outcomes")]
    codes = {(outcome["flow_id"], outcome["code"]) for outcome in outcomes if outcome["code"]}
    assert {(flow_id(2), "not_due"), (flow_id(5), "illegal_transition")} == codes
