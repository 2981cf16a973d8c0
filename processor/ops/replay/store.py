"""Store a replayed partition's flows, steps and ledger: in memory, and beyond that in a file.

The ones used last are in memory; beyond a bound the others go to a temporary file.
"""

import pickle
import sqlite3
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import orjson

from processor.contract.events import CHAIN_START
from processor.domain.evolve import STEP_KINDS, evolve, evolve_step
from processor.domain.flow import read_flow
from processor.domain.step import Step, read_step
from processor.domain.steps import NO_TOTALS, StepTotals, is_live, run_id_of
from processor.engine.batch import Decoded, LoadedState, needs, snapshot_of, step_needs
from processor.engine.codec import fact_of
from processor.engine.encoding import encode, flow_doc, step_doc
from processor.engine.flow_cache import weight_bytes
from processor.engine.rows import Changes, FlowRow, LedgerEntry, StepRow, new_flow_row
from processor.ops.verify.scratch_store import ScratchFailed

FLOWS_BYTES: Final = 256 * 1024 * 1024
LEDGER_MAX: Final = 300_000
SPILLED_SHARE: Final = 0.9
"""What is left in memory of a bound that was exceeded."""
AT_ONCE: Final = 500

_SCHEMA: Final = """
    CREATE TABLE flow (n INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, known BLOB NOT NULL);
    CREATE TABLE answer (
        n INTEGER PRIMARY KEY, key BLOB NOT NULL UNIQUE, at_ms INTEGER NOT NULL, row BLOB NOT NULL
    );
"""

Steps = dict[str, StepRow]
"""A flow's steps by run id."""


class Known:
    """A flow and its steps."""

    __slots__ = ("row", "steps", "weight")

    def __init__(self, row: FlowRow, steps: Steps) -> None:
        self.row = row
        self.steps = steps
        self.weight = weight_bytes(row)


@contextmanager
def open_store(
    directory: Path | None = None,
    *,
    flows_bytes: int = FLOWS_BYTES,
    ledger_max: int = LEDGER_MAX,
) -> Iterator["ReplayStore"]:
    """An empty one; its file is made when it is needed and removed in the end.

    Raises ScratchFailed, also out of the block.
    """
    try:
        with TemporaryDirectory(prefix="taskflow-replay-", dir=directory) as home:
            store = ReplayStore(Path(home) / "store.db", flows_bytes, ledger_max)
            try:
                yield store
            finally:
                store.close()
    except sqlite3.Error as error:
        raise ScratchFailed(f"The temporary file in {directory or 'TMPDIR'}: {error}.") from error


