"""How long a partition is nobody's, with many flows: filling its table from `state` alone, and
taking it over after kill -9, with a standby's table and with one's own.

Everything is read from outside: what workers log, and when the broker appended the outcomes.
"""

import asyncio
import itertools
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager, nullcontext, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from aiokafka import AIOKafkaConsumer, TopicPartition

from processor.adapters.kafka.admin.topic_admin import create_topics
from processor.adapters.kafka.producer.plain_producer import start_producer
from processor.contract.topics import Topics
from processor.embedded.broker import embedded_broker
from processor.settings import Settings
from tests.benchmarks.running import percentile, publish
from tests.benchmarks.timers import creating, flow_ids

PARTITIONS = 4
SESSION_TIMEOUT_S = 2
LOAD_PER_S = 200
KILLS = 10
PATIENCE_S = 900
POLL_S = 0.05

STEPS = ("set-up", "restore", "standby", "own")
KILLED = frozenset(STEPS[2:])

Line = dict[str, Any]


class Worker:
    """A worker as a process, and what it says."""

    def __init__(
        self,
        name: str,
        home: Path,
        settings: Settings,
        *,
        processes: int = 1,
        **more: str,
    ) -> None:
        self.name = name
        self._arguments = ("--processes", str(processes))
        self.state_dir = home / name
        self.log = home / f"{name}.log"
        self._environ = {
            **os.environ,
            "TASKFLOW_BOOTSTRAP_SERVERS": settings.bootstrap_servers,
            "TASKFLOW_TOPIC_PREFIX": settings.topic_prefix,
            "TASKFLOW_PARTITIONS": str(PARTITIONS),
            "TASKFLOW_STATE_DIR": str(self.state_dir),
            "TASKFLOW_SESSION_TIMEOUT": f"{SESSION_TIMEOUT_S}s",
            "TASKFLOW_HTTP": "off",
            "TASKFLOW_LOG_FORMAT": "json",
            **more,
        }
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "processor", "worker", *self._arguments),
                env=self._environ,
                stdout=log,
                stderr=log,
            )

    async def end(self, how: signal.Signals = signal.SIGTERM) -> None:
        assert self._process is not None
        with suppress(ProcessLookupError):
            self._process.send_signal(how)
        await self._process.wait()

    def lines(self, message: str, since: float = 0.0) -> list[Line]:
        """Its lines with this message from `since` (POSIX seconds) on."""
        if not self.log.exists():
            return []
        lines = (json.loads(text) for text in self.log.read_text().splitlines() if text[:1] == "{")
        return [line for line in lines if line["message"] == message and at(line) >= since]

    async def until_printed(self, message: str, count: int, since: float = 0.0) -> list[Line]:
        async with asyncio.timeout(PATIENCE_S):
            while len(found := self.lines(message, since)) < count:  # noqa: ASYNC110 (another process)
                await asyncio.sleep(POLL_S)
        return found


ASSIGNED = "the group has assigned partitions"
TAKEN_OVER = "the partition is taken over"
RESTORED_LINE = "the table was restored from the state topic"
FOLLOWS = "the standby follows"


def at(line: Line) -> float:
    """POSIX seconds."""
    return datetime.fromisoformat(line["at"].replace("Z", "+00:00")).timestamp()


async def decided(settings: Settings, count: int) -> None:
    """Wait until there are that many outcomes."""
    topic = Topics(settings.topic_prefix).outcomes
    consumer = AIOKafkaConsumer(
        bootstrap_servers=settings.bootstrap_servers, isolation_level="read_committed"
    )
    await consumer.start()
    try:
        tps = [TopicPartition(topic, partition) for partition in range(PARTITIONS)]
        async with asyncio.timeout(PATIENCE_S):
            while sum((await consumer.end_offsets(tps)).values()) < count:  # noqa: ASYNC110
                await asyncio.sleep(0.5)
    finally:
        await consumer.stop()


async def set_up(home: Path, settings: Settings, ids: list[str]) -> None:
    """Each of `ids` a flow, decided by one of the pair; begun again, it goes on."""
    worker, _ = _pair(home, settings)
    if not worker.log.exists():
        await create_topics(settings)
        await publish(settings, creating(ids))
    await worker.start()
    try:
        await decided(settings, len(ids))
    finally:
        await worker.end()


