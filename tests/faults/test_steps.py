"""Managed steps on a real Kafka: workers that are killed, that lag, and that end much at once."""

import asyncio
import json
import re
import signal
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer

from processor.adapters.kafka.admin.topic_admin import create_topics
from processor.adapters.kafka.reader.topic_reader import read
from processor.contract.values import parse_timestamp
from processor.embedded.broker import EmbeddedBroker
from processor.settings import Settings
from processor.testing.memory.deployment import Deployment
from tests.support.machine import patience, stretched
from tests.support.observed_deployment import observing
from tests.support.processes import WorkerProcess, workers
from tests.unit.commands import create, finish, schedule, start, step

PARTITIONS = 2
PATIENCE_S = patience(30)


def settings_of(bootstrap: str, prefix: str) -> Settings:
    return Settings(bootstrap_servers=bootstrap, topic_prefix=prefix, partitions=PARTITIONS)


async def send(producer: AIOKafkaProducer, prefix: str, *bodies: dict[str, Any]) -> None:
    sent = [
        await producer.send(
            f"{prefix}.commands", json.dumps(body).encode(), body["flow_id"].encode()
        )
        for body in bodies
    ]
    await asyncio.gather(*sent)


async def items(settings: Settings) -> list[Any]:
    topic = f"{settings.topic_prefix}.steps"
    return [json.loads(record.value or b"") async for record in read(settings, topic)]


def events(world: Deployment) -> list[Any]:
    return [json.loads(record.value or b"") for record in world.all_of("audit")]


def offerings(world: Deployment) -> dict[str, list[int]]:
    """The events that offered a step, by run id."""
    found = defaultdict(list)
    for event in events(world):
        payload = event["payload_json"]
        about = payload.get("step") or {**payload, **payload.get("changes", {})}
        execution = about.get("execution")
        if execution and execution["offers"] and execution["due_at"]:
            found[about["run_id"]].append(event["id"])
    return found


async def test_items_that_a_killed_worker_left_are_written_by_the_next(
    broker: EmbeddedBroker, prefix: str, tmp_path: Path
) -> None:
    settings = settings_of(broker.bootstrap, prefix)
    await create_topics(settings)
    async with (
        workers(1, tmp_path, broker.bootstrap, prefix, PARTITIONS=f"{PARTITIONS}") as (worker,),
        AIOKafkaProducer(bootstrap_servers=broker.bootstrap) as producer,
        observing(broker.bootstrap, prefix, PARTITIONS) as observer,
    ):
        worker.choose(INSTANCE_ID="one")
        for number, faults in enumerate(("K12:kill", "K13:kill", "K7:kill@2", "K9:kill@2"), 1):
            worker.choose(FAULTS=faults)
            await worker.start()
            await worker.until_ready()
            await send(producer, prefix, create(number), start(number))
            await send(producer, prefix, *(schedule(number, f"{number}-{n}") for n in range(20)))
            code = await asyncio.wait_for(worker.process.wait(), PATIENCE_S)
            assert code == -signal.SIGKILL, f"{faults}: {worker.output()[-3000:]}"
        worker.choose(FAULTS="")
        await worker.start()
        await worker.until_ready()
        world = await observer.settled([worker.state_dir], timeout_s=PATIENCE_S)
        assert await worker.end() == 0

    world.assert_clean()
    offered = offerings(world)
    written = defaultdict(set)
    for item in await items(settings):
        written[item["run_id"]].add(item["event_id"])
    assert len(offered) == 80
    assert written == {run_id: set(ids) for run_id, ids in offered.items()}


def resident_mib(worker: WorkerProcess) -> float:
    status = Path(f"/proc/{worker.process.pid}/status").read_text("ascii")
    (kib,) = re.findall(r"VmHWM:\s+(\d+) kB", status)
    return int(kib) / 1024


