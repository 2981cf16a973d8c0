"""No cancellation is lost, in whatever order it and the awaited result arrive.

`asyncio.wait_for` swallows one that arrives as the awaited future completes, until Python 3.12.
Each place that waits is walked through all orderings of the two, an iteration of the loop apart.
"""

import ast
import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import pytest

from processor.adapters.kafka.consumer.commit_coalescer import CommitCoalescer
from processor.adapters.kafka.producer import transactional_producer
from processor.adapters.kafka.producer.forwarder import PlainForwarder
from processor.adapters.kafka.producer.transactional_producer import KafkaTransactionalProducer
from processor.client.kafka.command_producer import CommandProducer
from processor.contract.topics import Topics
from processor.engine.batch import PartitionConfig
from processor.engine.rows import Position
from processor.partition.batch_processor import BatchProcessor
from processor.partition.ports import PartitionPorts
from processor.partition.processor import PartitionProcessor
from processor.partition.standby import StandbyReplica
from processor.runtime import end_tasks, sleep_unless, unless_stopped
from processor.settings import Settings
from processor.telemetry.metrics import Metrics
from processor.worker import supervisor
from processor.worker import worker as worker_module
from processor.worker.worker import Worker
from tests.support.unconnected import unconnected_consumer

ITERATIONS = 6
"""How far apart result and cancellation come at most, in iterations of the event loop."""
ENDS_WITHIN = 100
"""Iterations. A task that lives on after a cancellation is cancelled again after half a second, by
the clock: that is not waited for here."""
PROCESSOR = Path(__file__).parents[2] / "processor"


class Awaited:
    """What a place waits for; its result comes when the test says so."""

    def __init__(self, result: Any = None) -> None:
        self._result = result
        self._futures: list[asyncio.Future[Any]] = []
        self._over = False

    async def __call__(self, *what: Any, **how: Any) -> Any:
        future = asyncio.get_running_loop().create_future()
        if self._over:
            await asyncio.Event().wait()
        self._futures.append(future)
        return await future

    def completes(self) -> None:
        self._over = True
        for future in self._futures:
            if not future.done():
                future.set_result(self._result)


class Waits(NamedTuple):
    """A place that waits: its whole life, what makes its result come, and what ends it."""

    life: asyncio.Task[Any]
    completes: Callable[[], None]
    ends: Callable[[], object]


Place = Callable[[], Awaitable[Waits]]
PLACES: dict[str, Place] = {}


def place(make: Place) -> Place:
    PLACES[make.__name__] = make
    return make


def called_once(work: Callable[[], Awaitable[Any]], awaited: Callable[[], None]) -> Waits:
    """`work`, whose caller goes on to wait for ever: a lost cancellation leaves it there."""

    async def around() -> None:
        await work()
        await asyncio.Event().wait()

    life = asyncio.ensure_future(around())
    return Waits(life, awaited, life.cancel)


@place
async def sleep_unless_set() -> Waits:
    event = asyncio.Event()
    return called_once(lambda: sleep_unless(event, 60.0), event.set)


@place
async def work_unless_stopped() -> Waits:
    awaited = Awaited()
    return called_once(lambda: unless_stopped(awaited(), asyncio.Event()), awaited.completes)


@place
async def work_unless_stopped_by_its_event() -> Waits:
    stop = asyncio.Event()
    return called_once(lambda: unless_stopped(asyncio.Event().wait(), stop), stop.set)


@place
async def ending_a_task() -> Waits:
    cleaned_up = asyncio.Event()

    async def slow_to_end() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await cleaned_up.wait()

    task = asyncio.ensure_future(slow_to_end())
    await asyncio.sleep(0)
    return called_once(lambda: end_tasks(task), cleaned_up.set)


@place
async def proof_of_membership() -> Waits:
    awaited = Awaited()
    coalescer = CommitCoalescer(awaited)
    return called_once(lambda: coalescer.prove({}), awaited.completes)


@place
async def group_consumer_stop() -> Waits:
    """The offsets for lag tools are being committed when the consumer is stopped."""
    awaited = Awaited()
    consumer = unconnected_consumer()
    consumer._consumer._closed = True  # never started; it would complain
    consumer._consumer.commit = awaited

    async def keeps_committing() -> None:
        while True:
            await asyncio.sleep(0)
            consumer.decided(0, Position(1, 1, 1))
            await consumer._commit_decided()

    committing = asyncio.ensure_future(keeps_committing())
    return Waits(committing, awaited.completes, committing.cancel)


