"""Turn a batch of records and the loaded state into a write set.

Pure: the same records on the same memory give the same bytes. One Handler handles one batch.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from hashlib import blake2b
from typing import Any, Final

from processor.contract import dead_letters
from processor.contract.commands import MODELS, Command
from processor.contract.events import CHAIN_HEADER, CHAIN_START
from processor.contract.flow import FlowStatus
from processor.contract.headers import Headers, RecordPlace, forwarded_from
from processor.contract.outcomes import FORGOTTEN, Code, Verdict
from processor.contract.steps import ManagedStep, StepStatus
from processor.domain import messages
from processor.domain.decide import decide
from processor.domain.decision import Decision
from processor.domain.evolve import evolve, evolve_step
from processor.domain.flow import Flow
from processor.domain.steps import (
    NO_STEPS,
    NO_TOTALS,
    FlowSteps,
    is_live,
    offers_work,
    run_id_of,
)
from processor.domain.transitions import OPERATOR, OWNER, WAITING, Authority, allowed_from
from processor.engine.batch import (
    Decoded,
    Forward,
    LoadedState,
    Outgoing,
    PartitionConfig,
    StepEvent,
    WorkRecord,
    WriteSet,
    cursor_record,
    new_outgoing,
    sliced,
    snapshot_of,
    work_record,
)
from processor.engine.codec import (
    Readable,
    Unreadable,
    encode,
    event_doc,
    flow_doc,
    outcome_doc,
    source_doc,
    step_doc,
    traceparent,
)
from processor.engine.dead_letter import OUTCOME_KEY_MAX_BYTES, dead_letter
from processor.engine.partitioner import partition_of
from processor.engine.rows import (
    FlowRow,
    LedgerEntry,
    Position,
    StepRow,
    new_flow_row,
    new_ledger_entry,
)

NOTHING: Final[Mapping[str, Any]] = {}
# Python 3.11 runs a function whenever an enum is asked for a member.
ACCEPTED, REJECTED = Verdict.ACCEPTED, Verdict.REJECTED
_NEED_STEPS: Final = frozenset({"finish", "fail", "cancel", "wake", "set_waiting"}) | {
    kind for kind, model in MODELS.items() if "run_id" in model.model_fields
}
"""Kinds of command for which something must be known of the flow's steps."""


class _Entry:
    """A flow while its batch is handled. `base` is the row in the table, which a prune ends."""

    __slots__ = ("base", "chain", "flow", "headers", "last_event_id", "run_ids", "totals")

    def __init__(self, base: FlowRow | None) -> None:
        self.base = base
        self.flow: Flow | None = base.flow if base else None
        self.chain = base.chain if base else CHAIN_START
        self.last_event_id = base.last_event_id if base else 0
        self.headers: Headers = ()
        self.totals = base.totals if base else NO_TOTALS
        self.run_ids: dict[str, None] = {}
        """The steps that the batch has touched."""

    @property
    def to_be_woken(self) -> bool:
        """Whether it waits and is to be cancelled, and did not and was not before the batch."""
        base = self.base
        return _cancels_from_wait(self.flow) and not (base and _cancels_from_wait(base.flow))


