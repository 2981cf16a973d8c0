"""Check `state` and tables against the fold of the audit (I5), and the records of `state`
themselves (I6, I8, I12).
"""

from collections.abc import Iterator
from typing import Final, NamedTuple, TypeVar

from processor.contract.state import CURSOR_PREFIX
from processor.contract.values import EVENTS_PER_PARTITION, SCHEMA_VERSION, instant
from processor.ops.verify.contract import (
    CURSOR_FIELDS,
    Doc,
    canonical,
    differing,
    due_ms,
    hash16,
    home_of,
    parsed,
    signature,
)
from processor.ops.verify.ports import LogRecord, TableFlow, TablePosition, TableStep
from processor.ops.verify.report import Report
from processor.ops.verify.scratch_store import FoldedFlow, ScratchStore, SeenFlow, SeenStep

T = TypeVar("T")

AT_ONCE: Final = 2_000
TRANSACTION_MAX_KEYS: Final = 50_000
"""Keys between two cursors that are looked at for repeats. Compaction leaves few cursors, and then
there may be any number."""
UNREADABLE: Final = b""
"""The signature of what is no flow."""
TRANSACTION_KEPT: Final = 10_000
TRANSACTION_KEPT_BYTES: Final = 16 * 1024 * 1024
"""Records between two cursors, and bytes of their values, that are kept for comparing."""


class StateWrite(NamedTuple):
    """The records of `state` behind one cursor and up to the next: one transaction, or several
    where compaction has removed cursors. `records` is None where there are too many; `complete`: it
    is known that compaction has removed none."""

    records: dict[bytes, LogRecord] | None
    before: Doc | None
    cursor: Doc
    complete: bool


class StateReader:
    """Keeps the present as `state` has it, record by record; `cursor` is the newest."""

    def __init__(
        self, scratch: ScratchStore, report: Report, partition: int, only: str | None
    ) -> None:
        self._scratch = scratch
        self._report = report
        self._partition = partition
        self._only = only
        self._key = f"{CURSOR_PREFIX}{partition}".encode()
        self._keys: set[bytes] = set()
        self._written: dict[bytes, LogRecord] | None = {}
        """None: too many to be kept."""
        self._written_bytes = 0
        self._records = 0
        self._flows: dict[str, SeenFlow | None] = {}
        self._steps: dict[tuple[str, str], SeenStep | None] = {}
        self.cursor: Doc | None = None
        self.cursor_at: LogRecord | None = None
        self._behind: LogRecord | None = None

    def take(self, record: LogRecord) -> StateWrite | None:
        """Take the next record; what was written up to it, if it is a cursor."""
        key = record.key or b""
        if key.startswith(CURSOR_PREFIX.encode()):
            return self._cursor(record, key)
        self._behind = record
        if key in self._keys:
            self._report.at(
                record,
                *("I8", "state_key_twice"),
                f"{_utf8(key)} stands twice between two cursors: one transaction writes it once.",
            )
        self._keep(key, record)
        flow_id, slash, run_id = _utf8(key).partition("/")
        if self._only not in (None, flow_id):
            return None
        value = parsed(record.value)
        if slash:
            step = None
            if record.value is not None:
                digest = hash16(canonical(value.get("step"))) if value else UNREADABLE
                step = SeenStep(flow_id, run_id, digest, record.offset)
            self._steps[flow_id, run_id] = step
        else:
            self._flows[flow_id] = (
                None if record.value is None else _snapshot(flow_id, value, record)
            )
        if len(self._flows) + len(self._steps) >= AT_ONCE:
            self._write()
        return None

    def _keep(self, key: bytes, record: LogRecord) -> None:
        self._records += 1
        if len(self._keys) < TRANSACTION_MAX_KEYS:
            self._keys.add(key)
        self._written_bytes += len(record.value or b"")
        if self._records > TRANSACTION_KEPT or self._written_bytes > TRANSACTION_KEPT_BYTES:
            self._written = None
        if self._written is not None:
            self._written[key] = record

    def end(self) -> None:
        """All is read."""
        self._write()
        if self._behind is not None:
            self._report.at(
                self._behind,
                *("I9", "state_without_cursor"),
                "Records of a transaction without the cursor that ends it.",
            )

    def _cursor(self, record: LogRecord, key: bytes) -> StateWrite | None:
        self._report.checked["I6"] += 1
        self._report.checked["I8"] += 1
        cursor = parsed(record.value)
        if key != self._key:
            self._report.at(
                record, "I12", "cursor_misplaced", f"{_utf8(key)} on another partition."
            )
            return None
        fields = {*CURSOR_FIELDS, "schema_version"}
        if (
            cursor is None
            or cursor.keys() != fields
            or any(type(value) is not int for value in cursor.values())
            or cursor["schema_version"] != SCHEMA_VERSION
            or cursor["next_event_id"] // EVENTS_PER_PARTITION != self._partition
            or not 0 <= cursor["offered"] < cursor["next_event_id"]
        ):
            self._report.at(
                record, "I6", "not_a_cursor", "The record is no cursor of this partition."
            )
            return None
        for name in CURSOR_FIELDS:
            if self.cursor is not None and cursor[name] < self.cursor[name]:
                self._report.at(
                    record,
                    *("I6", "cursor_moved_back"),
                    f"{name} goes back from {self.cursor[name]} to {cursor[name]}.",
                )
        # The first cursor may be one of a topic that was made from snapshots alone. Behind the
        # cursor before comes the marker of its transaction.
        before = self.cursor_at
        complete = before is not None and record.offset - before.offset - 2 == self._records
        write = StateWrite(self._written, self.cursor, cursor, complete)
        self.cursor, self.cursor_at, self._behind = cursor, record, None
        self._keys.clear()
        self._written, self._written_bytes, self._records = {}, 0, 0
        return write

    def _write(self) -> None:
        flows, steps = self._flows, self._steps
        self._scratch.drop_seen(
            "state",
            [flow_id for flow_id, seen in flows.items() if seen is None],
            [at for at, seen in steps.items() if seen is None],
        )
        self._scratch.put_seen(
            "state",
            [seen for seen in flows.values() if seen is not None],
            [seen for seen in steps.values() if seen is not None],
        )
        self._flows, self._steps = {}, {}


