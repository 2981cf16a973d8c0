"""One history: workers, clients and trouble, drawn from a seed; then peace, and the bill."""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from contextvars import Context, ContextVar, copy_context
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from random import Random
from typing import Any, Final

import orjson

from processor.contract.topics import Topics
from processor.engine.batch import PartitionConfig
from processor.partition import batch_processor as batch_module
from processor.partition import processor as partition_module
from processor.partition import standby as standby_module
from processor.partition import work_outbox as outbox_module
from processor.partition.batch_processor import BatchProcessor
from processor.partition.pace import Pace
from processor.partition.ports import PartitionPorts
from processor.partition.processor import PartitionProcessor
from processor.partition.standby import StandbyReplica
from processor.recovery import restore as recovery_module
from processor.testing.memory.deployment import TableContents
from processor.testing.memory.kafka import Transaction, TxnState
from processor.testing.memory.table import table_of
from processor.worker import worker as worker_module
from processor.worker.worker import Worker
from tests.simulation.executors import Executor
from tests.simulation.faults import Dice
from tests.simulation.group import SESSION_S, GroupMember, RebalancingGroup
from tests.simulation.kafka import HistoryKafka
from tests.simulation.loop import VirtualLoop
from tests.simulation.ports import (
    SimForwarder,
    SimHistory,
    SimWorkItems,
    SimWriter,
    Unanswered,
)
from tests.simulation.tables import DiskFile, open_table
from tests.simulation.traffic import Traffic
from tests.support.builders import DAY_MS, HOUR_MS, MINUTE_MS
from tests.support.checked_deployment import CheckedDeployment
from tests.support.moments import Fault, Op

TOPICS: Final = Topics()
DECIDED_WITHIN_S: Final = 180.0
"""I10: how long after the last fault everything must be decided, by the virtual clock."""
IDLE_S: Final = 2.0
"""How long an owner with nothing to do waits for something; shorter ones only cost turns."""
AFTERWARDS_S: Final = 2 * IDLE_S
"""How long to look on, then, at what the owners do of their own accord."""
PAUSES_S: Final = (0.0, 0.002, 0.02, 0.02, 0.1, 0.5, 0.5, 7.0)
"""Between what happens and what happens next: within a transaction, or longer than a session."""
PUNCTUAL_MS: Final = 90_000
"""A wait that is over may be refused for coming early, and tried again after a minute."""
STANDBY_RATE: Final = 0.3
"""Of hosts, those that keep tables of partitions that they do not own."""
WATCHDOG_S: Final = 5_000.0
OUTCOMES_LIVE_MS: Final = 45 * DAY_MS
COMMANDS_LIVE_MS: Final = 30 * DAY_MS


@dataclass(slots=True)
class Parts:
    """What a worker is made of; a planted defect puts another in the place of one."""

    processor: type[PartitionProcessor] = PartitionProcessor
    batches: type[BatchProcessor] = BatchProcessor
    writer: Callable[..., SimWriter] = SimWriter
    history: Callable[..., SimHistory] = SimHistory
    table: Callable[..., Any] = open_table
    standby: Callable[..., SimHistory] = SimHistory
    """What a follower reads."""
    work_items: Callable[..., SimWorkItems] = SimWorkItems
    patches: Sequence[tuple[Any, str, Any]] = ()
    """Functions of the domain that are others meanwhile: the module, the name, and what stands in
    its place."""


@dataclass(slots=True)
class Result:
    """What came of one history."""

    seed: int
    found: list[str]
    met: Counter[str]
    commands: int
    outcomes: int
    virtual_s: float
    trace: list[tuple[float, str, str]]
    topics: Callable[[], Iterator[str]]
    """All that the topics hold, line by line."""
    executors: bool = False
    """Whether it is a history with executors."""

    @property
    def digest(self) -> str:
        """16 bytes, in hex, of all that was noted and of all that the topics hold."""
        digest = blake2b(digest_size=16)
        for line in self.trace:
            digest.update(repr(line).encode())
        for record in self.topics():
            digest.update(record.encode())
        return digest.hexdigest()


life_of_tasks: ContextVar["Life | Executor | None"] = ContextVar("life", default=None)
"""Whose tasks are begun; they end with it."""


