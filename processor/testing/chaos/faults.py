"""The faults of a chaos run: how each is caused and healed."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final, NamedTuple

from processor.embedded.broker import EmbeddedBroker
from processor.testing.chaos.load import LEASE_MS
from processor.testing.chaos.proxy import KINDS, Fate, Proxy
from processor.testing.chaos.stage import ChaosStage
from processor.testing.chaos.worker_process import (
    AT_A_POINT,
    CAN_LIMIT_FILES,
    EXECUTING,
    READY,
    WorkerEnded,
    WorkerProcess,
    WorkerSilent,
    flip,
    remove_table,
)

READY_TIMEOUT_S: Final = 120.0
POINT_TIMEOUT_S: Final = 10.0
"""How long to wait until a worker comes to a crash point; it may never."""
BEFALLING_TIMEOUT_S: Final = 3.0
_FREQUENT: Final = (
    *("Produce", "Fetch", "ListOffsets", "Metadata", "OffsetCommit", "FindCoordinator"),
    *("Heartbeat", "InitProducerId", "AddPartitionsToTxn", "EndTxn"),
)
"""Requests that come without anything being restarted, or soon."""
FLIPPED_BEYOND: Final = 100
"""SQLite's header; a flip in there is seen at once, and says little."""


class Act(NamedTuple):
    """`play` does it and undoes it; what it returns is added to its name in the log. `weight`: how
    often it is drawn, against the others."""

    name: str
    weight: int
    play: Callable[[ChaosStage, random.Random], Awaitable[str]]
    needs_broker: bool = False


async def _kill(stage: ChaosStage, dice: random.Random) -> str:
    worker = dice.choice(stage.workers)
    await worker.kill()
    stage.killed("worker")
    await worker.start()
    return worker.name


async def _kill_executor(stage: ChaosStage, dice: random.Random) -> str:
    executor = dice.choice(stage.executors)
    await executor.kill()
    stage.killed("executor")
    await executor.start()
    return executor.name


async def _stop_executor(stage: ChaosStage, dice: random.Random) -> str:
    """An executor that is stopped past its leases, and continued."""
    executor = dice.choice(stage.executors)
    began = time.monotonic()
    executor.pause()
    await asyncio.sleep(dice.uniform(1.5, 3) * LEASE_MS / 1000)
    stage.stopped(executor.holder, time.monotonic() - began)
    executor.resume()
    return executor.name


async def _kill_all(stage: ChaosStage, dice: random.Random) -> str:
    await asyncio.gather(*(worker.kill() for worker in stage.workers))
    for worker in stage.workers:
        stage.killed("worker")
        await worker.start()
    return "all"


async def _leave(stage: ChaosStage, dice: random.Random) -> str:
    worker = dice.choice(stage.workers)
    await worker.end()
    await asyncio.sleep(dice.uniform(0, 2 * stage.session_s))
    await worker.start()
    return worker.name


async def _stop(stage: ChaosStage, dice: random.Random) -> str:
    worker = dice.choice(stage.workers)
    worker.pause()
    await asyncio.sleep(dice.uniform(0.5, 2) * stage.session_s)
    worker.resume()
    return worker.name


async def _point(stage: ChaosStage, dice: random.Random) -> str:
    """A worker that breaks at a named point."""
    worker = dice.choice(stage.workers)
    point = dice.choice([f"K{nth}" for nth in range(14)])
    actions = ["kill", "kill", "kill", "stop", f"delay={dice.randrange(100, 3_000)}ms"]
    actions += ["raise"] if point != "K5" else []
    actions += ["full", "full"] if point == "K8" else []
    action = dice.choice(actions)
    fault = f"{point}:{action}@{dice.choice([1, 1, 2, 5, 20])}"
    await worker.end()
    if point in ("K10", "K11"):  # there must be a past to read, or a table to make
        _lose(worker, dice)
    await worker.start(FAULTS=fault)
    try:
        await worker.until_printed(AT_A_POINT, timeout_s=POINT_TIMEOUT_S)
    except WorkerSilent:
        await worker.end()
        await worker.start()
        return f"{worker.name} {fault} (never reached)"
    except WorkerEnded:
        if action != "kill":
            raise
    if action == "kill":
        await worker.ended(timeout_s=READY_TIMEOUT_S)
        stage.killed("worker")
        await worker.start()
    elif action == "stop":
        await asyncio.sleep(1.5 * stage.session_s)
        worker.resume()
    return f"{worker.name} {fault}"


async def _flip(stage: ChaosStage, dice: random.Random) -> str:
    """A bit changes on disk while the worker is away. Under its hands it would be found too, but
    only once it is looked at; see processor/adapters/sqlite/README.md."""
    worker = dice.choice(stage.workers)
    await worker.kill()
    stage.killed("worker")
    for path in worker.tables()[:1]:
        flip(path, dice.randrange(FLIPPED_BEYOND, path.stat().st_size), 1 << dice.randrange(8))
        stage.flipped.add(path)
    await worker.start()
    return worker.name


def _lose(worker: WorkerProcess, dice: random.Random) -> None:
    if tables := worker.tables():
        remove_table(dice.choice(tables))


async def _lose_table(stage: ChaosStage, dice: random.Random) -> str:
    worker = dice.choice(stage.workers)
    await worker.kill()
    stage.killed("worker")
    _lose(worker, dice)
    await worker.start()
    return worker.name