class TableSnapshot:
    """A table as it was at one moment, kept in the scratch file under the name `where`."""

    def __init__(
        self, scratch: ScratchStore, report: Report, partition: int, only: str | None, where: str
    ) -> None:
        self.where = where
        self._scratch = scratch
        self._report = report
        self._partition = partition
        self._only = only
        self.position: TablePosition | None = None
        self._odd: list[tuple[str, str]] = []

    def take(
        self, position: TablePosition, flows: Iterator[TableFlow], steps: Iterator[TableStep]
    ) -> None:
        self._scratch.clear_seen(self.where)
        self._odd.clear()
        self.position = position
        for flow_rows in _some(flows):
            self._scratch.put_seen(self.where, map(self._flow, filter(self._wanted, flow_rows)))
        for step_rows in _some(steps):
            self._scratch.put_seen(self.where, (), map(_step, filter(self._wanted, step_rows)))

    @property
    def path(self) -> str:
        assert self.position is not None
        return self.position.path

    @property
    def next_event_id(self) -> int:
        assert self.position is not None
        return self.position.next_event_id

    def report_odd(self) -> None:
        """Rows whose columns say something else than their documents."""
        assert self.position is not None
        for flow_id, names in self._odd:
            self._report.add(
                *("I5", "table_columns"),
                f"Columns of the row are not what its document says: {names}.",
                topic=self.position.path,
                partition=self._partition,
                flow_id=flow_id,
            )

    def _wanted(self, row: TableFlow | TableStep) -> bool:
        return self._only in (None, row.flow_id)

    def _flow(self, row: TableFlow) -> SeenFlow:
        doc = parsed(row.doc)
        sign = UNREADABLE if doc is None else signature(doc)
        columns = {
            "id": row.flow_id,
            "revision": row.revision,
            "status": row.status,
            "owner_session_key": row.owner,
            "updated_at": row.updated_at,
        }
        if doc is not None and len(self._odd) < AT_ONCE:
            wrong = [name for name, value in columns.items() if doc.get(name) != value]
            if wrong:
                self._odd.append((row.flow_id, ", ".join(wrong)))
        return SeenFlow(
            *(row.flow_id, sign, row.revision, row.status, row.last_event_id, row.chain, -1)
        )


