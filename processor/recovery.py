"""Bringing a partition's table to where its topics are.

How far the partition is decided says the newest cursor on `state`, which every transaction writes.
A table that was here before is rolled forward to there: flows and steps by folding `audit`, answers
from `outcomes`. An empty one, one that was away for too long, or one of other topics is filled from
`state` and from the outcomes of the dedupe window. A table is never rolled forward from `state`:
the tombstones of what was pruned in between may be gone.

Where the topics contradict each other, or lost what comes next, nothing is touched, and the error
ends in the command that repairs.
"""

import asyncio
import re
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from hashlib import blake2b
from typing import Any, Final, NamedTuple

import orjson
import structlog

from processor.batch import Place, first_event_id
from processor.codec import Record, encode, fact_of, flow_doc
from processor.domain.evolve import evolve, observed_step
from processor.domain.waits import due_ms_of
from processor.errors import CursorMissing, HistoryLost, TableDistrusted, WrittenByNewer
from processor.ports import Extent, History, Table
from processor.rows import (
    Changes,
    Filling,
    FlowRow,
    Position,
    Remembered,
    Snapshot,
    StepRow,
    Stored,
    ledger_key,
    new_snapshot,
)
from schemas.events import CHAIN_HEADER, CHAIN_START, EventKind
from schemas.flow import Flow, FlowStatus
from schemas.outcomes import FORGOTTEN, Code, Verdict
from schemas.state import CURSOR_PREFIX
from schemas.topics import STATE
from schemas.values import SCHEMA_VERSION, parse_timestamp

log = structlog.get_logger()

TABLE_MAX_AGE_MS: Final = int(STATE.config["delete.retention.ms"]) // 2
"""A table that was away for longer is filled anew: reading the present is shorter by then."""
LATE_MAX_MS: Final = 16 * 60_000
"""How much older a record may be than one that was seen before it: 15 minutes in a transaction that
was open until then, Kafka's `transaction.max.timeout.ms`, and one for a clock that steps back."""
UNFINISHED: Final = (-1, -1)
"""Offsets of a table whose filling has not come to its end: they meet no topic, so that the next
recovery begins again."""
TAIL: Final = 64
"""Offsets to look back for a topic's last record at first; the rest are markers."""
CURSOR_KEY: Final = CURSOR_PREFIX.encode()
AT_ONCE: Final = 100
"""Events folded without giving way to the event loop: some milliseconds."""


Extents = Mapping[str, Extent]


class How(StrEnum):
    """What a recovery had to do to the table."""

    WARM = "rolled forward"
    FILLED = "filled anew"


class Standing(NamedTuple):
    """Where a partition's topics stand: how far it is decided, and its newest answer."""

    position: Position
    last_outcome: Record | None


