"""Wrap the parts of a partition processor with failpoints; the parts know nothing of them."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Final

import structlog

from processor.adapters.kafka.consumer.group_consumer import KafkaGroupConsumer
from processor.adapters.kafka.producer.transactional_producer import (
    KafkaTransactionalProducer,
    RecordPack,
)
from processor.adapters.sqlite import files, statements
from processor.adapters.sqlite.table import FlowTable
from processor.engine.batch import Outgoing
from processor.engine.codec import Record
from processor.engine.ports import (
    Fetched,
    GroupConsumer,
    HiddenRecords,
    LogReader,
    OffsetRange,
    OnHanging,
    OnWait,
    TransactionalProducer,
    WorkItemProducer,
    Written,
)
from processor.engine.rows import Changes, Checkpoint, Position
from processor.runtime import end_tasks
from processor.testing.failpoints.points import FailpointAction, Failpoints, parse_faults

log = structlog.get_logger()

END_TXN: Final = 26
UNTIL_WRITTEN: Final = 3
"""Turns of the event loop after which what was sent is on its way, uvloop's own queue included."""
PAGES_MAX: Final = 1_073_741_823
"""As many as SQLite takes by default."""

Opened = Callable[[], AbstractAsyncContextManager[FlowTable]]


class FailpointWrappers:
    """Wraps the parts that the composition root has made. Nothing of it exists unless
    TASKFLOW_FAULTS is set, so that a worker without it pays nothing."""

    def __init__(self, faults: str) -> None:
        self._points = Failpoints(parse_faults(faults))
        log.error(
            "TASKFLOW_FAULTS is set: this worker breaks itself on purpose; it is for tests only",
            faults=faults,
        )
        if self._points.names("K11"):
            self._watch_making()

    def member(self, member: KafkaGroupConsumer) -> KafkaGroupConsumer:
        """K5. What was raised there would end the task that commits offsets, and no one would
        hear of it: parse refuses that."""
        patched: Any = member
        commit = patched._commit_decided

        async def committed(**how: Any) -> None:
            something = bool(patched._decided)
            await commit(**how)
            if something:
                await self._points.reach("K5")

        patched._commit_decided = committed
        return member

    def source(self, source: GroupConsumer) -> GroupConsumer:
        """K0."""
        return _Source(source, self._points)

    def writer(
        self, new: Callable[[], KafkaTransactionalProducer]
    ) -> Callable[[], TransactionalProducer]:
        """K1 to K7 but K5."""
        return lambda: _Writer(new(), self._points)

    def work_items(self, producer: WorkItemProducer) -> WorkItemProducer:
        """K12 and K13."""
        return _WorkItems(producer, self._points)

    def history(self, new: Callable[[OnWait], LogReader]) -> Callable[[OnWait], LogReader]:
        """K10."""
        return lambda commit: _History(new(commit), self._points)

    def table(self, open_table: Opened) -> Opened:
        """K8 and K9."""

        @asynccontextmanager
        async def opened() -> AsyncIterator[FlowTable]:
            async with open_table() as table:
                _break_writes(table, self._points)
                yield table

        return opened

    def _watch_making(self) -> None:
        """K11, for the rest of this process."""
        there: Any = files
        make = there._make

        async def made(connection: Any, about: tuple[Any, ...]) -> None:
            commit = connection.commit

            async def commits() -> None:
                await self._points.reach("K11")
                await commit()

            connection.commit = commits
            try:
                await make(connection, about)
            finally:
                del connection.commit

        there._make = made


class _Source:
    def __init__(self, inner: GroupConsumer, points: Failpoints) -> None:
        self._inner = inner
        self._points = points

    @property
    def generation(self) -> int:
        return self._inner.generation

    async def assigned(self, partition: int) -> int:
        return await self._inner.assigned(partition)

    async def confirm(self, partition: int, position: Position) -> None:
        await self._inner.confirm(partition, position)

    def attach(self, partition: int, position: Position) -> None:
        self._inner.attach(partition, position)

    def decided(self, partition: int, position: Position) -> None:
        self._inner.decided(partition, position)

    async def fetch(self, partition: int, *, max_records: int, timeout_s: float) -> Fetched:
        fetched = await self._inner.fetch(partition, max_records=max_records, timeout_s=timeout_s)
        if any(fetched):
            await self._points.reach("K0")
        return fetched

    async def commands_end(self, partition: int) -> int:
        return await self._inner.commands_end(partition)

    def ahead(self, partition: int) -> Position | None:
        return self._inner.ahead(partition)

    def lags(self, partition: int) -> tuple[int | None, int | None]:
        return self._inner.lags(partition)

    def hidden(self, partition: int) -> Sequence[HiddenRecords]:
        return self._inner.hidden(partition)


