"""Take a partition's records out of the consumer while earlier ones are decided."""

import asyncio
from contextlib import suppress
from typing import Final

from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka.errors import ConsumerStoppedError

from processor.adapters.kafka.internals import coordination_error
from processor.runtime import end_tasks

BYTES_MAX: Final = 256 * 1024
"""Nothing more is taken out of the consumer while so much is held, keys and values."""
WAIT_MS: Final = 60_000

Records = dict[TopicPartition, list[ConsumerRecord]]


class ReadAhead:
    """The records of `partitions` that `consumer` has fetched and that were not taken yet.

    aiokafka sends a broker no fetch while records of any of its partitions wait in the consumer,
    for 0.1 s at most, and each fetch leaves out the partitions whose records wait. If a partition
    left its records there while it decides a batch, all others would wait for it, and then it for
    them. So they are held here, up to a batch of them, and each fetch asks for every partition.
    """

    def __init__(self, consumer: AIOKafkaConsumer, *partitions: TopicPartition) -> None:
        self._consumer = consumer
        self._partitions = partitions
        self._held: Records = {}
        self._count = self._size_bytes = self._max_records = 0
        self._some = asyncio.Event()
        """Set while something is held, and once there is nothing more to come."""
        self._room = asyncio.Event()
        self._stopped = False
        self._reading = asyncio.create_task(self._read(), name="read ahead")
        self._reading.add_done_callback(self._ended)

    def position(self, partition: TopicPartition) -> int | None:
        """The offset of the first held record of `partition`; None: nothing of it is held."""
        records = self._held.get(partition)
        return records[0].offset if records else None

    async def take(self, *, max_records: int, timeout_s: float) -> Records:
        """What is held, or what comes next, or nothing after `timeout_s`.

        From now on up to `max_records` are held. Raises what the consumer has raised.
        """
        self._max_records = max_records
        self._room.set()
        if not self._some.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self._some.wait()
        if not self._held:
            if self._stopped:
                raise ConsumerStoppedError
            if self._reading.done() and not self._reading.cancelled():
                self._reading.result()
        taken, self._held = self._held, {}
        self._count = self._size_bytes = 0
        if not self._reading.done():
            self._some.clear()
        return taken

    def drop(self) -> None:
        """Forget what is held, and read no more. A waiting caller gets nothing.

        It does not wait: the group gives partitions away in a callback without await. The reader
        is in `getmany` or waits for room; neither can lose the cancellation, and it has touched the
        consumer for the last time.
        """
        self._held = {}
        self._reading.cancel()
        self._some.set()

    async def stop(self) -> None:
        """As `drop`, before the consumer is stopped."""
        self._stopped = True
        self.drop()
        await end_tasks(self._reading)

    async def _read(self) -> None:
        while True:
            while self._count >= self._max_records or self._size_bytes >= BYTES_MAX:
                self._room.clear()
                await self._room.wait()
            # `getmany` would raise it, and let coordination go on.
            if (error := coordination_error(self._consumer)) is not None:
                raise error
            fetched = await self._consumer.getmany(
                *self._partitions, timeout_ms=WAIT_MS, max_records=self._max_records - self._count
            )
            for partition, records in fetched.items():
                self._held.setdefault(partition, []).extend(records)
                self._count += len(records)
                self._size_bytes += sum(len(r.key or b"") + len(r.value or b"") for r in records)
            if fetched:
                self._some.set()

    def _ended(self, reading: asyncio.Task[None]) -> None:
        self._some.set()
        if not reading.cancelled():
            reading.exception()  # retrieved, so that asyncio does not log it