class Recovery:
    """One recovery of one partition's table. `how` it went, and how many `records` of `audit` and
    `outcomes` were missing from the table, is told afterwards."""

    def __init__(self, place: Place, table: Table, history: History) -> None:
        self.how = How.WARM
        self.records = 0
        self._place = place
        self._topics = place.topics
        self._table = table
        self._history = history
        self._log = log.bind(partition=place.partition)

    async def run(self, *, trust_table: bool = True) -> Stored:
        """Bring the table to the end of the topics and answer how far that is.

        Raises CursorMissing, HistoryLost or WrittenByNewer, with the table as it was, if the topics
        contradict each other, no longer hold what comes next, or say what we cannot know.
        """
        place, history = self._place, self._history
        extents = await settled(place, history)
        cursor = await newest_cursor(place, history, extents)
        if cursor is not None and (lost := await losses(place, history, extents, cursor)):
            raise HistoryLost(
                f"{'; '.join(one.sentence for one in lost)}. {self._repair('--skip-lost')} shows "
                "what is lost and, if you accept it, lets the partition go on behind it."
            )
        stored = await self._table.stored() if trust_table else None
        if stored is not None and (why := await self.contradiction(stored, extents, cursor)):
            self._log.warning("the table is filled anew", reason=why)
            stored = None
        if stored is None or cursor is None:
            self.how = How.FILLED
            return await self.fill(extents, await stand(place, history, extents, cursor))
        await self._look_for_lost_state(extents[self._topics.state])
        return await self._roll_forward(stored, extents, cursor)

    async def roll_forward(self, extents: Extents, cursor: Position) -> str | None:
        """Bring the table to the ends of `extents`, where the cursor says that the partition is;
        why it cannot be, if so. Raises HistoryLost, TableDistrusted or WrittenByNewer."""
        stored = await self._table.stored()
        if stored is None:
            return "it is empty"
        why = await self.contradiction(stored, extents, cursor)
        if why is None:
            await self._roll_forward(stored, extents, cursor)
        return why

    def _repair(self, how: str) -> str:
        return repair(how, self._place.partition)

    async def contradiction(
        self, stored: Stored, extents: Extents, cursor: Position | None = None
    ) -> str | None:
        """Why the table cannot be rolled forward; None if it can. Without a `cursor` it may be
        ahead of what is visible of `state`.

        Its offsets may by chance lie within topics that were made anew, or another cluster's: so
        what lies right before them must be what the table knows.
        """
        outcomes_topic = self._topics.outcomes
        audit, outcomes = extents[self._topics.audit], extents[outcomes_topic]
        if (stored.audit, stored.outcomes) == UNFINISHED:
            return "its last filling did not come to an end"
        if cursor is not None and any(
            ours > theirs for ours, theirs in zip(stored.position, cursor, strict=True)
        ):
            # The table is written after the commit: a broker lost what it had acknowledged.
            return "it is ahead of the topics: they no longer hold what was committed last"
        if not audit.start <= stored.audit <= audit.end:
            return "it does not meet the audit topic"
        if not outcomes.start <= stored.outcomes <= outcomes.end:
            return "it does not meet the outcomes topic"
        as_of_ms = stored.as_of_ms
        if not as_of_ms:  # nothing was answered by then
            first = await self._first(self._topics.outcomes, *outcomes)
            as_of_ms = 0 if first is None else first.timestamp
        too_late_ms = as_of_ms + TABLE_MAX_AGE_MS
        if as_of_ms and await self._history.offset_at(outcomes_topic, too_late_ms) is not None:
            return "it was away for too long"
        if not await self._knows_events_before(Extent(audit.start, stored.audit), stored):
            return "its newest events are not those of the audit topic: it is of other topics"
        if not await self._knows_answers_before(Extent(outcomes.start, stored.outcomes)):
            return "its newest answers are not those of the outcomes topic: it is of other topics"
        return None

    async def _knows_events_before(self, extent: Extent, stored: Stored) -> bool:
        records = await last_records(self._history, self._topics.audit, extent)
        if not records:
            first = first_event_id(self._place.partition)
            return extent.start > 0 or stored.position.next_event_id == first
        events = [orjson.loads(record.value or b"") for record in records]
        if events[-1]["id"] != stored.position.next_event_id - 1:
            return False
        newest = {
            event["flow_id"]: (event["id"], dict(record.headers).get(CHAIN_HEADER), event["kind"])
            for event, record in zip(events, records, strict=True)
        }
        rows = await self._table.flows(sorted(newest))
        for flow_id, (event_id, chain, kind) in newest.items():
            row = rows.get(flow_id)
            if kind == EventKind.PRUNED:
                if row is not None:
                    return False
            elif row is None or (row.last_event_id, row.chain) != (event_id, chain):
                return False
        return True

    async def _knows_answers_before(self, extent: Extent) -> bool:
        records = await last_records(self._history, self._topics.outcomes, extent)
        answers = map(answer_of, (orjson.loads(record.value or b"") for record in records))
        newest = {answer.key: answer for answer in answers if answer is not None}
        found = await self._table.recall(sorted(newest))
        # Whoever answered without an event noted which one would have come next.
        return all(
            (row if row.event_count else row._replace(first_event_id=0)) == newest[key]
            for key, row in found.items()
        )

    async def _look_for_lost_state(self, state: Extent) -> None:
        """Each flow was written to `state` at least once. An owner that writes while the topic is
        made anew does not notice, and whoever filled a table from it would miss flows."""
        flows = await self._table.count_flows()
        if flows > state.end:
            raise HistoryLost(
                f"{self._topics.state} partition {self._place.partition} ends at offset "
                f"{state.end}, but the table has {flows} flows: the topic was truncated or made "
                f"anew. {self._repair('--restore-state')} writes it anew from audit and outcomes."
            )

    # Rolling forward

    async def _roll_forward(self, stored: Stored, extents: Extents, cursor: Position) -> Stored:
        stored = await self.advance(stored, extents)
        _check_cursor(self._place, cursor, stored.position.next_event_id)
        if stored.position != cursor:
            # The cursor steps over markers, and over what somebody accepted as lost.
            after = stored._replace(position=cursor)
            await self._table.write(Changes(), before=stored, after=after)
            stored = after
        return stored

    async def advance(
        self, stored: Stored, extents: Extents, *, forget_before_ms: int | None = None
    ) -> Stored:
        """Fold the events and answers up to the ends of `extents` into the table, which
        `contradiction` found to be of these topics; answers to commands older than
        `forget_before_ms` go. The two topics need not end at the same transaction: each goes on
        by itself from where it stands.

        Raises HistoryLost, TableDistrusted or WrittenByNewer.
        """
        audit, outcomes = self._topics.audit, self._topics.outcomes
        number = await self._table.next_number()
        async for records in self._history.read(audit, stored.audit, extents[audit].end):
            fold = _Fold(await self._rows(records), number)
            position = stored.position
            for n, record in enumerate(records):
                if n % AT_ONCE == 0:
                    await asyncio.sleep(0)
                try:
                    position = self._fold_event(fold, record, position)
                except WrittenByNewer:
                    raise
                except Exception as error:
                    raise TableDistrusted(
                        f"the table cannot be rolled forward by the event at offset "
                        f"{record.offset} of {audit} ({error}); it is filled anew"
                    ) from error
            number = fold.next_number
            after = stored._replace(position=position, audit=records[-1].offset + 1)
            await self._table.write(fold.changes(), before=stored, after=after)
            stored = after
            self.records += len(records)
        async for records in self._history.read(outcomes, stored.outcomes, extents[outcomes].end):
            stored = await self._remember(
                records, stored, positions=True, forget_before_ms=forget_before_ms
            )
            self.records += len(records)
        return stored

    def _fold_event(self, fold: "_Fold", record: Record, position: Position) -> Position:
        event = orjson.loads(record.value or b"")
        _check_version(event, record)
        if event["id"] != position.next_event_id:
            raise HistoryLost(
                f"audit partition {self._place.partition} holds event {event['id']} at offset "
                f"{record.offset}, where {position.next_event_id} must stand"
            )
        fact = fact_of(event)
        flow = evolve(fold.flow(fact.flow_id), fact)
        if fact.kind is EventKind.STEP_OBSERVED:
            fold.put_step(StepRow(observed_step(fact), encode(fact.payload["step"])))
        if flow is None:
            fold.remove(fact.flow_id)
        else:
            fold.put(flow, event["id"], dict(record.headers)[CHAIN_HEADER])
        return position._replace(next_event_id=event["id"] + 1)

    async def _rows(self, records: Sequence[Record]) -> dict[str, FlowRow]:
        """The table's rows of the flows that `records` are about, by the record keys."""
        ids = {(record.key or b"").decode().partition("/")[0] for record in records}
        return await self._table.flows(sorted(ids))

    async def _remember(
        self,
        records: Sequence[Record],
        stored: Stored,
        *,
        positions: bool,
        forget_before_ms: int | None = None,
    ) -> Stored:
        remembered: dict[bytes, Remembered] = {}
        position = stored.position
        for n, record in enumerate(records):
            if n % AT_ONCE == 0:
                await asyncio.sleep(0)
            outcome = orjson.loads(record.value or b"")
            if positions:
                source = outcome["source"]
                field = "commands" if source["topic"] == self._topics.commands else "control"
                position = position._replace(**{field: source["offset"] + 1})
            row = answer_of(outcome)
            if row is not None:
                remembered[row.key] = row
        newest = records[-1]
        after = Stored(position, stored.audit, newest.offset + 1, newest.timestamp)
        changes = Changes(remembered=list(remembered.values()), forget_before_ms=forget_before_ms)
        await self._table.write(changes, before=stored, after=after)
        return after

    # Filling

    async def fill(self, extents: Extents, standing: Standing) -> Stored:
        """Fill the table anew: flows and steps from `state`, answers from `outcomes`. It is worth
        nothing until that has come to its end: the position comes last."""
        state, outcomes = self._topics.state, self._topics.outcomes
        await self._table.begin_filling(self._unfinished)
        loop = asyncio.get_running_loop()
        began = loop.time()
        flows = await self._fill_from(state, *extents[state], _take_snapshots)
        filled = loop.time()
        since = await self._ledger_start(standing)
        answers = 0
        if since is not None:
            answers = await self._fill_from(outcomes, since, extents[outcomes].end, _take_answers)
        stored = self._filled(extents, standing)
        ends = loop.time()
        await self._table.end_filling(stored)
        self._log.info(
            "the table was filled from the state topic",
            flows=await self._table.count_flows(),
            snapshots=flows,
            snapshots_s=round(filled - began, 3),
            answers=answers,
            answers_s=round(ends - filled, 3),
            indexes_s=round(loop.time() - ends, 3),
        )
        return stored

    async def _fill_from(
        self, topic: str, start: int, end: int, parse: Callable[[Sequence[Record], Filling], None]
    ) -> int:
        """One part is written while the next is read and parsed; how many records there were."""
        count = 0
        writing: asyncio.Future[None] | None = None
        try:
            async for records in self._history.read(topic, start, end):
                count += len(records)
                some = Filling()
                newest = _newest(records) if topic == self._topics.state else records
                for at in range(0, len(newest), AT_ONCE):
                    parse(newest[at : at + AT_ONCE], some)
                    await asyncio.sleep(0)
                if writing is not None:
                    await writing
                writing = asyncio.ensure_future(self._table.fill(some))
        finally:
            if writing is not None:
                await writing
        return count

    @property
    def _unfinished(self) -> Stored:
        return Stored(Position(0, 0, first_event_id(self._place.partition)), *UNFINISHED, 0)

    def _filled(self, extents: Extents, standing: Standing) -> Stored:
        as_of_ms = standing.last_outcome.timestamp if standing.last_outcome else 0
        audit, outcomes = extents[self._topics.audit], extents[self._topics.outcomes]
        return Stored(standing.position, audit.end, outcomes.end, as_of_ms)

    async def fold(self, extents: Extents, standing: Standing) -> Stored:
        """Fill the table anew: flows and steps by folding `audit` from its first event on, each
        flow's chain verified; answers from `outcomes`.

        Raises HistoryLost if `audit` does not hold all that ever happened, as it was written.
        """
        audit = self._topics.audit
        if extents[audit].start > 0:
            raise HistoryLost(
                f"{audit} partition {self._place.partition} begins at offset "
                f"{extents[audit].start}: what happened before cannot be folded. "
                f"{self._repair('--from state')} needs only the present."
            )
        stored: Stored | None = None
        number = 1
        position = Position(0, 0, first_event_id(self._place.partition))
        await self._table.clear()
        async for records in self._history.read(audit, *extents[audit]):
            fold = _Fold(await self._rows(records), number)
            for record in records:
                try:
                    _check_chain(fold, record)
                    position = self._fold_event(fold, record, position)
                except WrittenByNewer:
                    raise
                except Exception as error:
                    raise HistoryLost(
                        f"the event at offset {record.offset} of {audit} partition "
                        f"{self._place.partition} cannot be folded ({error}). "
                        f"{self._repair('--from state')} needs only the present."
                    ) from error
            number = fold.next_number
            stored = await self._go_on_filling(fold.changes(), stored)
        return await self._fill_up(extents, standing, stored)

    async def _go_on_filling(self, changes: Changes, before: Stored | None) -> Stored:
        after = self._unfinished
        await self._table.write(changes, before=before, after=after)
        return after

    async def _fill_up(self, extents: Extents, standing: Standing, stored: Stored | None) -> Stored:
        """The answers, and then the position, which makes the table one that may be used."""
        outcomes = extents[self._topics.outcomes]
        since = await self._ledger_start(standing)
        if since is not None:
            stored = stored or await self._go_on_filling(Changes(), None)
            async for records in self._history.read(self._topics.outcomes, since, outcomes.end):
                stored = await self._remember(records, stored, positions=False)
        filled = self._filled(extents, standing)
        await self._table.write(Changes(), before=stored, after=filled)
        return filled

    async def _ledger_start(self, standing: Standing) -> int | None:
        """The offset on `outcomes` from which answers may still be asked for; None: none are."""
        position, last_outcome = standing
        if last_outcome is None:
            return None
        # An outcome is appended after its command was, so none is passed over.
        return await self._history.offset_at(
            self._topics.outcomes, await self.asked_for_since_ms(position, last_outcome.timestamp)
        )

    async def asked_for_since_ms(self, position: Position, newest_ms: int) -> int:
        """The append time before which no command that can still come looks back, for a partition
        that is decided up to `position` and whose newest answer was appended at `newest_ms`."""
        # The oldest command that can still come: the first undecided one, or one after now.
        oldest_ms = newest_ms
        for topic, offset in (
            (self._topics.commands, position.commands),
            (self._topics.control, position.control),
        ):
            # What lies in an open transaction is not waited for: LATE_MAX_MS covers it.
            start = max(offset, (await self._history.extent(topic)).start)
            first = await self._first(topic, start, await self._history.stable_end(topic))
            if first is not None:
                oldest_ms = min(oldest_ms, first.timestamp)
        return max(0, oldest_ms - self._place.dedupe_window_ms - LATE_MAX_MS)

    async def _first(self, topic: str, start: int, end: int) -> Record | None:
        async for records in self._history.read(topic, start, end):
            return records[0]
        return None


