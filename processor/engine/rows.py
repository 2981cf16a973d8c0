"""The rows of a table: flows, steps, ledger entries, checkpoints."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from hashlib import blake2b
from typing import Any, Final, NamedTuple

from processor.contract.flow import FlowStatus
from processor.contract.outcomes import Code, Verdict
from processor.contract.steps import StepStatus
from processor.domain.flow import Flow
from processor.domain.step import Step
from processor.domain.steps import NO_TOTALS, StepTotals


class FlowRow(NamedTuple):
    """A flow with what its next event builds on.

    `doc` is the flow as JSON, as it stands on `state` and in the table; `chain` the 16 bytes of
    its newest event; `number` its row number in the table, given by the partition at creation;
    `totals` counts its steps.
    """

    flow: Flow
    doc: bytes
    last_event_id: int
    chain: bytes
    row_number: int
    totals: StepTotals = NO_TOTALS


# `FlowRow(*fields)`; its own constructor is a Python function that takes twice the time. So are
# those of the other tuples of which each command makes one.
new_flow_row: Final[Callable[[tuple[Flow, bytes, int, bytes, int, StepTotals]], FlowRow]] = partial(
    tuple.__new__, FlowRow
)


class StepRow(NamedTuple):
    """A step with `doc`, the step as JSON."""

    step: Step
    doc: bytes


new_step_row: Final[Callable[[tuple[Step, bytes]], StepRow]] = partial(tuple.__new__, StepRow)


class Snapshot(NamedTuple):
    """A flow as `state` has it, its `doc` not parsed; `due_ms` is when its wait ends by itself."""

    flow_id: str
    last_event_id: int
    chain: bytes
    due_ms: int | None
    doc: bytes


new_snapshot: Final[Callable[[tuple[str, int, bytes, int | None, bytes]], Snapshot]] = partial(
    tuple.__new__, Snapshot
)


class StepSnapshotRow(NamedTuple):
    """A step as `state` has it, no model made of it.

    `status` is None of an observed one, `due_ms` of all but managed ones that have not ended;
    `input_bytes` is what the input of such a one takes as written, else 0.
    """

    flow_id: str
    run_id: str
    status: StepStatus | None
    due_ms: int | None
    input_bytes: int
    doc: bytes


class LedgerEntry(NamedTuple):
    """An outcome in the ledger, which a resend gets.

    `key` is `ledger_key(flow_id, command_id)`; `digest` the command's; events are
    `first_event_id` … + `event_count` - 1. `code` is None for an accepted command.
    """

    key: bytes
    at_ms: int
    digest: bytes
    code: Code | None
    revision: int | None
    status: FlowStatus | None
    first_event_id: int
    event_count: int
    details: dict[str, Any]

    @property
    def verdict(self) -> Verdict:
        return Verdict.ACCEPTED if self.code is None else Verdict.REJECTED

    @property
    def event_ids(self) -> list[int]:
        return list(range(self.first_event_id, self.first_event_id + self.event_count))


new_ledger_entry: Final[
    Callable[
        [
            tuple[
                bytes,
                int,
                bytes,
                Code | None,
                int | None,
                FlowStatus | None,
                int,
                int,
                dict[str, Any],
            ]
        ],
        LedgerEntry,
    ]
] = partial(tuple.__new__, LedgerEntry)


def ledger_key(flow_id: str, command_id: str) -> bytes:
    """16 bytes that stand for a command of a flow, over both topics."""
    return blake2b((flow_id + command_id).encode(), digest_size=16).digest()


class Position(NamedTuple):
    """How far a partition is decided: next offsets of both sources, full id of the next event."""

    commands: int
    control: int
    next_event_id: int


class Deadline(NamedTuple):
    """A flow to be looked at because of a time: when its wait ends by itself, or when it ended.

    Ordered by time, then by id, as the table's lists are; so the last of one chunk is where the
    next begins, also within one millisecond.
    """

    at_ms: int
    flow_id: str


class StepDue(NamedTuple):
    """A managed step to be looked at because of a time: the end of its lease, when it may be
    started, or when it is offered again. Ordered as `Deadline` is."""

    at_ms: int
    flow_id: str
    run_id: str


class Checkpoint(NamedTuple):
    """How far a table is written.

    `audit` and `outcomes` are the offsets on those topics from which it must be rolled forward;
    `as_of_ms` is the broker's append time of the newest outcome in it.
    """

    position: Position
    audit: int
    outcomes: int
    as_of_ms: int


@dataclass(slots=True)
class RestoreChunk:
    """A part of what a table is filled with: each flow and step once, as a snapshot or as gone. Of
    what comes in several parts, the last word counts."""

    flows: list[Snapshot] = field(default_factory=list)
    flows_gone: list[str] = field(default_factory=list)
    steps: list[StepSnapshotRow] = field(default_factory=list)
    steps_gone: list[tuple[str, str]] = field(default_factory=list)
    ledger_entries: list[LedgerEntry] = field(default_factory=list)


@dataclass(slots=True)
class Changes:
    """Everything that one batch writes to the table.

    Applied in this order: flows deleted, with their steps; flows updated and inserted; steps
    deleted (flow id, run id; there or not) and upserted; ledger entries added (a newer one under
    the same key counts); entries older than `forget_before_ms` dropped, as far as that is
    convenient. `updated` pairs the row that was decided on with the new one.
    """

    deleted: list[FlowRow] = field(default_factory=list)
    updated: list[tuple[FlowRow, FlowRow]] = field(default_factory=list)
    inserted: list[FlowRow] = field(default_factory=list)
    deleted_steps: list[tuple[str, str]] = field(default_factory=list)
    steps: list[StepRow] = field(default_factory=list)
    ledger_entries: list[LedgerEntry] = field(default_factory=list)
    forget_before_ms: int | None = None

    def delete(self, row: FlowRow) -> None:
        self.deleted.append(row)

    def update(self, was: FlowRow, row: FlowRow) -> None:
        self.updated.append((was, row))

    def insert(self, row: FlowRow) -> None:
        self.inserted.append(row)

    def put_step(self, row: StepRow) -> None:
        self.steps.append(row)

    def put_ledger_entry(self, entry: LedgerEntry) -> None:
        self.ledger_entries.append(entry)

    def take(self, others: "Changes") -> None:
        """Add what stands in `others`."""
        self.deleted += others.deleted
        self.updated += others.updated
        self.inserted += others.inserted
        self.deleted_steps += others.deleted_steps
        self.steps += others.steps
        self.ledger_entries += others.ledger_entries
        if others.forget_before_ms is not None:
            self.forget_before_ms = others.forget_before_ms

    def clear(self) -> None:
        for rows in (
            self.deleted,
            self.updated,
            self.inserted,
            self.deleted_steps,
            self.steps,
            self.ledger_entries,
        ):
            rows.clear()
        self.forget_before_ms = None
