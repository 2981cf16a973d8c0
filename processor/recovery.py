"""Bringing a partition's table to where its topics are.

A table that was here before is rolled forward: flows and steps by folding `audit`, answers and
positions from `outcomes`. An empty one, or one that was away for too long, is filled from `state`
and from the outcomes of the dedupe window. A table is never rolled forward from `state`: the
tombstones of what was pruned in between may be gone.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import orjson
import structlog

from processor.batch import Place, first_event_id
from processor.codec import Record, encode, flow_doc
from processor.domain.evolve import evolve, observed_step
from processor.domain.facts import Fact
from processor.errors import CursorMissing, HistoryLost, TableDistrusted
from processor.ports import Extent, History, Table
from processor.rows import Changes, FlowRow, Position, Remembered, StepRow, Stored, ledger_key
from schemas.events import CHAIN_HEADER, EventKind
from schemas.flow import Flow, FlowStatus, FlowStep
from schemas.outcomes import FORGOTTEN, Code, Verdict
from schemas.state import CURSOR_PREFIX
from schemas.topics import STATE
from schemas.values import parse_timestamp

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


class Recovery:
    """One recovery of one partition's table."""

    def __init__(self, place: Place, table: Table, history: History) -> None:
        self._place = place
        self._topics = place.topics
        self._table = table
        self._history = history
        self._log = log.bind(partition=place.partition)

    async def run(self, *, trust_table: bool = True) -> Stored:
        """Bring the table to the end of the topics and answer how far that is.

        Raises CursorMissing or HistoryLost if the topics contradict each other or no longer hold
        what comes next.
        """
        topics = self._topics
        extents = await self._history.settled([topics.state, topics.outcomes, topics.audit])
        stored = await self._table.stored() if trust_table else None
        if stored is not None and not await self._usable(stored, extents):
            stored = None
        if stored is not None:
            stored = await self._roll_forward(stored, extents)
            if await self._lost(stored.position):
                # A cursor may stand further on: markers that retention took are no loss.
                stored = None
        if stored is None:
            await self._table.clear()
            stored = await self._fill(extents)
            if lost := await self._lost(stored.position):
                raise HistoryLost("; ".join(lost))
        return stored

    async def _usable(self, stored: Stored, extents: Mapping[str, Extent]) -> bool:
        audit, outcomes = extents[self._topics.audit], extents[self._topics.outcomes]
        if not audit.start <= stored.audit <= audit.end:
            reason = "it does not meet the audit topic"
        elif not outcomes.start <= stored.outcomes <= outcomes.end:
            reason = "it does not meet the outcomes topic"
        elif (
            await self._history.offset_at(self._topics.outcomes, stored.as_of_ms + TABLE_MAX_AGE_MS)
            is not None
        ):
            reason = "it was away for too long"
        else:
            return True
        self._log.info("the table is filled anew", reason=reason)
        return False

    async def _lost(self, position: Position) -> list[str]:
        """What the source topics no longer hold, or hold no more, in words."""
        lost = []
        for topic, offset in (
            (self._topics.commands, position.commands),
            (self._topics.control, position.control),
        ):
            extent = await self._history.extent(topic)
            name = f"{topic} partition {self._place.partition}"
            if extent.start > offset:
                lost.append(
                    f"{name} begins at offset {extent.start}, but {offset} is next: what lies "
                    "between was removed before it was decided"
                )
            elif extent.end < offset:
                lost.append(
                    f"{name} ends at offset {extent.end}, but {offset} is next: the topic was "
                    "truncated or made anew"
                )
        return lost

    # Rolling forward

    async def _roll_forward(self, stored: Stored, extents: Mapping[str, Extent]) -> Stored:
        audit, outcomes = self._topics.audit, self._topics.outcomes
        number = await self._table.next_number()
        async for records in self._history.read(audit, stored.audit, extents[audit].end):
            fold = _Fold(await self._rows(records), number)
            position = stored.position
            for record in records:
                try:
                    position = self._fold_event(fold, record, position)
                except Exception as error:
                    raise TableDistrusted(
                        f"the table cannot be rolled forward by the event at offset "
                        f"{record.offset} of {audit} ({error}); it is filled anew"
                    ) from error
            number = fold.next_number
            after = stored._replace(position=position, audit=records[-1].offset + 1)
            await self._table.write(fold.changes(), before=stored, after=after)
            stored = after
        async for records in self._history.read(outcomes, stored.outcomes, extents[outcomes].end):
            stored = await self._remember(records, stored, positions=True)
        return stored

    def _fold_event(self, fold: "_Fold", record: Record, position: Position) -> Position:
        event = orjson.loads(record.value or b"")
        if event["id"] != position.next_event_id:
            raise HistoryLost(
                f"audit partition {self._place.partition} holds event {event['id']} at offset "
                f"{record.offset}, where {position.next_event_id} must stand"
            )
        fact = Fact(
            EventKind(event["kind"]),
            event["flow_id"],
            event["at"],
            event["revision"],
            FlowStatus(event["status"]),
            event["payload_json"],
        )
        flow = evolve(fold.flow(fact.flow_id), fact)
        if fact.kind is EventKind.STEP_OBSERVED:
            fold.put_step(StepRow(observed_step(fact), encode(fact.payload["step"])))
        if flow is None:
            fold.remove(fact.flow_id)
        else:
            fold.put(flow, None, event["id"], dict(record.headers)[CHAIN_HEADER])
        return position._replace(next_event_id=event["id"] + 1)

    async def _rows(self, records: Sequence[Record]) -> dict[str, FlowRow]:
        """The table's rows of the flows that `records` are about, by the record keys."""
        ids = {(record.key or b"").decode().partition("/")[0] for record in records}
        return await self._table.flows(sorted(ids))

    async def _remember(
        self, records: Sequence[Record], stored: Stored, *, positions: bool
    ) -> Stored:
        remembered: dict[bytes, Remembered] = {}
        position = stored.position
        for record in records:
            outcome = orjson.loads(record.value or b"")
            if positions:
                source = outcome["source"]
                field = "commands" if source["topic"] == self._topics.commands else "control"
                position = position._replace(**{field: source["offset"] + 1})
            row = _remembered(outcome)
            if row is not None:
                remembered[row.key] = row
        newest = records[-1]
        after = Stored(position, stored.audit, newest.offset + 1, newest.timestamp)
        changes = Changes(remembered=list(remembered.values()))
        await self._table.write(changes, before=stored, after=after)
        return after

    # Filling

    async def _fill(self, extents: Mapping[str, Extent]) -> Stored:
        topics = self._topics
        state, outcomes, audit = (extents[t] for t in (topics.state, topics.outcomes, topics.audit))
        cursor_key = f"{CURSOR_PREFIX}{self._place.partition}".encode()
        cursor: Position | None = None
        stored: Stored | None = None
        empty = Stored(Position(0, 0, first_event_id(self._place.partition)), *UNFINISHED, 0)
        number = 1
        async for records in self._history.read(topics.state, state.start, state.end):
            fold = _Fold(await self._rows(records), number)
            for record in records:
                if record.key == cursor_key:
                    value = orjson.loads(record.value or b"")
                    cursor = Position(value["commands"], value["control"], value["next_event_id"])
                else:
                    _take_snapshot(fold, record)
            number = fold.next_number
            await self._table.write(fold.changes(), before=stored, after=empty)
            stored = empty
        last_event = await self._last(topics.audit, audit)
        last_outcome = await self._last(topics.outcomes, outcomes)
        if cursor is None:
            if last_event is not None or last_outcome is not None:
                raise CursorMissing(
                    f"{topics.state} partition {self._place.partition} holds no cursor although "
                    "commands were decided; nothing is decided until one does"
                )
            cursor = await self._beginning()
        follows = first_event_id(self._place.partition)
        if last_event is not None:
            follows = orjson.loads(last_event.value or b"")["id"] + 1
        if cursor.next_event_id != follows:
            raise HistoryLost(
                f"the cursor of partition {self._place.partition} names {cursor.next_event_id} as "
                f"the next event, but the audit topic ends before {follows}"
            )
        as_of_ms = last_outcome.timestamp if last_outcome else 0
        since = await self._ledger_start(cursor, last_outcome)
        if since is not None:
            async for records in self._history.read(topics.outcomes, since, outcomes.end):
                after = await self._remember(records, stored or empty, positions=False)
                stored = after
        filled = Stored(cursor, audit.end, outcomes.end, as_of_ms)
        await self._table.write(Changes(), before=stored, after=filled)
        self._log.info("the table was filled from the state topic", flows=number - 1)
        return filled

    async def _beginning(self) -> Position:
        """Where a partition starts that nobody has ever decided a command of."""
        commands = await self._history.extent(self._topics.commands)
        control = await self._history.extent(self._topics.control)
        return Position(commands.start, control.start, first_event_id(self._place.partition))

    async def _ledger_start(self, cursor: Position, last_outcome: Record | None) -> int | None:
        """The offset on `outcomes` from which answers may still be asked for; None: none are."""
        if last_outcome is None:
            return None
        # The oldest command that can still come: the first undecided one, or one after now.
        oldest_ms = last_outcome.timestamp
        for topic, offset in (
            (self._topics.commands, cursor.commands),
            (self._topics.control, cursor.control),
        ):
            # What lies in an open transaction is not waited for: LATE_MAX_MS covers it.
            first = await self._first(topic, offset, await self._history.stable_end(topic))
            if first is not None:
                oldest_ms = min(oldest_ms, first.timestamp)
        # An outcome is appended after its command was, so none is passed over.
        return await self._history.offset_at(
            self._topics.outcomes, max(0, oldest_ms - self._place.dedupe_window_ms - LATE_MAX_MS)
        )

    async def _first(self, topic: str, start: int, end: int) -> Record | None:
        async for records in self._history.read(topic, start, end):
            return records[0]
        return None

    async def _last(self, topic: str, extent: Extent) -> Record | None:
        """The last committed record; behind it there may be any number of markers."""
        back, end = TAIL, extent.end
        while end > extent.start:
            start = max(extent.start, end - back)
            last = None
            async for records in self._history.read(topic, start, end):
                last = records[-1]
            if last is not None:
                return last
            end, back = start, back * 8
        return None


