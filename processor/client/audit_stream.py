"""AuditStream: the FlowEvents in order, without a gap or a repeat."""

from collections import deque
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Self

import orjson
from pydantic import ValidationError

from processor.adapters.kafka.errors import PositionLost
from processor.client.connection import connect
from processor.client.errors import AuditGap, UnreadableEvent
from processor.contract import EVENTS, FlowEvent, Topics
from processor.contract.events import CHAIN_HEADER, TRACEPARENT_HEADER
from processor.contract.values import EVENTS_PER_PARTITION
from processor.engine.codec import Record
from processor.engine.partitioner import partition_of
from processor.engine.ports import Start
from processor.settings import Settings, load_settings

FOLLOW_WAIT_S: Final = 1.0
REPLAY_WAIT_S: Final = 0.05
"""At the end of a replay only transaction markers may be left, and nothing wakes us for them."""


@dataclass(frozen=True, slots=True)
class AuditRecord:
    """A FlowEvent with what its record says beside it.

    `value` are the bytes that `chain` (16 bytes) is computed over.
    """

    event: FlowEvent
    partition: int
    offset: int
    value: bytes
    chain: bytes | None
    traceparent: str | None


class AuditStream:
    """The FlowEvents on the audit topic, as an async context manager and async iterator.

    `settings`: from the environment if None. `start`: "beginning", "end", a time (an aware
    datetime: events that the broker appended then or later), or a stored `position`. With
    `follow` it never ends; without, it ends at what was committed when it was opened. `flow_id`
    reads only that flow's partition and gives only its events.

    Order is kept within a partition, and so within a flow. Broker restarts are waited out. One
    task at a time may iterate. Entering raises BrokerUnreachable, TopicsWrong and, for a position
    that lies behind the end, AuditGap; iterating raises AuditGap, UnreadableEvent, AccessDenied.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        start: Start = "beginning",
        follow: bool = True,
        flow_id: str | None = None,
    ) -> None:
        if isinstance(start, datetime) and start.tzinfo is None:
            raise ValueError("start has no time zone, so it is no point in time")
        settings = settings or load_settings()
        self._topic = Topics(settings.topic_prefix).audit
        self._connection = connect(settings)
        self._start = start
        self._follow = follow
        self._key = None if flow_id is None else flow_id.encode()
        self._reader = self._connection.reader(self._topic)
        self._ends: dict[int, int] = {}
        self._position: dict[int, int] = {}
        self._last_ids: dict[int, int] = {}
        self._fetched: deque[Record] = deque()

    async def __aenter__(self) -> Self:
        count = (await self._connection.count_partitions([self._topic]))[self._topic]
        partitions = range(count) if self._key is None else [partition_of(self._key, count)]
        self._ends = await self._reader.open(partitions, self._start)
        try:
            if isinstance(self._start, Mapping):
                self._check_positions()
        except BaseException:
            await self._reader.close()
            raise
        self._position = dict(self._reader.positions)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._reader.close()

    @property
    def position(self) -> dict[int, int]:
        """The next offset of each partition: store it once the last event is dealt with, and
        give it as `start` to go on behind that event."""
        return dict(self._position)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> FlowEvent:
        return (await self._next()).event

    async def records(self) -> AsyncIterator[AuditRecord]:
        """The same events, each with its place, bytes, chain value and trace context."""
        while True:
            try:
                record = await self._next()
            except StopAsyncIteration:
                return
            yield record

    async def _next(self) -> AuditRecord:
        """Raises StopAsyncIteration behind the last one."""
        while True:
            while self._fetched:
                record = self._take()
                if record is not None:
                    return record
            # Nothing is pending: whatever the reader is past needs no reading again.
            self._position |= self._reader.positions
            if not self._follow:
                self._position = {p: min(at, self._ends[p]) for p, at in self._position.items()}
                if self._position == self._ends:
                    raise StopAsyncIteration
            try:
                self._fetched.extend(
                    await self._reader.poll(wait_s=FOLLOW_WAIT_S if self._follow else REPLAY_WAIT_S)
                )
            except PositionLost as lost:
                raise AuditGap(
                    f"{self._topic} does not have the next offset of these partitions "
                    f"(partition: offset): {lost.positions}."
                ) from lost

    def _take(self) -> AuditRecord | None:
        """The next fetched record; None if it is not asked for.

        One that raises stays the next one: asking again does not skip it.
        """
        record = self._fetched[0]
        taken = None
        if self._follow or record.offset < self._ends[record.partition]:
            if self._key is None or record.key == self._key:
                event = self._event(record)
                self._check(record, event.id)
                taken = _with_headers(event, record)
            else:
                self._check(record, self._id(record))
            self._position[record.partition] = record.offset + 1
        self._fetched.popleft()
        return taken

    def _check_positions(self) -> None:
        """A position behind the end comes from another topic, or the end was lost."""
        behind = {p: at for p, at in self._reader.positions.items() if at > self._ends[p]}
        if behind:
            raise AuditGap(f"{self._topic} ends before these positions: {behind}.")

    def _check(self, record: Record, event_id: int) -> None:
        """Holds the ids of each partition gapless, from the first one seen."""
        last = self._last_ids.get(record.partition, event_id - 1)
        if event_id != last + 1 or event_id // EVENTS_PER_PARTITION != record.partition:
            raise AuditGap(
                f"{self._topic}/{record.partition} has event {event_id} at offset "
                f"{record.offset}, but {last + 1} must come next."
            )
        self._last_ids[record.partition] = event_id

    def _event(self, record: Record) -> FlowEvent:
        try:
            return EVENTS.validate_json(record.value or b"")
        except ValidationError as error:
            raise self._unreadable(record) from error

    def _id(self, record: Record) -> int:
        try:
            return int(orjson.loads(record.value or b"")["id"])
        except (ValueError, TypeError, LookupError) as error:
            raise self._unreadable(record) from error

    def _unreadable(self, record: Record) -> UnreadableEvent:
        return UnreadableEvent(
            f"{self._topic}/{record.partition} holds no FlowEvent at offset {record.offset}."
        )


def _with_headers(event: FlowEvent, record: Record) -> AuditRecord:
    headers = dict(record.headers)
    traceparent = headers.get(TRACEPARENT_HEADER)
    return AuditRecord(
        event,
        record.partition,
        record.offset,
        record.value or b"",
        headers.get(CHAIN_HEADER),
        None if traceparent is None else traceparent.decode("ascii", "replace"),
    )
