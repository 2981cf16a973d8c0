"""Find out where the topics say that a partition is, and what they no longer hold."""

from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

import orjson

from processor.contract.state import CURSOR_PREFIX
from processor.contract.values import SCHEMA_VERSION, parse_timestamp
from processor.engine.batch import PartitionConfig, first_event_id
from processor.engine.codec import Record
from processor.engine.ports import LogReader, OffsetRange, OnHanging
from processor.engine.rows import Checkpoint, Position
from processor.errors import CursorMissing, HistoryLost, WrittenByNewer

TAIL: Final = 64
"""Offsets to look back for a topic's last record at first; the rest are markers."""

UNFINISHED: Final = (-1, -1)
"""Offsets of a table whose restore is not completed: they meet no topic, so that the next
recovery begins again."""

OffsetRanges = Mapping[str, OffsetRange]


class NewestCursor(NamedTuple):
    """How far a partition is, as its newest transaction says: decided, and with its work items, of
    which those of the event `first_unwritten` and of later ones may not be written."""

    position: Position
    first_unwritten: int


class PartitionCheckpoint(NamedTuple):
    """Where a partition's topics stand: how far it is decided, its newest outcome, and the event
    from which on work items may not be written."""

    position: Position
    last_outcome: Record | None
    first_unwritten: int


def repair(how: str, partition: int) -> str:
    return f"`taskflow rebuild {how} --partition {partition}`"


def _read_back(place: PartitionConfig) -> list[str]:
    topics = place.topics
    return [topics.state, topics.outcomes, topics.audit]


async def settled(
    place: PartitionConfig, history: LogReader, on_hanging: OnHanging | None = None
) -> dict[str, OffsetRange]:
    """The extents of the three topics that a recovery reads, with no transaction open in them;
    `on_hanging` as of `LogReader`."""
    return await history.settled(_read_back(place), on_hanging)


async def whole(place: PartitionConfig, history: LogReader) -> bool:
    """Whether all that is visible of the three topics ends with the same transaction: of what is
    open, none has been committed on one topic and not on another."""
    topics = place.topics
    offset_ranges = await history.visible(_read_back(place))
    try:
        cursor = await newest_cursor(place, history, offset_ranges)
        position = (await stand(place, history, offset_ranges, cursor)).position
    except (CursorMissing, HistoryLost):
        return False
    ends = {topics.commands: position.commands, topics.control: position.control}
    newest = await _newest_decided(place, history, offset_ranges)
    return all(offset < ends[topic] for topic, (offset, _) in newest.items())


async def stand(
    place: PartitionConfig,
    history: LogReader,
    offset_ranges: OffsetRanges,
    cursor: NewestCursor | None,
) -> PartitionCheckpoint:
    """Where the topics say that the partition stands, checked against each other.

    Raises CursorMissing or HistoryLost.
    """
    topics = place.topics
    last_event = await last_record(history, topics.audit, offset_ranges[topics.audit])
    last_outcome = await last_record(history, topics.outcomes, offset_ranges[topics.outcomes])
    if cursor is None:
        if last_event is not None or last_outcome is not None:
            raise CursorMissing(
                f"{topics.state} partition {place.partition} holds no cursor although commands "
                f"were decided: the topic was truncated or recreated. {_restores(place)}"
            )
        cursor = NewestCursor(await _beginning(place, history), first_event_id(place.partition))
    follows = first_event_id(place.partition)
    if last_event is not None:
        follows = orjson.loads(last_event.value or b"")["id"] + 1
    check_cursor(place, cursor.position, follows)
    return PartitionCheckpoint(cursor.position, last_outcome, cursor.first_unwritten)


def _restores(place: PartitionConfig) -> str:
    how = repair("--restore-state", place.partition)
    return f"{how} rewrites it from audit and outcomes."


def check_cursor(place: PartitionConfig, cursor: Position, follows: int) -> None:
    """`follows`: the event id that comes after the last one on `audit`."""
    if cursor.next_event_id < follows:
        raise HistoryLost(
            f"the cursor of partition {place.partition} names {cursor.next_event_id} as the next "
            f"event, but the audit topic goes on to {follows - 1}: {place.topics.state} was "
            f"truncated or put back. {_restores(place)}"
        )
    if cursor.next_event_id > follows:
        raise HistoryLost(
            f"the cursor of partition {place.partition} names {cursor.next_event_id} as the next "
            f"event, but the audit topic ends before {follows}: it was truncated or recreated. "
            "Nothing else holds those events: put the topic back from a copy, or begin with topics "
            "of another TASKFLOW_TOPIC_PREFIX."
        )


async def newest_cursor(
    place: PartitionConfig, history: LogReader, offset_ranges: OffsetRanges
) -> NewestCursor | None:
    """How far the partition is decided, as the newest transaction says. Raises WrittenByNewer."""
    key, state = f"{CURSOR_PREFIX}{place.partition}".encode(), place.topics.state
    record = await last_record(
        history, state, offset_ranges[state], lambda record: record.key == key and record.value
    )
    if record is None:
        return None
    cursor = orjson.loads(record.value or b"")
    check_version(cursor, record)
    position = Position(cursor["commands"], cursor["control"], cursor["next_event_id"])
    # Before there were managed steps, a cursor did not say it.
    offered = cursor.get("offered", position.next_event_id - 1)
    return NewestCursor(position, max(offered + 1, first_event_id(place.partition)))