class Life:
    """A worker's process, from its start to its death."""

    def __init__(self, sim: "Simulation", host: "Host") -> None:
        self.rng = sim.rng
        self.context: Context = copy_context()
        self.context.run(life_of_tasks.set, self)
        self.alive = True
        self.member: GroupMember | None = None
        self.turn: asyncio.Lock | None = None
        self.stop = asyncio.Event()
        self.tasks: dict[asyncio.Task[Any], None] = {}
        self._sim = sim
        self._host = host
        self._continued: asyncio.Event | None = None
        self._slow = sim.rng.choice((0.0, 0.0, 0.1, 0.5))
        self.clock_off_s = 0.0
        if sim.rng.random() < 0.1:
            self.clock_off_s = sim.rng.choice((-86_400.0, 86_400.0))
            sim.count(Fault.WORKER_CLOCK)
        self.task = self._spawn(self._run())

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        return asyncio.get_running_loop().create_task(work, context=self.context)

    @property
    def listens(self) -> bool:
        return self.alive and self._continued is None

    async def _run(self) -> None:
        sim, host = self._sim, self._host
        worker = Worker(
            self._join,
            partial(sim.new_processor, self, host.disk),
            metrics=NO_METRICS,
            watchdog_timeout_s=WATCHDOG_S,
            new_standby=partial(sim.new_standby, self, host.disk) if host.stands_by else None,
            partitions=sim.partitions,
        )
        await worker.run(self.stop)

    def _join(self, assigned: Callable[[frozenset[int]], None], revoked: Any) -> GroupMember:
        self.member = GroupMember(self._sim.group, self._sim.kafka, self, assigned, revoked)
        return self.member

    # What happens to it

    async def at(self, op: Op) -> Fault | None:
        if not self.alive:
            raise asyncio.CancelledError("this worker was killed")
        sim = self._sim
        fault = sim.dice.at(op)
        if fault is not None:
            sim.note(self._host.name, f"{fault} | {op}")
            if fault is Fault.KILL:
                self.kill()
                raise asyncio.CancelledError("this worker is killed")
            if fault is Fault.PAUSE:
                self.pause(self.rng.choice((0.05, 1.0, 8.0, 20.0)))
            elif fault is Fault.SLOW:
                await asyncio.sleep(self.rng.choice((0.05, 0.5, 3.0)))
        elif self._slow and self.rng.random() < self._slow:
            await asyncio.sleep(self.rng.random() * 0.01)
        while self._continued is not None:
            await self._continued.wait()
        if not self.alive:
            raise asyncio.CancelledError("this worker was killed")
        return fault

    async def reach(self, op: Op) -> Fault | None:
        fault = await self.at(op)
        if self._sim.kafka.away:
            await asyncio.sleep(0.5)
            raise Unanswered("the broker does not answer")
        return fault

    def kill(self) -> None:
        """kill -9: nothing that it still does has an effect."""
        self.alive = False
        self.resume()
        for task in list(self.tasks):
            task.cancel()
        self._end_session_later()

    def pause(self, seconds: float) -> None:
        """SIGSTOP, and SIGCONT after `seconds`."""
        if self._continued is None:
            self._continued = asyncio.Event()
            self._end_session_later()
            asyncio.get_running_loop().call_later(seconds, self.resume, context=self.context)

    def resume(self) -> None:
        if self._continued is not None:
            self._continued.set()
            self._continued = None
            if self.alive and self.member is not None:
                self._spawn(self.member.heartbeat())

    def _end_session_later(self) -> None:
        asyncio.get_running_loop().call_later(SESSION_S, self._end_session, self._continued)

    def _end_session(self, continued: asyncio.Event | None) -> None:
        gone = not self.alive or (continued is not None and self._continued is continued)
        if gone and self.member is not None:
            self._sim.group.expire(self.member)

    def monotonic(self) -> float:
        return self._sim.monotonic()

    def clock(self) -> float:
        return self._sim.kafka.now_ms / 1000 + self.clock_off_s