# Restoring


async def restored(home: Path, settings: Settings, processes: int) -> Line:
    """A worker on an empty disk: flows a second, and how long until all partitions run."""
    worker = Worker(f"empty-{time.monotonic_ns()}", home, settings, processes=processes)
    await worker.start()
    try:
        taken = await worker.until_printed(TAKEN_OVER, PARTITIONS)
        restored = worker.lines(RESTORED_LINE)
        assigned = at(worker.lines(ASSIGNED)[-1])
    finally:
        await worker.end()
        shutil.rmtree(worker.state_dir)
    flows, outcomes = (sum(line[name] for line in restored) for name in ("flows", "outcomes"))
    # The partitions are filled side by side.
    from_state_s = max(line["snapshots_s"] + line["indexes_s"] for line in restored)
    return {
        "flows": flows,
        "flows_per_s": flows / from_state_s,
        "outcomes": outcomes,
        "outcomes_per_s": outcomes / max(line["outcomes_s"] for line in restored)
        if outcomes
        else 0.0,
        "whole_s": max(at(line) for line in taken) - assigned,
    }


async def report_restored(home: Path, settings: Settings) -> AsyncIterator[str]:
    yield f"A worker with an empty disk, {PARTITIONS} partitions at once:\n"
    yield "| processes | flows | flows/s, indexes included | outcomes | outcomes/s | all of it, s |"
    yield "| ---: | ---: | ---: | ---: | ---: | ---: |"
    for processes in (1, 2):
        r = await restored(home, settings, processes)
        yield (
            f"| {processes} | {r['flows']:,} | {r['flows_per_s']:,.0f} | {r['outcomes']:,} | "
            f"{r['outcomes_per_s']:,.0f} | {r['whole_s']:.1f} |"
        )
    yield ""


# Taking over


class Takeover(NamedTuple):
    """Seconds to a partition's first outcome: from the kill, and from where the group has given the
    partition to somebody who lives."""

    from_kill_s: float
    from_detection_s: float


@asynccontextmanager
async def under_load(settings: Settings, flows: list[str]) -> AsyncIterator[None]:
    """Commands all the time, for all partitions: resends, which change nothing."""
    # What waits for one partition's leader must not hold up what goes to another.
    producer = await start_producer(
        bootstrap_servers=settings.bootstrap_servers, max_batch_size=1024 * 1024
    )
    topic = Topics(settings.topic_prefix).commands

    async def go_on() -> None:
        for place, flow_id, value in itertools.cycle(creating(flows)):
            await producer.send(topic, value, flow_id.encode(), partition=place)
            await asyncio.sleep(1 / LOAD_PER_S)

    going = asyncio.create_task(go_on())
    try:
        yield
    finally:
        going.cancel()
        await asyncio.gather(going, return_exceptions=True)
        await producer.stop()


async def outcomes_since(settings: Settings, since: float) -> dict[int, list[float]]:
    """When the outcomes of each partition were appended, from then on."""
    topic = Topics(settings.topic_prefix).outcomes
    consumer = AIOKafkaConsumer(
        bootstrap_servers=settings.bootstrap_servers,
        isolation_level="read_committed",
        enable_auto_commit=False,
    )
    await consumer.start()
    try:
        tps = [TopicPartition(topic, partition) for partition in range(PARTITIONS)]
        consumer.assign(tps)
        starts = await consumer.offsets_for_times(dict.fromkeys(tps, int(since * 1000)))
        ends = await consumer.end_offsets(tps)
        found: dict[int, list[float]] = {partition: [] for partition in range(PARTITIONS)}
        for tp in tps:
            consumer.seek(tp, starts[tp].offset if starts[tp] else ends[tp])
        while any([await consumer.position(tp) < ends[tp] for tp in tps]):
            for records in (await consumer.getmany(timeout_ms=200)).values():
                for record in records:
                    found[record.partition].append(record.timestamp / 1000)
        return found
    finally:
        await consumer.stop()


