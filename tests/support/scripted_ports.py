"""A partition owner's surroundings, by a script: they do as the ports promise, on Kafka in memory
and a real table, until the script says what goes wrong, where, and at which time."""

import asyncio
import shutil
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import orjson

from processor.adapters.sqlite import FlowTable, open_table, table_path
from processor.contract.headers import Headers
from processor.engine.batch import Forward, Outgoing, PartitionConfig, Records
from processor.engine.partitioner import partition_of
from processor.engine.ports import Fetched, HiddenRecords, OffsetRange, OnHanging, OnWait, Written
from processor.engine.rows import Changes, Checkpoint, FlowRow, Position, RestoreChunk
from processor.errors import OwnershipLost
from processor.partition.batch_processor import BatchProcessor
from processor.partition.ports import PartitionPorts
from processor.partition.processor import PartitionProcessor
from processor.partition.status import PartitionPhase
from processor.telemetry.metrics import Metrics
from processor.testing.memory.ports import MemoryHistory
from processor.testing.memory.record import Appended
from tests.support.checked_deployment import CheckedDeployment
from tests.support.moments import Op
from tests.support.partition import PLACE
from tests.support.scripted_kafka import PATIENCE_S, ScriptedKafka
from tests.support.tables import read_tables

CHUNK = 3
"""Records that history gives at a time: few, so that what spans two of them is met."""


Action = BaseException | Callable[[], object]


class Script:
    """What happens the nth time that a point is reached."""

    def __init__(self) -> None:
        self.passed: Counter[Op] = Counter()
        self.crashed = asyncio.Event()
        self._actions: dict[tuple[Op, int], Action] = {}

    def at(self, point: Op, action: Action, *, nth: int = 1) -> None:
        """Do `action` (raise it, if it is an exception) at the nth time from now."""
        self._actions[point, self.passed[point] + nth] = action

    async def reach(self, point: Op) -> None:
        self.passed[point] += 1
        action = self._actions.pop((point, self.passed[point]), None)
        if isinstance(action, BaseException):
            raise action
        if action is not None:
            done = action()
            if isinstance(done, Awaitable):
                await done

    async def crash(self) -> None:
        """An action: nothing more comes from here."""
        self.crashed.set()
        await asyncio.Event().wait()