# What the topics say


def repair(how: str, partition: int) -> str:
    return f"`taskflow rebuild {how} --partition {partition}`"


async def settled(place: Place, history: History) -> dict[str, Extent]:
    """The extents of the three topics that a recovery reads, with no transaction open in them."""
    topics = place.topics
    return await history.settled([topics.state, topics.outcomes, topics.audit])


async def stand(
    place: Place, history: History, extents: Extents, cursor: Position | None
) -> Standing:
    """Where the topics say that the partition stands, checked against each other.

    Raises CursorMissing or HistoryLost.
    """
    topics = place.topics
    last_event = await last_record(history, topics.audit, extents[topics.audit])
    last_outcome = await last_record(history, topics.outcomes, extents[topics.outcomes])
    if cursor is None:
        if last_event is not None or last_outcome is not None:
            raise CursorMissing(
                f"{topics.state} partition {place.partition} holds no cursor although commands "
                f"were decided: the topic was truncated or made anew. {_restores(place)}"
            )
        cursor = await _beginning(place, history)
    follows = first_event_id(place.partition)
    if last_event is not None:
        follows = orjson.loads(last_event.value or b"")["id"] + 1
    _check_cursor(place, cursor, follows)
    return Standing(cursor, last_outcome)


def _restores(place: Place) -> str:
    how = repair("--restore-state", place.partition)
    return f"{how} writes it anew from audit and outcomes."


