"""Write one transaction per batch, on aiokafka's transactional producer."""

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, Final

import structlog
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.errors import IllegalOperation, InvalidProducerEpoch, KafkaError, ProducerFenced
from aiokafka.producer.message_accumulator import BatchBuilder
from aiokafka.structs import RecordMetadata

from processor.adapters.kafka.errors import authorized, foreseen
from processor.adapters.kafka.internals import (
    add_partition,
    appender,
    begin_sooner,
    close_batch,
    count_commits,
    quiet_failures,
    raise_if_ended,
    watch_denials,
)
from processor.adapters.kafka.metadata_backoff import back_off_metadata
from processor.adapters.kafka.producer.cloudevents import HeadersOf
from processor.adapters.kafka.shutdown import stop_producer
from processor.contract.headers import Headers
from processor.contract.rights import Operation, Resource, ResourceKind, Right
from processor.contract.topics import DEAD_LETTER_MAX_BYTES, MESSAGE_MAX_BYTES, Topics
from processor.engine.batch import Outgoing
from processor.engine.ports import Written
from processor.errors import OwnershipLost, ProducerSuspect, TaskflowError
from processor.runtime import end_tasks

log = structlog.get_logger()

TRANSACTION_TIMEOUT_MS: Final = 15_000
"""After this the broker aborts what a dead owner left open, unless it was fenced before."""
REQUEST_TIMEOUT_MS: Final = 5_000
RETRY_BACKOFF_MS: Final = 10
BEGIN_PAUSE_S: Final = 0.003
"""Until the last transaction's markers are asked for again: a broker at rest writes them sooner."""
BATCH_MAX_BYTES: Final = MESSAGE_MAX_BYTES - 64 * 1024
"""Of one Kafka record batch, before compression, with room for what framing adds."""
STOP_TIMEOUT_S: Final = 10.0

# Producers on their way out; asyncio keeps only weak references to tasks.
_stopping: set[asyncio.Task[None]] = set()


class CommitUncertain(TaskflowError):
    """A transaction was not acknowledged in time; the topics say what became of it."""

    retriable = True


class RecordPack:
    """Records of a topic as Kafka's record batches, made by `new_batch`."""

    def __init__(self, new_batch: Callable[[], BatchBuilder]) -> None:
        self._new_batch = new_batch
        self._full: list[BatchBuilder] = []
        self._batch = new_batch()
        self._append = appender(self._batch)
        self._in_full = self._in_batch = 0

    def __len__(self) -> int:
        return self._in_full + self._in_batch

    def add(self, key: bytes | None, value: bytes | None, headers: Headers) -> None:
        listed = headers if type(headers) is list else list(headers)
        if self._append(self._in_batch, None, key, value, listed) is None:
            self._begin_batch()
            fits = self._append(0, None, key, value, listed) is not None
            assert fits, "each record fits into an empty batch"
        self._in_batch += 1

    def _begin_batch(self) -> None:
        close_batch(self._batch, self._in_batch)
        self._full.append(self._batch)
        self._in_full += self._in_batch
        self._in_batch = 0
        self._batch = self._new_batch()
        self._append = appender(self._batch)

    def batches(self) -> list[BatchBuilder]:
        """All, to be sent in this order; the last one's number of records is `in_last`."""
        close_batch(self._batch, self._in_batch)
        return [*self._full, self._batch]

    @property
    def in_last(self) -> int:
        return self._in_batch


class EnrichedPack(RecordPack):
    """Adds to each record the headers that `headers_of` makes of its value."""

    def __init__(self, new_batch: Callable[[], BatchBuilder], headers_of: HeadersOf) -> None:
        super().__init__(new_batch)
        self._headers_of = headers_of

    def add(self, key: bytes | None, value: bytes | None, headers: Headers) -> None:
        super().add(key, value, [*headers, *self._headers_of(value or b"")])