class CommandHandler:
    """Handles one batch of one partition.

    `position` is where the batch starts, `next_row_number` the next free row number of the table;
    `unforwardable` names records (topic, offset) that the broker would not take as copies.
    """

    def __init__(
        self,
        place: PartitionConfig,
        memory: LoadedState,
        position: Position,
        *,
        next_row_number: int,
        unforwardable: frozenset[tuple[str, int]] = frozenset(),
    ) -> None:
        self._place = place
        self._memory = memory
        self._unforwardable = unforwardable
        self._next_row_number = next_row_number
        self._next_event_id = position.next_event_id
        self._commands = place.topics.commands
        self._next = {
            place.topics.commands: position.commands,
            place.topics.control: position.control,
        }
        self._entries: dict[str, _Entry] = {}
        self._touched: dict[str, _Entry] = {}
        self._steps: dict[tuple[str, str], StepRow | None] = {}
        self._steps_before: dict[tuple[str, str], StepRow | None] = {}
        self._live: dict[str, dict[str, StepRow]] = {}
        self._step_headers: dict[tuple[str, str], Headers] = {}
        self._ledger: dict[bytes, LedgerEntry] = {}
        self._asked: dict[str, Headers] = {}
        """The flows that were asked to cancel, with what the newest request leaves behind."""
        self.batch = WriteSet(position)
        """In the making; what stands in its lists of records may be taken out at any time."""
        self._size_bytes = 0
        self._verdict = ACCEPTED
        """Of the newest outcome."""

    def handle(self, items: Sequence[Decoded]) -> WriteSet:
        """Decide `items` in their order, until all are or the batch is full."""
        self.add(items)
        return self.finish()

    def add(self, items: Sequence[Decoded]) -> bool:
        """Decide some more `items`; whether there is room for others after them."""
        batch, newest = self.batch, self.batch.newest
        for item in items:
            if self._size_bytes > self._place.output_max_bytes:
                return False
            record = item.record
            try:
                if isinstance(item, Readable):
                    self._handle(item)
                else:
                    self._quarantine(item)
            except Exception as fault:  # one record's trouble is not the partition's
                batch.faults.append((record, fault))
                self._quarantine(_spoiled(item, Code.INTERNAL_ERROR))
            topic, at_ms = record.topic, record.timestamp
            self._next[topic] = record.offset + 1
            if at_ms > newest.get(topic, 0):
                newest[topic] = at_ms
            if topic != self._commands:
                batch.control_verdicts.append((item, self._verdict))
            batch.handled += 1
        return self._size_bytes <= self._place.output_max_bytes

    def finish(self, oldest_unwritten: int | None = None) -> WriteSet:
        """What was decided, settled; nothing can be added after that."""
        for _ in self.settle(oldest_unwritten):
            pass
        return self.batch

    def _handle(self, item: Readable) -> None:
        record, command, _, ledger_key = item
        entry = self._entry(command.flow_id)
        # A flow that is known lies right: only an unknown one is worth the hash.
        if entry.flow is None and not self._lies_right(item):
            return
        authority = OWNER if record.topic == self._commands else OPERATOR
        first = self._ledger.get(ledger_key) or self._memory.ledger.get(ledger_key)
        if first is not None and record.timestamp - first.at_ms <= self._place.dedupe_window_ms:
            self._resend(item, first, entry.flow, authority)
            return
        needs_steps = command.kind in _NEED_STEPS
        decision = decide(
            command,
            entry.flow,
            record.timestamp,
            authority=authority,
            steps=self._flow_steps(command, entry) if needs_steps else NO_STEPS,
            limits=self._place.limits,
        )
        self._apply(item, entry, authority, decision)

    def _lies_right(self, item: Readable) -> bool:
        """Check 6; what lies wrong is answered here."""
        place, record = self._place, item.record
        key = item.command.flow_id.encode()
        right = partition_of(key, place.partitions)
        if right == place.partition:
            return True
        if forwarded_from(record.headers) is not None:
            self._quarantine(_spoiled(item, Code.INVALID_KEY))
            return False
        source = (record.topic, record.offset)
        if source in self._unforwardable:
            self._quarantine(_spoiled(item, Code.INTERNAL_ERROR))
            return False
        origin = str(RecordPlace(record.topic, record.partition, record.offset))
        header = (dead_letters.FORWARDED_FROM, origin.encode())
        copy = Outgoing(record.key, record.value, [*record.headers, header])
        self.batch.forwards.append(Forward(record.topic, right, copy, source))
        self._put_outcome(
            item, Verdict.FORWARDED, message=messages.FORWARDED, details={"partition": right}
        )
        return False

    def _resend(
        self, item: Readable, first: LedgerEntry, flow: Flow | None, authority: Authority
    ) -> None:
        now = _allowed(flow, authority)
        if first.digest != item.digest:
            self._put_outcome(
                item,
                Verdict.REJECTED,
                Code.IDEMPOTENCY_CONFLICT,
                revision=flow.revision if flow else None,
                status=flow.status if flow else None,
                message=messages.refused(Code.IDEMPOTENCY_CONFLICT, {}),
                allowed=now,
            )
            return
        self._put_outcome(
            item,
            Verdict.DUPLICATE,
            first.code,
            message=_message(item.command.kind, first.code, first.details, dry_run=False),
            revision=first.revision,
            status=first.status,
            event_ids=first.event_ids,
            allowed=now,
            details=first.details,
            original=first.verdict,
        )

    def _apply(
        self, item: Readable, entry: _Entry, authority: Authority, decision: Decision
    ) -> None:
        """Answer a decided command and write down what happened, the answer last: until then
        nothing of it stands."""
        record, command, digest, ledger_key = item
        facts, code, details = decision
        before = flow = entry.flow
        written: list[Outgoing] = []
        chain, event_id = entry.chain, self._next_event_id
        headers = traceparent(record.headers) if record.headers else ()
        source = source_doc(record)
        steps: dict[tuple[str, str], StepRow] = {}
        work: list[WorkRecord] = []
        happened: list[StepEvent] = []
        totals = entry.totals
        size_bytes = 0
        dry_run = bool(command.dry_run)
        for fact in facts:
            unchanged, flow = flow, evolve(flow, fact)
            if dry_run:
                continue
            if flow is unchanged:  # only what happens to a step leaves it as it is
                at = fact.flow_id, run_id_of(fact)
                old = self._step(at)
                was = old.step if old else None
                step = evolve_step(was, fact)
                totals = totals.after(was, step)
                steps[at] = StepRow(step, step_doc(step))
                if offers_work(step, fact):
                    work.append(work_record(event_id, step, headers))
                if step.runtime == "managed":
                    happened.append(StepEvent(fact.kind, was, step, fact.payload.get("reason")))
            value = event_doc(event_id, fact, command, source)
            chain = blake2b(chain + value, digest_size=16).digest()
            size_bytes += len(value)
            written.append(new_outgoing((record.key, value, [(CHAIN_HEADER, chain), *headers])))
            event_id += 1
        first_event_id = self._next_event_id
        count = len(written)
        stands = before if dry_run else flow
        revision, status = (flow.revision, flow.status) if flow else (None, None)
        self._put_outcome(
            item,
            ACCEPTED if code is None else REJECTED,
            code,
            message=(
                messages.accepted(command.kind)
                if code is None and not dry_run
                else _message(command.kind, code, details, dry_run=dry_run)
            ),
            revision=revision,
            status=status,
            event_ids=list(range(first_event_id, event_id)),
            allowed=_allowed(stands, authority),
            details=details,
            source=source,
        )
        if not dry_run and code not in FORGOTTEN:
            self._ledger[ledger_key] = new_ledger_entry(
                (
                    ledger_key,
                    record.timestamp,
                    digest,
                    code,
                    revision,
                    status,
                    first_event_id,
                    count,
                    details,
                )
            )
        if not written:
            return
        self.batch.audit.extend(written)
        self._size_bytes += size_bytes
        self._next_event_id = event_id
        for at, row in steps.items():
            self._put_step(entry, at, row, headers)
            self._size_bytes += len(row.doc)
        self.batch.step_events.extend(happened)
        if work:
            self.batch.work.extend(work)
            self._size_bytes += sum(len(item.record.value or b"") for item in work)
        entry.totals = totals
        entry.flow, entry.chain, entry.last_event_id = flow, chain, event_id - 1
        entry.headers = headers
        self._touched[command.flow_id] = entry
        if command.kind == "request_cancel":
            self._asked[command.flow_id] = headers
        if flow is None:
            self._forget_flow(command.flow_id, entry, headers)

    def _forget_flow(self, flow_id: str, entry: _Entry, headers: Headers) -> None:
        """What a prune takes along: the row, the steps, and the chain, which starts anew."""
        if entry.base is not None:
            self.batch.changes.deleted.append(entry.base)
            self.batch.waits.append((entry.base, None))
        entry.base, entry.chain, entry.last_event_id = None, CHAIN_START, 0
        entry.totals = NO_TOTALS
        # A dict, for its order: the same records give the same bytes.
        run_ids = dict.fromkeys(self._memory.run_ids.get(flow_id, ())) | entry.run_ids
        for run_id in run_ids:
            self._put_step(entry, (flow_id, run_id), None, headers)

    def _entry(self, flow_id: str) -> _Entry:
        entry = self._entries.get(flow_id)
        if entry is None:
            entry = self._entries[flow_id] = _Entry(self._memory.flows[flow_id])
        return entry

    def _step(self, at: tuple[str, str]) -> StepRow | None:
        return self._steps[at] if at in self._steps else self._known_step(at)

    def _known_step(self, at: tuple[str, str]) -> StepRow | None:
        """The step as it was before the batch, as far as it is known."""
        row = self._memory.steps.get(at)
        if row is None and at[0] in self._memory.live:
            row = self._live_before(at[0]).get(at[1])
        return row

    def _live_before(self, flow_id: str) -> dict[str, StepRow]:
        """The flow's live steps before the batch, by run id."""
        rows = self._live.get(flow_id)
        if rows is None:
            rows = {row.step.run_id: row for row in self._memory.live.get(flow_id, ())}
            self._live[flow_id] = rows
        return rows

    def _put_step(
        self, entry: _Entry, at: tuple[str, str], row: StepRow | None, headers: Headers
    ) -> None:
        if at not in self._steps:
            self._steps_before[at] = self._known_step(at)
        self._steps[at] = row
        self._step_headers[at] = headers
        entry.run_ids[at[1]] = None

    def _flow_steps(self, command: Command, entry: _Entry) -> FlowSteps:
        """What `command` needs to know of its flow's steps."""
        flow, totals, flow_id = entry.flow, entry.totals, command.flow_id
        if flow is None:
            return NO_STEPS
        run_id: str | None = command.__dict__.get("run_id")
        if run_id is None:
            if command.kind == "set_waiting":
                wait = command.wait
                run_ids = wait.run_ids if wait.kind == "steps" else None
                return FlowSteps(totals, None, self._listed(flow_id, run_ids))
            if not totals.live:
                return NO_STEPS
            return FlowSteps(totals, live=self._live_now(flow_id, entry))
        row = self._step((flow_id, run_id))
        wait_json = flow.wait_json
        joined = wait_json.get("run_ids") if wait_json and wait_json["kind"] == "steps" else None
        return FlowSteps(totals, row and row.step, self._listed(flow_id, joined))

    def _listed(self, flow_id: str, run_ids: Sequence[str] | None) -> dict[str, StepStatus]:
        """The status of each managed step that a join lists."""
        rows = ((run_id, self._step((flow_id, run_id))) for run_id in run_ids or ())
        return {
            run_id: row.step.status for run_id, row in rows if row and row.step.runtime == "managed"
        }

    def _live_now(self, flow_id: str, entry: _Entry) -> list[ManagedStep]:
        """All live steps of the flow, in order of their run ids' UTF-8 bytes (which is that of
        their code points)."""
        run_ids = sorted(self._live_before(flow_id).keys() | entry.run_ids.keys())
        rows = (self._step((flow_id, run_id)) for run_id in run_ids)
        live = [row.step for row in rows if row and is_live(row.step)]
        if len(live) != entry.totals.live:
            raise LookupError(f"{len(live)} of {entry.totals.live} live steps were loaded")
        return live

    def _put_outcome(
        self,
        item: Decoded,
        verdict: Verdict,
        code: Code | None = None,
        *,
        message: str,
        revision: int | None = None,
        status: FlowStatus | None = None,
        event_ids: Sequence[int] = (),
        allowed: str = "null",
        details: Mapping[str, Any] = NOTHING,
        original: Verdict | None = None,
        source: str | None = None,
    ) -> None:
        """Write the outcome of `item`; its last deed. `allowed` and `source` are JSON."""
        record = item.record
        value = outcome_doc(
            item,
            verdict,
            code,
            message,
            revision,
            status,
            event_ids,
            allowed,
            details,
            original,
            source or source_doc(record),
        )
        key: bytes | None
        kind: str
        if isinstance(item, Readable):
            kind = item.command.kind
            key = record.key  # the flow id, by check 5
        else:
            kind = item.kind or "unknown"
            if item.flow_id is not None:
                key = item.flow_id.encode()
            else:
                key = record.key and record.key[:OUTCOME_KEY_MAX_BYTES]
        headers = traceparent(record.headers) if record.headers else ()
        batch = self.batch
        batch.outcomes.append(new_outgoing((key, value, headers)))
        if headers:
            batch.traced.append((item, value))
        self._verdict = verdict
        self._size_bytes += len(value) + len(key or b"")
        batch.tally[kind, verdict._value_, "" if code is None else code._value_] += 1

    def _quarantine(self, item: Unreadable) -> None:
        message = messages.refused(item.code, {**item.details, "problem": item.problem})
        quarantined = dead_letter(item.record, item.code, message)
        self._put_outcome(
            item, Verdict.QUARANTINED, item.code, message=message, details=item.details
        )
        self.batch.dead_letters.append(quarantined)
        self._size_bytes += _size_bytes(quarantined)

    def settle(self, oldest_unwritten: int | None = None) -> Iterator[None]:
        """What the batch leaves, some at a time: each key of `state` and each row once, at its last
        value. Nothing can be added after that.

        `oldest_unwritten` is the id of the first event of an earlier batch whose work item may not
        be written yet.
        """
        batch = self.batch
        for some in sliced(list(self._touched.items())):
            for flow_id, entry in some:
                row = self._settle_flow(entry)
                batch.flows[flow_id] = row
                snapshot = None if row is None else snapshot_of(row)
                batch.state.append(new_outgoing((flow_id.encode(), snapshot, entry.headers)))
            yield
        for steps in sliced(list(self._steps.items())):
            for at, step in steps:
                self._settle_step(at, step)
            yield
        self._settle_rest(oldest_unwritten)

    def _settle_flow(self, entry: _Entry) -> FlowRow | None:
        batch, base, flow = self.batch, entry.base, entry.flow
        if flow is None:
            return None
        row = self._row(flow, entry)
        if base is None:
            batch.changes.inserted.append(row)
        else:
            batch.changes.updated.append((base, row))
        if flow.status is WAITING or (base is not None and base.flow.status is WAITING):
            batch.waits.append((base, row))
        return row

    def _settle_step(self, at: tuple[str, str], step: StepRow | None) -> None:
        batch = self.batch
        batch.steps[at] = self._steps_before[at], step
        if step is not None:
            batch.changes.steps.append(step)
        key = f"{at[0]}/{at[1]}".encode()
        value = step and b'{"step":%b}' % step.doc
        batch.state.append(new_outgoing((key, value, self._step_headers[at])))

    def _settle_rest(self, oldest_unwritten: int | None) -> None:
        batch, changes = self.batch, self.batch.changes
        changes.ledger_entries.extend(self._ledger.values())
        for flow_id, headers in self._asked.items():
            if self._touched[flow_id].to_be_woken:
                batch.wakes.append((flow_id, headers))
        topics = self._place.topics
        batch.position = Position(
            self._next[topics.commands], self._next[topics.control], self._next_event_id
        )
        if oldest_unwritten is None:
            oldest_unwritten = batch.work[0].event_id if batch.work else self._next_event_id
        batch.first_unwritten = oldest_unwritten
        batch.state.append(cursor_record(self._place.partition, batch.position, oldest_unwritten))

    def _row(self, flow: Flow, entry: _Entry) -> FlowRow:
        base = entry.base
        if base is not None:
            row_number, doc = base.row_number, flow_doc(flow, base.doc)
        else:
            row_number, doc = self._next_row_number, flow_doc(flow)
            self._next_row_number += 1
            self.batch.created += 1
        return new_flow_row((flow, doc, entry.last_event_id, entry.chain, row_number, entry.totals))


