"""Follow `outcomes`, and say which acknowledged commands have theirs."""

import asyncio
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final

import orjson
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from processor.adapters.kafka.shutdown import stop_consumer
from processor.contract.topics import Topics
from processor.errors import TaskflowError

POLL_S: Final = 0.05
GIVE_UP_S: Final = 5.0
"""A consumer that comes no further for so long is replaced: some never recover from the restart
of their broker."""


class NotHealed(TaskflowError):
    """Commands that the broker had acknowledged got no outcome in time after a fault was over."""


class OutcomeTracker:
    """Reads on from where it was each time it is asked. An owner decides each topic in the order
    of its offsets, so that one offset for each source partition says what has its outcome."""

    def __init__(self, connection: Mapping[str, Any], topics: Topics, partitions: int) -> None:
        self.verdicts: Counter[str] = Counter()
        self._connection = connection
        self._tps = [TopicPartition(topics.outcomes, p) for p in range(partitions)]
        self._next = dict.fromkeys(self._tps, 0)
        self._decided_to: dict[tuple[str, int], int] = {}
        self._consumer: AIOKafkaConsumer | None = None

    async def until(self, marks: Mapping[tuple[str, int], int], *, timeout_s: float) -> float:
        """Wait until all below `marks` has its outcome; how long that took, in seconds.

        Raises NotHealed.
        """
        began = time.monotonic()
        while left := {at: end for at, end in marks.items() if self._decided_to.get(at, 0) < end}:
            if time.monotonic() - began > timeout_s:
                where = ", ".join(
                    f"{topic}/{partition} from offset "
                    f"{self._decided_to.get((topic, partition), 0)} to {end}"
                    for (topic, partition), end in sorted(left.items())
                )
                raise NotHealed(f"Within {timeout_s:g} s there was no outcome for {where}.")
            await self._read()
            await asyncio.sleep(POLL_S)
        return time.monotonic() - began

    async def rest(self, tps: Sequence[TopicPartition], *, rest_s: float, timeout_s: float) -> None:
        """Wait until nothing was written to `tps` for `rest_s`. Raises NotHealed."""
        began = since = time.monotonic()
        ends: Mapping[TopicPartition, int] = {}
        while time.monotonic() - since < rest_s:
            if time.monotonic() - began > timeout_s:
                raise NotHealed(f"After the load, there was no rest within {timeout_s:g} s.")
            await self._read()
            if self._consumer is not None:
                now = await self._consumer.end_offsets(tps)
                if now != ends:
                    ends, since = now, time.monotonic()
            await asyncio.sleep(POLL_S)

    async def close(self) -> None:
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            await stop_consumer(consumer, timeout_s=1.0)

    async def _read(self) -> None:
        """Everything up to what is committed now, or less if the broker is not itself."""
        try:
            async with asyncio.timeout(GIVE_UP_S):
                consumer = self._consumer
                if consumer is None:
                    consumer = self._consumer = self._new_consumer()
                    await consumer.start()
                    consumer.assign(self._tps)
                    for tp, offset in self._next.items():
                        consumer.seek(tp, offset)
                ends = await consumer.end_offsets(self._tps)
                while [tp for tp, end in ends.items() if self._next[tp] < end]:
                    for tp, records in (await consumer.getmany(timeout_ms=200)).items():
                        for record in records:
                            self._take(record.value)
                        self._next[tp] = records[-1].offset + 1
                    for tp in self._tps:  # past markers, which no record shows
                        self._next[tp] = max(self._next[tp], await consumer.position(tp))
        except (KafkaError, OSError, TimeoutError):
            await self.close()

    def _take(self, value: bytes) -> None:
        outcome = orjson.loads(value)
        source = outcome["source"]
        self.verdicts[outcome["verdict"]] += 1
        self._decided_to[source["topic"], source["partition"]] = source["offset"] + 1

    def _new_consumer(self) -> AIOKafkaConsumer:
        return AIOKafkaConsumer(
            **self._connection,
            enable_auto_commit=False,
            auto_offset_reset="none",
            isolation_level="read_committed",
            fetch_max_wait_ms=50,
        )