class _Fold:
    """Rows while records are applied to them, and what that changes in the table."""

    def __init__(self, rows: Mapping[str, FlowRow], next_number: int) -> None:
        self._base = dict(rows)
        self._now: dict[str, FlowRow | None] = {}
        self._deleted: list[FlowRow] = []
        self._steps: dict[tuple[str, str], StepRow | None] = {}
        self.next_number = next_number

    def flow(self, flow_id: str) -> Flow | None:
        row = self._now[flow_id] if flow_id in self._now else self._base.get(flow_id)
        return row.flow if row else None

    def put(self, flow: Flow, doc: bytes | None, last_event_id: int, chain: bytes) -> None:
        """`doc` None: as the flow is written."""
        row = self._now.get(flow.id) or self._base.get(flow.id)
        if row is not None:
            number = row.number
        else:
            number = self.next_number
            self.next_number += 1
        doc = flow_doc(flow) if doc is None else doc
        self._now[flow.id] = FlowRow(flow, doc, last_event_id, chain, number)

    def remove(self, flow_id: str) -> None:
        base = self._base.pop(flow_id, None)
        if base is not None:
            self._deleted.append(base)
        self._now[flow_id] = None
        for at in [at for at in self._steps if at[0] == flow_id]:
            self._steps[at] = None

    def put_step(self, row: StepRow) -> None:
        self._steps[row.step.flow_id, row.step.run_id] = row

    def remove_step(self, flow_id: str, run_id: str) -> None:
        self._steps[flow_id, run_id] = None

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


def _take_snapshot(fold: _Fold, record: Record) -> None:
    """Put a flow's or step's newest snapshot in its place; a tombstone takes it away."""
    flow_id, _, run_id = (record.key or b"").decode().partition("/")
    value: dict[str, Any] | None = orjson.loads(record.value) if record.value else None
    if run_id:
        if value is None:
            fold.remove_step(flow_id, run_id)
        else:
            step = FlowStep.model_validate(value["step"], strict=False)
            fold.put_step(StepRow(step, encode(value["step"])))
    elif value is None:
        fold.remove(flow_id)
    else:
        flow = Flow.model_validate(value["flow"], strict=False)
        chain = bytes.fromhex(value["chain"])
        fold.put(flow, encode(value["flow"]), value["last_event_id"], chain)


def _remembered(outcome: Mapping[str, Any]) -> Remembered | None:
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