def _size_bytes(record: Outgoing) -> int:
    """What a record of any bytes takes: a sender may put all of it into its key or its headers."""
    headers = sum(len(name) + len(value or b"") for name, value in record.headers)
    return len(record.key or b"") + len(record.value or b"") + headers


def _cancels_from_wait(flow: Flow | None) -> bool:
    return flow is not None and flow.cancel_requested and flow.status is WAITING


def _spoiled(item: Decoded, code: Code) -> Unreadable:
    """A record that could be read as a command, and is set aside all the same."""
    if isinstance(item, Unreadable):
        return Unreadable(item.record, code)
    command = item.command
    return Unreadable(
        item.record,
        code,
        command_id=command.command_id,
        flow_id=command.flow_id,
        kind=command.kind,
        dry_run=bool(command.dry_run),
        digest=item.digest,
    )


def _message(kind: str, code: Code | None, details: dict[str, Any], *, dry_run: bool) -> str:
    if code is not None:
        return messages.refused(code, details, kind)
    return messages.DRY_RUN_ACCEPTED if dry_run else messages.accepted(kind)


def _allowed(flow: Flow | None, authority: Authority) -> str:
    """What an outcome says in `allowed`, as JSON."""
    if flow is None:
        return "null"
    return _allowed_doc(flow.status, flow.cancel_requested, authority)


@cache
def _allowed_doc(status: FlowStatus, cancel_requested: bool, authority: Authority) -> str:
    return encode(allowed_from(status, cancel_requested, authority)).decode()
