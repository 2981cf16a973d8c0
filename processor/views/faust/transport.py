"""Make Faust's transport read committed records, from the view's own positions, in chunks.

Faust's consumers read uncommitted records unless the application writes exactly-once, and begin
where the group's offsets say. A view must never show what was aborted, and its position stands in
its database; the group's offsets are for lag tools only.

Faust makes two tasks, an event and a queue's entry of each message. A message of ours is a chunk
of records, so that this is paid once for hundreds of them.
"""

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, ClassVar, Final, cast

import aiokafka
from aiokafka import ConsumerRecord
from aiokafka.errors import (
    CommitFailedError,
    GroupAuthorizationFailedError,
    KafkaConnectionError,
    TopicAuthorizationFailedError,
)
from faust.app.base import BootStrategy
from faust.transport.drivers import aiokafka as driver
from faust.types import TP

from processor.adapters.kafka.client_config import connection_options
from processor.adapters.kafka.internals import coordination_error, raise_coordination_error
from processor.settings import Settings

FETCH_MAX_WAIT_MS: Final = 250
TURN_S: Final = 0.05
"""For how long a fetch waits. Faust leaves out partitions of which enough is buffered, and waits
for the others: a full second, in which those that have records run dry."""
DENIED_PAUSE_S: Final = 0.5
UNREACHABLE_PAUSE_S: Final = 0.5
POLL_MAX_RECORDS: Final = 2000
CHUNK_MAX_RECORDS: Final = 500
CHUNK_MAX_BYTES: Final = 1024 * 1024
"""Of a chunk's values; a larger record is a chunk of its own."""


class ConsumesOnly(BootStrategy):
    """Nothing is written to Kafka: no producer, and no web server but our own."""

    enable_kafka_producer = False
    enable_web = False


def chunks_of(records: Sequence[ConsumerRecord]) -> Iterator[tuple[ConsumerRecord, ...]]:
    """The records of a partition, in order."""
    start, size = 0, 0
    for end, record in enumerate(records):
        size += len(record.value or b"")
        if end > start and (size > CHUNK_MAX_BYTES or end - start == CHUNK_MAX_RECORDS):
            yield tuple(records[start:end])
            start, size = end, len(record.value or b"")
    if start < len(records):
        yield tuple(records[start:])


