"""Check what each transaction writes to `state`, and the wakes that it owes: I5, I9, I13.

Read in step with the fold: when all events up to a cursor are folded, the records between it and
the cursor before must be what those events leave.
"""

from typing import Final

from processor.contract.headers import PROGRESS
from processor.ops.verify.contract import Doc, canonical, hash16, parsed
from processor.ops.verify.ports import LogRecord
from processor.ops.verify.record_stream import RecordStream
from processor.ops.verify.report import Report
from processor.ops.verify.scratch_store import FoldedFlow, ScratchStore
from processor.ops.verify.snapshot_checks import TRANSACTION_MAX_KEYS, StateReader, StateWrite

REQUESTS_MAX: Final = 50_000
"""Requests to cancel whose wakes are looked for at a time."""


class Transactions:
    """Compares the transactions of a partition with the fold, each when its events are folded.

    `whole`: the fold begins with the first event that ever was. `only`: the one flow that is looked
    at, if not all.
    """

    def __init__(
        self,
        scratch: ScratchStore,
        report: Report,
        reader: StateReader,
        stream: RecordStream,
        *,
        whole: bool,
        only: str | None,
    ) -> None:
        self._scratch = scratch
        self._report = report
        self._reader = reader
        self._stream = stream
        self._whole = whole
        self._only = only
        self._write: StateWrite | None = None
        self._changed: set[str] = set()
        """Keys of the flows and steps that events have changed since the last transaction."""
        self._first_id: int | None = None
        self._requests: dict[str, tuple[int, LogRecord]] = {}
        """Flows that waited when they were asked to cancel: from which offset of control on the
        wake must come, and the event."""
        self._unsettled: set[str] = set()
        """Those of them whose transaction may still take them out of the wait."""

    async def before(self, event_id: int) -> None:
        """Compare the transactions whose events are folded; the next to be folded is `event_id`."""
        if self._first_id is None:
            self._first_id = event_id
        while self._write is not None or await self._next():
            assert self._write is not None
            if self._write.cursor["next_event_id"] > event_id:
                return
            self._compare(self._write)
            self._write = None

    async def _next(self) -> bool:
        while self._write is None:
            record = await self._stream.take()
            if record is None:
                return False
            self._write = self._reader.take(record)
        return True

    async def end(self) -> None:
        """Read what is left of `state`."""
        while (record := await self._stream.take()) is not None:
            self._reader.take(record)
        self._reader.end()

    # What events change

    def folded(self, event: Doc) -> None:
        """Note what an event has changed."""
        flow_id, payload = event["flow_id"], event["payload_json"]
        if self._only not in (None, flow_id) or len(self._changed) > TRANSACTION_MAX_KEYS:
            return
        self._changed.add(flow_id)
        run_id = payload.get("run_id") or (payload.get("step") or {}).get("run_id")
        if run_id is not None:
            self._changed.add(f"{flow_id}/{run_id}")

    def _compare(self, write: StateWrite) -> None:
        changed, self._changed = self._changed, set()
        self._settle_requests()
        if self._is_copied():
            return
        first = 0 if write.before is None else write.before["next_event_id"]
        if write.records is None or len(changed) > TRANSACTION_MAX_KEYS:
            return
        if not self._whole and (self._first_id is None or first < self._first_id):
            return  # of the events before, nothing is known
        self._report.checked["I9"] += 1
        flows = {key.partition("/")[0] for key in changed}
        for raw, record in write.records.items():
            key = raw.decode("utf-8", "replace")
            flow_id, slash, run_id = key.partition("/")
            if self._only not in (None, flow_id):
                continue
            if key not in changed and not (record.value is None and flow_id in flows):
                if write.complete:
                    about = f"No event of its transaction has changed {key}."
                    self._add("I9", "snapshot_without_event", record, flow_id, about)
                continue
            written = parsed(record.value) or {}
            if slash:
                holds = self._is_step(flow_id, run_id, record, written)
            else:
                holds = _is_flow(self._scratch.flow(flow_id), record, written)
            if not holds:
                about = f"What its transaction has for {key} is not what the events leave."
                self._add("I5", "transaction_differs", record, flow_id, about)
        if not write.complete:
            return
        for key in sorted(changed - {raw.decode("utf-8", "replace") for raw in write.records}):
            cursor = self._reader.cursor_at
            assert cursor is not None
            about = f"Events have changed {key}, but their transaction has no record of it."
            self._add("I9", "snapshot_missing", cursor, key.partition("/")[0], about)

    def _is_copied(self) -> bool:
        """Whether a repartition wrote the newest cursor: it writes the history first, and what it
        leaves of each flow and step in the end."""
        cursor = self._reader.cursor_at
        return cursor is not None and any(name == PROGRESS for name, _ in cursor.headers)

    def _is_step(self, flow_id: str, run_id: str, record: LogRecord, written: Doc) -> bool:
        digest = self._scratch.step_digest(flow_id, run_id)
        if record.value is None:
            return digest is None
        return digest is not None and digest == hash16(canonical(written.get("step")))

    # Wakes of cancelled waits

    def requested(self, record: LogRecord, event: Doc, control: int) -> None:
        """A flow that waits was asked to cancel; the next record of control to be decided is at
        offset `control`."""
        if len(self._requests) >= REQUESTS_MAX:
            self._report.uncovered(
                f"Wakes of more than {REQUESTS_MAX:,} requests to cancel at a time."
            )
            return
        self._report.checked["I13"] += 1
        self._requests[event["flow_id"]] = (control, record)
        self._unsettled.add(event["flow_id"])

    def passed(self, record: LogRecord) -> None:
        """A record of control was read."""
        flow_id = (record.key or b"").decode("utf-8", "replace")
        if flow_id not in self._requests or record.offset < self._requests[flow_id][0]:
            return
        if (parsed(record.value) or {}).get("kind") == "wake":
            del self._requests[flow_id]
            self._unsettled.discard(flow_id)

    def _settle_requests(self) -> None:
        """Forget the flows that do not wait at the end of the transaction that asked them."""
        for flow_id in self._unsettled:
            entry = self._scratch.flow(flow_id)
            if entry is None or entry.doc is None or entry.doc["status"] != "waiting":
                del self._requests[flow_id]
        self._unsettled.clear()

    def end_requests(self, control_start: int) -> None:
        """All of control is read, from `control_start` on."""
        for flow_id, (offset, record) in self._requests.items():
            if offset >= control_start:
                about = "The flow waits and was asked to cancel, but nothing on control wakes it."
                self._add("I13", "cancel_without_wake", record, flow_id, about)

    def _add(
        self, invariant: str, kind: str, record: LogRecord, flow_id: str, message: str
    ) -> None:
        self._report.at(record, invariant, kind, message, flow_id)


def _is_flow(entry: FoldedFlow | None, record: LogRecord, written: Doc) -> bool:
    """Whether a record of `state` says of a flow what its fold says."""
    doc = entry.doc if entry is not None else None
    if record.value is None or entry is None or doc is None:
        return record.value is None and doc is None
    if (written.get("last_event_id"), written.get("chain")) != (
        entry.last_event_id,
        entry.chain.hex(),
    ):
        return False
    return not entry.whole or written.get("flow") == doc