class ScriptedSource:
    """The group's consumer; `assign`, `revoke` and `rebalance` are the group's part."""

    def __init__(self, kafka: ScriptedKafka, script: Script) -> None:
        self.generation = 0
        self.starved = asyncio.Event()
        """Set while the owner waits for records, and there are none."""
        self.attached: list[Position] = []
        self.mute: set[str] = set()
        """Topics whose broker does not answer."""
        self.ends_asked = 0
        """How often the end of `commands` was asked for."""
        self._kafka = kafka
        self._script = script
        self._assigned: set[int] = set()
        self._next: dict[tuple[str, int], int] = {}
        self._stable: dict[tuple[str, int], int] = {}
        self._returns_nothing = False

    # The group

    def assign(self, *partitions: int) -> None:
        self.generation += 1
        self._assigned = set(partitions)
        self._next.clear()
        self._stable.clear()
        self.starved.clear()
        self._kafka.notify()

    def revoke(self) -> None:
        self.generation += 1
        self._assigned = set()
        self.starved.clear()
        self._kafka.notify()

    def rebalance(self) -> None:
        """The group leaves everything as it was."""
        kept = self._assigned
        self.revoke()
        self.assign(*kept)

    def stray(self, partition: int, offset: int) -> None:
        """The consumer stands elsewhere than it was told."""
        for topic in self._topics():
            self._next[topic, partition] = offset
        self._kafka.notify()

    def return_nothing(self) -> None:
        """The fetch in hand comes back empty, as after its timeout."""
        self._returns_nothing = True
        self._kafka.notify()

    def _topics(self) -> tuple[str, str]:
        return self._kafka.topics.commands, self._kafka.topics.control

    # The port

    async def assigned(self, partition: int) -> int:
        # For as long as it takes: a test may leave the partition with nobody.
        while partition not in self._assigned:
            with suppress(TimeoutError):
                await self._kafka.until(lambda: partition in self._assigned)
        return self.generation

    async def confirm(self, partition: int, position: Position) -> None:
        await self._script.reach(Op.CONFIRM)
        if partition not in self._assigned:
            raise OwnershipLost(f"partition {partition} is not ours")
        for topic, offset in zip(self._topics(), position, strict=False):
            self._kafka.group_offsets[topic, partition] = offset

    def attach(self, partition: int, position: Position) -> None:
        if partition not in self._assigned:
            raise OwnershipLost(f"partition {partition} is not assigned any more")
        self.attached.append(position)
        for topic, offset in zip(self._topics(), position, strict=False):
            self._next[topic, partition] = offset

    async def fetch(self, partition: int, *, max_records: int, timeout_s: float) -> Fetched:
        await self._script.reach(Op.FETCH)
        generation = self.generation
        fetched = self._drain(partition, max_records)
        while not (fetched[0] or fetched[1] or self._returns_nothing):
            if generation != self.generation:
                return Fetched((), ())
            self.starved.set()
            self._kafka.notify()
            try:
                with suppress(TimeoutError):
                    await self._kafka.until(
                        lambda: (
                            self._returns_nothing
                            or generation != self.generation
                            or self._waiting(partition)
                        )
                    )
            finally:
                self.starved.clear()
            fetched = self._drain(partition, max_records)
        self._returns_nothing = False
        await self._script.reach(Op.FETCHED)
        return fetched

    @property
    def idle(self) -> bool:
        """Whether the owner waits, and there is nothing that it could be given."""
        return self.starved.is_set() and not any(map(self._waiting, self._assigned))

    def _waiting(self, partition: int) -> bool:
        return any(
            (topic, partition) in self._next
            and topic not in self.mute
            and self._next[topic, partition] < self._kafka.log(topic, partition).stable_end
            for topic in self._topics()
        )

    def _drain(self, partition: int, max_records: int) -> Fetched:
        taken: list[Sequence[Appended]] = []
        for topic in self._topics():
            at = (topic, partition)
            if at not in self._next or topic in self.mute:
                taken.append(())
                continue
            log = self._kafka.log(*at)
            self._stable[at] = log.stable_end
            some = list(log.committed(self._next[at], log.end))
            if len(some) <= max_records:
                self._next[at] = max(self._next[at], log.stable_end)
            elif max_records:
                self._next[at] = some[max_records].offset
            taken.append(some[:max_records])
            max_records -= len(taken[-1])
        return Fetched(*taken)

    def decided(self, partition: int, position: Position) -> None:
        for topic, offset in zip(self._topics(), position, strict=False):
            self._kafka.group_offsets[topic, partition] = offset

    async def commands_end(self, partition: int) -> int:
        self.ends_asked += 1
        return self._kafka.log(self._kafka.topics.commands, partition).end

    def ahead(self, partition: int) -> Position | None:
        at = [self._next.get((topic, partition)) for topic in self._topics()]
        return None if at[0] is None or at[1] is None else Position(at[0], at[1], 0)

    def lags(self, partition: int) -> tuple[int | None, int | None]:
        commands, control = (
            self._stable[topic, partition] - self._next[topic, partition]
            if (topic, partition) in self._stable
            else None
            for topic in self._topics()
        )
        return commands, control

    def hidden(self, partition: int) -> list[HiddenRecords]:
        logs = ((topic, self._kafka.log(topic, partition)) for topic in self._topics())
        return [
            HiddenRecords(topic, partition, log.stable_end, log.end)
            for topic, log in logs
            if log.stable_end < log.end
        ]


class ScriptedWriter:
    """A transactional producer; `suspect` is set by the script for what it commits next."""

    def __init__(self, kafka: ScriptedKafka, script: Script, place: PartitionConfig) -> None:
        self.suspect = False
        self.discarded = False
        self.becomes_suspect = False
        self._kafka = kafka
        self._script = script
        self._place = place
        self._id = f"{place.topics.prefix}-{place.partition}"
        self._epoch = 0

    async def start(self) -> None:
        await self._script.reach(Op.FENCE)
        self._epoch = self._kafka.fence(self._id)

    def new_pack(self, topic: str) -> Records:
        return Records()

    async def begin(self, topics: Sequence[str]) -> None:
        assert not self.suspect, "a suspect producer begins another transaction"

    async def write(self, records: Mapping[str, Sequence[Outgoing]]) -> Written:
        assert self._epoch, "a writer is started before it writes"
        assert not self.discarded, "a discarded writer writes"
        assert not self.suspect, "a suspect producer begins another transaction"
        await self._script.reach(Op.BEGIN)
        kafka, partition = self._kafka, self._place.partition
        transaction = kafka.begin_for(self._id, self._epoch)
        ends = {
            topic: kafka.put(some, topic, partition, transaction) for topic, some in records.items()
        }
        await self._script.reach(Op.COMMIT)
        kafka.commit_for(self._id, self._epoch)
        await self._script.reach(Op.COMMITTED)
        self.suspect = self.becomes_suspect
        return Written(ends, kafka.now_ms, 0.0)

    async def abort_open(self) -> None:
        self._kafka.abort_for(self._id, self._epoch)

    def discard(self) -> None:
        self.discarded = True
        self._kafka.notify()