class Member:
    """The group's consumer, asked by the watchdog all the time."""

    def __init__(self, awaited: Awaited) -> None:
        self.failed = asyncio.Event()
        self.refused = None
        self.undone = awaited

    async def start(self) -> None: ...
    async def stop(self, *, timeout_s: float) -> None: ...


@place
async def worker_until_stopped() -> Waits:
    awaited, stop = Awaited(set()), asyncio.Event()
    worker = Worker(
        lambda assigned, revoked: Member(awaited),  # type: ignore[arg-type, return-value]
        lambda number, member: None,  # type: ignore[arg-type, return-value]
        metrics=Metrics(),
        watchdog_timeout_s=60.0,
    )
    return Waits(asyncio.ensure_future(worker.run(stop)), awaited.completes, stop.set)


@place
async def worker_waits_for_the_batch_of_a_partition_it_gives_up() -> Waits:
    idle = asyncio.Event()

    class StubProcessor:
        async def idle(self) -> None:
            await idle.wait()

    task = asyncio.ensure_future(asyncio.Event().wait())
    taken = worker_module._ProcessorTask(StubProcessor(), task)  # type: ignore[arg-type]
    return called_once(lambda: worker_module._end(taken, None), idle.set)


@place
async def partition_after_an_error() -> Waits:
    """Released while it waits before the next takeover."""

    def fails(*_: Any) -> Any:
        raise ZeroDivisionError

    processor = PartitionProcessor(
        BatchProcessor(
            PartitionConfig(0, 1, Topics(), 1),
            PartitionPorts(Any, Any, Any, fails, fails, fails),  # type: ignore[arg-type]
            metrics=Metrics(),
            batch_max_records=1,
            cache_bytes=1,
        )
    )
    return called_once(processor.run, processor.release)


@place
async def standby_that_follows() -> Waits:
    awaited = Awaited()

    class History:
        visible = awaited

        async def close(self) -> None: ...

    class Table:
        checkpoint = awaited

        def size_bytes(self) -> int:
            return 0

    @asynccontextmanager
    async def opened() -> AsyncIterator[Any]:
        yield Table()

    replica = StandbyReplica(
        PartitionConfig(0, 1, Topics(), 1),
        open_table=opened,
        history=History(),  # type: ignore[arg-type]
        turn=asyncio.Lock(),
        metrics=Metrics(),
    )
    life = asyncio.ensure_future(replica.run())
    return Waits(life, awaited.completes, life.cancel)


class Process:
    """A child that ends when the test says so."""

    def __init__(self) -> None:
        self.returncode: int | None = None
        self.stdin = self
        self._ended = asyncio.Event()

    def close(self) -> None: ...

    def kill(self) -> None:
        self.ends()

    def ends(self) -> None:
        self.returncode = 0
        self._ended.set()

    async def wait(self) -> int:
        await self._ended.wait()
        return 0


@place
async def parent_that_ends_a_process() -> Waits:
    child, process = supervisor.Child(0, {}), Process()
    child._process = process  # type: ignore[assignment]
    return called_once(child._end, process.ends)


class Producer:
    """A client of Kafka each call of which waits."""

    def __init__(self, awaited: Awaited) -> None:
        self.start = self.begin_transaction = self.send = self.stop = awaited
        self.client = self
        self._sender = self
        self._do_txn_commit = awaited
        self._metadata_update = awaited


@place
async def fence() -> Waits:
    awaited = Awaited()
    producer = KafkaTransactionalProducer({}, Topics(), 0, compression=None, commit_timeout_s=60.0)
    with mock.patch.object(
        transactional_producer, "AIOKafkaProducer", return_value=Producer(awaited)
    ):
        waits = called_once(producer.start, awaited.completes)
        await asyncio.sleep(0)
    return waits


@place
async def transaction() -> Waits:
    awaited = Awaited()
    producer = KafkaTransactionalProducer({}, Topics(), 0, compression=None, commit_timeout_s=60.0)
    producer._producer = Producer(awaited)
    return called_once(lambda: producer.write({}), awaited.completes)


@place
async def forwards() -> Waits:
    awaited = Awaited()
    forwarder = PlainForwarder({}, timeout_s=60.0)
    forwarder._producer = Producer(awaited)
    forward: Any = type("Forward", (), {"record": None, "outgoing": (b"k", b"v", ())})
    return called_once(lambda: forwarder.forward([forward()]), awaited.completes)


