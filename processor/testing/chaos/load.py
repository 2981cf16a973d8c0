"""Send valid and invalid commands of every kind, and note which ones the broker acknowledged."""

import asyncio
import json
import random
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Final
from zlib import crc32

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from processor.adapters.kafka.producer.plain_producer import start_producer
from processor.adapters.kafka.shutdown import stop_producer
from processor.contract.topics import Topics
from processor.contract.values import instant
from processor.engine.partitioner import partition_of
from processor.runtime import end_tasks

OWNERS: Final = ("torture:session:1", "torture:session:2")
RUBBISH: Final = (b"\xff\xfe", b"", b"[]", b'{"kind":"dance"}', b'{"n":NaN}', b"[" * 100)
FLOWS_MAX: Final = 300
RESENT_MAX: Final = 500
LONGEST_WAIT_S: Final = 5
TASK: Final = "endure"
"""What all steps are to do."""
LEASE_MS: Final = 2_000
WORK_S: Final = (0, 0.01, 0.1, 0.1, 0.25, 0.5, 3)
"""How long a step takes: its input. The longest needs its lease extended."""
BURSTS_PER_S: Final = 50
SEND_TIMEOUT_MS: Final = 60_000
STOP_TIMEOUT_S: Final = 2.0

Doc = dict[str, Any]


@dataclass(slots=True)
class LoadFlow:
    id: str
    owner: str
    past: int = 0


@dataclass(slots=True)
class Load:
    """Made by `under_load`. `marks` holds, by full topic and partition, the offset behind the
    last record that the broker has acknowledged, `digests` by its offset that of each."""

    topics: Topics
    partitions: int
    dice: random.Random
    sent: Counter[str] = field(default_factory=Counter)
    acknowledged: int = 0
    marks: dict[tuple[str, int], int] = field(default_factory=dict)
    digests: dict[tuple[str, int], dict[int, int]] = field(default_factory=dict)
    failed: bool = False
    """Whether something was not sent: an idempotent producer's sequence is off from then on, and
    it would go on asking for ever."""
    _alive: list[LoadFlow] = field(default_factory=list)
    _last: list[tuple[str, bytes, bytes]] = field(default_factory=list)

    def next(self) -> tuple[str, bytes, bytes, int | None]:
        """A record: full topic, key, value, and the partition if it is not the key's own."""
        dice, chance = self.dice, self.dice.random()
        if chance < 0.02:
            self.sent["rubbish"] += 1
            return self.topics.commands, self._id().encode(), dice.choice(RUBBISH), None
        if chance < 0.08 and self._last:
            self.sent["resend"] += 1
            return (*dice.choice(self._last), None)
        topic, key, value = self._command()
        self._last.append((topic, key, value))
        if len(self._last) > RESENT_MAX:
            self._last.pop(0)
        if chance > 0.98:
            self.sent["misplaced"] += 1
            home = partition_of(key, self.partitions)
            return topic, key, value, (home + 1) % self.partitions
        return topic, key, value, None

    def _command(self) -> tuple[str, bytes, bytes]:
        dice = self.dice
        if dice.random() < 0.15 or not self._alive:
            flow = LoadFlow(self._id(), dice.choice(OWNERS))
            self._alive.append(flow)
            if len(self._alive) > FLOWS_MAX:
                self._alive.pop(0)
            kind = dice.choice(("create_managed", "create_mirrored"))
            about = {"controller_id": "torture", "goal": "Endure", "requester_origin": "torture"}
            return self._written(
                self.topics.commands, flow, kind, {**about, "state_json": {"é": 0}}
            )
        flow = dice.choice(self._alive)
        flow.past += 1
        kind = dice.choice(tuple(_FIELDS))
        topic = self.topics.control if kind in _BY_OPERATORS else self.topics.commands
        return self._written(topic, flow, kind.partition(" ")[0], _FIELDS[kind](self, flow.past))

    def step(self, past: int) -> Doc:
        """A step to be scheduled, of one of few run ids."""
        dice = self.dice
        step: Doc = {
            "run_id": f"step-{past % 5}",
            "task": TASK,
            "input_json": dice.choice(WORK_S),
            "lease_ms": LEASE_MS,
            "backoff_ms": dice.choice((0, 200)),
            "max_attempts": dice.choice((1, 3, 5)),
        }
        for name in ("not_before", "timeout_at"):
            if dice.random() < 0.1:
                step[name] = self._soon()
        return step

    def join(self) -> Doc:
        """A wait for all steps of the flow, or for one of them."""
        dice = self.dice
        wait: Doc = {"kind": "steps", "timeout_at": self._soon()}
        if dice.random() < 0.5:
            wait |= {"run_ids": ["step-1"], "mode": dice.choice(("any", "all", "all_or_failure"))}
        return wait

    def _soon(self) -> str:
        return instant(int(time.time() * 1000) + self.dice.randrange(500, LONGEST_WAIT_S * 1000))

    def wait(self) -> Doc:
        """One of the three kinds, over soon if by itself."""
        soon = self._soon()
        return self.dice.choice(
            [
                {"kind": "timer", "at": soon},
                {"kind": "external_event", "topic": "t", "correlation_id": "c"},
                {"kind": "external_event", "topic": "t", "correlation_id": "c", "timeout_at": soon},
                {"kind": "manual"},
                {"kind": "manual", "timeout_at": soon},
            ]
        )

    def _written(
        self, topic: str, flow: LoadFlow, kind: str, fields: Mapping[str, Any]
    ) -> tuple[str, bytes, bytes]:
        command = {
            "kind": kind,
            "command_id": self._id(),
            "flow_id": flow.id,
            "issued_by": flow.owner,
            **fields,
        }
        self.sent[kind] += 1
        return topic, flow.id.encode(), json.dumps(command, ensure_ascii=False).encode()

    def _id(self) -> str:
        return str(uuid.UUID(int=self.dice.getrandbits(128), version=4))

    async def send(self, producer: AIOKafkaProducer, count: int) -> None:
        """Send `count` records and note which the broker has acknowledged."""
        sending, digests = [], []
        for _ in range(count):
            topic, key, value, partition = self.next()
            try:
                sending.append(await producer.send(topic, value, key, partition=partition))
            except KafkaError:
                self.failed = True
            else:
                digests.append(digest(key, value))
        results = await asyncio.gather(*sending, return_exceptions=True)
        for done, record_digest in zip(results, digests, strict=True):
            if isinstance(done, KafkaError | asyncio.CancelledError):
                self.failed = True
            elif isinstance(done, BaseException):
                raise done
            elif done.offset >= 0:
                self.acknowledged += 1
                at = (done.topic, done.partition)
                self.marks[at] = max(self.marks.get(at, 0), done.offset + 1)
                self.digests.setdefault(at, {})[done.offset] = record_digest


