"""Read a partition's topics as of the end of one transaction, while a worker goes on writing."""

from collections.abc import AsyncIterator, Callable, Sequence
from typing import Final

import orjson

from processor.engine.batch import PartitionConfig
from processor.engine.codec import Record
from processor.engine.ports import LogReader, OffsetRange, OnHanging
from processor.errors import TaskflowError
from processor.recovery.checkpoint import (
    OffsetRanges,
    PartitionCheckpoint,
    last_record,
    newest_cursor,
    settled,
    stand,
)

AT_REST_TRIES: Final = 3


class MovedOn(TaskflowError):
    """The partition was written to between the check and the change; nothing was changed."""

    retriable = True


class ConsistentCut:
    """A partition's topics as they were at the end of one transaction; `on_read` is called with
    how many records were read."""

    def __init__(
        self,
        history: LogReader,
        offset_ranges: OffsetRanges,
        on_read: Callable[[int], None] = lambda _: None,
    ) -> None:
        self.offset_ranges = offset_ranges
        self._history = history
        self._on_read = on_read

    async def settled(
        self, topics: Sequence[str], on_hanging: OnHanging | None = None
    ) -> dict[str, OffsetRange]:
        return {topic: self.offset_ranges[topic] for topic in topics}

    async def visible(self, topics: Sequence[str]) -> dict[str, OffsetRange]:
        return {topic: self.offset_ranges[topic] for topic in topics}

    async def read(self, topic: str, start: int, end: int) -> AsyncIterator[Sequence[Record]]:
        async for records in self._history.read(topic, start, end):
            self._on_read(len(records))
            yield records

    async def offset_at(self, topic: str, at_ms: int) -> int | None:
        found = await self._history.offset_at(topic, at_ms)
        if (
            found is not None
            and topic in self.offset_ranges
            and found >= self.offset_ranges[topic].end
        ):
            return None
        return found

    async def offset_range(self, topic: str) -> OffsetRange:
        return await self._history.offset_range(topic)

    async def stable_end(self, topic: str) -> int:
        return await self._history.stable_end(topic)

    async def close(self) -> None:
        await self._history.close()


async def consistent_cut(
    place: PartitionConfig, history: LogReader, on_read: Callable[[int], None] = lambda _: None
) -> ConsistentCut:
    """The topics at the end of one transaction.

    Two looks that see the same ends had no transaction between them, nor one in the middle. Where
    a producer writes all the time, `state` is cut at its last stable offset, which lies between two
    transactions, and the others where its newest cursor says.
    """
    for _ in range(AT_REST_TRIES):
        offset_ranges = await settled(place, history)
        if offset_ranges == await settled(place, history):
            return ConsistentCut(history, offset_ranges, on_read)
    topics = place.topics
    stable = await history.stable_end(topics.state)
    # Asked for later, so that they hold all that belongs to what is on `state` until there.
    after = await history.settled([topics.outcomes, topics.audit])
    state = OffsetRange((await history.offset_range(topics.state)).start, stable)
    cursor = await newest_cursor(place, history, {topics.state: state})
    if cursor is None:
        raise MovedOn(
            f"Partition {place.partition} was decided for the first time just now; look again."
        )

    position = cursor.position

    def later_event(record: Record) -> bool:
        return bool(orjson.loads(record.value or b"")["id"] >= position.next_event_id)

    def later_outcome(record: Record) -> bool:
        source = orjson.loads(record.value or b"")["source"]
        decided = position.commands if source["topic"] == topics.commands else position.control
        return bool(source["offset"] >= decided)

    cut = {
        topics.state: state,
        topics.audit: await _cut(history, topics.audit, after[topics.audit], later_event),
        topics.outcomes: await _cut(
            history, topics.outcomes, after[topics.outcomes], later_outcome
        ),
    }
    return ConsistentCut(history, cut, on_read)


async def _cut(
    history: LogReader, topic: str, offset_range: OffsetRange, later: Callable[[Record], bool]
) -> OffsetRange:
    """`offset_range` without the records at its end that are `later`."""
    last = await last_record(history, topic, offset_range, lambda record: not later(record))
    return OffsetRange(offset_range.start, offset_range.start if last is None else last.offset + 1)


async def standing_of(place: PartitionConfig, view: ConsistentCut) -> PartitionCheckpoint:
    """Raises as a recovery does, except for what the source topics lost: that is no matter here."""
    return await stand(
        place, view, view.offset_ranges, await newest_cursor(place, view, view.offset_ranges)
    )
