"""Turn a batch of records and the loaded state into a write set.

Pure: the same records on the same memory give the same bytes. One Handler handles one batch.
"""

from collections.abc import Iterator, Sequence
from hashlib import blake2b
from typing import Final

from processor.contract.events import CHAIN_HEADER, CHAIN_START
from processor.contract.headers import Headers, forwarded_from
from processor.contract.outcomes import FORGOTTEN, Code, Verdict
from processor.domain import messages
from processor.domain.decide import decide
from processor.domain.decision import Decision
from processor.domain.evolve import fold
from processor.domain.flow import Flow
from processor.domain.step import Step
from processor.domain.steps import NO_STEPS, NO_TOTALS, StepTimer, StepTotals, step_timer
from processor.domain.transitions import OPERATOR, OWNER, WAITING, Authority
from processor.engine.batch import (
    NEED_STEPS,
    Decoded,
    LoadedState,
    Outbound,
    PartitionConfig,
    WriteSet,
    cursor_record,
    new_settled_step,
    sliced,
    snapshot_of,
)
from processor.engine.batch_outcomes import BatchOutcomes, set_aside
from processor.engine.batch_steps import BatchSteps, StepKey
from processor.engine.codec import Readable, traceparent
from processor.engine.consequences import StepChange, follow_steps
from processor.engine.encoding import (
    ACCEPTED_HEADS,
    DRY_RUN_HEADS,
    OutcomeHead,
    allowed_doc,
    event_doc,
    flow_doc,
    refused_head,
    result_doc,
    source_doc,
    step_doc,
)
from processor.engine.partitioner import partition_of
from processor.engine.rows import (
    FlowRow,
    LedgerEntry,
    Position,
    StepRow,
    new_flow_row,
    new_ledger_entry,
    new_step_row,
)

_FORGOTTEN: Final = frozenset(code.value for code in FORGOTTEN)
_FlowNow = tuple[Flow | None, int, bytes, StepTotals, Headers]
"""A flow that the batch has changed, as it is now (None: pruned): its last event id and chain, the
totals of its steps, and the headers that go on from its newest command. A plain tuple, since each
command makes one."""