class SnapshotChecks:
    """Compares the fold, as it is now, with what `where` ("state", or an image's) holds.

    `overdue_ms`: no flow may wait any more whose time lies before this; None: work goes on.
    """

    def __init__(
        self,
        scratch: ScratchStore,
        report: Report,
        partition: int,
        partitions: int,
        overdue_ms: int | None = None,
    ) -> None:
        self._scratch = scratch
        self._report = report
        self._partition = partition
        self._partitions = partitions
        self._overdue_ms = overdue_ms

    def compare(self, where: str, name: str, first_event_id: int | None) -> None:
        """`name`: the topic or the table's path; `first_event_id`: where the fold began, None for
        the beginning, and what last changed before is not compared."""
        what = "state" if where == "state" else "table"
        for flow_id, entry, seen in self._scratch.flow_pairs(where):
            self._report.checked["I5"] += 1
            self._flow(what, name, flow_id, entry, seen)
            if what == "state" and entry.doc is not None:
                self._wait(name, flow_id, entry.doc)
        for seen in self._scratch.flows_only(where):
            if first_event_id is None or seen.last_event_id >= first_event_id:
                self._report.checked["I5"] += 1
                message = f"The {what} has the flow, which by the audit is not there."
                if home_of(seen.flow_id.encode(), self._partitions) != self._partition:
                    message += " It belongs to another partition."
                    self._add(
                        *(f"{what}_misplaced", message, name, seen.place, seen.flow_id),
                        invariant="I12",
                    )
                self._add(f"{what}_flow_extra", message, name, seen.place, seen.flow_id)
        if first_event_id is not None:
            return  # of steps it is unknown which are older
        for flow_id, run_id, place in self._scratch.unequal_steps(where):
            missing = place < 0 and what == "state"
            message = (
                f"Step {run_id!r} of the {what} is {'missing' if missing else 'not the fold'}."
            )
            self._add(f"{what}_step", message, name, place, flow_id)
        for flow_id, run_id, place in self._scratch.steps_only(where):
            message = f"The {what} has step {run_id!r}, which by the audit is not there."
            self._add(f"{what}_step_extra", message, name, place, flow_id)

    def _flow(
        self, what: str, name: str, flow_id: str, entry: FoldedFlow, seen: SeenFlow | None
    ) -> None:
        doc = entry.doc
        if doc is None:
            if seen is not None:
                message = f"The {what} has the flow, which was pruned."
                self._add(f"{what}_flow_extra", message, name, seen.place, flow_id)
            return
        if seen is None:
            message = f"The {what} does not have the flow, which is {doc['status']}."
            self._add(f"{what}_flow_missing", message, name, -1, flow_id)
            return
        if seen.signature == UNREADABLE:
            message = f"What the {what} has for the flow is no flow."
            self._add(f"{what}_flow_unreadable", message, name, seen.place, flow_id)
            return
        seen_as, stands = (seen.revision, seen.status), (doc.get("revision"), doc["status"])
        wrong = differing(seen.signature, signature(doc)) if entry.whole else []
        if wrong or seen_as != stands:
            message = (
                f"The {what} has revision {seen_as[0]} ({seen_as[1]}), the fold {stands[0]} "
                f"({stands[1]}); they differ in {', '.join(wrong) or 'that'}."
            )
            self._add(f"{what}_flow_differs", message, name, seen.place, flow_id)
        self._report.checked["I7"] += 1
        if (seen.last_event_id, seen.chain) != (entry.last_event_id, entry.chain):
            message = (
                f"The {what} pins the flow's history at event {seen.last_event_id}, the audit ends "
                f"with {entry.last_event_id}"
                + (" and another chain." if seen.last_event_id == entry.last_event_id else ".")
            )
            self._add(f"{what}_tail", message, name, seen.place, flow_id, invariant="I7")

    def _wait(self, name: str, flow_id: str, doc: Doc) -> None:
        if self._overdue_ms is None or doc["status"] != "waiting":
            return
        due = 0 if doc.get("cancel_requested") else due_ms(doc.get("wait_json"))
        if due is None:
            return
        self._report.checked["I13"] += 1
        if due < self._overdue_ms:
            why = f"its time was {instant(due)}" if due else "its cancellation was requested"
            message = f"The flow still waits, but {why}."
            self._add("wait_overdue", message, name, -1, flow_id, invariant="I13")

    def _add(
        self,
        kind: str,
        message: str,
        name: str,
        place: int,
        flow_id: str,
        invariant: str = "I5",
    ) -> None:
        self._report.add(
            *(invariant, kind, message),
            topic=name,
            partition=self._partition,
            offset=place,
            flow_id=flow_id,
        )


def _snapshot(flow_id: str, value: Doc | None, record: LogRecord) -> SeenFlow:
    flow = (value or {}).get("flow")
    try:
        assert value is not None
        assert isinstance(flow, dict)
        assert value.keys() == {"flow", "last_event_id", "chain"}
        last, chain = int(value["last_event_id"]), bytes.fromhex(value["chain"])
    except (AssertionError, ValueError, TypeError):
        return SeenFlow(flow_id, UNREADABLE, None, None, 0, b"", record.offset)
    revision, status = flow.get("revision"), flow.get("status")
    return SeenFlow(flow_id, signature(flow), revision, status, last, chain, record.offset)


def _step(row: TableStep) -> SeenStep:
    doc = parsed(row.doc)
    digest = UNREADABLE if doc is None else hash16(canonical(doc))
    return SeenStep(row.flow_id, row.run_id, digest, -1)


def _some(rows: Iterator[T]) -> Iterator[list[T]]:
    chunk: list[T] = []
    for row in rows:
        chunk.append(row)
        if len(chunk) == AT_ONCE:
            yield chunk
            chunk = []
    yield chunk


def _utf8(raw: bytes) -> str:
    return raw.decode("utf-8", "replace")