class Host:
    """A machine on which a worker runs, dies, and is started again; its disk stays."""

    def __init__(self, sim: "Simulation", name: str) -> None:
        self.name = name
        self.disk: dict[int, DiskFile] = {}
        self.life: Life | None = None
        # Dice of its own: the rest of a history is drawn as it was before there was a standby.
        self.stands_by = Random(f"{sim.seed}/{name}").random() < STANDBY_RATE
        self._sim = sim

    @property
    def up(self) -> bool:
        return self.life is not None and self.life.alive and not self.life.task.done()

    def holds(self, partition: int, cursor: tuple[int, int, int]) -> bool:
        """Whether its table has all events; a cursor may step over what no answer shows."""
        file = self.disk.get(partition)
        checkpoint = file.content.checkpoint if file is not None else None
        return checkpoint is not None and checkpoint.position.next_event_id == cursor[2]

    def start(self) -> None:
        self._sim.note(self.name, "starts")
        # A dead worker's file is its successor's; the dead one has no hand left to change it.
        self.life = Life(self._sim, self)

    def wear(self, rng: Random) -> None:
        """What may have become of the disk while nobody ran on it."""
        if rng.random() < 0.7:
            return
        for partition, file in list(self.disk.items()):
            if rng.random() < 0.5:
                del self.disk[partition]
                self._sim.count(Fault.TABLE_LOST)
            elif file.past:
                older = self.disk[partition] = DiskFile()
                older.content = rng.choice(file.past)
                self._sim.count(Fault.TABLE_OLDER)


