"""Apply events to rows, and collect the changes of the table."""

from collections.abc import Mapping
from hashlib import blake2b

from processor.contract.events import CHAIN_START
from processor.contract.flow import Flow
from processor.contract.headers import chain_of
from processor.engine.codec import Record, flow_doc
from processor.engine.rows import Changes, FlowRow, StepRow
from processor.errors import HistoryLost


class EventApplier:
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


def check_chain(fold: EventApplier, record: Record) -> None:
    """Each event follows the flow's one before, or begins a chain."""
    before = fold.row((record.key or b"").decode())
    chain = before.chain if before else CHAIN_START
    follows = blake2b(chain + (record.value or b""), digest_size=16).digest()
    if chain_of(record.headers) != follows:
        raise HistoryLost(
            "its chain does not follow from the flow's event before: one was edited, or is missing"
        )