async def _beginning(place: PartitionConfig, history: LogReader) -> Position:
    """Where a partition starts of which no command was ever decided."""
    commands = await history.offset_range(place.topics.commands)
    control = await history.offset_range(place.topics.control)
    return Position(commands.start, control.start, first_event_id(place.partition))


class Loss(NamedTuple):
    """A source topic no longer holds what comes next, or is not the one that was decided. `next`:
    its offset as the cursor has it."""

    topic: str
    next: int
    offset_range: OffsetRange
    sentence: str


async def losses(
    place: PartitionConfig, history: LogReader, offset_ranges: OffsetRanges, position: Position
) -> list[Loss]:
    """What the source topics no longer hold, or hold no more."""
    topics = place.topics
    newest = await _newest_decided(place, history, offset_ranges)
    lost = []
    for topic, offset in (
        (topics.commands, position.commands),
        (topics.control, position.control),
    ):
        offset_range = await history.offset_range(topic)
        name = f"{topic} partition {place.partition}"
        decided = newest.get(topic)
        if offset_range.start > offset:
            sentence = (
                f"{name} begins at offset {offset_range.start}, but {offset} is next: what lies "
                "between was removed before it was decided"
            )
        elif offset_range.end < offset:
            sentence = (
                f"{name} ends at offset {offset_range.end}, but {offset} is next: the topic was "
                "truncated or recreated"
            )
        elif (
            decided is not None
            and offset_range.start <= decided[0] < offset
            and await _is_another(history, topic, *decided)
        ):
            sentence = (
                f"{name} holds another record at offset {decided[0]} than the one that was "
                f"decided there, and {offset} is next: the topic was recreated"
            )
        else:
            continue
        lost.append(Loss(topic, offset, offset_range, sentence))
    return lost


async def _newest_decided(
    place: PartitionConfig, history: LogReader, offset_ranges: OffsetRanges
) -> dict[str, tuple[int, int]]:
    """Offset and append time (ms) of the newest decided record of each source topic, as far as the
    newest ledger entries name one."""
    start, end = offset_ranges[place.topics.outcomes]
    found = {}
    async for records in history.read(place.topics.outcomes, max(start, end - TAIL), end):
        for record in records:
            outcome = orjson.loads(record.value or b"")
            source = outcome["source"]
            found[source["topic"]] = source["offset"], parse_timestamp(outcome["at"])
    return found


async def _is_another(history: LogReader, topic: str, offset: int, at_ms: int) -> bool:
    async for records in history.read(topic, offset, offset + 1):
        return any(record.timestamp != at_ms for record in records)
    return False


async def last_record(
    history: LogReader,
    topic: str,
    offset_range: OffsetRange,
    wanted: Callable[[Record], object] = lambda _: True,
) -> Record | None:
    """The last committed record that is `wanted`."""
    records = await last_records(history, topic, offset_range, wanted)
    return records[-1] if records else None


async def last_records(
    history: LogReader,
    topic: str,
    offset_range: OffsetRange,
    wanted: Callable[[Record], object] = lambda _: True,
) -> list[Record]:
    """The last one that is `wanted`, and those that were found with it, which are some 64 at most
    unless they lie far back: behind them there may be any number of markers and others."""
    back, end = TAIL, offset_range.end
    while end > offset_range.start:
        start = max(offset_range.start, end - back)
        found: list[Record] = []
        async for records in history.read(topic, start, end):
            found = [*found[-TAIL:], *filter(wanted, records)][-TAIL:]
        if found:
            return found
        end, back = start, back * 8
    return []


def check_version(value: Mapping[str, Any], record: Record) -> None:
    if value.get("schema_version", SCHEMA_VERSION) > SCHEMA_VERSION:
        raise WrittenByNewer(
            f"the record at offset {record.offset} of {record.topic} partition {record.partition} "
            f"has schema_version {value['schema_version']}, but this taskflow knows no more than "
            f"{SCHEMA_VERSION}: install the version that wrote it, or a later one"
        )


def unfinished(place: PartitionConfig) -> Checkpoint:
    """The checkpoint of a table whose restore is not completed."""
    return Checkpoint(Position(0, 0, first_event_id(place.partition)), *UNFINISHED, 0)


def restored(
    place: PartitionConfig, offset_ranges: OffsetRanges, standing: PartitionCheckpoint
) -> Checkpoint:
    """The checkpoint of a table that was restored up to the ends of `offset_ranges`."""
    as_of_ms = standing.last_outcome.timestamp if standing.last_outcome else 0
    audit, outcomes = offset_ranges[place.topics.audit], offset_ranges[place.topics.outcomes]
    return Checkpoint(standing.position, audit.end, outcomes.end, as_of_ms)
