"""Commands all the time, of every kind of trouble, and a note of each that the broker has taken."""

import asyncio
import json
import random
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from tests.support.machine import patience

OWNERS = ("agent:kate:session:1", "agent:joe:session:2")
RUBBISH = (b"\xff\xfe", b"", b"[]", b'{"kind":"dance"}', b'{"n":NaN}')


@dataclass(slots=True)
class Flow:
    """A flow that commands are sent for, and how many there were."""

    id: str
    owner: str
    past: int = 0


@dataclass(slots=True)
class Load:
    """Made by `under_load`; `acknowledged` are places (full topic, partition, offset)."""

    producer: AIOKafkaProducer
    prefix: str
    random: random.Random
    acknowledged: set[tuple[str, int, int]] = field(default_factory=set)
    _alive: list[Flow] = field(default_factory=list)
    _sent: list[tuple[str, bytes, bytes]] = field(default_factory=list)

    def next(self) -> tuple[str, bytes, bytes]:
        """A command: topic, key and value."""
        rng, chance = self.random, self.random.random()
        if chance < 0.03:
            return "commands", str(self._id()).encode(), rng.choice(RUBBISH)
        if chance < 0.10 and self._sent:
            return rng.choice(self._sent[-500:])
        if chance < 0.25 or not self._alive:
            flow = Flow(str(self._id()), rng.choice(OWNERS))
            self._alive.append(flow)
            if len(self._alive) > 200:
                self._alive.pop(0)
            about = {"controller_id": "load", "goal": "Endure", "requester_origin": "tests"}
            kind = rng.choice(("create_managed", "create_mirrored"))
            return self._command("commands", flow, kind, **about, state_json={"é": 0})
        flow = rng.choice(self._alive)
        flow.past += 1
        past, run = flow.past, f"run-{rng.randrange(3)}"
        step = {"run_id": run, "task": "t", "status": "running", "result_json": {"n": past}}
        commands: list[tuple[str, str, dict[str, Any]]] = [
            ("commands", "start_running", {}),
            ("commands", "update_state", {"patch": {"n": past, "f": past / 7}}),
            ("commands", "update_state", {"patch": {"n": past}, "next_step": f"s{past}"}),
            ("commands", "update_state", {"patch": {}, "expected_revision": past}),
            ("commands", "record_step_observation", step),
            ("commands", "set_waiting", {"wait": {"kind": "manual"}}),
            ("commands", "resume", {"state_patch": {"resumed": past}}),
            ("commands", "finish", {"dry_run": past % 2 == 0}),
            ("control", "fail", {"reason": "why not"}),
            ("commands", "cancel", {"issued_by": "stranger"}),
            ("control", "prune", {}),
            ("commands", "request_cancel", {}) if past > 5 else ("control", "wake", {}),
        ]
        topic, kind, fields = rng.choice(commands)
        return self._command(topic, flow, kind, **fields)

    def _id(self) -> uuid.UUID:
        return uuid.UUID(int=self.random.getrandbits(128), version=4)

    def _command(
        self, topic: str, flow: Flow, kind: str, **fields: Any
    ) -> tuple[str, bytes, bytes]:
        command = {
            "kind": kind,
            "command_id": str(self._id()),
            "flow_id": flow.id,
            "issued_by": flow.owner,
            **fields,
        }
        sent = (topic, flow.id.encode(), json.dumps(command, ensure_ascii=False).encode())
        self._sent.append(sent)
        return sent

    async def send(self, count: int) -> None:
        """Send `count` commands and note which the broker has acknowledged."""
        sending = []
        for _ in range(count):
            topic, key, value = self.next()
            full = f"{self.prefix}.{topic}"
            sending.append(await self.producer.send(full, value, key))
        for done in await asyncio.gather(*sending, return_exceptions=True):
            if isinstance(done, KafkaError):
                continue
            if isinstance(done, BaseException):
                raise done
            if done.offset >= 0:
                self.acknowledged.add((done.topic, done.partition, done.offset))

    async def until_acknowledged(self, count: int) -> None:
        """Wait until the broker has acknowledged so many in all."""
        async with asyncio.timeout(patience(60)):
            while len(self.acknowledged) < count:  # noqa: ASYNC110 (a set has no event)
                await asyncio.sleep(0.05)

    async def until_further(self, count: int) -> None:
        """Wait until the broker has acknowledged `count` more than now."""
        await self.until_acknowledged(len(self.acknowledged) + count)


@asynccontextmanager
async def under_load(
    bootstrap: str, prefix: str, *, seed: int = 0, per_s: int = 200
) -> AsyncIterator[Load]:
    """Send commands until the block ends, small bursts of them at most a hundred times a second;
    those under way are then awaited."""
    producer = AIOKafkaProducer(
        bootstrap_servers=bootstrap,
        enable_idempotence=True,
        request_timeout_ms=60_000,
        retry_backoff_ms=50,
    )
    await producer.start()
    load, stop = Load(producer, prefix, random.Random(seed)), asyncio.Event()
    pause_s, at_once = max(0.01, 1 / per_s), max(1, per_s // 100)
    bursts: set[asyncio.Task[None]] = set()

    async def go_on() -> None:
        while not stop.is_set():
            # Not one after the other: small ones all the time keep the owners in transactions.
            bursts.add(asyncio.create_task(load.send(at_once)))
            await asyncio.sleep(pause_s)
            for burst in [burst for burst in bursts if burst.done()]:
                burst.result()
                bursts.discard(burst)
        await asyncio.gather(*bursts)

    going = asyncio.create_task(go_on())
    try:
        yield load
        stop.set()
        await asyncio.wait_for(going, patience(60))
    finally:
        for task in (going, *bursts):
            task.cancel()
        await asyncio.gather(going, *bursts, return_exceptions=True)
        await producer.stop()
