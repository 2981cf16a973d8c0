"""Read a partition's topics back, up to a known end."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, TypeVar

import structlog
from aiokafka import AIOKafkaConsumer, TopicPartition

from processor.adapters.kafka.errors import (
    HistoryStalled,
    ReadFailed,
    authorized,
    foreseen,
    positions_kept,
)
from processor.adapters.kafka.internals import client_of, keep_topics
from processor.adapters.kafka.metadata_backoff import back_off_metadata
from processor.adapters.kafka.reader.range_reader import RangeReader
from processor.adapters.kafka.shutdown import stop_consumer, stop_consumers
from processor.contract.rights import Operation, on_group
from processor.engine.codec import Record
from processor.engine.ports import HiddenRecords, OffsetRange, OnHanging, OnWait
from processor.errors import TaskflowError

log = structlog.get_logger()
T = TypeVar("T")

CHUNK_MAX_RECORDS: Final = 2_000
FETCH_MAX_BYTES: Final = 4 * 1024 * 1024
POLL_MS: Final = 10
"""How long to wait for records before the position is looked at: it steps over markers without
giving any, and a takeover reads up to the last marker of several topics."""
FETCH_MAX_WAIT_MS: Final = 10
"""How long the broker holds a fetch where nothing follows; other requests wait behind it."""
SETTLE_POLL_S: Final = 0.02
SETTLE_REPORT_S: Final = 5.0
HANGING_AFTER_S: Final = 0.5
"""After this an open transaction is no batch under way; reported again after twice as long."""
STALL_TIMEOUT_S: Final = 30.0
ASK_AGAIN_S: Final = 0.5
STOP_TIMEOUT_S: Final = 2.0


class LogReaders:
    """Consumers to read back with, of one isolation level each, made when they are asked for.

    Several histories may share them as long as no two of them read at the same time. Used again
    after `close`, they are recreated.
    """

    def __init__(self, connection: Mapping[str, Any], *, topics: Sequence[str] = ()) -> None:
        """`topics`: what will be asked for, to be known from the start; aiokafka learns of others
        one by one, with pauses of 0.1 s."""
        self._connection = connection
        self._topics = topics
        self._consumers: dict[str, AIOKafkaConsumer] = {}
        self._closes = 0

    async def consumer(self, isolation_level: str) -> AIOKafkaConsumer:
        """Raises ReadFailed, also if all are closed before this one has connected."""
        closes = self._closes
        consumer = self._consumers.get(isolation_level)
        if consumer is None:
            consumer = AIOKafkaConsumer(
                **self._connection,
                enable_auto_commit=False,
                auto_offset_reset="none",
                isolation_level=isolation_level,
                max_partition_fetch_bytes=FETCH_MAX_BYTES,
                fetch_max_wait_ms=FETCH_MAX_WAIT_MS,
            )
            client = client_of(consumer)
            back_off_metadata(client)
            keep_topics(client)
            try:
                with foreseen("connecting to read the topics back", ReadFailed):
                    await consumer.start()
                    if self._topics:
                        await client.set_topics(self._topics)
                if closes != self._closes:
                    raise ReadFailed("the topics are not read back any more")
            except BaseException:
                await stop_consumer(consumer, timeout_s=STOP_TIMEOUT_S)
                raise
            self._consumers[isolation_level] = consumer
        return consumer

    async def asked(self, work: Awaitable[T]) -> T:
        """What `work` gives, which asks the brokers by one of the consumers. Raises NotAuthorized
        if they deny it, PositionLost, and ReadFailed for all else that aiokafka raises."""
        with (
            foreseen("reading the topics back", ReadFailed),
            positions_kept(),
            authorized(self._connection, on_group(Operation.READ, "")),
        ):
            return await work

    async def close(self) -> None:
        await stop_consumers(*self.given_up(), timeout_s=STOP_TIMEOUT_S)

    def given_up(self) -> list[AIOKafkaConsumer]:
        """The consumers there are, to be stopped by the caller; these readers have none now."""
        self._closes += 1
        consumers, self._consumers = list(self._consumers.values()), {}
        return consumers


class KafkaLogReader:
    """One partition number's topics, by a consumer that sees open transactions and one that does
    not."""

    def __init__(
        self,
        connection: Mapping[str, Any],
        partition: int,
        *,
        topics: Sequence[str] = (),
        stall_timeout_s: float = STALL_TIMEOUT_S,
        on_wait: OnWait = lambda _: None,
        readers: LogReaders | None = None,
        patience_s: float = 0.0,
        in_step: bool = False,
    ) -> None:
        """`topics`: as of `LogReaders`, which are this one's own unless `readers` are given.
        `stall_timeout_s`: how long a read may come no further, as the worker's watchdog has it,
        which does not look at what still recovers. `on_wait` is called with what is waited for,
        and with None when that is over. `patience_s`: for how long a broker that went away is
        asked again, from its last response on. `in_step`: each read has a consumer of its own, so
        that several topics can be read side by side."""
        self._connection = connection
        self._readers = readers or LogReaders(connection, topics=topics)
        self._partition = partition
        self._stall_timeout_s = stall_timeout_s
        self._on_wait = on_wait
        self._patience_s = patience_s
        self._in_step = in_step
        self._readers_of_reads: list[LogReaders] = []

    async def settled(
        self, topics: Sequence[str], on_hanging: OnHanging | None = None
    ) -> dict[str, OffsetRange]:
        """The extents of `topics` as the high watermarks stand now, once the last stable offsets
        have reached them: below any open transaction, the newest records are hidden,
        and an older position would be taken for the newest."""
        tps = self._partitions(topics)
        await asyncio.gather(
            self._readers.consumer("read_uncommitted"), self._readers.consumer("read_committed")
        )
        written = await self._offset_ranges("read_uncommitted", tps)
        began = reported = time.monotonic()
        hanging_after_s = HANGING_AFTER_S
        while True:
            stable = await self._ask("read_committed", lambda consumer: consumer.end_offsets(tps))
            hidden = [tp for tp in tps if stable[tp] < written[tp.topic].end]
            if not hidden:
                self._on_wait(None)
                return written
            first = hidden[0]
            records = HiddenRecords(
                first.topic, self._partition, stable[first], written[first.topic].end
            )
            self._on_wait(str(records))
            if time.monotonic() - reported > SETTLE_REPORT_S:
                reported = time.monotonic()
                log.warning(
                    "waiting for a foreign transaction to end: it hides the newest records",
                    partition=self._partition,
                    topics=[tp.topic for tp in hidden],
                    stable_offsets=[stable[tp] for tp in hidden],
                )
            if on_hanging is not None and time.monotonic() - began > hanging_after_s:
                hanging_after_s *= 2
                await on_hanging([tp.topic for tp in hidden])
            await asyncio.sleep(SETTLE_POLL_S)

    async def visible(self, topics: Sequence[str]) -> dict[str, OffsetRange]:
        """The extents of `topics` as far as they can be read now."""
        return await self._offset_ranges("read_committed", self._partitions(topics))

    async def offset_range(self, topic: str) -> OffsetRange:
        """What the topic holds now, open transactions included."""
        return (await self._offset_ranges("read_uncommitted", self._partitions([topic])))[topic]

    async def stable_end(self, topic: str) -> int:
        """Where the first open transaction begins, or the end: what can be read now."""
        (tp,) = self._partitions([topic])
        ends = await self._ask("read_committed", lambda consumer: consumer.end_offsets([tp]))
        return int(ends[tp])

    async def offset_at(self, topic: str, at_ms: int) -> int | None:
        (tp,) = self._partitions([topic])
        found = await self._ask(
            "read_committed", lambda consumer: consumer.offsets_for_times({tp: at_ms})
        )
        return None if found[tp] is None else int(found[tp].offset)

    async def read(self, topic: str, start: int, end: int) -> AsyncGenerator[Sequence[Record]]:
        """Committed records of [start, end). Ends when the consumer's position says so: the last
        offsets may be markers, which no record shows.

        Raises HistoryStalled: aiokafka's consumers retry for ever, and some never come back from
        the restart of a broker.
        """
        if start >= end:
            return
        readers = self._readers
        if self._in_step:
            readers = LogReaders(self._connection, topics=[topic])
            self._readers_of_reads.append(readers)
        patience = Patience(self._patience_s)
        while True:
            try:
                async for records in self._read(readers, topic, start, end):
                    yield records
                    start = records[-1].offset + 1
                    patience.begin()
            except TaskflowError as error:
                await patience.bear(error)
                await readers.close()
            else:
                return

    async def close(self) -> None:
        """Close the readers, also for others that share them."""
        reading, self._readers_of_reads = self._readers_of_reads, []
        consumers = [one for some in (self._readers, *reading) for one in some.given_up()]
        await stop_consumers(*consumers, timeout_s=STOP_TIMEOUT_S)

    def _partitions(self, topics: Sequence[str]) -> list[TopicPartition]:
        return [TopicPartition(topic, self._partition) for topic in topics]

    async def _offset_ranges(
        self, isolation_level: str, tps: Sequence[TopicPartition]
    ) -> dict[str, OffsetRange]:
        starts = await self._ask(isolation_level, lambda one: one.beginning_offsets(tps))
        ends = await self._ask(isolation_level, lambda one: one.end_offsets(tps))
        return {tp.topic: OffsetRange(starts[tp], ends[tp]) for tp in tps}

    async def _ask(
        self, isolation_level: str, question: Callable[[AIOKafkaConsumer], Awaitable[T]]
    ) -> T:
        patience = Patience(self._patience_s)
        while True:
            try:
                consumer = await self._readers.consumer(isolation_level)
                return await self._readers.asked(question(consumer))
            except TaskflowError as error:
                await patience.bear(error)
                await self._readers.close()

    async def _read(
        self, readers: LogReaders, topic: str, start: int, end: int
    ) -> AsyncIterator[Sequence[Record]]:
        (tp,) = self._partitions([topic])
        consumer = await readers.consumer("read_committed")
        reading = RangeReader(consumer, {tp: start}, {tp: end})
        reached, reached_at = start, time.monotonic()
        while not reading.done:
            fetched = await readers.asked(
                reading.poll(wait_ms=POLL_MS, max_records=CHUNK_MAX_RECORDS)
            )
            if tp in fetched:
                yield fetched[tp]
            position = reading.positions[tp]
            if position > reached:
                reached, reached_at = position, time.monotonic()
            elif time.monotonic() - reached_at > self._stall_timeout_s:
                raise HistoryStalled(
                    f"Reading {topic} of partition {self._partition} stands at offset {position} "
                    f"of {end} since {self._stall_timeout_s:g} s."
                )


class Patience:
    """With a broker that does not answer, for `patience_s` from the last time that it did."""

    def __init__(self, patience_s: float) -> None:
        self._patience_s = patience_s
        self.begin()

    def begin(self) -> None:
        self._until = time.monotonic() + self._patience_s

    async def bear(self, error: TaskflowError) -> None:
        """Pause, if another try may do better; raise `error`, if not or if it is enough."""
        if not error.retriable or time.monotonic() >= self._until:
            raise error
        await asyncio.sleep(ASK_AGAIN_S)
