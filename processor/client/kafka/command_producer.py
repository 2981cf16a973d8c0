"""Produce commands, through producers that are replaced when they fail."""

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from aiokafka import AIOKafkaProducer
from aiokafka.errors import (
    InvalidProducerEpoch,
    InvalidProducerIdMapping,
    KafkaError,
    KafkaTimeoutError,
    OutOfOrderSequenceNumber,
    ProducerClosed,
    ProducerFenced,
    UnknownError,
    UnknownProducerId,
)
from aiokafka.structs import RecordMetadata

from processor.adapters.kafka.client_config import (
    compression_type,
    connection_options,
    ensure_reachable,
)
from processor.adapters.kafka.errors import NotAuthorized, explain, explained
from processor.adapters.kafka.producer.plain_producer import start_producer
from processor.adapters.kafka.producer.record_writer import write_record
from processor.adapters.kafka.shutdown import stop_producer
from processor.client.errors import CommandNotSent, SendUncertain
from processor.contract.headers import Headers
from processor.contract.rights import Operation, on_topic
from processor.contract.topics import Topics
from processor.settings import Settings

CLOSE_TIMEOUT_S: Final = 5.0
RETRY_PAUSE_S: Final = 0.2
ACK_TIMEOUT_S: Final = 45.0
"""aiokafka gives a batch up after 40 s, but waits for ever if its sender hangs."""
BATCH_BYTES: Final = 128 * 1024

_OF_THE_PRODUCER: Final = (
    InvalidProducerEpoch,
    InvalidProducerIdMapping,
    KafkaTimeoutError,
    OutOfOrderSequenceNumber,
    ProducerClosed,
    ProducerFenced,
    UnknownError,
    UnknownProducerId,
)
_log = logging.getLogger(__name__)


class CommandProducer:
    """An idempotent producer that waits for all replicas.

    After a failed batch a producer's sequence numbers are off, so it is replaced.
    """

    def __init__(self, settings: Settings, topic: str | None = None) -> None:
        """`topic`: what is written to above all; `commands` if None."""
        self._settings = settings
        commands = Topics(settings.topic_prefix).commands
        self._needs = on_topic(Operation.WRITE, topic or commands)
        """Without Write on any topic at all, a broker gives out no producer id."""
        self._producer: AIOKafkaProducer | None = None
        self._starting = asyncio.Lock()
        self._stopping: set[asyncio.Task[None]] = set()
        self._closed = False

    async def start(self) -> None:
        """Raises BrokerUnreachable."""
        await ensure_reachable(self._settings)
        with explained(self._settings, self._needs):
            await self._current()

    async def send(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        headers: Headers,
        *,
        partition: int | None = None,
        handed_over: Callable[[], None],
    ) -> RecordMetadata:
        """Write a record to `partition`, or to that of its key; returns when all replicas have it.

        Calls `handed_over` each time that the record may from now on be written: more than once
        if it is rewritten through another producer. Tries until it is cancelled; the record
        may then still be written. Raises CommandNotSent if Kafka refuses it, SendUncertain if it
        does so after an earlier try that may have written it.
        """
        uncertain = False
        while not self._closed:
            producer, handed = None, False
            try:
                producer = await self._current()
                written = await write_record(
                    producer, topic, key, value, headers, partition=partition
                )
                handed_over()
                handed = True
                try:
                    async with asyncio.timeout(ACK_TIMEOUT_S):
                        return await written
                except TimeoutError:
                    raise KafkaTimeoutError("the producer says nothing any more") from None
            except KafkaError as error:
                if producer is not None:
                    self._replace(producer)
                if _is_refusal(error):
                    kind = SendUncertain if uncertain else CommandNotSent
                    raise kind(self._refused(topic, error)) from error
                uncertain = uncertain or handed
                _log.warning("sending to %s: %r; trying again", topic, error)
            await asyncio.sleep(RETRY_PAUSE_S)
        raise ProducerClosed

    def _refused(self, topic: str, error: KafkaError) -> str:
        needs = on_topic(Operation.WRITE, topic)
        failure = explain(error, self._settings, needs=needs)
        why = str(failure) if isinstance(failure, NotAuthorized) else f"{error!r}."
        return f"Kafka refused the command for {topic}: {why}"

    async def close(self) -> None:
        """Stop within CLOSE_TIMEOUT_S or a little more; what is not acknowledged is dropped."""
        self._closed = True
        if self._producer is not None:
            self._replace(self._producer)
        while self._stopping:
            await asyncio.wait(self._stopping)

    async def _current(self) -> AIOKafkaProducer:
        async with self._starting:
            if self._producer is None:
                if self._closed:
                    raise ProducerClosed
                self._producer = await start_producer(
                    **connection_options(self._settings, "client"),
                    compression_type=compression_type(self._settings),
                    max_batch_size=BATCH_BYTES,
                    # No linger: one request to a broker is under way at a time, and what comes
                    # meanwhile goes together. 5 ms took as much CPU.
                )
            return self._producer

    def _replace(self, producer: AIOKafkaProducer) -> None:
        """Let the next send make another; this one ends on its own."""
        if producer is self._producer:
            self._producer = None
            task = asyncio.create_task(stop_producer(producer, timeout_s=CLOSE_TIMEOUT_S))
            self._stopping.add(task)
            task.add_done_callback(self._stopping.discard)


def _is_refusal(error: KafkaError) -> bool:
    """Whether it is about this record (too large, not authorized, against a policy), rather than
    the producer's trouble, or of unknown origin: a bare KafkaError is aiokafka's own."""
    return not (error.retriable or isinstance(error, _OF_THE_PRODUCER) or type(error) is KafkaError)