class KafkaTransactionalProducer:
    """The producer of one partition number; starting it fences the one before.

    The transactional id holds no group name: two groups on one prefix must fence each other.
    """

    request_max_bytes = 4 * DEAD_LETTER_MAX_BYTES

    def __init__(
        self,
        connection: Mapping[str, Any],
        topics: Topics,
        partition: int,
        *,
        compression: str | None,
        commit_timeout_s: float,
        transactional_id: str | None = None,
        headers_of: Mapping[str, HeadersOf] = MappingProxyType({}),
    ) -> None:
        """`transactional_id`: another than that of the worker's partition processor. `headers_of`:
        by topic, what makes more headers of a record's value."""
        self._topics = topics
        self._headers_of = headers_of
        self._partition = partition
        self._transactional_id = transactional_id or f"{topics.prefix}-{partition}"
        self._commit_timeout_s = commit_timeout_s
        self._connection = connection
        self._compression = compression
        self._producer: AIOKafkaProducer | None = None
        self._begun = False
        """Whether `begin` has begun the transaction of the next `write`."""
        self._attempts = 0
        self._denial: KafkaError | None = None
        """What the broker denied to this producer's transactions."""
        self.suspect = False

    async def start(self) -> None:
        """Fence the producer before us: what it left open is aborted or completed."""
        self._producer = AIOKafkaProducer(
            **self._connection,
            transactional_id=self._transactional_id,
            transaction_timeout_ms=TRANSACTION_TIMEOUT_MS,
            request_timeout_ms=REQUEST_TIMEOUT_MS,
            retry_backoff_ms=RETRY_BACKOFF_MS,
            compression_type=self._compression,
            max_batch_size=BATCH_MAX_BYTES,
            max_request_size=self.request_max_bytes,
        )
        back_off_metadata(self._producer.client)
        quiet_failures(self._producer)
        with self._foreseen("fencing"):
            async with asyncio.timeout(self._commit_timeout_s):
                await self._producer.start()
        count_commits(self._producer, self._attempted)
        watch_denials(self._producer, self._denied)
        begin_sooner(self._producer, BEGIN_PAUSE_S)

    def _attempted(self) -> None:
        self._attempts += 1

    def _denied(self, error: KafkaError) -> None:
        self._denial = error

    def new_pack(self, topic: str) -> RecordPack:
        producer = self._producer
        assert producer is not None, "a writer is started before it packs"
        headers_of = self._headers_of.get(topic)
        if headers_of is None:
            return RecordPack(producer.create_batch)
        return EnrichedPack(producer.create_batch, headers_of)

    def _packed(self, topic: str, records: RecordPack | Sequence[Outgoing]) -> RecordPack:
        if isinstance(records, RecordPack):
            return records
        pack = self.new_pack(topic)
        for record in records:
            pack.add(*record)
        return pack

    async def begin(self, topics: Sequence[str]) -> None:
        """Begin the transaction of the next `write` and have the broker told of `topics`, without
        waiting for it: that takes a round trip. What fails of it is raised by `write`.

        Each of `topics` gets a marker, with or without a record. The broker aborts the transaction
        if the write takes longer than TRANSACTION_TIMEOUT_MS to come.
        """
        producer = self._usable()
        with self._foreseen("a transaction"):
            await producer.begin_transaction()
        for topic in topics:
            add_partition(producer, TopicPartition(topic, self._partition))
        self._begun = True

    def _usable(self) -> AIOKafkaProducer:
        assert self._producer is not None, "a writer is started before it writes"
        assert not self.suspect, "a suspect producer is replaced before the next transaction"
        return self._producer

    async def write(self, records: Mapping[str, RecordPack | Sequence[Outgoing]]) -> Written:
        """Write `records` by topic in one transaction, to this partition's number.

        The group's offsets are not in it: no consumer starts from them, and they would cost
        two of the five requests and a marker of their own. After any error the producer is of no
        more use: its sequence may be off.
        """
        return await self.write_to(
            {TopicPartition(topic, self._partition): some for topic, some in records.items()}
        )

    async def write_to(
        self, records: Mapping[TopicPartition, RecordPack | Sequence[Outgoing]]
    ) -> Written:
        """As `write`, to partitions of any number. The ends are those of the last of a topic."""
        producer = self._usable()
        self._attempts = 0
        try:
            async with asyncio.timeout(self._commit_timeout_s):
                with self._foreseen("a transaction"):
                    sent, acknowledged_s = await self._in_transaction(producer, records)
        except TimeoutError as error:
            raise CommitUncertain(
                f"a transaction was not acknowledged within {self._commit_timeout_s:g} s"
            ) from error
        self.suspect = self._attempts != 1
        return Written(
            {tp.topic: last.offset + 1 for tp, last in zip(records, sent, strict=True)},
            max(last.timestamp for last in sent),
            time.monotonic() - acknowledged_s,
        )

    async def _in_transaction(
        self,
        producer: AIOKafkaProducer,
        records: Mapping[TopicPartition, RecordPack | Sequence[Outgoing]],
    ) -> tuple[list[RecordMetadata], float]:
        """What the broker says of the last record of each, and when it had said so."""
        begun, self._begun = self._begun, False
        if not begun:
            await producer.begin_transaction()
        try:
            raise_if_ended(producer)
            # All futures are awaited: a commit succeeds although a batch of it has failed.
            sent = await asyncio.gather(
                *(
                    self._send(producer, tp, self._packed(tp.topic, some))
                    for tp, some in records.items()
                )
            )
            acknowledged_s = time.monotonic()
            await producer.commit_transaction()
        except IllegalOperation as error:
            # It ended after the look at it above, and aiokafka says only that there is none.
            if self._denial is None:
                raise_if_ended(producer)
            raise self._denial or error from error
        except KafkaError as error:
            raise self._denial or error from error
        return sent, acknowledged_s

    @contextmanager
    def _foreseen(self, what: str) -> Iterator[None]:
        """Turn what aiokafka raises into OwnershipLost, NotAuthorized or RequestFailed."""
        resource = Resource(ResourceKind.TRANSACTIONAL_ID, self._transactional_id)
        with (
            foreseen(f"{what} of partition {self._partition}"),
            authorized(self._connection, Right(Operation.WRITE, resource, "")),
        ):
            try:
                yield
            except (ProducerFenced, InvalidProducerEpoch) as error:
                raise OwnershipLost(
                    f"another worker took partition {self._partition} over and fenced this one"
                ) from error

    async def _send(
        self, producer: AIOKafkaProducer, tp: TopicPartition, pack: RecordPack
    ) -> RecordMetadata:
        """What the broker says of the last record."""
        futures = [
            await producer.send_batch(batch, tp.topic, partition=tp.partition)
            for batch in pack.batches()
        ]
        *_, last = await asyncio.gather(*futures)
        return last._replace(offset=last.offset + pack.in_last - 1)

    async def abort_open(self) -> None:
        """Have an abort marker written to each topic of ours, by a transaction without a record."""
        producer, topics = self._producer, self._topics
        assert producer is not None, "a writer is started before it aborts"
        self._attempts = 0
        try:
            async with asyncio.timeout(self._commit_timeout_s):
                with self._foreseen("an abort"):
                    await producer.begin_transaction()
                    for topic in (
                        *(topics.state, topics.outcomes, topics.audit),
                        *(topics.dead_letters, topics.control),
                    ):
                        add_partition(producer, TopicPartition(topic, self._partition))
                    await producer.abort_transaction()
        except TimeoutError as error:
            raise CommitUncertain(
                f"an abort was not acknowledged within {self._commit_timeout_s:g} s"
            ) from error
        if self._attempts != 1:
            raise ProducerSuspect("an abort was sent twice; the producer is replaced")

    def discard(self) -> None:
        """Stop the producer in the background: it may wait for a whole request, or hang without
        a broker. What it left open is the next producer's to end."""
        producer, self._producer = self._producer, None
        if producer is not None:
            task = asyncio.ensure_future(stop_producer(producer, timeout_s=STOP_TIMEOUT_S))
            _stopping.add(task)
            task.add_done_callback(_stopping.discard)


async def producers_stopped(timeout_s: float) -> None:
    """Wait for discarded producers, at most `timeout_s`; called once, on the way out."""
    if _stopping:
        _, late = await asyncio.wait(set(_stopping), timeout=timeout_s)
        await end_tasks(*late)
