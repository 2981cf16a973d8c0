"""Send records from the wrong partition to the right one, by a plain idempotent producer.

Outside of any transaction: a forwarder that died in one would stall another partition's
commands until the transaction timed out.
"""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.errors import MessageSizeTooLargeError

from processor.adapters.kafka.producer.plain_producer import STOP_TIMEOUT_S, start_producer
from processor.adapters.kafka.shutdown import stop_producer
from processor.contract.topics import DEAD_LETTER_MAX_BYTES
from processor.engine.batch import Forward


class PlainForwarder:
    """Shared by all partitions of a worker; started when it is first needed."""

    def __init__(self, connection: Mapping[str, Any], *, timeout_s: float) -> None:
        self._connection = connection
        self._timeout_s = timeout_s
        self._producer: AIOKafkaProducer | None = None
        self._starting = asyncio.Lock()

    async def forward(self, forwards: Sequence[Forward]) -> frozenset[tuple[str, int]]:
        """Send all, in order, acknowledged by all replicas; the sources (topic, offset) of those
        that the broker does not take for their size. Raises on any other failure."""
        try:
            async with asyncio.timeout(self._timeout_s):
                producer = await self._started()
                sent = [await self._send(producer, forward) for forward in forwards]
                results = await asyncio.gather(
                    *(future for future in sent if future is not None), return_exceptions=True
                )
        except BaseException:
            await self.stop()
            raise
        refused = {f.source for f, future in zip(forwards, sent, strict=True) if future is None}
        waited = [f for f, future in zip(forwards, sent, strict=True) if future is not None]
        for forward, result in zip(waited, results, strict=True):
            if isinstance(result, MessageSizeTooLargeError):
                refused.add(forward.source)
            elif isinstance(result, BaseException):
                # Its sequence may be off after a failed batch.
                await self.stop()
                raise result
        return frozenset(refused)

    async def _send(self, producer: AIOKafkaProducer, forward: Forward) -> Any:
        record = forward.record
        try:
            return await producer.send(
                forward.topic,
                key=record.key,
                value=record.value,
                headers=list(record.headers),
                partition=forward.partition,
            )
        except MessageSizeTooLargeError:
            return None

    async def _started(self) -> AIOKafkaProducer:
        async with self._starting:
            if self._producer is None:
                self._producer = await start_producer(
                    **self._connection, max_request_size=DEAD_LETTER_MAX_BYTES
                )
            return self._producer

    async def stop(self) -> None:
        """Let go of the producer; the next `forward` starts another."""
        producer, self._producer = self._producer, None
        if producer is not None:
            await stop_producer(producer, timeout_s=STOP_TIMEOUT_S)
