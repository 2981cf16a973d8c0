"""Waits that end by themselves on a real broker: a herd of them while workers are killed, and
workers whose clocks are off."""

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID, uuid5

import pytest
from aiokafka import AIOKafkaProducer

from processor.adapters.kafka.admin.topic_admin import create_topics
from processor.contract.values import instant, parse_timestamp
from processor.embedded.broker import EmbeddedBroker
from processor.settings import Settings
from processor.testing.memory.deployment import Deployment
from tests.support.builders import FLOW_ID, OWNER, document
from tests.support.log_files import foreign_writers, until_in_transaction
from tests.support.machine import patience, stretched
from tests.support.observed_deployment import Observer, observing
from tests.support.processes import owner_of, workers

PARTITIONS = 2
HERD = 2_000
HELD = f"K4:delay={stretched(150):.0f}ms@*"
"""Each transaction stays open for a moment: else the herd is through before anyone has looked."""
DUE_WITHIN_MS = int(stretched(3_000))
"""Long enough to see the first end, and to kill who ends them, before the last is due."""
TAKEN_OVER = '"the partition is taken over"'
HOUR_S = 3_600.0
PATIENCE_S = patience(20.0)
LATE_MAX_MS = int(stretched(15_000))
"""More than a loaded machine needs, and a fraction of an hour."""


def flow_id(number: int) -> str:
    return str(uuid5(UUID(FLOW_ID), f"waits {number}"))


def waiting(number: int, wait: dict[str, Any]) -> list[dict[str, Any]]:
    about = {"controller_id": "herd", "goal": "Wait", "requester_origin": "tests"}
    one = flow_id(number)
    return [
        document("create_mirrored", flow_id=one, **about),
        document("set_waiting", flow_id=one, wait=wait),
    ]


@asynccontextmanager
async def producer(bootstrap: str) -> AsyncIterator[AIOKafkaProducer]:
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap, enable_idempotence=True, linger_ms=5)
    await producer.start()
    try:
        yield producer
    finally:
        await producer.stop()


async def send(producer: AIOKafkaProducer, prefix: str, commands: Iterable[dict[str, Any]]) -> None:
    futures = [
        await producer.send(f"{prefix}.commands", json.dumps(one).encode(), one["flow_id"].encode())
        for one in commands
    ]
    await asyncio.gather(*futures)


def ends(world: Deployment) -> list[dict[str, Any]]:
    """The events that ended a wait."""
    events = (json.loads(record.value or b"") for record in world.all_of("audit"))
    return [event for event in events if event["kind"] in ("resumed", "cancelled")]


async def until_ended(observer: Observer, count: int) -> Deployment:
    """Wait until at least `count` waits have ended."""
    deadline = time.monotonic() + PATIENCE_S
    while len(ends(world := await observer.catch_up())) < count:
        assert time.monotonic() < deadline, f"{len(ends(world))} of {count} have ended"
        await asyncio.sleep(0.05)
    return world


def wakes(world: Deployment) -> Counter[str]:
    """How many wakes of the processor's own there are, by flow."""
    commands = (json.loads(record.value or b"") for record in world.all_of("control"))
    return Counter(one["flow_id"] for one in commands if one["issued_by"] == "taskflow:timer")