@pytest.mark.soak
async def test_a_flow_with_a_thousand_pending_steps_ends_in_one_transaction(
    broker: EmbeddedBroker, prefix: str, tmp_path: Path
) -> None:
    settings = settings_of(broker.bootstrap, prefix)
    await create_topics(settings)
    runs = [f"r{n}" for n in range(1_000)]
    async with (
        workers(1, tmp_path, broker.bootstrap, prefix, PARTITIONS=f"{PARTITIONS}") as (worker,),
        AIOKafkaProducer(bootstrap_servers=broker.bootstrap) as producer,
        observing(broker.bootstrap, prefix, PARTITIONS) as observer,
    ):
        await worker.start()
        await worker.until_ready()
        await send(producer, prefix, create(1), start(1))
        await send(producer, prefix, *(schedule(1, run, input_json="x" * 4_096) for run in runs))
        await observer.settled([worker.state_dir], timeout_s=PATIENCE_S)
        before_mib = resident_mib(worker)
        await send(producer, prefix, finish(1))
        world = await observer.settled([worker.state_dir], timeout_s=PATIENCE_S)
        grown_mib = resident_mib(worker) - before_mib
        assert await worker.end() == 0

    world.assert_clean()
    ended = events(world)[-1_001:]
    assert [event["kind"] for event in ended] == ["finished"] + ["step_cancelled"] * 1_000
    assert [event["payload_json"]["run_id"] for event in ended[1:]] == sorted(runs)
    (source,) = {json.dumps(event["source"]) for event in ended}
    (outcome,) = [
        (record, one)
        for record in world.all_of("outcomes")
        if json.dumps((one := json.loads(record.value or b""))["source"]) == source
    ]
    took_ms = outcome[0].timestamp - parse_timestamp(outcome[1]["at"])
    assert took_ms < stretched(2) * 1_000
    assert grown_mib < 150
    (table,) = [table for table in world.tables if table.steps]
    assert {json.loads(row.doc)["status"] for row in table.steps} == {"cancelled"}
    # One transaction: between the first record and the last there is no other's, nor a marker.
    offsets = [
        r.offset
        for r in world.all_of("audit")
        if json.loads(r.value or b"")["id"] in {event["id"] for event in ended}
    ]
    assert offsets == list(range(offsets[0], offsets[0] + 1_001))


@pytest.mark.soak
async def test_a_backlog_ends_nobodys_lease(
    broker: EmbeddedBroker, prefix: str, tmp_path: Path
) -> None:
    """The executor answers within its lease; the worker comes to it long after that is over."""
    settings = settings_of(broker.bootstrap, prefix)
    await create_topics(settings)
    async with (
        workers(1, tmp_path, broker.bootstrap, prefix, PARTITIONS=f"{PARTITIONS}") as (worker,),
        AIOKafkaProducer(bootstrap_servers=broker.bootstrap, linger_ms=5) as producer,
        observing(broker.bootstrap, prefix, PARTITIONS) as observer,
    ):
        await worker.start()
        await worker.until_ready()
        await send(producer, prefix, create(1), start(1))
        await send(
            producer,
            prefix,
            *(schedule(1, f"r{n}", lease_ms=int(stretched(2_000))) for n in range(20)),
        )
        await observer.settled([worker.state_dir], timeout_s=PATIENCE_S)
        await send(producer, prefix, *(step("start_step", 1, f"r{n}") for n in range(20)))
        started = time.monotonic()
        await observer.settled([worker.state_dir], timeout_s=PATIENCE_S)
        worker.pause()
        backlog = [{**create(1), "issued_by": f"agent:{n}"} for n in range(5_000)]
        await send(producer, prefix, *backlog)
        await send(
            producer, prefix, *(step("complete_step", 1, f"r{n}", attempt=1) for n in range(20))
        )
        sent_s = time.monotonic() - started
        await asyncio.sleep(max(0.0, stretched(2.5) - sent_s))
        worker.resume()
        world = await observer.settled([worker.state_dir], timeout_s=PATIENCE_S)
        assert await worker.end() == 0

    world.assert_clean()
    by_run: dict[str, list[Any]] = defaultdict(list)
    for event in events(world):
        if event["kind"].startswith("step_"):
            payload = event["payload_json"]
            by_run[payload.get("run_id") or payload["step"]["run_id"]].append(event)
    assert len(by_run) == 20
    for run_id, happened in by_run.items():
        kinds = [event["kind"] for event in happened]
        began = kinds.index("step_started")
        assert set(kinds[1:began]) <= {"step_dispatched"}  # offered again before it was started
        lent = happened[began]["payload_json"]["changes"]["execution"]
        if parse_timestamp(happened[-1]["at"]) <= parse_timestamp(lent["due_at"]):
            assert kinds[began:] == ["step_started", "step_succeeded"], run_id
    in_time = [run for run, happened in by_run.items() if happened[-1]["kind"] == "step_succeeded"]
    assert in_time, "the machine was too slow for even one answer within its lease"
