"""The local table in plain Python: what adapters/sqlite promises, without a file or a thread.

tests/simulation/test_table_contract.py holds both to the same scenarios.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from typing import NamedTuple

import orjson

from processor.adapters.sqlite.errors import TableConflict, TableCorrupt
from processor.adapters.sqlite.write_batch import FORGET_EXTRA, FORGET_FACTOR
from processor.contract.steps import StepStatus
from processor.contract.values import parse_timestamp
from processor.domain.flow import read_flow
from processor.domain.step import read_step
from processor.domain.steps import NO_TOTALS, StepTotals, is_live, step_due_ms
from processor.domain.transitions import TERMINAL
from processor.domain.waits import due_ms
from processor.engine.rows import (
    Changes,
    Checkpoint,
    Deadline,
    FlowRow,
    LedgerEntry,
    RestoreChunk,
    Snapshot,
    StepDue,
    StepRow,
)
from processor.ops.verify.ports import TableFlow, TablePosition, TableStep
from processor.testing.memory.deployment import TableContents


class Kept(NamedTuple):
    """A flow's row as a file keeps it: the document, not the model."""

    row_number: int
    flow_id: str
    revision: int
    last_event_id: int
    chain: bytes
    doc: bytes
    due_ms: int | None
    ended_ms: int | None
    totals: StepTotals

    @property
    def key(self) -> tuple[int, str, int, int]:
        return self[:4]


@dataclass(frozen=True, slots=True)
class Content:
    """What is committed. Never changed: a write makes the next one."""

    checkpoint: Checkpoint | None = None
    flows: Mapping[str, Kept] = field(default_factory=dict)
    steps: Mapping[tuple[str, str], bytes] = field(default_factory=dict)
    ledger: Mapping[bytes, LedgerEntry] = field(default_factory=dict)
    """In the order in which the entries were added."""

    def next_due_ms(self) -> int | None:
        """Return when the first of all waits and steps is due; None if nothing is timed."""
        waits = [row.due_ms for row in self.flows.values()]
        steps = [step_due_ms(_step_row(doc).step) for doc in self.steps.values()]
        return min((at_ms for at_ms in (*waits, *steps) if at_ms is not None), default=None)


class ModelFile:
    """One table file. `version` counts the commits of other writers than the partition's owner."""

    def __init__(self) -> None:
        self.content = Content()
        self.version = 0


