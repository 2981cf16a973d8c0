"""Collect a batch's changes as statement parameters while its rows are in the CPU's caches."""

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any, Final, NamedTuple

from processor.adapters.sqlite import row_codec as records
from processor.adapters.sqlite import statements
from processor.adapters.sqlite.ledger import ROW_WIDTH, Ledger
from processor.engine.rows import Changes, FlowRow, LedgerEntry, StepRow

FORGET_FACTOR: Final = 2
FORGET_EXTRA: Final = 1000
"""Per write, up to 2 × the ledger entries added + 1000 of the oldest are removed."""


class WriteStatement(NamedTuple):
    """A statement of a write. Unless it changes `rows` rows, `unless` says what is wrong."""

    sql: str
    parameters: Sequence[Any]
    rows: int = 0
    unless: str | None = None


class WriteBatch:
    """What one write does: all that was taken out of some Changes, in the order that those
    document."""

    def __init__(self) -> None:
        self.forget_before_ms: int | None = None
        self._deleted: list[Any] = []
        self._without_steps: list[Any] = []
        self._updated: list[Any] = []
        self._inserted: list[Any] = []
        self._deleted_steps: list[Any] = []
        self._steps: list[Any] = []
        self._ledger_entries: list[Any] = []

    def delete(self, row: FlowRow) -> None:
        self._deleted += records.flow_key(row)
        self._without_steps.append(row.flow.id)

    def update(self, was: FlowRow, row: FlowRow) -> None:
        self._updated += records.update_values(was, row)

    def insert(self, row: FlowRow) -> None:
        self._inserted += (row.row_number, row.flow.id, *records.flow_values(row))

    def put_step(self, row: StepRow) -> None:
        self._steps += records.step_values(row)

    def put_ledger_entry(self, entry: LedgerEntry) -> None:
        self._ledger_entries += records.ledger_values(entry)

    def take(self, changes: Changes) -> None:
        """Add what stands in `changes`."""
        for row in changes.deleted:
            self.delete(row)
        for was, row in changes.updated:
            self.update(was, row)
        for row in changes.inserted:
            self.insert(row)
        self._deleted_steps += chain.from_iterable(changes.deleted_steps)
        for step in changes.steps:
            self.put_step(step)
        for entry in changes.ledger_entries:
            self.put_ledger_entry(entry)
        if changes.forget_before_ms is not None:
            self.forget_before_ms = changes.forget_before_ms

    def to_statements(self, ledger: Ledger) -> Iterator[WriteStatement]:
        """What was asked for, as statements. `ledger` goes ahead: after a failure load it again."""
        yield from _each(statements.DELETE_FLOWS, self._deleted, "a flow to delete has changed")
        yield from _each(statements.DELETE_STEPS, self._without_steps)
        yield from _each(statements.UPDATE_FLOWS, self._updated, "a flow to update has changed")
        yield from _each(statements.INSERT_FLOWS, self._inserted)
        yield from _each(statements.DELETE_THESE_STEPS, self._deleted_steps)
        yield from _each(statements.UPSERT_STEPS, self._steps)
        if self._ledger_entries:
            ledger.append(self._ledger_entries)
            yield from _each(statements.INSERT_LEDGER, self._ledger_entries)
            yield from (WriteStatement(*statement) for statement in ledger.sealing())
        if self.forget_before_ms is not None:
            rows = FORGET_FACTOR * len(self._ledger_entries) // ROW_WIDTH + FORGET_EXTRA
            forgetting = ledger.forgetting(self.forget_before_ms, rows)
            yield from (WriteStatement(*statement) for statement in forgetting)


def _each(
    rows: statements.Rows, values: Sequence[Any], unless: str | None = None
) -> Iterator[WriteStatement]:
    for sql, parameters, count in rows.writing(values):
        yield WriteStatement(sql, parameters, count, unless)
