"""Apply events to rows, and collect the changes of the table."""

from collections.abc import Iterator, Mapping, Sequence
from hashlib import blake2b
from typing import Any, Final

import orjson

from processor.contract.events import CHAIN_START
from processor.contract.headers import chain_of
from processor.domain.evolve import STEP_KINDS, evolve, evolve_step
from processor.domain.flow import Flow
from processor.domain.step import Step
from processor.domain.steps import NO_TOTALS
from processor.engine.codec import Record, fact_of
from processor.engine.encoding import flow_doc, step_doc
from processor.engine.ports import Table
from processor.engine.rows import Changes, FlowRow, Position, StepRow
from processor.errors import HistoryLost
from processor.recovery.checkpoint import check_version

Event = tuple[Record, Mapping[str, Any]]
"""A record of `audit`, and the FlowEvent in it."""

STEPS_AT_ONCE: Final = 250
"""Events of steps folded at a time: a step may take 140 KiB, and its document twice that."""


def step_of(event: Mapping[str, Any]) -> tuple[str, str] | None:
    """Flow id and run id of the step that `event` is about; None if it is about none, or is not
    what was ever written."""
    if event.get("kind") not in STEP_KINDS:
        return None
    payload = event["payload_json"]
    run_id = payload.get("run_id") or payload.get("step", {}).get("run_id")
    return None if run_id is None else (event["flow_id"], run_id)


class EventApplier:
    """Rows while records are applied to them, and what that changes in the table."""

    def __init__(
        self,
        rows: Mapping[str, FlowRow],
        steps: Mapping[tuple[str, str], StepRow],
        next_row_number: int,
    ) -> None:
        """`rows` and `steps`: what the table has of the flows and steps that the records are
        about."""
        self._base = dict(rows)
        self._base_steps = dict(steps)
        self._now: dict[str, FlowRow | None] = {}
        self._deleted: list[FlowRow] = []
        self._steps: dict[tuple[str, str], StepRow | None] = {}
        self.next_row_number = next_row_number

    def row(self, flow_id: str) -> FlowRow | None:
        return self._now[flow_id] if flow_id in self._now else self._base.get(flow_id)

    def flow(self, flow_id: str) -> Flow | None:
        row = self.row(flow_id)
        return row.flow if row else None

    def step(self, at: tuple[str, str]) -> Step | None:
        row = self._steps[at] if at in self._steps else self._base_steps.get(at)
        return row.step if row else None

    def apply(self, record: Record, event: Mapping[str, Any], position: Position) -> Position:
        """Fold the event in `record`; return the position after it. Raises HistoryLost if another
        one must stand there, WrittenByNewer, and what a corrupt event makes of itself."""
        check_version(event, record)
        if event["id"] != position.next_event_id:
            raise HistoryLost(
                f"audit partition {record.partition} holds event {event['id']} at offset "
                f"{record.offset}, where {position.next_event_id} must stand"
            )
        fact = fact_of(event)
        flow = evolve(self.flow(fact.flow_id), fact)
        if flow is None:
            self.remove(fact.flow_id)
        else:
            step: StepRow | None = None
            if (at := step_of(event)) is not None:
                after = evolve_step(self.step(at), fact)
                step = StepRow(after, step_doc(after))
            self.put(flow, event["id"], chain_of(record.headers), step)
        return position._replace(next_event_id=event["id"] + 1)

    def put(
        self, flow: Flow, last_event_id: int, chain: bytes, step: StepRow | None = None
    ) -> None:
        """Take in what an event made of a flow, and of the `step` that it is about."""
        row = self._now.get(flow.id) or self._base.get(flow.id)
        if row is not None:
            row_number = row.row_number
        else:
            row_number = self.next_row_number
            self.next_row_number += 1
        totals = row.totals if row else NO_TOTALS
        if step is not None:
            at = (flow.id, step.step.run_id)
            totals = totals.after(self.step(at), step.step)
            self._steps[at] = step
        self._now[flow.id] = FlowRow(flow, flow_doc(flow), last_event_id, chain, row_number, totals)

    def remove(self, flow_id: str) -> None:
        base = self._base.pop(flow_id, None)
        if base is not None:
            self._deleted.append(base)
        self._now[flow_id] = None
        for at in [at for at in self._steps if at[0] == flow_id]:
            self._steps[at] = None
        for at in [at for at in self._base_steps if at[0] == flow_id]:
            del self._base_steps[at]

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


def check_chain(fold: EventApplier, record: Record) -> None:
    """Each event follows the flow's one before, or begins a chain."""
    before = fold.row((record.key or b"").decode())
    chain = before.chain if before else CHAIN_START
    follows = blake2b(chain + (record.value or b""), digest_size=16).digest()
    if chain_of(record.headers) != follows:
        raise HistoryLost(
            "its chain does not follow from the flow's event before: one was edited, or is missing"
        )


def portions(records: Sequence[Record]) -> Iterator[list[Event]]:
    """`records` with their events, in portions whose steps memory holds."""
    some: list[Event] = []
    steps = 0
    for record in records:
        event = orjson.loads(record.value or b"")
        some.append((record, event))
        steps += step_of(event) is not None
        if steps >= STEPS_AT_ONCE:
            yield some
            some, steps = [], 0
    if some:
        yield some


async def open_applier(table: Table, events: Sequence[Event], next_row_number: int) -> EventApplier:
    """One that knows what the table has of the flows, by the record keys, and of the steps that
    `events` are about."""
    ids = {(record.key or b"").decode().partition("/")[0] for record, _ in events}
    rows = await table.flows(sorted(ids))
    keys = {at for _, event in events if (at := step_of(event)) is not None}
    steps = await table.steps(sorted(keys)) if keys else {}
    return EventApplier(rows, steps, next_row_number)
