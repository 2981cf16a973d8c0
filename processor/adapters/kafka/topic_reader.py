"""Read committed records of all partitions of a topic, from outside a group."""

import heapq
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from dataclasses import dataclass

from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition

from processor.adapters.kafka.client_config import connection_options
from processor.adapters.kafka.errors import BrokerUnreachable, TopicsWrong, explained
from processor.adapters.kafka.shutdown import stop_consumer
from processor.adapters.kafka.topic_admin import partition_counts
from processor.settings import Settings

POLL_MS = 500
SILENCE_S = 30.0
REQUEST_TIMEOUT_MS = 10_000


@dataclass(frozen=True, slots=True)
class Start:
    """Where to begin: at a broker's append time, at the end, or (neither) at the beginning."""

    at_ms: int | None = None
    at_end: bool = False


BEGINNING = Start()
END = Start(at_end=True)


async def read(
    settings: Settings,
    topic: str,
    *,
    start: Start = BEGINNING,
    follow: bool = False,
    partitions: Sequence[int] | None = None,
    ready: Callable[[], None] | None = None,
) -> AsyncGenerator[ConsumerRecord]:
    """Committed records of `topic` (its full name), in order in each partition.

    Between partitions they come by time, as far as one poll can tell. Without `follow` it ends
    at what was committed when it began. Commits no offsets and joins no group.
    `ready` is called once the starting point is fixed: what is written later will be read.

    Raises BrokerUnreachable (also when the broker falls silent before the end), and TopicsWrong
    if there is no such topic.
    """
    count = (await partition_counts(settings, [topic])).get(topic)
    if count is None:
        raise TopicsWrong(f"{topic} does not exist; `taskflow topics create` makes the topics.")
    assigned = [
        TopicPartition(topic, partition)
        for partition in (range(count) if partitions is None else partitions)
    ]
    if not assigned:
        return
    with explained(settings):
        consumer = AIOKafkaConsumer(
            **connection_options(settings, "reader"),
            enable_auto_commit=False,
            auto_offset_reset="earliest",  # retention may overtake a slow reader
            isolation_level="read_committed",
            request_timeout_ms=REQUEST_TIMEOUT_MS,
        )
        try:
            await consumer.start()
            consumer.assign(assigned)
            await _seek(consumer, assigned, start)
            ends = None if follow else await consumer.end_offsets(assigned)
            if ready is not None:
                ready()
            async for record in _records(consumer, ends):
                yield record
        finally:
            await stop_consumer(consumer, timeout_s=2.0)


async def end_offsets(settings: Settings, topic: str, partitions: Sequence[int]) -> dict[int, int]:
    """The offset behind everything committed, markers too, of each of `partitions`.

    Raises BrokerUnreachable.
    """
    with explained(settings):
        consumer = AIOKafkaConsumer(
            **connection_options(settings, "reader"),
            enable_auto_commit=False,
            isolation_level="read_committed",
            request_timeout_ms=REQUEST_TIMEOUT_MS,
        )
        try:
            await consumer.start()
            found = await consumer.end_offsets([TopicPartition(topic, p) for p in partitions])
            return {tp.partition: offset for tp, offset in found.items()}
        finally:
            await stop_consumer(consumer, timeout_s=2.0)


async def _seek(
    consumer: AIOKafkaConsumer, assigned: Sequence[TopicPartition], start: Start
) -> None:
    if start.at_ms is not None:
        offsets = await consumer.offsets_for_times(dict.fromkeys(assigned, start.at_ms))
        ends = await consumer.end_offsets(assigned)
        for partition in assigned:
            found = offsets.get(partition)
            consumer.seek(partition, ends[partition] if found is None else found.offset)
    else:
        seek_all = consumer.seek_to_end if start.at_end else consumer.seek_to_beginning
        await seek_all(*assigned)
        for partition in assigned:  # these seeks are lazy: what comes meanwhile would be missed
            await consumer.position(partition)


async def _records(
    consumer: AIOKafkaConsumer, ends: dict[TopicPartition, int] | None
) -> AsyncIterator[ConsumerRecord]:
    """Until the position of each partition has reached its end.

    Positions rather than records: aborted ones and control records leave gaps, and the last
    offset may be one of them.
    """
    received_s = time.monotonic()
    left = None if ends is None else dict(ends)
    while left is None or left:
        if left is not None:
            for partition, end in list(left.items()):
                if await consumer.position(partition) >= end:
                    consumer.pause(partition)
                    del left[partition]
            if not left:
                return
        batches = await consumer.getmany(timeout_ms=POLL_MS)
        for record in heapq.merge(*batches.values(), key=lambda record: record.timestamp):
            if ends is None or record.offset < ends[TopicPartition(record.topic, record.partition)]:
                yield record
        if batches:
            received_s = time.monotonic()
        elif left is not None and time.monotonic() - received_s > SILENCE_S:
            raise BrokerUnreachable(
                f"Kafka fell silent for {SILENCE_S:.0f} s before the end of "
                f"{next(iter(left)).topic}; what was read so far is not all of it."
            )