def digest(key: bytes | None, value: bytes | None) -> int:
    """Tells a record from another one that stands in its place."""
    return crc32(value or b"", crc32(key or b""))


_FIELDS: Final[Mapping[str, Any]] = {
    "start_running": lambda load, past: {},
    "update_state": lambda load, past: {"patch": {"n": past, "f": past / 7}},
    "update_state expected": lambda load, past: {"patch": {}, "expected_revision": past},
    "update_state dry": lambda load, past: {"patch": {"n": past}, "dry_run": True},
    "record_step_observation": lambda load, past: {
        "run_id": f"run-{past % 3}",
        "task": "t",
        "status": "running",
        "result_json": {"n": past},
    },
    "set_waiting": lambda load, past: {"wait": load.wait()},
    "set_waiting again": lambda load, past: {"wait": load.wait()},
    "set_waiting for steps": lambda load, past: {"wait": load.join()},
    **{f"schedule_step {n}": lambda load, past: load.step(past) for n in range(2)},
    "cancel_step": lambda load, past: {"run_id": f"step-{past % 5}"},
    "retry_step": lambda load, past: {"run_id": f"step-{past % 5}"},
    "wake_step": lambda load, past: {"run_id": f"step-{past % 5}"},
    "resume": lambda load, past: {"state_patch": {"resumed": past}},
    "resume_external": lambda load, past: {"topic": "t", "correlation_id": "c", "payload": past},
    "finish": lambda load, past: {"final_state": {"past": past}},
    "fail": lambda load, past: {"reason": "why not"},
    "request_cancel": lambda load, past: {},
    "cancel": lambda load, past: {"issued_by": "a stranger"},
    "cancel rightly": lambda load, past: {},
    "wake": lambda load, past: {},
    "prune": lambda load, past: {},
}
"""Each kind and its fields; what stands behind the kind only tells entries apart."""
_BY_OPERATORS: Final = frozenset({"fail", "wake", "wake_step", "prune"})


@asynccontextmanager
async def under_load(
    connection: Mapping[str, Any], topics: Topics, partitions: int, *, seed: int, per_s: int
) -> AsyncIterator[Load]:
    """Send `per_s` records a second until the block ends, whatever becomes of them; those under
    way are then awaited."""

    async def new_producer() -> AIOKafkaProducer:
        return await start_producer(
            **connection, request_timeout_ms=SEND_TIMEOUT_MS, retry_backoff_ms=50
        )

    producer = await new_producer()
    load, stop = Load(topics, partitions, random.Random(seed)), asyncio.Event()
    bursts: set[asyncio.Task[None]] = set()

    async def replace_producer() -> None:
        nonlocal producer
        with suppress(KafkaError, OSError):  # a broker that is away is asked again
            old, producer = producer, await new_producer()
            load.failed = False
            bursts.add(asyncio.create_task(stop_producer(old, timeout_s=STOP_TIMEOUT_S)))

    async def go_on() -> None:
        began, sent = time.monotonic(), 0
        while not stop.is_set():
            if load.failed:
                await replace_producer()
            # By the clock: a pause of ours is made up for, and no outcome is waited for.
            due = int((time.monotonic() - began) * per_s) - sent
            if due > 0:
                bursts.add(asyncio.create_task(load.send(producer, due)))
                sent += due
            await asyncio.sleep(1 / BURSTS_PER_S)
            for burst in [burst for burst in bursts if burst.done()]:
                burst.result()
                bursts.discard(burst)
        await asyncio.gather(*bursts)

    going = asyncio.create_task(go_on())
    try:
        yield load
        stop.set()
        async with asyncio.timeout(SEND_TIMEOUT_MS / 1000 + 5):
            await going
    finally:
        await end_tasks(going, *bursts)
        await stop_producer(producer, timeout_s=STOP_TIMEOUT_S)
