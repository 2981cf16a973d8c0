"""Read committed records of one topic, of all its partitions or some, in no group."""

import asyncio
import heapq
import logging
import random
import time
from collections.abc import AsyncGenerator, Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka.errors import KafkaError, TopicAuthorizationFailedError

from processor.adapters.kafka.admin.topic_admin import count_partitions
from processor.adapters.kafka.client_config import connection_options
from processor.adapters.kafka.errors import (
    BrokerUnreachable,
    PositionLost,
    explain,
    explained,
    positions_kept,
)
from processor.adapters.kafka.internals import client_of
from processor.adapters.kafka.metadata_backoff import back_off_metadata
from processor.adapters.kafka.reader.range_reader import RangeReader
from processor.adapters.kafka.shutdown import stop_consumer
from processor.contract.rights import Operation, on_topic
from processor.engine.ports import Start
from processor.runtime import backoff_s
from processor.settings import Settings

STOP_TIMEOUT_S: Final = 2.0
STALL_S: Final = 10.0
"""A healthy consumer gets a response twice a second, also without records."""
SILENCE_S: Final = 30.0
"""How long a read to an end waits for the next record."""
BACKOFF_MIN_S: Final = 0.1
BACKOFF_MAX_S: Final = 2.0
POLL_RECORDS_MAX: Final = 1000
POLL_S: Final = 0.5
REQUEST_TIMEOUT_MS: Final = 10_000
"""Of a read to an end, for which a caller waits."""

_log = logging.getLogger(__name__)


class TopicReader:
    """Reads some partitions of a topic.

    `positions` holds the next offset of each, past whatever `poll` has returned and past
    aborted records and transaction markers. When the consumer breaks or falls silent, another
    one goes on from there. One task at a time may use it.
    """

    def __init__(self, settings: Settings, topic: str, **options: Any) -> None:
        """`options`: more of the consumer's."""
        self.positions: dict[int, int] = {}
        self._settings = settings
        self._topic = topic
        self._options = options
        self._consumer: AIOKafkaConsumer | None = None
        self._reading: RangeReader | None = None
        self._failures = 0
        self._received_at_s = 0.0

    async def open(self, partitions: Collection[int], start: Start) -> dict[int, int]:
        """Begin at `start`; return the ends (last stable offsets) as they were before.

        Raises BrokerUnreachable.
        """
        tps = [TopicPartition(self._topic, p) for p in sorted(partitions)]
        try:
            with explained(self._settings, on_topic(Operation.READ, self._topic)):
                consumer = self._consumer or await self._connect()
                ends = await consumer.end_offsets(tps)
                positions = await _resolve(consumer, tps, start, ends)
        except BaseException:
            await self.close()
            raise
        self.positions |= {tp.partition: positions[tp] for tp in tps}
        self._reading = None
        return {tp.partition: ends[tp] for tp in tps}

    async def rewind(self, partitions: Collection[int]) -> None:
        """Go to the beginning of `partitions`. Raises BrokerUnreachable."""
        await self.open(partitions, "beginning")

    async def poll(self, *, wait_s: float) -> list[ConsumerRecord]:
        """What was committed since, in the order of each partition, between partitions by append
        time as far as one poll can tell; nothing after `wait_s`.

        A consumer that cannot go on is replaced, and takes longer than `wait_s` for it.
        Raises PositionLost, AccessDenied.
        """
        try:
            reading = self._reading or self._begin(self._consumer or await self._connect())
            with positions_kept():
                fetched = await reading.poll(
                    wait_ms=round(wait_s * 1000), max_records=POLL_RECORDS_MAX
                )
        except PositionLost:
            await self.close()
            raise
        except TopicAuthorizationFailedError as error:
            await self.close()
            raise explain(error, self._settings) from error
        except KafkaError as error:
            await self._back_off(repr(error))
            return []
        self.positions = {tp.partition: at for tp, at in reading.positions.items()}
        if fetched:
            self._failures = 0
            self._received_at_s = time.monotonic()
        elif self._is_stalled():
            await self._back_off(f"no response for {STALL_S:.0f} s")
        return list(heapq.merge(*fetched.values(), key=lambda record: record.timestamp))

    async def close(self) -> None:
        """Let go of the consumer; a later `poll` makes another."""
        consumer, self._consumer, self._reading = self._consumer, None, None
        if consumer is not None:
            await stop_consumer(consumer, timeout_s=STOP_TIMEOUT_S)

    def _new_consumer(self) -> AIOKafkaConsumer:
        consumer = AIOKafkaConsumer(
            **connection_options(self._settings, "reader"),
            group_id=None,
            isolation_level="read_committed",
            auto_offset_reset="none",
            enable_auto_commit=False,
            **self._options,
        )
        back_off_metadata(client_of(consumer))
        return consumer

    async def _connect(self) -> AIOKafkaConsumer:
        consumer = self._consumer = self._new_consumer()
        try:
            await consumer.start()
        except BaseException:
            await self.close()
            raise
        self._received_at_s = time.monotonic()
        return consumer

    def _begin(self, consumer: AIOKafkaConsumer) -> RangeReader:
        at = {TopicPartition(self._topic, p): offset for p, offset in self.positions.items()}
        self._reading = RangeReader(consumer, at)
        self._received_at_s = time.monotonic()
        return self._reading

    def _is_stalled(self) -> bool:
        """Whether the broker has been silent about some partition; aiokafka does not always
        find its way back after a broker was restarted."""
        assert self._consumer is not None
        silent_since_ms = (time.time() - STALL_S) * 1000
        polls = [
            self._consumer.last_poll_timestamp(TopicPartition(self._topic, p)) or 0
            for p in self.positions
        ]
        if min(polls) >= silent_since_ms:
            self._failures = 0
            return False
        return time.monotonic() - self._received_at_s >= STALL_S

    async def _back_off(self, why: str) -> None:
        _log.warning("reading %s: %s; starting another consumer", self._topic, why)
        await self.close()
        pause_s = backoff_s(self._failures, BACKOFF_MIN_S, BACKOFF_MAX_S)
        self._failures += 1
        await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))


