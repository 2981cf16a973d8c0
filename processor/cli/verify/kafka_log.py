"""Read the topics of one partition number as `verify`, `replay` and `repartition` do."""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final, TypeVar

from aiokafka.errors import OffsetOutOfRangeError

from processor.adapters.kafka.client_config import connection_options
from processor.adapters.kafka.errors import (
    BrokerUnreachable,
    HistoryStalled,
    TopicsWrong,
    explained,
)
from processor.adapters.kafka.log_reader import KafkaLogReader
from processor.adapters.kafka.topic_admin import partition_counts
from processor.cli.common.runner import Refused
from processor.contract.topics import Topics
from processor.ops.verify.ports import LogRange, LogRecord
from processor.settings import Settings

PATIENCE_S: Final = 60.0
"""How long a broker may be away that is read from."""
ASK_AGAIN_S: Final = 0.5

T = TypeVar("T")


@contextmanager
def retention_told(settings: Settings) -> Iterator[None]:
    """What Kafka raises, in our words. Raises Refused if retention came first."""
    with explained(settings):
        try:
            yield
        except OffsetOutOfRangeError as error:
            raise Refused(
                f"Retention took what was just to be read ({error}); ask again."
            ) from error


async def partitions_of(settings: Settings, topics: Topics) -> tuple[int, int]:
    """How many partitions the topics have, and how many `steps` has, which may be more. Raises
    TopicsWrong if the others differ, or any is missing."""
    there = await partition_counts(settings, [name for name, _ in topics])
    counts = {name: there.get(name) for name, _ in topics}
    if missing := [name for name, count in counts.items() if count is None]:
        raise TopicsWrong(f"{', '.join(missing)} not there; `taskflow topics check` says more.")
    steps = there[topics.steps]
    numbers = {count for name, count in there.items() if name != topics.steps}
    if len(numbers) > 1 or steps < max(numbers):
        raise TopicsWrong(f"The topics differ in their partitions: {counts}; nothing was verified.")
    return numbers.pop(), steps


class KafkaLog:
    """The topics of one partition number. Each that is read has a consumer of its own, so that they
    can be read in step.

    A broker that goes away is waited for: what it does not answer is asked again, and a read goes
    on behind what it has given. Raises BrokerUnreachable or HistoryStalled once that has been in
    vain for PATIENCE_S.
    """

    def __init__(self, settings: Settings, partition: int, topics: Topics | None = None) -> None:
        """`topics`: those of the settings' prefix, unless told."""
        self._settings = settings
        self._connection = connection_options(settings, "verify")
        self._partition = partition
        # Known from the start: aiokafka learns of others one by one, each with a pause.
        names = [name for name, _ in topics or Topics(settings.topic_prefix)]
        self._ends = KafkaLogReader(self._connection, partition, topics=names)
        self._reading: list[KafkaLogReader] = []

    async def offset_range(self, topic: str) -> LogRange:
        async def ask() -> LogRange:
            # The stable end first: it is never behind an end that was asked for before.
            stable = await self._ends.stable_end(topic)
            offset_range = await self._ends.offset_range(topic)
            return LogRange(offset_range.start, stable, offset_range.end)

        return await self._answered(ask)

    async def offset_at(self, topic: str, at_ms: int) -> int | None:
        return await self._answered(lambda: self._ends.offset_at(topic, at_ms))

    async def _answered(self, ask: Callable[[], Awaitable[T]]) -> T:
        patience = _Patience(self._settings)
        while True:
            try:
                return await ask()
            except Exception as error:
                await patience.bear(error)
                await self._ends.close()

    async def read(
        self, topic: str, start: int, end: int
    ) -> AsyncGenerator[Sequence[LogRecord], None]:
        history = KafkaLogReader(self._connection, self._partition, topics=[topic])
        self._reading.append(history)
        patience = _Patience(self._settings)
        while True:
            try:
                async for records in history.read(topic, start, end):
                    yield records
                    start = records[-1].offset + 1
                    patience.begin()
            except Exception as error:
                await patience.bear(error)
                await history.close()
            else:
                return

    async def close(self) -> None:
        reading, self._reading = self._reading, []
        for history in (self._ends, *reading):
            await history.close()


class _Patience:
    """With a broker that does not answer, for PATIENCE_S from the last time that it did."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.begin()

    def begin(self) -> None:
        self._until = time.monotonic() + PATIENCE_S

    async def bear(self, error: Exception) -> None:
        """Pause, if another try may do better; raise it in our words, if not or if it is enough."""
        if isinstance(error, OffsetOutOfRangeError):
            raise error
        try:
            with explained(self._settings):
                raise error
        except (BrokerUnreachable, HistoryStalled) as told:
            if not told.retriable or time.monotonic() > self._until:
                raise
        await asyncio.sleep(ASK_AGAIN_S)
