"""Read the old side: each decided record of one partition with all that it caused, in order."""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, NamedTuple

import orjson

from processor.contract.headers import split_dead_letter
from processor.contract.outcomes import Verdict
from processor.contract.topics import Topics
from processor.contract.values import parse_timestamp
from processor.errors import HistoryLost
from processor.ops.verify.ports import LogRange, LogRecord
from processor.ops.verify.record_stream import RecordStream

OpenStream = Callable[[str, int, int], RecordStream]


class MoveStep(NamedTuple):
    """One decided record. Where retention took it or its outcome, only its events are left:
    `source`, `outcome` and `doc` are None, and `events` is one event. `at_ms` orders the steps of
    different partitions; within one, it never goes back."""

    partition: int
    at_ms: int
    source: LogRecord | None
    outcome: LogRecord | None
    doc: dict[str, Any] | None
    events: Sequence[LogRecord]
    dead_letter: LogRecord | None

    @property
    def front(self) -> bool:
        return self.outcome is None


class OldPartition:
    """`offset_ranges`: what the topics hold, all of it decided but what lies behind the cursor."""

    def __init__(
        self,
        topics: Topics,
        partition: int,
        offset_ranges: Mapping[str, LogRange],
        open_stream: OpenStream,
    ) -> None:
        self._topics = topics
        self._partition = partition
        self._offset_ranges = offset_ranges
        self._open = open_stream
        self._streams: dict[str, RecordStream] = {}
        self._passed: dict[str, int] = {}
        """The newest offset of each source whose outcome was passed."""

    async def front_end(self) -> int:
        """The first outcome from which on every outcome still has its command."""
        outcomes = self._offset_ranges[self._topics.outcomes]
        starts = {
            t: self._offset_ranges[t].start for t in (self._topics.commands, self._topics.control)
        }
        end = outcomes.start
        if any(starts.values()):
            stream = self._open(self._topics.outcomes, outcomes.start, outcomes.stable)
            while (record := await stream.take()) is not None:
                source = orjson.loads(record.value or b"")["source"]
                if source["offset"] < starts.get(source["topic"], 0):
                    end = record.offset + 1
        return end

    async def front(self, end: int) -> AsyncIterator[MoveStep]:
        """Events whose outcomes lie before `end`, or are gone. To be read to its end before
        `steps`."""
        audit = self._stream(self._topics.audit)
        outcomes = self._stream(self._topics.outcomes)
        first: int | None = None
        while (record := await outcomes.head()) is not None:
            if record.offset >= end:
                # `steps` begins with it: look further through another stream.
                first = await self._first_event(record.offset)
                break
            await outcomes.take()
            source = orjson.loads(record.value or b"")["source"]
            self._passed[source["topic"]] = source["offset"]
        at_ms = 0
        while (event := await audit.head()) is not None:
            doc = orjson.loads(event.value or b"")
            if first is not None and doc["id"] >= first:
                return
            await audit.take()
            at_ms = max(at_ms, parse_timestamp(doc["at"]))
            yield MoveStep(self._partition, at_ms, None, None, None, [event], None)

    async def _first_event(self, offset: int) -> int | None:
        """The first event that an outcome from `offset` on names."""
        stable = self._offset_ranges[self._topics.outcomes].stable
        ahead = self._open(self._topics.outcomes, offset, stable)
        while (record := await ahead.take()) is not None:
            doc = orjson.loads(record.value or b"")
            if doc["verdict"] == Verdict.ACCEPTED and doc["event_ids"]:
                await ahead.close()
                return int(doc["event_ids"][0])
        return None

    async def steps(self) -> AsyncIterator[MoveStep]:
        """In the order of decision. Raises HistoryLost where the topics do not fit together."""
        outcomes = self._stream(self._topics.outcomes)
        at_ms = 0
        while (record := await outcomes.take()) is not None:
            doc = orjson.loads(record.value or b"")
            place = doc["source"]
            source = await self._at(place["topic"], place["offset"])
            events = []
            if doc["verdict"] == Verdict.ACCEPTED:
                for event_id in doc["event_ids"]:
                    event = await self._stream(self._topics.audit).take()
                    if event is None or orjson.loads(event.value or b"")["id"] != event_id:
                        raise self._apart(f"event {event_id} is not where its outcome says")
                    events.append(event)
            dead_letter = None
            if doc["verdict"] == Verdict.QUARANTINED:
                dead_letter = await self._dead_letter_of(place)
            at_ms = max(at_ms, parse_timestamp(doc["at"]))
            yield MoveStep(self._partition, at_ms, source, record, doc, events, dead_letter)
        if await self._stream(self._topics.audit).take() is not None:
            raise self._apart("there are events that no outcome names")

    async def undecided(self, topic: str, offset: int) -> AsyncIterator[LogRecord]:
        """What lies behind the cursor."""
        start = max(offset, self._offset_ranges[topic].start)
        stream = self._open(topic, start, self._offset_ranges[topic].stable)
        while (record := await stream.take()) is not None:
            yield record

    async def _at(self, topic: str, offset: int) -> LogRecord:
        self._passed[topic] = offset
        stream = self._stream(topic)
        while (record := await stream.take()) is not None:
            if record.offset == offset:
                return record
            if record.offset > offset:
                break
        raise self._apart(f"{topic} has no record at offset {offset}, which has an outcome")

    async def _dead_letter_of(self, place: Mapping[str, Any]) -> LogRecord | None:
        """Retention may have taken it: dead letters are kept for less long than outcomes."""
        dead_letters = self._stream(self._topics.dead_letters)
        while (head := await dead_letters.head()) is not None:
            _, facts = split_dead_letter(head.headers)
            about = None if facts is None else facts.source
            if about is not None:
                if (about.topic, about.offset) == (place["topic"], place["offset"]):
                    return await dead_letters.take()
                if about.offset > self._passed.get(about.topic, -1):
                    break  # a later one's
            await dead_letters.take()  # of what stays behind
        if self._offset_ranges[self._topics.dead_letters].start == 0:
            raise self._apart(f"{place} has no dead letter")
        return None

    def _stream(self, topic: str) -> RecordStream:
        stream = self._streams.get(topic)
        if stream is None:
            offset_range = self._offset_ranges[topic]
            stream = self._streams[topic] = self._open(
                topic, offset_range.start, offset_range.stable
            )
        return stream

    def _apart(self, why: str) -> HistoryLost:
        return HistoryLost(
            f"Partition {self._partition} of {self._topics.prefix} is not whole: {why}. "
            "`taskflow verify` says more; nothing was changed there."
        )


async def merged_by_time(streams: Sequence[AsyncIterator[MoveStep]]) -> AsyncIterator[MoveStep]:
    """By time, each stream in its own order."""
    heads = {n: head async for n, head in _firsts(streams)}
    while heads:
        first = min(heads, key=lambda n: (heads[n].at_ms, n))
        yield heads.pop(first)
        following = await anext(streams[first], None)
        if following is not None:
            heads[first] = following


async def _firsts(
    streams: Sequence[AsyncIterator[MoveStep]],
) -> AsyncIterator[tuple[int, MoveStep]]:
    for partition, stream in enumerate(streams):
        head = await anext(stream, None)
        if head is not None:
            yield partition, head