class Simulation:
    """The history of one seed. `run` once."""

    with_executors = False
    rounds = (2, 12)
    """Of commands and a fault each: at least, and at most."""

    def __init__(self, seed: int, parts: Parts | None = None) -> None:
        self.seed = seed
        self.parts = parts or Parts()
        self.rng = Random(seed)
        rng = self.rng
        self.dice = self._new_dice()
        self.trace: list[tuple[float, str, str]] = []
        self.partitions = rng.choice((1, 1, 2))
        self.batch_max_records = rng.choice((1, 3, 8, 8, 1_000))
        self.cache_bytes = rng.choice((1, 1 << 20))
        self.chunk = rng.choice((1, 3, 2_000))
        self.dedupe_window_ms = rng.choice((500, 30_000, HOUR_MS))
        self.retain_terminal_ms = rng.choice((None, 0, 2_000, DAY_MS))
        self.loop = VirtualLoop()
        self.kafka = HistoryKafka(TOPICS, self.partitions, self.loop.time)
        self.kafka.marker_delay_s = self._marker_delay_s
        self.kafka.timed_out = partial(self.count, Fault.TXN_TIMEOUT)
        self.kafka.refused = partial(self.count, Fault.FENCED)
        self.group = RebalancingGroup(self.kafka, rng)
        self.group.session_ended = partial(self.count, Fault.SESSION_ENDS)
        self.traffic = self._new_traffic()
        self.hosts = [Host(self, name) for name in ("one", "two")[: rng.choice((1, 2, 2))]]
        self.sent = 0
        self._skipped_s = 1_000.0
        self._ids = 0
        self._markers_late = rng.random() < 0.3
        self._foreign: list[Transaction] = []

    def _new_dice(self) -> Dice:
        return Dice(self.rng)

    def _new_traffic(self) -> Traffic:
        return Traffic(self.rng, TOPICS, self.partitions)

    # What others ask

    def monotonic(self) -> float:
        return self.loop.time() + self._skipped_s

    def count(self, fault: Fault) -> None:
        self.dice.met[fault] += 1
        self.note("world", fault)

    def note(self, who: str, what: str) -> None:
        self.trace.append((self.loop.time(), who, what))

    def new_id(self) -> str:
        self._ids += 1
        return f"00000000-0000-4000-8000-{self._ids:012x}"

    def new_processor(
        self, life: Life, disk: dict[int, DiskFile], partition: int, member: Any
    ) -> PartitionProcessor:
        parts, kafka = self.parts, self.kafka
        ports = PartitionPorts(
            source=member,
            forwarder=SimForwarder(kafka, life),
            work_items=parts.work_items(kafka, life),
            open_table=lambda: parts.table(disk, partition, life),
            new_writer=lambda: parts.writer(kafka, life, partition),
            new_history=lambda _: parts.history(kafka, life, partition, self.chunk),
        )
        return parts.processor(
            parts.batches(
                self._place(partition),
                ports,
                metrics=NO_METRICS,
                batch_max_records=self.batch_max_records,
                cache_bytes=self.cache_bytes,
                pace=Pace(fetch_s=IDLE_S),
                clock=life.clock,
                monotonic=life.monotonic,
                new_id=self.new_id,
            )
        )

    def new_standby(self, life: Life, disk: dict[int, DiskFile], partition: int) -> StandbyReplica:
        parts = self.parts
        if life.turn is None:
            life.turn = asyncio.Lock()
        return StandbyReplica(
            self._place(partition),
            open_table=lambda: parts.table(disk, partition, life),
            history=parts.standby(self.kafka, life, partition, self.chunk),
            turn=life.turn,
            metrics=NO_METRICS,
            monotonic=life.monotonic,
        )

    def _place(self, partition: int) -> PartitionConfig:
        return PartitionConfig(
            partition,
            self.partitions,
            TOPICS,
            self.dedupe_window_ms,
            retain_terminal_ms=self.retain_terminal_ms,
        )

    def _marker_delay_s(self) -> float:
        if not self._markers_late or self.dice.calm:
            return 0.0
        self.dice.met[Fault.MARKERS_LATE] += 1
        return self.rng.choice((0.0, 0.005, 0.05, 1.0))

    # The history

    def run(self) -> Result:
        loop = self.loop
        asyncio.set_event_loop(loop)
        loop.set_task_factory(_task)
        loop.set_exception_handler(self._unhandled)
        self._unhandled_errors: list[str] = []
        try:
            with _surroundings(self.note, self.parts.patches):
                try:
                    found = loop.run_until_complete(self._history())
                except Exception as error:
                    found = [f"the history does not come to its end: {error!r}"]
                found += self._unhandled_errors
                loop.run_until_complete(self._end_all())
        finally:
            asyncio.set_event_loop(None)
            loop.close()
        outcomes = sum(
            self.kafka.log(TOPICS.outcomes, partition).end for partition in range(self.partitions)
        )
        return Result(
            self.seed,
            found,
            self.dice.met,
            self.sent,
            outcomes,
            loop.time(),
            self.trace,
            self._topics,
            self.with_executors,
        )

    def _unhandled(self, loop: Any, context: dict[str, Any]) -> None:
        self._unhandled_errors.append(f"{context.get('message')}: {context.get('exception')!r}")

    async def _history(self) -> list[str]:
        rng = self.rng
        balancing = self.loop.create_task(self.group.run())
        for host in self.hosts:
            host.start()
        for _ in range(rng.randint(*self.rounds)):
            for _ in range(rng.choice((0, 1, 2, 3, 6))):
                self._send()
            await asyncio.sleep(rng.choice(PAUSES_S))
            fault = self.dice.of_world()
            if fault is not None:
                self._happens(fault)
            for host in self.hosts:
                if not host.up and rng.random() < 0.4:
                    host.wear(rng)
                    host.start()
            await self._meanwhile()
        self._heal()
        found = await self._peace()
        balancing.cancel()
        return found or self._bill()

    async def _meanwhile(self) -> None:
        """What else happens between one fault and the next."""

    def _send(self) -> None:
        message = self.traffic.next(self.kafka.now_ms)
        self.sent += 1
        if message.fault is not None:
            self.dice.met[message.fault] += 1
        name = f"{TOPICS.prefix}.{message.name}"
        self.kafka.append(name, message.partition, message.key, message.value, message.headers)

    def _happens(self, fault: Fault) -> None:
        rng, kafka, host = self.rng, self.kafka, self.rng.choice(self.hosts)
        match fault:
            case Fault.KILL:
                if not host.up or host.life is None:
                    return
                host.life.kill()
            case Fault.PAUSE:
                if not host.up or host.life is None:
                    return
                host.life.pause(rng.choice((0.5, 8.0, 20.0)))
            case Fault.REBALANCE:
                self.group.rebalance()
            case Fault.WORKER_LEAVES:
                if not host.up or host.life is None:
                    return
                host.life.stop.set()
            case Fault.BROKER_AWAY:
                kafka.away_until_s = self.loop.time() + rng.choice((0.1, 1.0, 8.0))
            case Fault.CLOCK_BACK:
                kafka.now_ms -= rng.choice((1, 500, 30_000))
            case Fault.CLOCK_AHEAD:
                kafka.now_ms += rng.choice((500, 30_000, HOUR_MS))
            case Fault.TIME_PASSES:
                self._pass(rng.choice((2_000, 61_000, HOUR_MS + MINUTE_MS, DAY_MS, 46 * DAY_MS)))
            case Fault.COMPACTION:
                compacted = [kafka.compact_state(n) for n in range(self.partitions)]
                if not any(compacted):
                    return
            case Fault.RETENTION:
                if not self._expire():
                    return
            case Fault.FOREIGN_TXN:
                self._begin_foreign()
        self.count(fault)

    def _pass(self, ms: int) -> None:
        """Time passes for all, while the loop's stands still."""
        self.kafka.now_ms += ms
        self._skipped_s += ms / 1000

    def _expire(self) -> int:
        kafka, gone = self.kafka, 0
        for partition in range(self.partitions):
            cursor = self._cursor(partition)
            if cursor is None:
                continue
            at_ms = kafka.now_ms - COMMANDS_LIVE_MS
            gone += kafka.expire_before((TOPICS.commands, partition), at_ms, cursor[0])
            gone += kafka.expire_before((TOPICS.control, partition), at_ms, cursor[1])
            at_ms = kafka.now_ms - OUTCOMES_LIVE_MS
            end = kafka.log(TOPICS.outcomes, partition).end
            gone += kafka.expire_before((TOPICS.outcomes, partition), at_ms, end)
        return gone

    def _begin_foreign(self) -> None:
        """Somebody writes in a transaction of his own, and leaves it open for a while."""
        rng, kafka = self.rng, self.kafka
        foreign = Transaction()
        partition = rng.randrange(self.partitions)
        state = TxnState.ABORTED
        if rng.random() < 0.4:
            message = self.traffic.next(kafka.now_ms)
            name = f"{TOPICS.prefix}.{message.name}"
            kafka.append(
                name, message.partition, message.key, message.value, message.headers, foreign
            )
            state = rng.choice((TxnState.COMMITTED, TxnState.ABORTED))
        else:
            names = (TOPICS.state, TOPICS.outcomes, TOPICS.audit)
            for name in names if rng.random() < 0.6 else (rng.choice(names),):
                kafka.append(name, partition, b"foreign", b"never committed", (), foreign)
        self._foreign.append(foreign)
        after_s = rng.choice((0.05, 1.0, 10.0))
        self.loop.call_later(after_s, self._end_foreign, foreign, state)

    def _end_foreign(self, foreign: Transaction, state: TxnState) -> None:
        if foreign.state is TxnState.OPEN:
            self.kafka.end(foreign, state)

    # Peace

    def _heal(self) -> None:
        self.note("world", "no more faults")
        self.dice.calm = True
        self.kafka.away_until_s = 0.0
        for foreign in self._foreign:
            self._end_foreign(foreign, TxnState.ABORTED)
        for host in self.hosts:
            # A worker that is stopped goes on when its time comes, perhaps after its session.
            if host.up:
                continue
            if self.rng.random() < 0.5 or not any(host.up for host in self.hosts):
                host.wear(self.rng)
                host.start()

    async def _peace(self) -> list[str]:
        """Wait until everything is decided, and see to it that it stays so."""
        ends_s = self.loop.time() + DECIDED_WITHIN_S
        seen_done = -1
        while True:
            left = self._left()
            if left is None:
                # At rest nobody fences or commits: who has just taken over is not.
                done = len(self.kafka.journal)
                if done == seen_done:
                    break
                seen_done = done
                await asyncio.sleep(AFTERWARDS_S)
            elif self.loop.time() > ends_s:
                return [f"I10 after {DECIDED_WITHIN_S:g} s of peace: {left}"]
            else:
                await asyncio.sleep(0.5)
            for host in self.hosts:
                # A worker that was told to leave comes to its end; somebody must go on.
                if not any(host.up for host in self.hosts):
                    host.start()
        return []

    def _left(self) -> str | None:
        kafka = self.kafka
        for partition in range(self.partitions):
            if count := kafka.undecided(partition):
                return f"{count} commands of partition {partition} without outcome"
            if names := kafka.open_on(partition):
                return f"I11 transactions are open on partition {partition} of {names}"
            cursor = self._cursor(partition)
            if cursor is not None and not any(
                (file := host.disk.get(partition)) is not None
                and file.content.checkpoint is not None
                and file.content.checkpoint.position == cursor
                for host in self.hosts
            ):
                return f"no table of partition {partition} is where the topics are, {cursor}"
            for host in self.hosts:
                if (
                    cursor is not None
                    and host.up
                    and host.stands_by
                    and not host.holds(partition, cursor)
                ):
                    return f"{host.name} stands by, but its table {partition} is not at {cursor}"
        return None

    def _cursor(self, partition: int) -> tuple[int, int, int] | None:
        doc = self._newest_cursor(partition)
        return None if doc is None else (doc["commands"], doc["control"], doc["next_event_id"])

    def _newest_cursor(self, partition: int) -> dict[str, int] | None:
        log = self.kafka.log(TOPICS.state, partition)
        for entry in reversed(log.entries):
            record = entry.record
            if record is None or record.key != b"cursor/%d" % partition:
                continue
            if entry.transaction is None or entry.transaction.state is TxnState.COMMITTED:
                doc: dict[str, int] = orjson.loads(record.value or b"")
                return doc
        return None

    def _bill(self) -> list[str]:
        """What does not hold, by `taskflow verify` and by what only we can see."""
        left = self.kafka.deployment(self.dedupe_window_ms, self.tables())
        found = CheckedDeployment.of_left(left).violations(punctual_ms=PUNCTUAL_MS)
        for partition in range(self.partitions):
            found += self.kafka.mixed(partition)
        return found

    def tables(self) -> list[TableContents]:
        """The tables on the disks of all hosts."""
        return [
            table_of(f"{host.name}/{partition}", partition, self.partitions, file.content)
            for host in self.hosts
            for partition, file in sorted(host.disk.items())
            if file.content.checkpoint is not None
        ]

    async def _end_all(self) -> None:
        """Nobody outlives the history."""
        for _ in range(100):
            tasks = [t for t in asyncio.all_tasks(self.loop) if t is not asyncio.current_task()]
            if not tasks:
                return
            for host in self.hosts:
                if host.life is not None and host.life.alive:
                    host.life.kill()
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks, timeout=1.0)

    def _topics(self) -> Iterator[str]:
        for name, _ in TOPICS:
            steps = name == TOPICS.steps
            for partition in range(self.kafka.steps_partitions if steps else self.partitions):
                for entry in self.kafka.log(name, partition).entries:
                    yield f"{entry.record!r} {entry.compacted}"


