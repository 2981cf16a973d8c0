"""Read committed records of one topic from positions that outlive the consumer."""

import asyncio
import logging
import random
import time
from collections.abc import Collection, Iterable, Mapping
from datetime import datetime
from typing import Final

from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka.errors import KafkaError, OffsetOutOfRangeError, TopicAuthorizationFailedError

from processor.adapters.kafka.client_config import connection_options
from processor.adapters.kafka.errors import TopicsWrong, explain, explained
from processor.adapters.kafka.internals import client_of
from processor.adapters.kafka.metadata_backoff import back_off_metadata
from processor.adapters.kafka.shutdown import stop_consumer
from processor.adapters.kafka.topic_admin import partition_counts
from processor.client.ports import PositionLost, Start
from processor.contract.rights import Operation, on_topic
from processor.settings import Settings

_STOP_TIMEOUT_S: Final = 2.0

STALL_S: Final = 10.0
"""A healthy consumer hears from the broker twice a second, also of nothing new."""
BACKOFF_MIN_S: Final = 0.1
BACKOFF_MAX_S: Final = 2.0
POLL_RECORDS_MAX: Final = 1000

_log = logging.getLogger(__name__)


async def count_partitions(
    settings: Settings, topics: Iterable[str], operation: Operation = Operation.READ
) -> dict[str, int]:
    """How many partitions each of `topics` has, to do `operation` with. Raises BrokerUnreachable,
    NotAuthorized, TopicsWrong."""
    wanted = list(topics)
    counts = await partition_counts(settings, wanted, operation)
    if missing := [topic for topic in wanted if topic not in counts]:
        raise TopicsWrong(
            f"{', '.join(missing)} does not exist; `taskflow topics create` makes the topics."
        )
    return counts


class CommittedReader:
    """Reads some partitions of a topic, in no group.

    `positions` holds the next offset of each, past whatever `poll` has returned and past
    aborted records and transaction markers. When the consumer breaks or falls silent, another
    one goes on from there. One task at a time may use it.
    """

    def __init__(self, settings: Settings, topic: str) -> None:
        self.positions: dict[int, int] = {}
        self._settings = settings
        self._topic = topic
        self._consumer: AIOKafkaConsumer | None = None
        self._failures = 0
        self._heard_at_s = 0.0

    async def open(self, partitions: Collection[int], start: Start) -> dict[int, int]:
        """Begin at `start`; answers the ends (last stable offsets) as they were before.

        Raises BrokerUnreachable.
        """
        tps = [TopicPartition(self._topic, p) for p in sorted(partitions)]
        with explained(self._settings, on_topic(Operation.READ, self._topic)):
            consumer = self._new_consumer()
            try:
                await consumer.start()
                ends = await consumer.end_offsets(tps)
                positions = await self._resolve(consumer, tps, start, ends)
            finally:
                await stop_consumer(consumer, timeout_s=_STOP_TIMEOUT_S)
        self.positions = {tp.partition: positions[tp] for tp in tps}
        return {tp.partition: ends[tp] for tp in tps}

    async def rewind(self, partitions: Collection[int]) -> None:
        """Go to the beginning of `partitions`. Raises BrokerUnreachable."""
        kept = dict(self.positions)
        await self.open(partitions, "beginning")
        self.positions = kept | self.positions

    async def poll(self, *, wait_s: float) -> list[ConsumerRecord]:
        """What was committed since, in the order of each partition; nothing after `wait_s`.

        A consumer that cannot go on is replaced, and takes longer than `wait_s` for it.
        Raises PositionLost, AccessDenied.
        """
        try:
            consumer = self._consumer or await self._connect()
            fetched = await consumer.getmany(
                timeout_ms=round(wait_s * 1000), max_records=POLL_RECORDS_MAX
            )
            for partition in self.positions:
                tp = TopicPartition(self._topic, partition)
                self.positions[partition] = await consumer.position(tp)
        except OffsetOutOfRangeError as error:
            await self.close()
            raise PositionLost({tp.partition: at for tp, at in error.args[0].items()}) from error
        except TopicAuthorizationFailedError as error:
            await self.close()
            raise explain(error, self._settings) from error
        except KafkaError as error:
            await self._back_off(repr(error))
            return []
        if fetched:
            self._failures = 0
            self._heard_at_s = time.monotonic()
        elif self._is_stalled(consumer):
            await self._back_off(f"nothing heard for {STALL_S:.0f} s")
        return [record for records in fetched.values() for record in records]

    async def close(self) -> None:
        """Let go of the consumer; a later `poll` makes another."""
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            await stop_consumer(consumer, timeout_s=_STOP_TIMEOUT_S)

    def _new_consumer(self) -> AIOKafkaConsumer:
        consumer = AIOKafkaConsumer(
            **connection_options(self._settings, "reader"),
            group_id=None,
            isolation_level="read_committed",
            auto_offset_reset="none",
            enable_auto_commit=False,
        )
        back_off_metadata(client_of(consumer))
        return consumer

    async def _connect(self) -> AIOKafkaConsumer:
        consumer = self._new_consumer()
        try:
            await consumer.start()
        except BaseException:
            await stop_consumer(consumer, timeout_s=_STOP_TIMEOUT_S)
            raise
        # Without an await in between: the consumer must not look for positions of its own.
        consumer.assign([TopicPartition(self._topic, p) for p in self.positions])
        for partition, offset in self.positions.items():
            consumer.seek(TopicPartition(self._topic, partition), offset)
        self._consumer = consumer
        self._heard_at_s = time.monotonic()
        return consumer

    def _is_stalled(self, consumer: AIOKafkaConsumer) -> bool:
        """Whether the broker has been silent about some partition; aiokafka does not always
        find its way back after a broker was restarted."""
        silent_since_ms = (time.time() - STALL_S) * 1000
        polls = [
            consumer.last_poll_timestamp(TopicPartition(self._topic, p)) or 0
            for p in self.positions
        ]
        if min(polls) >= silent_since_ms:
            self._failures = 0
            return False
        return time.monotonic() - self._heard_at_s >= STALL_S

    async def _back_off(self, why: str) -> None:
        _log.warning("reading %s: %s; starting another consumer", self._topic, why)
        await self.close()
        pause_s = min(BACKOFF_MAX_S, BACKOFF_MIN_S * 2**self._failures)
        self._failures = min(self._failures + 1, 10)
        await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))

    @staticmethod
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