def _check_cursor(place: Place, cursor: Position, follows: int) -> None:
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
            f"event, but the audit topic ends before {follows}: it was truncated or made anew. "
            "Nothing else holds those events: put the topic back from a copy, or begin with topics "
            "of another TASKFLOW_TOPIC_PREFIX."
        )


async def newest_cursor(place: Place, history: History, extents: Extents) -> Position | None:
    """How far the partition is decided, as the newest transaction says. Raises WrittenByNewer."""
    key, state = f"{CURSOR_PREFIX}{place.partition}".encode(), place.topics.state
    record = await last_record(
        history, state, extents[state], lambda record: record.key == key and record.value
    )
    if record is None:
        return None
    cursor = orjson.loads(record.value or b"")
    _check_version(cursor, record)
    return Position(cursor["commands"], cursor["control"], cursor["next_event_id"])


async def _beginning(place: Place, history: History) -> Position:
    """Where a partition starts that nobody has ever decided a command of."""
    commands = await history.extent(place.topics.commands)
    control = await history.extent(place.topics.control)
    return Position(commands.start, control.start, first_event_id(place.partition))


class Loss(NamedTuple):
    """A source topic no longer holds what comes next, or is not the one that was decided. `next`:
    its offset as the cursor has it."""

    topic: str
    next: int
    extent: Extent
    sentence: str


