"""`taskflow signals` as a process: killed while signals and waits come in any order."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from processor.adapters.kafka.admin.topic_admin import create_signal_topics
from processor.client import AuditStream, FlowClient, FlowHandle
from processor.client.signals.signal_client import SignalClient
from processor.contract.events import Resumed
from processor.embedded.broker import EmbeddedBroker
from processor.settings import Settings
from tests.support.machine import patience
from tests.support.processes import ForkedWorker
from tests.support.worker import running_worker

PARTITIONS = 2
AT_ONCE = 200
KILL_WITHIN_S = 0.5
"""After it is ready again, so that kills meet it anywhere in its work."""


class SignalsProcess(ForkedWorker):
    """`taskflow signals` without its imports."""

    def _arguments(self) -> tuple[str, ...]:
        return ("signals",)

    async def until_ready(self, *, times: int = 1) -> None:
        await self.until_printed('"signals ready"', times=times)


@asynccontextmanager
async def signals_processes(
    count: int, home: Path, settings: Settings
) -> AsyncIterator[list[SignalsProcess]]:
    """Not started yet; none lives longer than the block."""
    where = (settings.bootstrap_servers, settings.topic_prefix)
    made = [SignalsProcess(f"signals-{n}", home, *where, SIGNALS_HTTP="off") for n in range(count)]
    try:
        yield made
    finally:
        for process in made:
            if process.running:
                await process.kill()


async def in_any_order(work: list[Callable[[], Awaitable[Any]]]) -> None:
    """Do all of it, some of it at once."""
    slots = asyncio.Semaphore(AT_ONCE)

    async def one(do: Callable[[], Awaitable[Any]]) -> None:
        async with slots:
            await do()

    await asyncio.gather(*(one(do) for do in work))


async def killed_again_and_again(
    processes: list[SignalsProcess], kills: int, draw: random.Random
) -> None:
    """One after the other; another one meanwhile takes over what it had."""
    for kill in range(kills):
        process = processes[kill % len(processes)]
        await process.until_ready(times=kill // len(processes) + 1)
        await asyncio.sleep(draw.random() * KILL_WITHIN_S)
        await process.kill()
        await process.start()


async def waits_and_signals(
    home: Path, broker: EmbeddedBroker, prefix: str, *, count: int, kills: int, processes: int = 1
) -> None:
    """`count` waits and their signals, a tenth of them sent twice and a fifth with one key for two
    flows; each wait must be ended once, each by another signal of its key."""
    draw = random.Random(count)
    settings = Settings(
        bootstrap_servers=broker.bootstrap,
        topic_prefix=prefix,
        partitions=PARTITIONS,
        http=None,
        state_dir=home / "worker",
    )
    keys = [f"order-{n // 2 if n % 10 < 2 else n}" for n in range(count)]
    flows: dict[str, str] = {}
    async with (
        running_worker(settings),
        signals_processes(processes, home, settings) as some,
        FlowClient(settings, session="shop") as client,
    ):
        await create_signal_topics(settings)
        async with SignalClient(settings) as sender:

            async def wait(key: str) -> None:
                flow: FlowHandle = await client.create(f"Collect {key}", running=True)
                flows[flow.id] = key
                await flow.wait_for("payments", key)

            work: list[Callable[[], Awaitable[Any]]] = []
            for n, key in enumerate(keys):
                work.append(lambda key=key: wait(key))  # type: ignore[misc]
                for _ in range(2 if n % 10 == 5 else 1):
                    work.append(
                        lambda n=n, key=key: sender.send(  # type: ignore[misc]
                            "payments", key, {"n": n}, id=f"payment-{n}"
                        )
                    )
            draw.shuffle(work)
            for process in some:
                await process.start()
            killing = asyncio.create_task(killed_again_and_again(some, kills, draw))
            await in_any_order(work)
            await killing
        by: dict[str, list[Resumed]] = {}
        async with asyncio.timeout(patience(60 + count / 50)), AuditStream(settings) as audit:
            async for event in audit:
                if isinstance(event, Resumed):
                    by.setdefault(event.flow_id, []).append(event)
                    if len(by) == count:
                        break
        for process in some:
            assert await process.end() == 0, process.output()[-4000:]

    async with AuditStream(settings, follow=False) as audit:
        ended = Counter([one.flow_id async for one in audit if isinstance(one, Resumed)])
    assert ended == dict.fromkeys(flows, 1), "each wait is ended once"
    payments = []
    for flow_id, (event,) in by.items():
        n = event.payload_json.state_patch["resume_event"]["n"]
        assert keys[n] == flows[flow_id], "by a signal of its own key"
        assert event.actor == f"signal:payment-{n}"
        payments.append(n)
    assert sorted(payments) == list(range(count)), "and each signal ends one wait"


async def test_each_wait_is_ended_once_by_its_signal_through_kills(
    tmp_path: Path, broker: EmbeddedBroker, prefix: str
) -> None:
    await waits_and_signals(tmp_path, broker, prefix, count=100, kills=2)


@pytest.mark.soak
@pytest.mark.timeout(1800)
async def test_ten_thousand_waits_and_signals_through_kills(
    tmp_path: Path, broker: EmbeddedBroker, prefix: str
) -> None:
    await waits_and_signals(tmp_path, broker, prefix, count=10_000, kills=20)


@pytest.mark.soak
@pytest.mark.timeout(1800)
async def test_two_processes_take_over_from_each_other(
    tmp_path: Path, broker: EmbeddedBroker, prefix: str
) -> None:
    await waits_and_signals(tmp_path, broker, prefix, count=2_000, kills=20, processes=2)