def time_of(at_ms: int) -> Start:
    """Begin at a broker's append time."""
    return datetime.fromtimestamp(at_ms / 1000, UTC)


async def read(
    settings: Settings,
    topic: str,
    *,
    start: Start = "beginning",
    follow: bool = False,
    partitions: Sequence[int] | None = None,
    ready: Callable[[], None] | None = None,
) -> AsyncGenerator[ConsumerRecord]:
    """Committed records of `topic` (its full name), in order in each partition.

    Between partitions they come by time, as far as one poll can tell. Without `follow` it ends
    at what was committed when it began. What retention takes meanwhile is passed over.
    `ready` is called once the starting point is fixed: what is written later will be read.

    Raises BrokerUnreachable (also when the broker falls silent before the end), and TopicsWrong
    if there is no such topic.
    """
    count = (await count_partitions(settings, [topic]))[topic]
    chosen = range(count) if partitions is None else partitions
    if not chosen:
        return
    reader = TopicReader(settings, topic, request_timeout_ms=REQUEST_TIMEOUT_MS)
    try:
        ends = await reader.open(chosen, start)
        if ready is not None:
            ready()
        received_s = time.monotonic()
        while follow or any(at < ends[p] for p, at in reader.positions.items()):
            try:
                records = await reader.poll(wait_s=POLL_S)
            except PositionLost as lost:
                await reader.rewind(lost.positions)
                continue
            for record in records:
                if follow or record.offset < ends[record.partition]:
                    yield record
            if records:
                received_s = time.monotonic()
            elif not follow and time.monotonic() - received_s > SILENCE_S:
                raise BrokerUnreachable(
                    f"Kafka fell silent for {SILENCE_S:.0f} s before the end of {topic}; what was "
                    "read so far is not all of it."
                )
    finally:
        await reader.close()


async def end_offsets(settings: Settings, topic: str, partitions: Sequence[int]) -> dict[int, int]:
    """The offset behind everything committed, markers too, of each of `partitions`.

    Raises BrokerUnreachable.
    """
    reader = TopicReader(settings, topic, request_timeout_ms=REQUEST_TIMEOUT_MS)
    try:
        return await reader.open(partitions, "end")
    finally:
        await reader.close()


async def _resolve(
    consumer: AIOKafkaConsumer,
    tps: list[TopicPartition],
    start: Start,
    ends: Mapping[TopicPartition, int],
) -> dict[TopicPartition, int]:
    if start == "end":
        return dict(ends)
    if isinstance(start, datetime):
        since_ms = round(start.timestamp() * 1000)
        found = await consumer.offsets_for_times(dict.fromkeys(tps, since_ms))
        # Nothing yet: the end as it was before asking, or something may slip in between.
        return {tp: found[tp].offset if found[tp] else ends[tp] for tp in tps}
    beginnings: dict[TopicPartition, int] = await consumer.beginning_offsets(tps)
    start_positions = start if isinstance(start, Mapping) else {}
    return {tp: start_positions.get(tp.partition, beginnings[tp]) for tp in tps}