async def losses(
    place: Place, history: History, extents: Extents, position: Position
) -> list[Loss]:
    """What the source topics no longer hold, or hold no more."""
    topics = place.topics
    newest = await _newest_decided(place, history, extents)
    lost = []
    for topic, offset in (
        (topics.commands, position.commands),
        (topics.control, position.control),
    ):
        extent = await history.extent(topic)
        name = f"{topic} partition {place.partition}"
        decided = newest.get(topic)
        if extent.start > offset:
            sentence = (
                f"{name} begins at offset {extent.start}, but {offset} is next: what lies "
                "between was removed before it was decided"
            )
        elif extent.end < offset:
            sentence = (
                f"{name} ends at offset {extent.end}, but {offset} is next: the topic was "
                "truncated or made anew"
            )
        elif (
            decided is not None
            and extent.start <= decided[0] < offset
            and await _is_another(history, topic, *decided)
        ):
            sentence = (
                f"{name} holds another record at offset {decided[0]} than the one that was "
                f"decided there, and {offset} is next: the topic was made anew"
            )
        else:
            continue
        lost.append(Loss(topic, offset, extent, sentence))
    return lost


async def _newest_decided(
    place: Place, history: History, extents: Extents
) -> dict[str, tuple[int, int]]:
    """Offset and append time (ms) of the newest decided record of each source topic, as far as the
    newest answers name one."""
    start, end = extents[place.topics.outcomes]
    found = {}
    async for records in history.read(place.topics.outcomes, max(start, end - TAIL), end):
        for record in records:
            outcome = orjson.loads(record.value or b"")
            source = outcome["source"]
            found[source["topic"]] = source["offset"], parse_timestamp(outcome["at"])
    return found