class ModelTable:
    """The port Table, on a ModelFile."""

    def __init__(self, file: ModelFile) -> None:
        self._file = file
        self._version = file.version
        self.doubted = False
        self._damage: str | None = None
        self._row_numbers = count(1)

    async def checkpoint(self) -> Checkpoint | None:
        return self._content.checkpoint

    async def next_row_number(self) -> int:
        return max((row.row_number for row in self._content.flows.values()), default=0) + 1

    async def count_flows(self) -> int:
        return len(self._content.flows)

    async def flows(self, ids: Sequence[str]) -> dict[str, FlowRow]:
        flows = self._content.flows
        return {i: _flow_row(flows[i]) for i in ids if i in flows}

    async def steps(self, keys: Sequence[tuple[str, str]]) -> dict[tuple[str, str], StepRow]:
        steps = self._content.steps
        return {at: _step_row(steps[at]) for at in keys if at in steps}

    async def run_ids(self, flow_ids: Sequence[str]) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {flow_id: [] for flow_id in flow_ids}
        for flow_id, run_id in sorted(self._content.steps):
            if flow_id in found:
                found[flow_id].append(run_id)
        return found

    async def live_steps(self, flow_ids: Sequence[str]) -> dict[str, list[StepRow]]:
        found: dict[str, list[StepRow]] = {}
        for at, doc in self._content.steps.items():
            row = _step_row(doc)
            if at[0] in flow_ids and is_live(row.step):
                found.setdefault(at[0], []).append(row)
        return found

    async def steps_due(
        self, status: StepStatus, after: StepDue | None, until_ms: int, limit: int
    ) -> list[StepDue]:
        due = sorted(
            StepDue(at_ms, *at)
            for at, doc in self._content.steps.items()
            if (step := _step_row(doc).step).status is status
            and (at_ms := step_due_ms(step)) is not None
        )
        behind = [one for one in due if after is None or one > after]
        return [one for one in behind if one.at_ms <= until_ms][:limit]

    async def count_live(self) -> tuple[int, int]:
        live = [row.step for row in map(_step_row, self._content.steps.values())]
        counts = Counter(step.status for step in live if is_live(step))
        return counts[StepStatus.PENDING], counts[StepStatus.RUNNING]

    async def ledger_entries(self, keys: Sequence[bytes]) -> dict[bytes, LedgerEntry]:
        ledger = self._content.ledger
        return {key: ledger[key] for key in keys if key in ledger}

    async def due(self, after: Deadline | None, until_ms: int, limit: int) -> list[Deadline]:
        flows = self._content.flows.values()
        waits = sorted(Deadline(row.due_ms, row.flow_id) for row in flows if row.due_ms is not None)
        behind = [due for due in waits if after is None or due > after]
        return [due for due in behind if due.at_ms <= until_ms][:limit]

    async def armed(self) -> int:
        return sum(row.due_ms is not None for row in self._content.flows.values())

    async def ended(self, after: Deadline | None, before_ms: int, limit: int) -> list[Deadline]:
        flows = self._content.flows.values()
        ended = sorted(
            Deadline(row.ended_ms, row.flow_id) for row in flows if row.ended_ms is not None
        )
        behind = [due for due in ended if after is None or due > after]
        return [due for due in behind if due.at_ms < before_ms][:limit]

    async def untouched(self) -> bool:
        self._check()
        if self._file.version != self._version:
            self.doubted = True
        return self._file.version == self._version

    def new_pack(self) -> Changes:
        return Changes()

    async def write(
        self, changes: Changes, *, before: Checkpoint | None, after: Checkpoint
    ) -> None:
        old = self._content
        if old.checkpoint != before or self._file.version != self._version:
            raise TableConflict(
                "it was written by another process; nothing of the batch was written"
            )
        flows, steps, ledger = dict(old.flows), dict(old.steps), dict(old.ledger)
        for row in changes.deleted:
            _found(flows, row, "delete")
            del flows[row.flow.id]
            for at in [at for at in steps if at[0] == row.flow.id]:
                del steps[at]
        for was, row in changes.updated:
            _found(flows, was, "update")
            flows[was.flow.id] = _kept(row, was.row_number)
        row_numbers = {row.row_number for row in flows.values()}
        for row in changes.inserted:
            if row.flow.id in flows or row.row_number in row_numbers:
                raise TableConflict(f"it already holds {row.flow.id}, number {row.row_number}")
            flows[row.flow.id] = _kept(row, row.row_number)
            row_numbers.add(row.row_number)
        for at in changes.deleted_steps:
            steps.pop(at, None)
        for step in changes.steps:
            steps[step.step.flow_id, step.step.run_id] = step.doc
        for entry in changes.ledger_entries:
            ledger.pop(entry.key, None)
            ledger[entry.key] = entry
        if changes.forget_before_ms is not None:
            looked_at = FORGET_FACTOR * len(changes.ledger_entries) + FORGET_EXTRA
            for key in list(ledger)[:looked_at]:
                if ledger[key].at_ms < changes.forget_before_ms:
                    del ledger[key]
        self._file.content = Content(after, flows, steps, ledger)

    async def clear(self) -> None:
        self._check()
        self._file.content, self._version = Content(), self._file.version
        self.doubted = False

    async def begin_restore(self, unfinished: Checkpoint) -> None:
        await self.clear()
        self._file.content = Content(unfinished)
        self._row_numbers = count(1)

    async def restore(self, chunk: RestoreChunk) -> None:
        old = self._content
        flows, steps, ledger = dict(old.flows), dict(old.steps), dict(old.ledger)
        for flow_id in chunk.flows_gone:
            next(self._row_numbers)
            flows.pop(flow_id, None)
        for one in chunk.flows:
            flows[one.flow_id] = _restored(one, next(self._row_numbers))
        for at in chunk.steps_gone:
            steps.pop(at, None)
        for step in chunk.steps:
            steps[step.flow_id, step.run_id] = step.doc
        for entry in chunk.ledger_entries:
            ledger.pop(entry.key, None)
            ledger[entry.key] = entry
        self._file.content = Content(old.checkpoint, flows, steps, ledger)

    async def end_restore(self, after: Checkpoint) -> None:
        totals: dict[str, StepTotals] = {}
        for at, doc in self._content.steps.items():
            totals[at[0]] = totals.get(at[0], NO_TOTALS).after(None, _step_row(doc).step)
        flows = {
            flow_id: row._replace(totals=totals.get(flow_id, NO_TOTALS))
            for flow_id, row in self._content.flows.items()
        }
        self._file.content = replace(self._content, checkpoint=after, flows=flows)

    def distrust(self, damage: str) -> None:
        self._damage = damage
        self.doubted = True

    def size_bytes(self) -> int:
        return sum(len(row.doc) for row in self._content.flows.values())

    @property
    def _content(self) -> Content:
        self._check()
        return self._file.content

    def _check(self) -> None:
        if self._damage is not None:
            raise TableCorrupt(f"the table is damaged: {self._damage}")


def _found(flows: Mapping[str, Kept], row: FlowRow, to_do: str) -> None:
    kept = flows.get(row.flow.id)
    if kept is None or kept.key != (
        row.row_number,
        row.flow.id,
        row.flow.revision,
        row.last_event_id,
    ):
        raise TableConflict(f"a flow to {to_do} has changed; nothing of the batch was written")


def _kept(row: FlowRow, row_number: int) -> Kept:
    flow = row.flow
    return Kept(
        row_number,
        flow.id,
        flow.revision,
        row.last_event_id,
        row.chain,
        row.doc,
        due_ms(flow),
        parse_timestamp(flow.updated_at) if flow.status in TERMINAL else None,
        row.totals,
    )


def _restored(one: Snapshot, row_number: int) -> Kept:
    flow = read_flow(orjson.loads(one.doc))
    return _kept(FlowRow(flow, one.doc, one.last_event_id, one.chain, row_number), row_number)


def _flow_row(kept: Kept) -> FlowRow:
    flow = read_flow(orjson.loads(kept.doc))
    return FlowRow(flow, kept.doc, kept.last_event_id, kept.chain, kept.row_number, kept.totals)


def _step_row(doc: bytes) -> StepRow:
    return StepRow(read_step(orjson.loads(doc)), doc)


def table_of(path: str, partition: int, partitions: int, content: Content) -> TableContents:
    """Return the file's content as `taskflow verify` reads it."""
    checkpoint = content.checkpoint
    assert checkpoint is not None
    flows = []
    for flow_id, row in content.flows.items():
        flow = read_flow(orjson.loads(row.doc))
        columns = (flow.revision, flow.status.value, flow.owner_session_key, flow.updated_at)
        flows.append(TableFlow(flow_id, row.doc.decode(), row.last_event_id, row.chain, *columns))
    return TableContents(
        partition,
        TablePosition(path, partitions, *checkpoint.position, restored=checkpoint.audit >= 0),
        flows,
        [TableStep(*at, doc.decode()) for at, doc in content.steps.items()],
    )