async def _io_errors(stage: ChaosStage, dice: random.Random) -> str:
    """The worker's files may not grow for a while."""
    worker = dice.choice(stage.workers)
    largest = max((path.stat().st_size for path in worker.tables()), default=0)
    worker.limit_files(largest)
    await asyncio.sleep(dice.uniform(1, 4))
    worker.limit_files(None)
    return worker.name


def _broker(stage: ChaosStage, dice: random.Random) -> tuple[EmbeddedBroker, str]:
    """One of ours, and its name if there are several."""
    assert stage.brokers, "acts that need a broker of ours are drawn only with one"
    broker = dice.choice(stage.brokers)
    return broker, f"{broker.node_id}" if len(stage.brokers) > 1 else ""


async def _kill_broker(stage: ChaosStage, dice: random.Random) -> str:
    broker, name = _broker(stage, dice)
    await broker.kill()
    stage.killed("broker")
    # Of several, one may come back before the others have missed it, or later.
    await asyncio.sleep(dice.uniform(0, 6 if name else 2))
    await broker.start()
    return name


async def _stop_broker(stage: ChaosStage, dice: random.Random) -> str:
    broker, name = _broker(stage, dice)
    await broker.stop()
    await asyncio.sleep(dice.uniform(0, 4))
    await broker.start()
    return name


async def _bounce_broker(stage: ChaosStage, dice: random.Random) -> str:
    (broker, name), times = _broker(stage, dice), dice.randrange(2, 6)
    for _ in range(times):
        await broker.kill()
        stage.killed("broker")
        await broker.start()
        await asyncio.sleep(dice.uniform(0, 1))
    return f"{name} {times} times".lstrip()


def _proxys(stage: ChaosStage) -> Proxy:
    assert stage.proxy is not None, "acts on the way to the broker are drawn only with a proxy"
    return stage.proxy


async def _requests(stage: ChaosStage, dice: random.Random) -> str:
    """Some requests of one kind meet one fate."""
    proxy = _proxys(stage)
    kind = dice.choice(["EndTxn", "EndTxn", "Produce", "Fetch", *_FREQUENT])
    fate = dice.choice([fate for fate in Fate if fate not in (Fate.PASS, Fate.HOLD)])
    times = dice.randrange(1, 6)
    before = proxy.befallen.total()
    proxy.decide_once(KINDS[kind], fate, times=times, late_s=dice.uniform(0.2, 5))
    with suppress(TimeoutError):
        async with asyncio.timeout(BEFALLING_TIMEOUT_S):
            while proxy.befallen.total() < before + times:  # noqa: ASYNC110 (it may never)
                await asyncio.sleep(0.05)
    proxy.forget()
    return f"{kind} {fate.name} {proxy.befallen.total() - before} times"


async def _late_commit(stage: ChaosStage, dice: random.Random) -> str:
    """A commit that arrives only after its connection broke and the next transaction began."""
    proxy = _proxys(stage)
    proxy.decide_once(KINDS["EndTxn"], Fate.HOLD)
    await asyncio.sleep(dice.uniform(0.2, 2))
    proxy.forget()
    with suppress(TimeoutError, OSError):
        await proxy.release()
    return ""


async def _freeze(stage: ChaosStage, dice: random.Random) -> str:
    proxy = _proxys(stage)
    proxy.freeze()
    await asyncio.sleep(dice.uniform(0.5, 3) * stage.session_s)
    proxy.thaw()
    return ""


MENU: Final = (
    Act("kill a worker", 8, _kill),
    Act("kill all workers", 2, _kill_all),
    Act("kill an executor", 4, _kill_executor),
    Act("stop an executor past its leases", 4, _stop_executor),
    Act("break at a point", 8, _point),
    Act("stop a worker past its session", 3, _stop),
    Act("a worker leaves and comes back", 2, _leave),
    Act("flip a bit in a table", 3, _flip),
    Act("lose a table", 2, _lose_table),
    *([Act("the disk takes no more", 3, _io_errors)] if CAN_LIMIT_FILES else []),
    Act("kill the broker", 3, _kill_broker, needs_broker=True),
    Act("stop the broker", 1, _stop_broker, needs_broker=True),
    Act("bounce the broker", 1, _bounce_broker, needs_broker=True),
    Act("requests meet their fate", 8, _requests, needs_broker=True),
    Act("a commit comes late", 2, _late_commit, needs_broker=True),
    Act("the network stands still", 2, _freeze, needs_broker=True),
)
KILLS: Final = (
    Act("kill a worker", 7, _kill),
    Act("kill all workers", 1, _kill_all),
    Act("kill an executor", 3, _kill_executor),
    Act("kill the broker", 1, _kill_broker, needs_broker=True),
)
"""What `--kills` draws from."""


def draw(menu: tuple[Act, ...], dice: random.Random, *, with_broker: bool) -> Act:
    """The next act. Without a broker of ours, those that need one are not drawn."""
    possible = [act for act in menu if with_broker or not act.needs_broker]
    (act,) = dice.choices(possible, [act.weight for act in possible])
    return act


async def healed(stage: ChaosStage) -> None:
    """Wait until all replicas are in sync, and every worker and executor has said once that it is
    ready; raises what it is not for."""
    if stage.replicas is not None:
        await stage.replicas.until_whole(timeout_s=READY_TIMEOUT_S)
    for worker in stage.workers:
        worker.check()
        await worker.until_printed(READY, timeout_s=READY_TIMEOUT_S)
    for executor in stage.executors:
        executor.check()
        await executor.until_printed(EXECUTING, timeout_s=READY_TIMEOUT_S)