async def test_a_herd_of_timers_while_their_owners_are_killed(
    broker: EmbeddedBroker, prefix: str, tmp_path: Path
) -> None:
    await create_topics(
        Settings(bootstrap_servers=broker.bootstrap, topic_prefix=prefix, partitions=PARTITIONS)
    )
    async with (
        workers(
            2, tmp_path, broker.bootstrap, prefix, PARTITIONS=f"{PARTITIONS}", FAULTS=HELD
        ) as pair,
        observing(broker.bootstrap, prefix, PARTITIONS) as observer,
        producer(broker.bootstrap) as sending,
    ):
        await asyncio.gather(*(worker.start() for worker in pair))
        await asyncio.gather(*(worker.until_ready() for worker in pair))
        # All within a moment, and only once all of them wait.
        due_ms = int(time.time() * 1000 + stretched(6_000))
        due = [due_ms + DUE_WITHIN_MS * number // HERD for number in range(HERD)]
        herd = [
            one
            for number in range(HERD)
            for one in waiting(number, {"kind": "timer", "at": instant(due[number])})
        ]
        await send(sending, prefix, herd)
        await observer.catch_up()

        await until_ended(observer, 1)
        first = owner_of(0, pair)
        (second,) = (worker for worker in pair if worker is not first)
        taken_over = second.output().count(TAKEN_OVER)
        await first.kill()
        ended_at_first = len(ends(await observer.catch_up()))
        await second.until_printed(TAKEN_OVER, times=taken_over + 1)
        await until_in_transaction(broker.data_dir, f"{prefix}.control", 0)
        await second.kill()
        ended_at_second = len(ends(await observer.catch_up()))
        for worker in pair:
            worker.choose(FAULTS="")
        await asyncio.gather(first.start(), second.start())
        await until_ended(observer, HERD)
        world = await observer.settled([w.state_dir for w in pair], timeout_s=PATIENCE_S)
        codes = [await worker.end() for worker in pair]

    print(f"killed after {ended_at_first} and after {ended_at_second} of {HERD}")
    assert codes == [0, 0]
    assert 0 < ended_at_first < ended_at_second < HERD
    resumed = ends(world)
    assert Counter(event["flow_id"] for event in resumed) == Counter(map(flow_id, range(HERD)))
    assert {event["payload_json"]["by"] for event in resumed} == {"timer"}
    earliest = {flow_id(number): at_ms for number, at_ms in enumerate(due)}
    assert all(parse_timestamp(event["at"]) >= earliest[event["flow_id"]] for event in resumed)
    assert set(wakes(world).values()) == {1}, "a second wake was sent"
    world.assert_clean(punctual_ms=0)
    assert foreign_writers(broker.data_dir, prefix, PARTITIONS) == []


@pytest.mark.soak
async def test_workers_an_hour_ahead_and_an_hour_behind(
    broker: EmbeddedBroker, prefix: str, tmp_path: Path
) -> None:
    await create_topics(
        Settings(bootstrap_servers=broker.bootstrap, topic_prefix=prefix, partitions=PARTITIONS)
    )
    async with (
        workers(2, tmp_path, broker.bootstrap, prefix, PARTITIONS=f"{PARTITIONS}") as (
            ahead,
            behind,
        ),
        observing(broker.bootstrap, prefix, PARTITIONS) as observer,
        producer(broker.bootstrap) as sending,
    ):
        ahead.clock_ahead_s, behind.clock_ahead_s = HOUR_S, -HOUR_S
        await asyncio.gather(ahead.start(), behind.start())
        await asyncio.gather(ahead.until_ready(), behind.until_ready())
        now_ms = int(time.time() * 1000)
        due: dict[str, int] = {}
        commands = []
        for number in range(200):
            due[flow_id(number)] = at_ms = now_ms + int(stretched(2_000)) + 20 * number
            wait = {"kind": "timer", "at": instant(at_ms)}
            if number % 2:
                wait = {"kind": "manual", "timeout_at": instant(at_ms)}
            commands += waiting(number, wait)
        # These wait for the hour by which the clocks are off.
        for number in range(200, 220):
            at_ms = now_ms + 1_800_000
            commands += waiting(number, {"kind": "timer", "at": instant(at_ms)})
        asked = [
            document("request_cancel", flow_id=flow_id(n), issued_by=OWNER) for n in (218, 219)
        ]
        await send(sending, prefix, commands)
        await send(sending, prefix, asked)
        await until_ended(observer, len(due) + len(asked))
        # Another takes over what waits: it knows no better time.
        await ahead.kill()
        late = [
            one
            for number in range(300, 340)
            for one in waiting(
                number, {"kind": "timer", "at": instant(int(time.time() * 1000 + stretched(4_000)))}
            )
        ]
        await send(sending, prefix, late)
        await until_ended(observer, len(due) + len(asked) + 40)
        world = await observer.settled([ahead.state_dir, behind.state_dir], timeout_s=PATIENCE_S)
        assert await behind.end() == 0
        started = [json.loads(worker.output().splitlines()[0])["at"] for worker in (ahead, behind)]

    fast, slow = map(parse_timestamp, started)
    assert fast > now_ms + 1_800_000 > now_ms - 1_800_000 > slow
    events = ends(world)
    assert Counter(event["kind"] for event in events) == {"resumed": 240, "cancelled": 2}
    lags = [parse_timestamp(e["at"]) - due[e["flow_id"]] for e in events if e["flow_id"] in due]
    assert 0 <= min(lags) <= max(lags) < LATE_MAX_MS
    assert {event["flow_id"] for event in events}.isdisjoint(map(flow_id, range(200, 218)))
    world.assert_clean(punctual_ms=LATE_MAX_MS)