async def killed(settings: Settings, victim: Worker, survivor: Worker) -> list[Takeover]:
    """kill -9 of one; what became of the partitions that it had owned."""
    mine = set(victim.lines(ASSIGNED)[-1]["partitions"])
    kill_at = time.time()
    await victim.end(signal.SIGKILL)
    if victim is survivor:
        await victim.start()
    taken = await survivor.until_printed(TAKEN_OVER, len(mine), since=kill_at)
    assert {line["table"] for line in taken} == {"caught up"}, taken
    assigned = at(survivor.lines(ASSIGNED, since=kill_at)[0])
    await asyncio.sleep(1.0)
    outcomes = await outcomes_since(settings, assigned)
    firsts = [min(outcomes[partition]) for partition in mine]
    return [Takeover(first - kill_at, first - assigned) for first in firsts]


async def by_a_standby(home: Path, settings: Settings, kills: int) -> list[Takeover]:
    pair = _pair(home, settings)
    started = time.time()
    await asyncio.gather(*(worker.start() for worker in pair))
    for worker in pair:
        await worker.until_printed(FOLLOWS, PARTITIONS // 2, since=started)
    await asyncio.sleep(2.0)
    found: list[Takeover] = []
    for turn in range(kills):
        victim, survivor = pair if turn % 2 == 0 else pair[::-1]
        found += await killed(settings, victim, survivor)
        since = time.time()
        await victim.start()
        await victim.until_printed(FOLLOWS, PARTITIONS // 2, since=since)
        await survivor.until_printed(FOLLOWS, PARTITIONS // 2, since=since)
        await asyncio.sleep(1.0)
    for worker in pair:
        await worker.end()
    return found


def _pair(home: Path, settings: Settings) -> tuple[Worker, Worker]:
    return (
        Worker("w0", home, settings, TASKFLOW_STANDBY="true"),
        Worker("w1", home, settings, TASKFLOW_STANDBY="true"),
    )


async def on_its_own_table(home: Path, settings: Settings, kills: int) -> list[Takeover]:
    """The same worker is started again at once, as a supervisor does; with an instance id, the
    group gives it its partitions back without waiting for the session to end."""
    worker = Worker("w0", home, settings, TASKFLOW_INSTANCE_ID="w0")
    started = time.time()
    await worker.start()
    await worker.until_printed(TAKEN_OVER, PARTITIONS, since=started)
    await asyncio.sleep(2.0)
    found: list[Takeover] = []
    for _ in range(kills):
        found += await killed(settings, worker, worker)
    await worker.end()
    return found


def row(name: str, found: list[Takeover]) -> str:
    detected, whole = (
        [getattr(one, field) for one in found] for field in ("from_detection_s", "from_kill_s")
    )
    cells = [f"{percentile(detected, share):.2f}" for share in (50, 99)]
    return f"| {name} | {len(found)} | {' | '.join(cells)} | {percentile(whole, 50):.1f} |"


async def report(
    flows: int,
    kills: int = KILLS,
    *,
    steps: Collection[str] = STEPS,
    keep: Path | None = None,
) -> AsyncIterator[str]:
    """Lines of two tables. What is decided once lies in `keep`, so that steps can be measured one
    by one."""
    with tempfile.TemporaryDirectory() if keep is None else nullcontext(str(keep)) as named:
        home = Path(named)
        async with embedded_broker(data_dir=home / "broker") as broker:
            settings = Settings(
                bootstrap_servers=broker.bootstrap, topic_prefix="takeover", partitions=PARTITIONS
            )
            ids = flow_ids(flows)
            if "set-up" in steps:
                await set_up(home, settings, ids)
            if "restore" in steps:
                async for line in report_restored(home, settings):
                    yield line
            if not KILLED.isdisjoint(steps):
                yield f"kill -9 with {flows:,} flows, {LOAD_PER_S} commands/s; seconds to the "
                yield "first outcome of a partition, from where the group has noticed:\n"
                yield "| table | partitions | p50 | p99 | p50 from the kill |"
                yield "| --- | ---: | ---: | ---: | ---: |"
                async with under_load(settings, ids[:1000]):
                    if "standby" in steps:
                        yield row("a standby's", await by_a_standby(home, settings, kills))
                    if "own" in steps:
                        yield row("one's own", await on_its_own_table(home, settings, kills // 2))