class ScriptedHistory(MemoryHistory):
    """A partition's topics, read back some records at a time; it reports what stays open."""

    def __init__(
        self,
        kafka: ScriptedKafka,
        script: Script,
        partition: int,
        on_wait: OnWait = lambda _: None,
    ) -> None:
        super().__init__(kafka, partition, CHUNK)
        self.closed = False
        self.hanging_reported = False
        """Whether it has reported a transaction that stays open."""
        self._on_wait = on_wait
        self._script = script

    async def _looks(self) -> None:
        await self._script.reach(Op.SETTLE)

    async def _reads(self) -> None:
        await self._script.reach(Op.READ)

    async def settled(
        self, topics: Sequence[str], on_hanging: OnHanging | None = None
    ) -> dict[str, OffsetRange]:
        logs = [self._kafka.log(topic, self._partition) for topic in topics]
        hidden = [log.at[0] for log in logs if log.stable_end < log.end]
        if hidden and on_hanging is not None:
            await on_hanging(hidden)
            self.hanging_reported = True
            self._kafka.notify()
        if hidden:
            self._on_wait(f"a transaction is open on {hidden[0]}")
        try:
            return await super().settled(topics)
        finally:
            self._on_wait(None)

    async def close(self) -> None:
        self.closed = True


class ScriptedForwarder:
    """Puts copies onto their partitions, except those in `too_large` (topic, offset)."""

    def __init__(self, kafka: ScriptedKafka, script: Script) -> None:
        self.too_large: set[tuple[str, int]] = set()
        self._kafka = kafka
        self._script = script

    async def forward(self, forwards: Sequence[Forward]) -> frozenset[tuple[str, int]]:
        await self._script.reach(Op.FORWARD)
        for one in forwards:
            if one.source not in self.too_large:
                self._kafka.append(one.topic, one.partition, *one.record)
        self._kafka.journal.append("forward")
        await self._script.reach(Op.FORWARDED)
        return frozenset(self.too_large & {one.source for one in forwards})


class ScriptedWorkItems:
    """Appends work items to `steps`, each on the partition of its key."""

    def __init__(self, kafka: ScriptedKafka, script: Script, partitions: int) -> None:
        self.partitions = partitions
        self.calls = 0
        self._kafka = kafka
        self._script = script

    async def write(self, records: Sequence[Outgoing]) -> None:
        await self._script.reach(Op.OFFER)
        self.calls += 1
        for key, value, headers in records:
            number = partition_of(key or b"", self.partitions)
            self._kafka.append(self._kafka.topics.steps, number, key, value, headers)
        await self._script.reach(Op.OFFERED)


class ScriptedTable:
    """The real table, with the script's word before and after each write."""

    def __init__(self, table: FlowTable, script: Script) -> None:
        self._table = table
        self._script = script

    async def flows(self, ids: Sequence[str]) -> dict[str, FlowRow]:
        await self._script.reach(Op.LOAD)
        return await self._table.flows(ids)

    async def write(
        self, changes: Changes, *, before: Checkpoint | None, after: Checkpoint
    ) -> None:
        await self._script.reach(Op.WRITE)
        await self._table.write(changes, before=before, after=after)
        await self._script.reach(Op.WRITTEN)

    async def restore(self, chunk: RestoreChunk) -> None:
        await self._script.reach(Op.WRITE)
        await self._table.restore(chunk)
        await self._script.reach(Op.WRITTEN)

    async def end_restore(self, after: Checkpoint) -> None:
        await self._script.reach(Op.WRITE)
        await self._table.end_restore(after)
        await self._script.reach(Op.WRITTEN)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._table, name)


