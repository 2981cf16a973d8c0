"""Turn a batch of records and the loaded state into a write set.

Pure: the same records on the same memory give the same bytes. One Handler handles one batch.
"""

from collections.abc import Iterator, Sequence
from typing import Final

from processor.contract.commands import MODELS, Command
from processor.contract.events import CHAIN_START
from processor.contract.headers import Headers, forwarded_from
from processor.contract.outcomes import FORGOTTEN, Code, Verdict
from processor.domain import messages
from processor.domain.decide import decide
from processor.domain.decision import Decision
from processor.domain.flow import Flow
from processor.domain.steps import NO_STEPS, NO_TOTALS
from processor.domain.transitions import OPERATOR, OWNER, WAITING, Authority
from processor.engine.batch import (
    Decoded,
    LoadedState,
    PartitionConfig,
    WriteSet,
    cursor_record,
    new_outgoing,
    sliced,
    snapshot_of,
)
from processor.engine.batch_outcomes import BatchOutcomes, set_aside
from processor.engine.batch_steps import BatchSteps, StepKey
from processor.engine.codec import Readable, traceparent
from processor.engine.consequences import Consequences
from processor.engine.encoding import (
    OutcomeContent,
    allowed_doc,
    flow_doc,
    new_outcome_content,
    source_doc,
)
from processor.engine.partitioner import partition_of
from processor.engine.rows import (
    FlowRow,
    LedgerEntry,
    Position,
    StepRow,
    new_flow_row,
    new_ledger_entry,
)

# Python 3.11 runs a function whenever an enum is asked for a member, and to hash one.
ACCEPTED, REJECTED = Verdict.ACCEPTED, Verdict.REJECTED
_FORGOTTEN: Final = frozenset(code.value for code in FORGOTTEN)
_NEED_STEPS: Final = frozenset({"finish", "fail", "cancel", "wake", "set_waiting"}) | {
    kind for kind, model in MODELS.items() if "run_id" in model.model_fields
}
"""Kinds of command for which something must be known of the flow's steps."""