class _Writer:
    """Its producer's own calls say where in the transaction we are."""

    def __init__(self, inner: KafkaTransactionalProducer, points: Failpoints) -> None:
        self._inner = inner
        self._points = points
        self._first: asyncio.Task[Any] | None = None
        self._on_its_way = asyncio.Event()

    @property
    def suspect(self) -> bool:
        return self._inner.suspect

    async def start(self) -> None:
        await self._inner.start()
        producer: Any = self._inner._producer
        self._watch_transaction(producer)
        self._watch_commit(producer)

    def new_pack(self, topic: str) -> RecordPack:
        return self._inner.new_pack(topic)

    async def begin(self, topics: Sequence[str]) -> None:
        await self._inner.begin(topics)

    async def write(self, records: Mapping[str, Any]) -> Written:
        self._first = None
        self._on_its_way.clear()
        await self._points.reach("K1")
        written = await self._inner.write(records)
        await self._points.reach("K7")
        return written

    async def abort_open(self) -> None:
        await self._inner.abort_open()

    def discard(self) -> None:
        self._inner.discard()

    def _watch_transaction(self, producer: Any) -> None:
        begin, send_batch = producer.begin_transaction, producer.send_batch

        async def begins() -> None:
            await begin()
            await self._points.reach("K2")

        async def sends(*what: Any, **how: Any) -> Any:
            """The others wait until the first is acknowledged and the point is passed."""
            if self._first is None:
                self._first = asyncio.ensure_future(first(*what, **how))
                return await asyncio.shield(self._first)
            await asyncio.shield(self._first)
            return await send_batch(*what, **how)

        async def first(*what: Any, **how: Any) -> Any:
            future = await send_batch(*what, **how)
            await asyncio.wait([future])
            await self._points.reach("K3")
            return future

        producer.begin_transaction = begins
        if self._points.names("K3"):
            producer.send_batch = sends

    def _watch_commit(self, producer: Any) -> None:
        commit, send = producer.commit_transaction, producer.client.send

        async def commits() -> None:
            await self._points.reach("K4")
            committing = asyncio.ensure_future(commit())
            on_its_way = asyncio.ensure_future(self._on_its_way.wait())
            try:
                await asyncio.wait({committing, on_its_way}, return_when=asyncio.FIRST_COMPLETED)
                if self._on_its_way.is_set():
                    await self._points.reach("K6")
                await committing
            finally:
                await end_tasks(committing, on_its_way)

        async def sends(node_id: Any, request: Any, **how: Any) -> Any:
            sending = asyncio.ensure_future(send(node_id, request, **how))
            try:
                if request.API_KEY == END_TXN:
                    for _ in range(UNTIL_WRITTEN):
                        await asyncio.sleep(0)
                    self._on_its_way.set()
                return await sending
            finally:
                await end_tasks(sending)

        producer.commit_transaction = commits
        producer.client.send = sends


class _WorkItems:
    def __init__(self, inner: WorkItemProducer, points: Failpoints) -> None:
        self._inner = inner
        self._points = points

    async def write(self, records: Sequence[Outgoing]) -> None:
        await self._points.reach("K12")
        await self._inner.write(records)
        await self._points.reach("K13")


class _History:
    def __init__(self, inner: LogReader, points: Failpoints) -> None:
        self._inner = inner
        self._points = points

    async def settled(
        self, topics: Sequence[str], on_hanging: OnHanging | None = None
    ) -> dict[str, OffsetRange]:
        return await self._inner.settled(topics, on_hanging)

    async def visible(self, topics: Sequence[str]) -> dict[str, OffsetRange]:
        return await self._inner.visible(topics)

    async def read(self, topic: str, start: int, end: int) -> AsyncIterator[Sequence[Record]]:
        async for records in self._inner.read(topic, start, end):
            yield records
            await self._points.reach("K10")  # a reader that goes on has stored what it read

    async def offset_at(self, topic: str, at_ms: int) -> int | None:
        return await self._inner.offset_at(topic, at_ms)

    async def offset_range(self, topic: str) -> OffsetRange:
        return await self._inner.offset_range(topic)

    async def stable_end(self, topic: str) -> int:
        return await self._inner.stable_end(topic)

    async def close(self) -> None:
        await self._inner.close()


def _break_writes(table: FlowTable, points: Failpoints) -> None:
    """The table stays what it is: its own transaction, its own rollback, its own thread."""
    patched: Any = table
    do, write = patched._do, patched.write

    def does(connection: Any, statement: Any) -> None:
        do(connection, statement)
        if statement.sql in (statements.STORE_FIRST, statements.STORE_NEXT):
            pages = PAGES_MAX
            if points.reach_in_thread("K8") is FailpointAction.FULL:
                ((pages,),) = connection.execute("PRAGMA page_count").fetchall()
            connection.execute(f"PRAGMA max_page_count = {pages}").fetchall()

    async def writes(changes: Changes, *, before: Checkpoint | None, after: Checkpoint) -> None:
        await write(changes, before=before, after=after)
        await points.reach("K9")

    patched._do, patched.write = does, writes