class CommandHandler:
    """Handles one batch of one partition.

    `position` is where the batch starts, `next_row_number` the next free row number of the table;
    `unforwardable` names records (topic, offset) that the broker would not take as copies.
    Records and changes go to `outbound`, else into the batch.
    """

    def __init__(
        self,
        place: PartitionConfig,
        memory: LoadedState,
        position: Position,
        *,
        next_row_number: int,
        unforwardable: frozenset[tuple[str, int]] = frozenset(),
        outbound: Outbound | None = None,
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
        outbound = outbound or self.batch
        self._add_event, self._add_state = outbound.audit.add, outbound.state.add
        self._changes = outbound.changes
        self._outcomes = BatchOutcomes(self.batch, outbound)
        self._steps = BatchSteps(memory)
        self._touched: dict[str, _FlowNow] = {}
        self._pruned: set[str] = set()
        """Flows whose row in the table is gone."""
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
                if len(outcomes) > batch.handled:
                    raise  # it was answered: what of it is packed cannot be taken back
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
        flow_id, kind = command.flow_id, command.kind
        now = self._touched.get(flow_id) or self._as_loaded(flow_id)
        flow = now[0]
        # A flow that is known lies right: only an unknown one is worth the hash.
        if flow is None and not self._lies_right(item):
            return
        authority = OWNER if record.topic == self._commands else OPERATOR
        first = self._ledger.get(ledger_key) or self._memory.ledger.get(ledger_key)
        if first is not None and record.timestamp - first.at_ms <= self._place.dedupe_window_ms:
            self._put_resend(item, first, flow, authority)
            return
        steps = NO_STEPS
        if flow is not None and kind in NEED_STEPS:
            steps = self._steps.needed_by(command, flow, now[3])
        decision = decide(
            command,
            flow,
            record.timestamp,
            authority=authority,
            steps=steps,
            limits=self._place.limits,
        )
        if command.dry_run:
            self._put_dry_run(item, decision, flow, authority)
        else:
            self._apply(item, now, authority, decision)

    def _as_loaded(self, flow_id: str) -> _FlowNow:
        row = self._memory.flows[flow_id]
        if row is None:
            return None, 0, CHAIN_START, NO_TOTALS, ()
        return row.flow, row.last_event_id, row.chain, row.totals, ()

    def _lies_right(self, item: Readable) -> bool:
        """Check 6; a record on the wrong partition gets its outcome here."""
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
        self,
        item: Readable,
        now: _FlowNow,
        authority: Authority,
        decision: Decision,
    ) -> None:
        """Write the outcome of a decided command and apply its facts; fallible steps come first."""
        record, command, digest, ledger_key = item
        flow, _, chain, totals, _ = now
        facts, code, details, after = decision
        kind, source = command.kind, source_doc(record)
        headers = traceparent(record.headers) if record.headers else ()
        if after is None:
            after = fold(flow, facts)
        first_event_id = event_id = self._next_event_id
        events, size_bytes = [], 0
        for fact in facts:
            value = event_doc(event_id, fact, command, source)
            chain = blake2b(chain + value, digest_size=16).digest()
            events.append((record.key, value, [(CHAIN_HEADER, chain), *headers]))
            size_bytes += len(value)
            event_id += 1
        of_steps: Sequence[StepChange] = ()
        if facts and kind in NEED_STEPS:
            of_steps, totals = follow_steps(facts, first_event_id, headers, self._steps, totals)
        count = event_id - first_event_id
        head = ACCEPTED_HEADS[kind] if code is None else refused_head(kind, code, details)
        revision, status = (after.revision, after.status) if after else (None, None)
        result = result_doc(revision, status, first_event_id, count, allowed_doc(after, authority))
        self._outcomes.put(item, head, result, details, source=source)
        if code is None or code._value_ not in _FORGOTTEN:
            at_ms = record.timestamp
            entry = new_ledger_entry(
                (ledger_key, at_ms, digest, code, revision, status, first_event_id, count, details)
            )
            self._ledger[ledger_key] = entry
            self._changes.put_ledger_entry(entry)
        if not facts:
            return
        for event in events:
            self._add_event(*event)
        self._size_bytes += size_bytes
        self._next_event_id = event_id
        if of_steps:
            self._take_in_steps(of_steps, headers)
            self._size_bytes += size_bytes  # at most what their documents grow by
        if kind == "request_cancel":
            self._asked[command.flow_id] = headers
        if after is None:
            self._forget_flow(command.flow_id, headers)
            chain, totals = CHAIN_START, NO_TOTALS
        self._touched[command.flow_id] = after, event_id - 1, chain, totals, headers

    def _put_dry_run(
        self, item: Readable, decision: Decision, flow: Flow | None, authority: Authority
    ) -> None:
        """Answer what the command would do; `allowed` is of the flow as it is."""
        facts, code, details, after = decision
        if after is None:
            after = fold(flow, facts)
        kind = item.command.kind
        head = DRY_RUN_HEADS[kind] if code is None else refused_head(kind, code, details)
        revision, status = (after.revision, after.status) if after else (None, None)
        result = result_doc(revision, status, 0, 0, allowed_doc(flow, authority))
        self._outcomes.put(item, head, result, details)

    def _put_resend(
        self, item: Readable, first: LedgerEntry, flow: Flow | None, authority: Authority
    ) -> None:
        """Check 7: the first outcome again, or a conflict with it."""
        kind, allowed = item.command.kind, allowed_doc(flow, authority)
        if first.digest != item.digest:
            head = refused_head(kind, Code.IDEMPOTENCY_CONFLICT, {})
            revision, status = (flow.revision, flow.status) if flow else (None, None)
            self._outcomes.put(item, head, result_doc(revision, status, 0, 0, allowed))
            return
        code, details = first.code, first.details
        message = messages.accepted(kind) if code is None else messages.refused(code, details, kind)
        head = OutcomeHead(kind, Verdict.DUPLICATE, code, message)
        result = result_doc(
            first.revision, first.status, first.first_event_id, first.event_count, allowed
        )
        self._outcomes.put(item, head, result, details, original=first.verdict)

    def _take_in_steps(self, changes: Sequence[StepChange], headers: Headers) -> None:
        batch = self.batch
        for at, fact, was, step, work in changes:
            self._size_bytes += self._steps.put(at, step, headers)
            if step.runtime == "managed":
                batch.step_tally.add(fact, was, step)
            if work is not None:
                batch.work.append(work)
                self._size_bytes += len(work.record.value or b"")

    def _row_before(self, flow_id: str) -> FlowRow | None:
        """The flow's row in the table, unless the batch has pruned it."""
        if self._pruned and flow_id in self._pruned:
            return None
        return self._memory.flows[flow_id]

    def _forget_flow(self, flow_id: str, headers: Headers) -> None:
        """What a prune takes along: the row and the steps."""
        base = self._row_before(flow_id)
        if base is not None:
            self._changes.delete(base)
            self.batch.waits.append((base, None))
            self._pruned.add(flow_id)
        self._steps.remove_all(flow_id, headers)

    # What the batch leaves

    def settle(self, oldest_unwritten: int | None = None) -> Iterator[None]:
        """What the batch leaves, some at a time: each key of `state` and each row once, at its last
        value. Nothing can be added after that.

        `oldest_unwritten` is the id of the first event of an earlier batch whose work item may not
        be written yet.
        """
        batch = self.batch
        for some in sliced(list(self._touched.items())):
            for flow_id, now in some:
                row = self._settle_flow(flow_id, now)
                batch.flows[flow_id] = row
                snapshot = None if row is None else snapshot_of(row)
                self._add_state(flow_id.encode(), snapshot, now[-1])
            yield
        for steps in sliced(list(self._steps.touched())):
            for at, (before, step, headers) in steps:
                self._settle_step(at, before, step, headers)
            yield
        self._settle_rest(oldest_unwritten)

    def _settle_flow(self, flow_id: str, now: _FlowNow) -> FlowRow | None:
        flow, last_event_id, chain, totals, _ = now
        if flow is None:
            return None
        batch, base = self.batch, self._row_before(flow_id)
        if base is None:
            row_number = self._next_row_number
            self._next_row_number += 1
            batch.created += 1
        else:
            row_number = base.row_number
        # What happens to its steps leaves a flow as it is.
        doc = base.doc if base is not None and flow is base.flow else flow_doc(flow)
        row = new_flow_row((flow, doc, last_event_id, chain, row_number, totals))
        if base is None:
            self._changes.insert(row)
        else:
            self._changes.update(base, row)
        if flow.status is WAITING or (base is not None and base.flow.status is WAITING):
            batch.waits.append((base, row))
        return row

    def _settle_step(
        self, at: StepKey, before: StepRow | None, step: Step | None, headers: Headers
    ) -> None:
        row: StepRow | None = None
        value: bytes | None = None
        timer: StepTimer | None = None
        if step is not None:
            doc, timer = step_doc(step), step_timer(step)
            row, value = new_step_row((step, doc)), b'{"step":%b}' % doc
            self._changes.put_step(row)
        timer_before = None if before is None else step_timer(before.step)
        self.batch.steps[at] = new_settled_step((before, row, timer_before, timer))
        self._add_state(f"{at[0]}/{at[1]}".encode(), value, headers)

    def _to_be_woken(self, flow_id: str) -> bool:
        """Whether it waits and is to be cancelled, and did not and was not before the batch."""
        flow, base = self._touched[flow_id][0], self._row_before(flow_id)
        return _cancels_from_wait(flow) and not (base and _cancels_from_wait(base.flow))

    def _settle_rest(self, oldest_unwritten: int | None) -> None:
        batch = self.batch
        self._outcomes.count_up()
        for flow_id, headers in self._asked.items():
            if self._to_be_woken(flow_id):
                batch.wakes.append((flow_id, headers))
        topics = self._place.topics
        batch.position = Position(
            self._next[topics.commands], self._next[topics.control], self._next_event_id
        )
        if oldest_unwritten is None:
            oldest_unwritten = batch.work[0].event_id if batch.work else self._next_event_id
        batch.first_unwritten = oldest_unwritten
        cursor = cursor_record(self._place.partition, batch.position, oldest_unwritten)
        self._add_state(*cursor)


def _cancels_from_wait(flow: Flow | None) -> bool:
    return flow is not None and flow.cancel_requested and flow.status is WAITING