class CommittedThread(driver.AIOKafkaConsumerThread):
    """The thread that Faust fetches in."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.fetched: dict[TP, int] = {}
        """Behind the last record that Faust was given since the last seek."""
        self.sought: Mapping[TP, int] = {}
        """Where each partition was sought to."""

    async def on_start(self) -> None:
        """Wait for the broker, as workers do. Faust would end the process with a traceback."""
        while not self.should_stop:
            try:
                await super().on_start()
            except KafkaConnectionError as error:
                self.log.warning("The broker is not reached, and waited for: %s", error)
                await self._ensure_consumer().stop()
                await asyncio.sleep(UNREACHABLE_PAUSE_S)
            else:
                return

    def _create_worker_consumer(self, transport: driver.Transport) -> Any:
        conf = self.app.conf
        self._assignor = self.app.assignor
        settings = cast(CommittedTransport, transport).settings
        return aiokafka.AIOKafkaConsumer(
            **connection_options(settings, "views"),
            group_id=conf.id,
            partition_assignment_strategy=[self._assignor],
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            isolation_level="read_committed",
            max_poll_records=POLL_MAX_RECORDS,
            max_partition_fetch_bytes=conf.consumer_max_fetch_size,
            fetch_max_wait_ms=FETCH_MAX_WAIT_MS,
            session_timeout_ms=settings.session_timeout_ms,
            heartbeat_interval_ms=settings.session_timeout_ms // 3,
            rebalance_timeout_ms=max(settings.session_timeout_ms, 30_000),
        )

    async def _fetch_records(self, *arguments: Any, **options: Any) -> Any:
        """Nothing where an ACL is missing, which `/ready` says: Faust would end the process."""
        consumer = self._ensure_consumer()
        if isinstance(coordination_error(consumer), GroupAuthorizationFailedError):
            with suppress(GroupAuthorizationFailedError):
                raise_coordination_error(consumer)
        try:
            records = await super()._fetch_records(*arguments, **options)
        except (GroupAuthorizationFailedError, TopicAuthorizationFailedError):
            await asyncio.sleep(DENIED_PAUSE_S)
            return {}
        return {tp: self._noted(tp, batch) for tp, batch in records.items() if batch}

    def _noted(self, tp: TP, batch: Sequence[ConsumerRecord]) -> Sequence[ConsumerRecord]:
        self.fetched[tp] = batch[-1].offset + 1
        return batch

    async def _commit(self, offsets: Mapping[TP, int]) -> bool:
        """Commit for lag tools. Where an ACL is missing a later one makes it good."""
        assigned = self.assignment()
        mine = {tp: offset for tp, offset in offsets.items() if tp in assigned}
        try:
            await self._ensure_consumer().commit(
                {aiokafka.TopicPartition(*tp): offset for tp, offset in mine.items()}
            )
        except (GroupAuthorizationFailedError, TopicAuthorizationFailedError):
            return False
        except Exception as error:
            if not (isinstance(error, CommitFailedError) and "already rebalanced" in str(error)):
                self.log.exception("Committing offsets failed: %r", error)
                await self.crash(error)
            return False
        self.tp_last_committed_at.update(dict.fromkeys(mine, time.monotonic()))
        return True

    async def seek_to_committed(self) -> Mapping[TP, int]:
        sought: Mapping[TP, int] = await self.call_thread(self._seek_to_own)
        return sought

    async def _seek_to_own(self) -> Mapping[TP, int]:
        consumer = self._ensure_consumer()
        position_of = cast(CommittedTransport, self.transport).position_of
        sought = {}
        for tp in consumer.assignment():
            sought[tp] = position_of(tp.topic, tp.partition)
            consumer.seek(tp, sought[tp])
            self.fetched.pop(tp, None)
        self.sought = sought
        return sought

    async def levels(self) -> dict[TP, tuple[int, int | None, int]]:
        """Of each partition: the next offset to fetch, the end of what is committed as far as the
        broker has said, and the offset behind the last record that Faust was given."""
        levels: dict[TP, tuple[int, int | None, int]] = await self.call_thread(self._levels)
        return levels

    async def _levels(self) -> dict[TP, tuple[int, int | None, int]]:
        consumer = self._ensure_consumer()
        found = {}
        for tp in consumer.assignment():
            at = await consumer.position(tp)
            found[tp] = (at, consumer.last_stable_offset(tp), self.fetched.get(tp, 0))
        return found


class CommittedConsumer(driver.Consumer):
    def _new_consumer_thread(self) -> CommittedThread:
        return CommittedThread(self, loop=self.loop, beacon=self.beacon)

    async def levels(self) -> dict[TP, tuple[int, int | None, int]]:
        """As CommittedThread.levels."""
        return await cast(CommittedThread, self._thread).levels()

    async def _getmany(self, active_partitions: set[TP] | None, timeout: float) -> Any:
        """Chunks where Faust expects records, which it hands to `_to_message` as they are."""
        records = await super()._getmany(active_partitions, min(timeout, TURN_S))
        return {tp: self._cut(batch) for tp, batch in records.items()}

    def _cut(self, batch: Any) -> list[Any]:
        return list(chunks_of(batch))

    def _to_message(self, tp: TP, record: Any) -> Any:
        """Of a chunk: its last record's message, with the whole chunk as its value. What is
        acknowledged by that are all of them: Faust takes offsets in between for gaps."""
        message = super()._to_message(tp, record[-1])
        message.value = record
        return message


class CommittedTransport(driver.Transport):
    """What Faust makes its consumer from; `settings` and `position_of` are the application's."""

    Consumer: ClassVar = CommittedConsumer

    settings: Settings
    position_of: Callable[[str, int], int]
