"""Read the history of one partition number from its topics.

The order is that of the outcomes, and in step with them are read their commands,
the events that they name, and the dead letters. An outcome's offset follows right upon the one
before if both are of one transaction: behind the last stands the transaction's marker.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

import orjson

from processor.contract.headers import (
    MOVED_FROM,
    RecordPlace,
    chain_of,
    split_dead_letter,
    without_cloudevents,
)
from processor.contract.state import CURSOR_PREFIX
from processor.engine.batch import Outgoing, first_event_id, new_outgoing
from processor.engine.codec import Readable, decode
from processor.ops.replay.recorded_history import (
    Beginning,
    Decided,
    HistoryUnusable,
    RecordedSnapshot,
    RecordedTransaction,
    Rules,
)
from processor.ops.replay.store import ReplayStore
from processor.ops.verify.ports import Log, LogRange, LogRecord
from processor.ops.verify.record_stream import OnRead, RecordStream
from processor.partition.scheduling.timers import ACTOR
from processor.recovery.ledger_window import LATE_MAX_MS
from processor.recovery.snapshot_reader import ledger_entry_of

_DECIDED: Final = b'"verdict":"accepted"'


class _Point(NamedTuple):
    """The outcome from which a history goes on: its offset, and when it was appended."""

    outcome: int
    at_ms: int


class LivePartition:
    """Reads `log` once. `since_ms`: leave out what was decided before; what came of it is taken
    from the fold of `audit`. `on_read` is called with how many outcomes
    were passed."""

    def __init__(
        self,
        log: Log,
        rules: Rules,
        partition: int,
        *,
        since_ms: int | None = None,
        on_read: OnRead = lambda _: None,
    ) -> None:
        self._log = log
        self._place = rules.place(partition)
        self._topics = self._place.topics
        self._since_ms = since_ms
        self._on_read = on_read
        self._offset_ranges: dict[str, LogRange] = {}
        self._streams: dict[str, RecordStream] = {}
        self._waking: list[str] = []

    async def outcomes(self) -> int:
        """How many offsets of outcomes there are."""
        offset_range = await self._log.offset_range(self._topics.outcomes)
        return offset_range.stable - offset_range.start

    async def begin(self, store: ReplayStore) -> Beginning:
        topics, log = self._topics, self._log
        # Outcomes first: what they speak of is there by now.
        for topic in (topics.outcomes, topics.audit, topics.dead_letters, *self._sources):
            self._offset_ranges[topic] = await log.offset_range(topic)
        outcomes = self._offset_ranges[topics.outcomes]
        point = await self._point()
        if point is None:
            for topic in (topics.outcomes, topics.audit, topics.dead_letters, *self._sources):
                self._open(topic, self._offset_ranges[topic].start)
            next_id = first_event_id(self._place.partition)
            return Beginning(next_id, None, 0, 0)
        self._on_read(point.outcome - outcomes.start)
        await self._keep_ledger(store, point)
        self._open(topics.outcomes, point.outcome)
        first_event = await self._first_event(point.outcome)
        next_id = await self._fold(store, first_event)
        starts = await self._first_sources(point.outcome)
        for topic in self._sources:
            self._open(topic, starts[topic])
        self._open(topics.dead_letters, self._offset_ranges[topics.dead_letters].start)
        return Beginning(next_id, point.at_ms, *(starts[topic] for topic in self._sources))

    async def decided(self) -> AsyncIterator[RecordedTransaction]:
        outcomes = self._streams[self._topics.outcomes]
        batch = RecordedTransaction()
        follows = -1
        while (record := await outcomes.take()) is not None:
            if record.offset != follows and batch:
                yield batch
                batch = RecordedTransaction()
            batch.add(await self._one(record))
            follows = record.offset + 1
        if batch:
            yield batch
        control = self._streams[self._topics.control]
        while (record := await control.take()) is not None:
            if (flow_id := _woken(record)) is not None:
                self._waking.append(flow_id)
        for stream in self._streams.values():
            await stream.close()

    async def snapshots(self) -> AsyncIterator[Sequence[RecordedSnapshot]]:
        offset_range = await self._log.offset_range(self._topics.state)
        cursor = CURSOR_PREFIX.encode()
        async for records in self._log.read(
            self._topics.state, offset_range.start, offset_range.stable
        ):
            yield [
                RecordedSnapshot(record.key, record.value)
                for record in records
                if record.key and record.value and not record.key.startswith(cursor)
            ]

    def waking(self) -> Sequence[str]:
        return self._waking

    @property
    def _sources(self) -> tuple[str, str]:
        return self._topics.commands, self._topics.control

    def _open(self, topic: str, start: int) -> None:
        end = self._offset_ranges[topic].stable
        on_read = self._on_read if topic == self._topics.outcomes else _ignored
        self._streams[topic] = RecordStream(self._log, topic, start, end, on_read)

    # Where to begin

    async def _point(self) -> _Point | None:
        """The first outcome from which on every command is still there, or behind the last; None:
        the very first."""
        outcomes = self._offset_ranges[self._topics.outcomes]
        starts = {topic: self._offset_ranges[topic].start for topic in self._sources}
        least = outcomes.start
        if self._since_ms is not None:
            found = await self._log.offset_at(self._topics.outcomes, self._since_ms)
            least = outcomes.stable if found is None else max(least, found)
        if least == 0 and not any(starts.values()):
            return None
        # Each topic's commands are decided in their order: once its first that is left was
        # decided, none is missing any more.
        missing = {topic for topic, start in starts.items() if start > 0}
        point: _Point | None = None
        async for records in self._log.read(self._topics.outcomes, outcomes.start, outcomes.stable):
            for record in records:
                source = orjson.loads(record.value or b"")["source"]
                if source["offset"] < starts[source["topic"]]:
                    point = None
                    continue
                missing.discard(source["topic"])
                if point is None and record.offset >= least:
                    point = _Point(record.offset, record.timestamp)
            if not missing and point is not None:
                break
        return point or _Point(outcomes.stable, self._since_ms or 0)

    async def _keep_ledger(self, store: ReplayStore, point: _Point) -> None:
        """Outcomes that a command from `point` on may be a resend of."""
        if point.outcome >= self._offset_ranges[self._topics.outcomes].stable:
            return
        since_ms = max(0, point.at_ms - self._place.dedupe_window_ms - LATE_MAX_MS)
        start = await self._log.offset_at(self._topics.outcomes, since_ms)
        if start is None or start >= point.outcome:
            return
        async for records in self._log.read(self._topics.outcomes, start, point.outcome):
            entries = (ledger_entry_of(orjson.loads(record.value or b"")) for record in records)
            store.keep_ledger(entry for entry in entries if entry is not None)

    async def _first_event(self, start: int) -> int | None:
        """The first event that an outcome from `start` on has caused; None if none has."""
        end = self._offset_ranges[self._topics.outcomes].stable
        async for records in self._log.read(self._topics.outcomes, start, end):
            for record in records:
                if (caused := _caused(record)) is not None and caused:
                    return caused[0]
        return None

    async def _fold(self, store: ReplayStore, until_id: int | None) -> int:
        """Fold the events before `until_id`; the id that comes next. Raises HistoryUnusable."""
        topic = self._topics.audit
        offset_range = self._offset_ranges[topic]
        if offset_range.start > 0:
            raise HistoryUnusable(
                f"{topic} partition {self._place.partition} begins at offset {offset_range.start}: "
                "what flows were before is unknown."
            )
        stream = RecordStream(self._log, topic, offset_range.start, offset_range.stable, _ignored)
        self._streams[topic] = stream
        next_id = first_event_id(self._place.partition)
        while (record := await stream.head()) is not None:
            event = orjson.loads(record.value or b"")
            if until_id is not None and event["id"] >= until_id:
                break
            try:
                store.fold(event, chain_of(record.headers))
            except Exception as error:
                raise HistoryUnusable(
                    f"The event at offset {record.offset} of {topic} partition "
                    f"{record.partition} cannot be folded ({error}); `taskflow verify` says more."
                ) from error
            next_id = event["id"] + 1
            await stream.take()
        return next_id

    async def _first_sources(self, start: int) -> dict[str, int]:
        """The first offset of each source that has its outcome from `start` on."""
        found: dict[str, int] = {}
        end = self._offset_ranges[self._topics.outcomes].stable
        async for records in self._log.read(self._topics.outcomes, start, end):
            for record in records:
                source = orjson.loads(record.value or b"")["source"]
                found.setdefault(source["topic"], source["offset"])
            if len(found) == len(self._sources):
                break
        return {
            topic: found.get(topic, self._offset_ranges[topic].stable) for topic in self._sources
        }

    # In step

    async def _one(self, record: LogRecord) -> Decided:
        outcome = orjson.loads(record.value or b"")
        source = await self._source(outcome["source"], record)
        events = []
        for event_id in _caused(record, outcome) or ():
            events.append(await self._event(event_id, record))
        dead_letter = None
        if outcome["verdict"] == "quarantined":
            dead_letter = await self._dead_letter(source)
        return Decided(source, _decided(record), events, dead_letter)

    async def _source(self, place: Mapping[str, Any], record: LogRecord) -> LogRecord:
        stream = self._streams[place["topic"]]
        source = await stream.take()
        while source is not None and source.offset < place["offset"]:
            source = await stream.take()
        if source is None or source.offset != place["offset"]:
            raise self._broken(record, f"is of {place}, which is not there")
        return source

    async def _event(self, event_id: int, record: LogRecord) -> Outgoing:
        event = await self._streams[self._topics.audit].take()
        if event is None or orjson.loads(event.value or b"")["id"] != event_id:
            raise self._broken(record, f"names event {event_id}, which does not come next")
        kept = _decided(event)
        if event.headers and event.headers[-1][0] == MOVED_FROM:
            # A repartition wrote that, and no decision.
            return kept._replace(headers=kept.headers[:-1])
        return kept

    async def _dead_letter(self, source: LogRecord) -> Outgoing | None:
        """None where retention took it."""
        stream = self._streams[self._topics.dead_letters]
        while (dead_letter := await stream.head()) is not None:
            _, facts = split_dead_letter(dead_letter.headers)
            about = None if facts is None else facts.source
            if about == (source.topic, source.partition, source.offset):
                await stream.take()
                return _kept(dead_letter)
            if dead_letter.timestamp >= source.timestamp and not self._is_before(about):
                return None
            await stream.take()
        return None

    def _is_before(self, about: RecordPlace | None) -> bool:
        """Whether that record was read already: its dead letter is of before the history begins."""
        stream = None if about is None else self._streams.get(about.topic)
        return about is None or stream is None or about.offset < stream.passed

    def _broken(self, record: LogRecord, why: str) -> HistoryUnusable:
        return HistoryUnusable(
            f"The outcome at offset {record.offset} of {record.topic} partition "
            f"{record.partition} {why}; `taskflow verify` says more."
        )


def _ignored(_: int) -> None:
    """Only outcomes are counted."""


def _kept(record: LogRecord) -> Outgoing:
    return new_outgoing((record.key, record.value, record.headers))


def _decided(record: LogRecord) -> Outgoing:
    """As it was decided: what a worker's setting adds is left out."""
    return new_outgoing((record.key, record.value, without_cloudevents(record.headers)))


def _caused(record: LogRecord, outcome: Mapping[str, Any] | None = None) -> Sequence[int] | None:
    """The ids of the events that an outcome names as its own."""
    if outcome is None:
        if _DECIDED not in (record.value or b""):
            return None
        outcome = orjson.loads(record.value or b"")
    if outcome["verdict"] != "accepted":
        return None
    ids: Sequence[int] = outcome["event_ids"]
    return ids


def _woken(record: LogRecord) -> str | None:
    """The flow that a wake of the processor's own is for."""
    item = decode(record)
    if not isinstance(item, Readable) or item.command.kind != "wake":
        return None
    return item.command.flow_id if item.command.issued_by == ACTOR else None