class Stage:
    """One partition, its surroundings, and the owners that come and go."""

    def __init__(self, state_dir: Path, place: PartitionConfig = PLACE) -> None:
        self.place = place
        self.state_dir = state_dir
        self.kafka = ScriptedKafka(place.topics, place.partitions)
        self.script = Script()
        self.source = ScriptedSource(self.kafka, self.script)
        self.source.assign(place.partition)
        self.forwarder = ScriptedForwarder(self.kafka, self.script)
        self.work_items = ScriptedWorkItems(self.kafka, self.script, place.partitions)
        self.writers: list[ScriptedWriter] = []
        self.suspects: set[int] = set()
        """Numbers (0, 1, …) of the writers whose first commit is sent twice."""
        self.histories: list[ScriptedHistory] = []
        self.errors: list[str] = []
        """What went wrong, in order, by the names of the errors."""
        self.monotonic_s = 1000.0
        self.metrics = Metrics()

    def later(self, ms: int) -> None:
        """Time passes, by all clocks; the owner notices."""
        self.kafka.later(ms)
        self.monotonic_s += ms / 1000
        self.source.return_nothing()

    def send_with_headers(self, body: dict[str, Any], headers: Headers) -> None:
        topic, key = self.place.topics.commands, body["flow_id"].encode()
        self.kafka.append(topic, 0, key, orjson.dumps(body), headers)

    @property
    def path(self) -> Path:
        return table_path(self.state_dir, self.place.topics.prefix, self.place.partition)

    def owner(self, **how: Any) -> PartitionProcessor:
        defaults: dict[str, Any] = {"batch_max_records": 4, "cache_bytes": 1 << 20}
        ports = PartitionPorts(
            source=self.source,
            forwarder=self.forwarder,
            work_items=self.work_items,
            open_table=lambda: self._open(self.state_dir, owner),
            new_writer=self._new_writer,
            new_history=self._new_history,
        )
        owner = PartitionProcessor(
            BatchProcessor(
                self.place,
                ports,
                metrics=self.metrics,
                clock=lambda: self.kafka.now_ms / 1000,
                monotonic=lambda: self.monotonic_s,
                **defaults | how,
            )
        )
        return owner

    def _new_writer(self) -> ScriptedWriter:
        writer = ScriptedWriter(self.kafka, self.script, self.place)
        writer.becomes_suspect = len(self.writers) in self.suspects
        self.writers.append(writer)
        return writer

    def _new_history(self, on_wait: OnWait) -> ScriptedHistory:
        self.histories.append(
            ScriptedHistory(self.kafka, self.script, self.place.partition, on_wait)
        )
        return self.histories[-1]

    @asynccontextmanager
    async def _open(
        self, state_dir: Path, owner: PartitionProcessor
    ) -> AsyncIterator[ScriptedTable]:
        if owner.status.phase is PartitionPhase.FAILED:
            self.errors.append(str(owner.status.error))
            self.kafka.notify()
        await self.script.reach(Op.OPEN)
        place = self.place
        async with open_table(
            table_path(state_dir, place.topics.prefix, place.partition),
            partition=place.partition,
            prefix=place.topics.prefix,
            partitions=place.partitions,
        ) as table:
            yield ScriptedTable(table, self.script)

    @asynccontextmanager
    async def running(self, **how: Any) -> AsyncIterator[PartitionProcessor]:
        """An owner at work; it is released in the end, as a worker does."""
        owner = self.owner(**how)
        task = asyncio.create_task(owner.run())
        try:
            yield owner
        finally:
            owner.release()
            with suppress(TimeoutError):
                await asyncio.wait_for(owner.idle(), PATIENCE_S)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def quiet(self) -> None:
        """Wait until the owner has decided all that there is, and asks for more."""
        await self.kafka.until(lambda: self.source.idle)

    async def looks_again(self) -> None:
        """The owner's fetch comes back empty, as it does twice a second, and it begins another."""
        await self.quiet()
        fetches = self.script.passed[Op.FETCH]
        self.source.return_nothing()
        await self.kafka.until(lambda: self.script.passed[Op.FETCH] > fetches)

    async def settles(self) -> None:
        """Wait until the owner looks again and finds nothing to do."""
        done = -1
        while done != len(self.kafka.journal):
            done = len(self.kafka.journal)
            await self.looks_again()
            await self.quiet()

    async def goes_on(self, ms: int) -> None:
        """Time passes, and the owner does what there is to do."""
        self.later(ms)
        await self.settles()

    async def works(self, **how: Any) -> None:
        """An owner comes, decides all that there is, and goes."""
        async with self.running(**how):
            await self.quiet()

    async def failed(self, times: int = 1) -> list[str]:
        """Wait until owners have failed that often; what the errors were."""
        await self.kafka.until(lambda: len(self.errors) >= times)
        return self.errors

    async def crashes(self, **how: Any) -> None:
        """An owner is killed where the script says so: its files are as they were then."""
        owner = self.owner(**how)
        task = asyncio.create_task(owner.run())
        try:
            async with asyncio.timeout(PATIENCE_S):
                await self.script.crashed.wait()
            left = self.state_dir.with_name(self.state_dir.name + "-left")
            if self.state_dir.exists():
                shutil.copytree(self.state_dir, left)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        self.state_dir = left
        self.source.starved.clear()

    def lose_disk(self) -> None:
        self.state_dir = self.state_dir.with_name(self.state_dir.name + "-empty")

    def assert_clean(self) -> None:
        """All that the contract promises, of topics and table, as `taskflow verify` tells it."""
        tables = read_tables([self.state_dir], self.place.topics.prefix)
        assert tables, "there is a table"
        left = self.kafka.deployment(self.place.dedupe_window_ms, tables)
        CheckedDeployment.of_left(left).assert_clean()