class ReplayStore:
    """Made by `open_store`."""

    def __init__(self, path: Path, flows_bytes: int, ledger_max: int) -> None:
        self._path = path
        self._flows_bytes = flows_bytes
        self._ledger_max = ledger_max
        self._file: sqlite3.Connection | None = None
        self._flows: OrderedDict[str, Known] = OrderedDict()
        self._size_bytes = 0
        self._ledger: dict[bytes, LedgerEntry] = {}
        self._spilled_flows = self._spilled_ledger = False

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    # Reading

    def flow(self, flow_id: str) -> FlowRow | None:
        known = self.known_flow(flow_id)
        return None if known is None else known.row

    def known_flow(self, flow_id: str) -> Known | None:
        """A flow with its steps; None if there is none."""
        known = self._flows.get(flow_id)
        if known is not None:
            self._flows.move_to_end(flow_id)
        elif self._spilled_flows:
            found = self._db.execute("SELECT known FROM flow WHERE id = ?", (flow_id,)).fetchone()
            if found is not None:
                known = _read(found[0])
                self._put(flow_id, known)
        return known

    def memory(self, items: Sequence[Decoded]) -> LoadedState:
        """What must be known of the flows of `items`."""
        needed = needs(items)
        memory = LoadedState()
        flows, here = memory.flows, self._flows
        for flow_id in needed.flows:
            known = here.get(flow_id)
            if known is not None:
                here.move_to_end(flow_id)
                flows[flow_id] = known.row
            else:
                flows[flow_id] = self.flow(flow_id) if self._spilled_flows else None
        steps, live = step_needs(needed, flows)
        for flow_id, run_id in steps:
            known = self.known_flow(flow_id)
            if known is not None and run_id in known.steps:
                memory.steps[flow_id, run_id] = known.steps[run_id]
        for flow_id in live:
            known = self.known_flow(flow_id)
            rows = [] if known is None else known.steps.values()
            memory.live[flow_id] = [row for row in rows if is_live(row.step)]
        for flow_id in needed.pruned:
            known = self.known_flow(flow_id)
            memory.run_ids[flow_id] = [] if known is None else [*known.steps]
        entries = self._ledger
        memory.ledger = {key: entries[key] for key in needed.ledger if key in entries}
        if self._spilled_ledger:
            missing = [key for key in needed.ledger if key not in entries]
            memory.ledger |= {row.key: row for row in self._spilled(missing)}
        return memory

    def ledger_entry(self, key: bytes) -> LedgerEntry | None:
        row = self._ledger.get(key)
        if row is None and self._spilled_ledger:
            return next(self._spilled([key]), None)
        return row

    def known(self) -> Iterator[Known]:
        """All flows, in no order. Nothing may be changed meanwhile."""
        yield from self._flows.values()
        if self._spilled_flows:
            for flow_id, raw in self._db.execute("SELECT id, known FROM flow"):
                if flow_id not in self._flows:
                    yield _read(raw)

    def ledger(self) -> Iterator[LedgerEntry]:
        """All ledger entries, the oldest first. Nothing may be changed meanwhile."""
        if self._spilled_ledger:
            for key, raw in self._db.execute("SELECT key, row FROM answer ORDER BY n"):
                if key not in self._ledger:
                    yield LedgerEntry(*pickle.loads(raw))
        yield from self._ledger.values()

    # Writing

    def keep(self, changes: Changes) -> None:
        """What a batch leaves behind."""
        for row in changes.deleted:
            self.drop(row.flow.id)
        for before, row in changes.updated:
            known = self._flows.get(before.flow.id)
            if known is None:  # it was thrown out since it was read
                known = self.known_flow(before.flow.id)
                assert known is not None
            # What a document weighs changes little: a flow is weighed when it comes in.
            known.row = row
        for row in changes.inserted:
            self._put(row.flow.id, Known(row, {}))
        for step in changes.steps:
            known = self.known_flow(step.step.flow_id)
            if known is not None:
                self._put_step(known, step)
        self.keep_ledger(changes.ledger_entries)
        self._spill()

    def keep_ledger(self, rows: Iterable[LedgerEntry]) -> None:
        """Ledger entries, in the order in which they were made."""
        entries = self._ledger
        for row in rows:
            if row.key in entries:
                del entries[row.key]  # the newer one goes behind
            entries[row.key] = row

    def forget(self, before_ms: int) -> None:
        """Drop ledger entries that no command appended from now on can be a resend of."""
        entries = self._ledger
        while entries:
            key = next(iter(entries))
            if entries[key].at_ms >= before_ms:
                break
            del entries[key]
        if self._spilled_ledger:
            self._db.execute("DELETE FROM answer WHERE at_ms < ?", (before_ms,))

    def put(self, row: FlowRow, steps: Iterable[StepRow] = ()) -> None:
        """A flow as it stands."""
        known = Known(row, {})
        self._put(row.flow.id, known)
        for step in steps:
            self._put_step(known, step)
        known.row = row._replace(totals=_totals(known.steps))
        self._spill()

    def drop(self, flow_id: str) -> None:
        """A flow and its steps are gone."""
        known = self._flows.pop(flow_id, None)
        if known is not None:
            self._size_bytes -= known.weight
        if self._spilled_flows:
            self._db.execute("DELETE FROM flow WHERE id = ?", (flow_id,))

    def fold(self, event: dict[str, Any], chain: bytes) -> None:
        """A FlowEvent as JSON, with the value of its chain header. Raises what a fact raises that
        cannot have happened."""
        fact = fact_of(event)
        known = self.known_flow(fact.flow_id)
        flow = evolve(known.row.flow if known else None, fact)
        if flow is None:
            self.drop(fact.flow_id)
            return
        totals = known.row.totals if known else NO_TOTALS
        step: Step | None = None
        if fact.kind in STEP_KINDS and known is not None:
            row = known.steps.get(run_id_of(fact))
            was = row.step if row else None
            step = evolve_step(was, fact)
            totals = totals.after(was, step)
        row_now = new_flow_row((flow, flow_doc(flow), event["id"], chain, 1, totals))
        if known is None:
            known = Known(row_now, {})
            self._put(fact.flow_id, known)
        else:
            known.row = row_now
        if step is not None:
            self._put_step(known, StepRow(step, step_doc(step)))
        self._spill()

    def chain(self, flow_id: str) -> bytes:
        """The newest value of a flow's chain."""
        row = self.flow(flow_id)
        return CHAIN_START if row is None else row.chain

    def _put(self, flow_id: str, known: Known) -> None:
        old = self._flows.pop(flow_id, None)
        if old is not None:
            self._size_bytes -= old.weight
        self._flows[flow_id] = known
        self._size_bytes += known.weight

    def _put_step(self, known: Known, step: StepRow) -> None:
        known.steps[step.step.run_id] = step
        known.weight += len(step.doc)
        self._size_bytes += len(step.doc)

    # The file

    @property
    def _db(self) -> sqlite3.Connection:
        if self._file is None:
            self._file = sqlite3.connect(self._path, isolation_level=None)
            for setting in ("journal_mode = OFF", "synchronous = OFF", "locking_mode = EXCLUSIVE"):
                self._file.execute(f"PRAGMA {setting}")
            self._file.executescript(_SCHEMA)
        return self._file

    def _spilled(self, keys: Sequence[bytes]) -> Iterator[LedgerEntry]:
        for start in range(0, len(keys), AT_ONCE):
            some = keys[start : start + AT_ONCE]
            marks = ",".join("?" * len(some))
            for (raw,) in self._db.execute(f"SELECT row FROM answer WHERE key IN ({marks})", some):
                yield LedgerEntry(*pickle.loads(raw))

    def _spill(self) -> None:
        if self._size_bytes > self._flows_bytes:
            out = []
            while self._flows and self._size_bytes > self._flows_bytes * SPILLED_SHARE:
                flow_id, known = self._flows.popitem(last=False)
                self._size_bytes -= known.weight
                out.append((flow_id, _written(known)))
            self._in_one("INSERT OR REPLACE INTO flow (id, known) VALUES (?, ?)", out)
            self._spilled_flows = True
        if len(self._ledger) > self._ledger_max:
            rows = []
            for _ in range(len(self._ledger) - int(self._ledger_max * SPILLED_SHARE)):
                key = next(iter(self._ledger))
                row = self._ledger.pop(key)
                rows.append((key, row.at_ms, pickle.dumps(tuple(row))))
            self._in_one("INSERT OR REPLACE INTO answer (key, at_ms, row) VALUES (?, ?, ?)", rows)
            self._spilled_ledger = True

    def _in_one(self, statement: str, rows: Iterable[tuple[Any, ...]]) -> None:
        db = self._db
        db.execute("BEGIN")
        db.executemany(statement, rows)
        db.execute("COMMIT")


def known_doc(known: Known) -> dict[str, Any]:
    """A flow and its steps as JSON, from which `read_known` makes it again."""
    snapshot: dict[str, Any] = orjson.loads(snapshot_of(known.row))
    return {**snapshot, "steps": [orjson.loads(step.doc) for step in known.steps.values()]}


def read_known(doc: dict[str, Any]) -> Known:
    """Raises ValidationError of a step, KeyError, TypeError."""
    flow = read_flow(doc["flow"])
    chain = bytes.fromhex(doc["chain"])
    row = new_flow_row((flow, flow_doc(flow), doc["last_event_id"], chain, 1, NO_TOTALS))
    known = Known(row, {})
    for one in doc["steps"]:
        step = StepRow(read_step(one), encode(one))
        known.steps[step.step.run_id] = step
        known.weight += len(step.doc)
    known.row = row._replace(totals=_totals(known.steps))
    return known


def _totals(steps: Steps) -> StepTotals:
    totals = NO_TOTALS
    for row in steps.values():
        totals = totals.after(None, row.step)
    return totals


def _written(known: Known) -> bytes:
    return encode(known_doc(known))


def _read(raw: bytes) -> Known:
    return read_known(orjson.loads(raw))