async def _is_another(history: History, topic: str, offset: int, at_ms: int) -> bool:
    async for records in history.read(topic, offset, offset + 1):
        return any(record.timestamp != at_ms for record in records)
    return False


async def last_record(
    history: History,
    topic: str,
    extent: Extent,
    wanted: Callable[[Record], object] = lambda _: True,
) -> Record | None:
    """The last committed record that is `wanted`."""
    records = await last_records(history, topic, extent, wanted)
    return records[-1] if records else None


async def last_records(
    history: History,
    topic: str,
    extent: Extent,
    wanted: Callable[[Record], object] = lambda _: True,
) -> list[Record]:
    """The last one that is `wanted`, and those that were found with it, which are some 64 at most
    unless they lie far back: behind them there may be any number of markers and others."""
    back, end = TAIL, extent.end
    while end > extent.start:
        start = max(extent.start, end - back)
        found: list[Record] = []
        async for records in history.read(topic, start, end):
            found = [*found[-TAIL:], *filter(wanted, records)][-TAIL:]
        if found:
            return found
        end, back = start, back * 8
    return []


def _check_version(value: Mapping[str, Any], record: Record) -> None:
    if value.get("schema_version", SCHEMA_VERSION) > SCHEMA_VERSION:
        raise WrittenByNewer(
            f"the record at offset {record.offset} of {record.topic} partition {record.partition} "
            f"has schema_version {value['schema_version']}, but this taskflow knows no more than "
            f"{SCHEMA_VERSION}: install the version that wrote it, or a later one"
        )


def _check_chain(fold: "_Fold", record: Record) -> None:
    """Each event follows the flow's one before, or begins a chain."""
    before = fold.row((record.key or b"").decode())
    chain = before.chain if before else CHAIN_START
    follows = blake2b(chain + (record.value or b""), digest_size=16).digest()
    if dict(record.headers).get(CHAIN_HEADER) != follows:
        raise HistoryLost(
            "its chain does not follow from the flow's event before: one was edited, or is missing"
        )