@place
async def acknowledgement_of_a_command() -> Waits:
    producer = CommandProducer(Settings())
    written: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    class Acknowledges:
        async def send(self, *what: Any, **how: Any) -> Any:
            return written

    async def current() -> Any:
        return Acknowledges()

    producer._current = current  # type: ignore[method-assign]

    def completes() -> None:
        if not written.done():
            written.set_result(None)

    return called_once(
        lambda: producer.send("t", b"k", b"v", [], handed_over=lambda: None), completes
    )


def orderings() -> Iterator[tuple[int, int, bool]]:
    """At which iteration the result comes, at which the cancellation; which of them first if both
    at the same."""
    for result_at, cancelled_at in itertools.product(range(ITERATIONS), repeat=2):
        yield result_at, cancelled_at, True
        if result_at == cancelled_at:
            yield result_at, cancelled_at, False


class NoPauses:
    """asyncio, whose `sleep` takes no time."""

    def __getattr__(self, name: str) -> Any:
        return getattr(asyncio, name)

    async def sleep(self, delay_s: float) -> None:
        await asyncio.sleep(0)


@pytest.mark.parametrize("name", PLACES)
async def test_a_place_that_waits_ends_when_it_is_told_to(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "asyncio", NoPauses())
    lost = []
    for result_at, cancelled_at, result_first in orderings():
        waits = await PLACES[name]()
        for iteration in range(ITERATIONS):
            if iteration == result_at and result_first:
                waits.completes()
            if iteration == cancelled_at:
                waits.ends()
            if iteration == result_at and not result_first:
                waits.completes()
            await asyncio.sleep(0)
        for _ in range(ENDS_WITHIN):
            if waits.life.done():
                break
            await asyncio.sleep(0)
        if not waits.life.done():
            lost.append((result_at, cancelled_at, result_first))
        await end_tasks(waits.life)
    assert lost == []


def test_the_walk_finds_what_swallows_a_cancellation() -> None:
    async def swallowed() -> bool:
        event = asyncio.Event()

        async def as_wait_for_did() -> None:
            waiting = asyncio.ensure_future(event.wait())
            try:
                await asyncio.wait({waiting})
            except asyncio.CancelledError:
                if not waiting.done():
                    raise

        waits = called_once(as_wait_for_did, event.set)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        event.set()
        await asyncio.sleep(0)
        waits.life.cancel()
        for _ in range(ENDS_WITHIN):
            await asyncio.sleep(0)
        lives = not waits.life.done()
        await end_tasks(waits.life)
        return lives

    assert asyncio.run(swallowed())


# What the walk cannot reach is held by a rule


def calls(path: Path) -> Iterator[tuple[int, str]]:
    """Line and name of each method that the file calls."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            yield node.lineno, node.func.attr


CANCELS = {
    PROCESSOR / "runtime.py",
    PROCESSOR / "a2a" / "agent_runs.py",  # the SDK's word for what an agent is asked
    PROCESSOR / "adapters" / "kafka" / "internals.py",
    PROCESSOR / "adapters" / "kafka" / "consumer" / "read_ahead.py",  # in a callback without await
    PROCESSOR / "adapters" / "kafka" / "shutdown.py",  # clients that may never end
    PROCESSOR / "cli" / "common" / "runner.py",  # at a signal
    PROCESSOR / "client" / "step_attempt.py",  # handlers of others, which may never end
    PROCESSOR / "client" / "step_worker.py",  # handlers of others, which may never end
    PROCESSOR / "mcp" / "tasks" / "extension.py",  # the request of a client: tasks/cancel
    PROCESSOR / "outbox" / "exchange.py",  # a future that no task runs
    PROCESSOR / "signals" / "deliveries.py",  # in a step without await
    PROCESSOR / "testing" / "fake" / "taskflow.py",  # tasks of a loop that does not run any more
    PROCESSOR / "testing" / "memory" / "group.py",  # members that are stopped and do not answer
    PROCESSOR / "telemetry" / "http" / "internals.py",  # timers
}


def test_tasks_are_ended_in_one_way() -> None:
    files = sorted(PROCESSOR.rglob("*.py"))
    assert set(files) >= CANCELS
    for path in files:
        for line, name in calls(path):
            assert name != "wait_for", f"{path}:{line}: use asyncio.timeout"
            assert name != "cancel" or path in CANCELS, f"{path}:{line}: use runtime.end_tasks"