class _Entry:
    """A flow while its batch is handled. `base` is the row in the table, which a prune ends."""

    __slots__ = ("base", "chain", "flow", "headers", "last_event_id", "totals")

    def __init__(self, base: FlowRow | None) -> None:
        self.base = base
        self.flow: Flow | None = base.flow if base else None
        self.chain = base.chain if base else CHAIN_START
        self.last_event_id = base.last_event_id if base else 0
        self.headers: Headers = ()
        self.totals = base.totals if base else NO_TOTALS

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
        self.batch = WriteSet(position)
        """In the making; what stands in its lists of records may be taken out at any time."""
        self._outcomes = BatchOutcomes(self.batch)
        self._steps = BatchSteps(memory)
        self._entries: dict[str, _Entry] = {}
        self._touched: dict[str, _Entry] = {}
        self._ledger: dict[bytes, LedgerEntry] = {}
        self._asked: dict[str, Headers] = {}
        """The flows that were asked to cancel, with what the newest request leaves behind."""
        self._size_bytes = 0
        """Of all but outcomes."""

    def handle(self, items: Sequence[Decoded]) -> WriteSet:
        """Decide `items` in their order, until all are or the batch is full."""
        self.add(items)
        return self.finish()

    def add(self, items: Sequence[Decoded]) -> bool:
        """Decide some more `items`; whether there is room for others after them."""
        batch, outcomes, newest = self.batch, self._outcomes, self.batch.newest
        for item in items:
            if not self._has_room:
                return False
            record = item.record
            try:
                if isinstance(item, Readable):
                    self._handle(item)
                else:
                    outcomes.quarantine(item)
            except Exception as fault:  # one record's trouble is not the partition's
                batch.faults.append((record, fault))
                outcomes.quarantine(set_aside(item, Code.INTERNAL_ERROR))
            topic, at_ms = record.topic, record.timestamp
            self._next[topic] = record.offset + 1
            if at_ms > newest.get(topic, 0):
                newest[topic] = at_ms
            if topic != self._commands:
                batch.control_verdicts.append((item, outcomes.verdict))
            batch.handled += 1
        return self._has_room

    @property
    def _has_room(self) -> bool:
        return self._size_bytes + self._outcomes.size_bytes <= self._place.output_max_bytes

    def finish(self, oldest_unwritten: int | None = None) -> WriteSet:
        """What was decided, settled; nothing can be added after that."""
        for _ in self.settle(oldest_unwritten):
            pass
        return self.batch

    # One command, by checks 6 and 7; `decide` has the others

    def _handle(self, item: Readable) -> None:
        record, command, _, ledger_key = item
        entry = self._entry(command.flow_id)
        # A flow that is known lies right: only an unknown one is worth the hash.
        if entry.flow is None and not self._lies_right(item):
            return
        authority = OWNER if record.topic == self._commands else OPERATOR
        first = self._ledger.get(ledger_key) or self._memory.ledger.get(ledger_key)
        if first is not None and record.timestamp - first.at_ms <= self._place.dedupe_window_ms:
            self._outcomes.put(item, _content_of_resend(item, first, entry.flow, authority))
            return
        steps = NO_STEPS
        if entry.flow is not None and command.kind in _NEED_STEPS:
            steps = self._steps.needed_by(command, entry.flow, entry.totals)
        decision = decide(
            command,
            entry.flow,
            record.timestamp,
            authority=authority,
            steps=steps,
            limits=self._place.limits,
        )
        self._apply(item, entry, authority, decision)

    def _lies_right(self, item: Readable) -> bool:
        """Check 6; what lies wrong is answered here."""
        place, record = self._place, item.record
        right = partition_of(item.command.flow_id.encode(), place.partitions)
        if right == place.partition:
            return True
        if forwarded_from(record.headers) is not None:
            self._outcomes.quarantine(set_aside(item, Code.INVALID_KEY))
        elif (record.topic, record.offset) in self._unforwardable:
            self._outcomes.quarantine(set_aside(item, Code.INTERNAL_ERROR))
        else:
            self._outcomes.forward(item, right)
        return False

    def _apply(
        self, item: Readable, entry: _Entry, authority: Authority, decision: Decision
    ) -> None:
        """Answer a decided command, and take in what happened: all that can fail comes before."""
        record, command, digest, ledger_key = item
        facts, code, details = decision
        source = source_doc(record)
        headers = traceparent(record.headers) if record.headers else ()
        dry_run = bool(command.dry_run)
        after = Consequences(entry.flow, entry.chain, entry.totals)
        if dry_run:
            after.imagine(facts)
        else:
            after.follow(facts, item, self._next_event_id, headers, source, self._steps)
        flow = after.flow
        revision, status = (flow.revision, flow.status) if flow else (None, None)
        content = new_outcome_content(
            (
                ACCEPTED if code is None else REJECTED,
                code,
                _message(command.kind, decision, dry_run=dry_run),
                revision,
                status,
                self._next_event_id,
                len(after.events),
                allowed_doc(entry.flow if dry_run else flow, authority),
                details,
                None,
            )
        )
        self._outcomes.put(item, content, source)
        if not dry_run and (code is None or code._value_ not in _FORGOTTEN):
            about = ledger_key, record.timestamp, digest, code, revision, status
            caused = self._next_event_id, len(after.events), details
            self._ledger[ledger_key] = new_ledger_entry(about + caused)
        if after.events:
            self._take_in(command, entry, after, headers)

    def _take_in(
        self, command: Command, entry: _Entry, after: Consequences, headers: Headers
    ) -> None:
        batch, flow_id = self.batch, command.flow_id
        batch.audit += after.events
        self._size_bytes += after.size_bytes
        self._next_event_id += len(after.events)
        if after.of_steps is not None:
            for at, row in after.of_steps.rows.items():
                self._steps.put(at, row, headers)
            batch.step_events += after.of_steps.events
            batch.work += after.of_steps.work
            entry.totals = after.totals
        entry.flow, entry.chain = after.flow, after.chain
        entry.last_event_id = self._next_event_id - 1
        entry.headers = headers
        self._touched[flow_id] = entry
        if command.kind == "request_cancel":
            self._asked[flow_id] = headers
        if after.flow is None:
            self._forget_flow(flow_id, entry, headers)

    def _forget_flow(self, flow_id: str, entry: _Entry, headers: Headers) -> None:
        """What a prune takes along: the row, the steps, and the chain, which restarts."""
        if entry.base is not None:
            self.batch.changes.deleted.append(entry.base)
            self.batch.waits.append((entry.base, None))
        entry.base, entry.chain, entry.last_event_id = None, CHAIN_START, 0
        entry.totals = NO_TOTALS
        self._steps.remove_all(flow_id, headers)

    def _entry(self, flow_id: str) -> _Entry:
        entry = self._entries.get(flow_id)
        if entry is None:
            entry = self._entries[flow_id] = _Entry(self._memory.flows[flow_id])
        return entry

    # What the batch leaves

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
        for steps in sliced(list(self._steps.touched())):
            for at, rows, headers in steps:
                self._settle_step(at, rows, headers)
            yield
        self._settle_rest(oldest_unwritten)

    def _settle_flow(self, entry: _Entry) -> FlowRow | None:
        batch, base, flow = self.batch, entry.base, entry.flow
        if flow is None:
            return None
        if base is None:
            row_number = self._next_row_number
            self._next_row_number += 1
            batch.created += 1
        else:
            row_number = base.row_number
        row = new_flow_row(
            (flow, flow_doc(flow), entry.last_event_id, entry.chain, row_number, entry.totals)
        )
        if base is None:
            batch.changes.inserted.append(row)
        else:
            batch.changes.updated.append((base, row))
        if flow.status is WAITING or (base is not None and base.flow.status is WAITING):
            batch.waits.append((base, row))
        return row

    def _settle_step(
        self, at: StepKey, rows: tuple[StepRow | None, StepRow | None], headers: Headers
    ) -> None:
        batch, (_, row) = self.batch, rows
        batch.steps[at] = rows
        if row is not None:
            batch.changes.steps.append(row)
        key = f"{at[0]}/{at[1]}".encode()
        value = row and b'{"step":%b}' % row.doc
        batch.state.append(new_outgoing((key, value, headers)))

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


def _cancels_from_wait(flow: Flow | None) -> bool:
    return flow is not None and flow.cancel_requested and flow.status is WAITING


def _message(kind: str, decision: Decision, *, dry_run: bool) -> str:
    if decision.code is not None:
        return messages.refused(decision.code, decision.details, kind)
    return messages.DRY_RUN_ACCEPTED if dry_run else messages.accepted(kind)


def _content_of_resend(
    item: Readable, first: LedgerEntry, flow: Flow | None, authority: Authority
) -> OutcomeContent:
    """Check 7: the first outcome again, or a conflict with it."""
    now = allowed_doc(flow, authority)
    if first.digest != item.digest:
        conflict = Code.IDEMPOTENCY_CONFLICT
        revision, status = (flow.revision, flow.status) if flow else (None, None)
        message = messages.refused(conflict, {})
        return OutcomeContent(REJECTED, conflict, message, revision, status, allowed=now)
    said = Decision((), first.code, first.details)
    return OutcomeContent(
        Verdict.DUPLICATE,
        first.code,
        _message(item.command.kind, said, dry_run=False),
        first.revision,
        first.status,
        first.first_event_id,
        first.event_count,
        now,
        first.details,
        first.verdict,
    )