class _Fold:
    """Rows while records are applied to them, and what that changes in the table."""

    def __init__(self, rows: Mapping[str, FlowRow], next_number: int) -> None:
        self._base = dict(rows)
        self._now: dict[str, FlowRow | None] = {}
        self._deleted: list[FlowRow] = []
        self._steps: dict[tuple[str, str], StepRow | None] = {}
        self.next_number = next_number

    def row(self, flow_id: str) -> FlowRow | None:
        return self._now[flow_id] if flow_id in self._now else self._base.get(flow_id)

    def flow(self, flow_id: str) -> Flow | None:
        row = self.row(flow_id)
        return row.flow if row else None

    def put(self, flow: Flow, last_event_id: int, chain: bytes) -> None:
        row = self._now.get(flow.id) or self._base.get(flow.id)
        if row is not None:
            number = row.number
        else:
            number = self.next_number
            self.next_number += 1
        self._now[flow.id] = FlowRow(flow, flow_doc(flow), last_event_id, chain, number)

    def remove(self, flow_id: str) -> None:
        base = self._base.pop(flow_id, None)
        if base is not None:
            self._deleted.append(base)
        self._now[flow_id] = None
        for at in [at for at in self._steps if at[0] == flow_id]:
            self._steps[at] = None

    def put_step(self, row: StepRow) -> None:
        self._steps[row.step.flow_id, row.step.run_id] = row

    def changes(self) -> Changes:
        changes = Changes(deleted=self._deleted)
        for flow_id, row in self._now.items():
            if row is None:
                continue
            base = self._base.get(flow_id)
            if base is None:
                changes.inserted.append(row)
            else:
                changes.updated.append((base, row))
        for at, step in self._steps.items():
            if step is None:
                changes.deleted_steps.append(at)
            else:
                changes.steps.append(step)
        return changes


SNAPSHOT_HEAD: Final = b'{"flow":{'
SNAPSHOT_TAIL: Final = re.compile(rb',"last_event_id":([0-9]+),"chain":"([0-9a-f]{32})"}\Z')
TAIL_MAX_BYTES: Final = 90
WAITING: Final = b'"status":"waiting"'


def _take_snapshots(records: Sequence[Record], filling: Filling) -> None:
    """What `records` say of flows and steps, each of them once.

    A million flows are read like this, so no model is made of them: whoever loads a row makes one,
    and finds what is none.
    """
    for record in records:
        key, value = record.key or b"", record.value
        flow_id, slash, run_id = key.decode().partition("/")
        if slash:
            if key.startswith(CURSOR_KEY):
                continue
            if value is None:
                filling.steps_gone.append((flow_id, run_id))
            else:
                filling.steps.append((flow_id, run_id, encode(orjson.loads(value)["step"])))
        elif value is None:
            filling.flows_gone.append(flow_id)
        else:
            filling.flows.append(_snapshot(flow_id, value))


def _newest(records: Sequence[Record]) -> Sequence[Record]:
    """The last one of each key."""
    newest = {record.key: record for record in records}
    return records if len(newest) == len(records) else list(newest.values())


def _snapshot(flow_id: str, value: bytes) -> Snapshot:
    # The document goes into the table as it was written, wherever it can be cut out.
    tail = SNAPSHOT_TAIL.search(value, max(0, len(value) - TAIL_MAX_BYTES))
    if tail is not None and value.startswith(SNAPSHOT_HEAD):
        doc = value[len(SNAPSHOT_HEAD) - 1 : tail.start()]
        last_event_id, chain = int(tail[1]), tail[2].decode()
    else:
        parsed: dict[str, Any] = orjson.loads(value)
        doc, last_event_id, chain = encode(parsed["flow"]), parsed["last_event_id"], parsed["chain"]
    due_ms = None
    if WAITING in doc and (flow := orjson.loads(doc))["status"] == FlowStatus.WAITING:
        due_ms = due_ms_of(flow["wait_json"], cancel_requested=flow["cancel_requested"])
    return new_snapshot((flow_id, last_event_id, bytes.fromhex(chain), due_ms, doc))


def _take_answers(records: Sequence[Record], filling: Filling) -> None:
    answers = (answer_of(orjson.loads(record.value or b"")) for record in records)
    filling.remembered.extend(answer for answer in answers if answer is not None)


def answer_of(outcome: Mapping[str, Any]) -> Remembered | None:
    """The ledger's row of an outcome; None if a resend would be decided anew."""
    if outcome["verdict"] not in (Verdict.ACCEPTED, Verdict.REJECTED) or outcome["dry_run"]:
        return None
    code = Code(outcome["code"]) if outcome["code"] else None
    if code in FORGOTTEN:
        return None
    event_ids = outcome["event_ids"]
    return Remembered(
        ledger_key(outcome["flow_id"], outcome["command_id"]),
        parse_timestamp(outcome["at"]),
        bytes.fromhex(outcome["command_digest"]),
        code,
        outcome["revision"],
        FlowStatus(outcome["status"]) if outcome["status"] else None,
        event_ids[0] if event_ids else 0,
        len(event_ids),
        outcome["details"],
    )