def _task(loop: Any, work: Any, **how: Any) -> asyncio.Task[Any]:
    """A task that ends with the worker that began it."""
    task: asyncio.Task[Any] = asyncio.Task(work, loop=loop, **how)
    context: Context | None = how.get("context")
    life = life_of_tasks.get() if context is None else context.get(life_of_tasks)
    if life is not None:
        life.tasks[task] = None
        task.add_done_callback(life.tasks.pop)
        if not life.alive:
            task.cancel()
    return task


class _NoMetrics:
    """Nobody looks."""

    def __getattr__(self, name: str) -> Any:
        return self

    def __call__(self, *values: Any, **more: Any) -> Any:
        return self

    def __enter__(self) -> None:
        return None

    def __exit__(self, *about: Any) -> None:
        return None


NO_METRICS: Any = _NoMetrics()


class _Log:
    """What the code under test logs becomes a part of the trace."""

    def __init__(self, note: Callable[[str, str], None], who: str = "owner") -> None:
        self._note = note
        self._who = who

    def bind(self, **about: Any) -> "_Log":
        return _Log(self._note, f"owner {about.get('partition')}")

    def _say(self, event: str, **more: Any) -> None:
        more.pop("exc_info", None)
        self._note(self._who, f"{event} {more}" if more else event)

    debug = info = warning = error = exception = _say


@contextmanager
def _surroundings(
    note: Callable[[str, str], None], patches: Sequence[tuple[Any, str, Any]]
) -> Iterator[None]:
    modules: Sequence[Any] = (
        *(batch_module, partition_module, recovery_module),
        *(standby_module, worker_module, outbox_module),
    )
    logs = [module.log for module in modules]
    asyncio_log = logging.getLogger("asyncio")
    level = asyncio_log.level
    asyncio_log.setLevel(logging.CRITICAL)
    for module in modules:
        module.log = _Log(note)
    rightly = [(module, name, getattr(module, name)) for module, name, _ in patches]
    for module, name, patch in patches:
        setattr(module, name, patch)
    try:
        yield
    finally:
        for module, name, right in rightly:
            setattr(module, name, right)
        asyncio_log.setLevel(level)
        for module, log in zip(modules, logs, strict=True):
            module.log = log
