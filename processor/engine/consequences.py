"""Fold a command's facts into its flow and steps, and write the events that tell them."""

from collections.abc import Iterable
from hashlib import blake2b

from processor.contract.events import CHAIN_HEADER
from processor.contract.headers import Headers
from processor.domain.evolve import evolve, evolve_step
from processor.domain.facts import Fact
from processor.domain.flow import Flow
from processor.domain.steps import StepTotals, offers_work, run_id_of
from processor.engine.batch import Outgoing, StepEvent, WorkRecord, new_outgoing, work_record
from processor.engine.batch_steps import BatchSteps, StepKey
from processor.engine.codec import Readable
from processor.engine.encoding import event_doc, step_doc
from processor.engine.rows import StepRow


class StepConsequences:
    """What a command makes of steps, and the work items that it offers."""

    __slots__ = ("events", "rows", "work")

    def __init__(self) -> None:
        self.rows: dict[StepKey, StepRow] = {}
        self.events: list[StepEvent] = []
        self.work: list[WorkRecord] = []


class Consequences:
    """What a command makes of its flow. Nothing of it stands until the command is answered."""

    __slots__ = ("chain", "events", "flow", "of_steps", "size_bytes", "totals")

    def __init__(self, flow: Flow | None, chain: bytes, totals: StepTotals) -> None:
        self.flow = flow
        self.chain = chain
        self.totals = totals
        self.events: list[Outgoing] = []
        self.of_steps: StepConsequences | None = None
        self.size_bytes = 0

    def imagine(self, facts: Iterable[Fact]) -> None:
        """Fold `facts` of a dry run: they leave no event."""
        for fact in facts:
            self.flow = evolve(self.flow, fact)

    def follow(
        self,
        facts: Iterable[Fact],
        item: Readable,
        event_id: int,
        headers: Headers,
        source: str,
        steps: BatchSteps,
    ) -> None:
        """Fold `facts` of `item`, and write their events, from `event_id` on."""
        key, flow, chain = item.record.key, self.flow, self.chain
        for fact in facts:
            before, flow = flow, evolve(flow, fact)
            if flow is before:  # only what happens to a step leaves it as it is
                self._follow_step(fact, event_id, headers, steps)
            value = event_doc(event_id, fact, item.command, source)
            chain = blake2b(chain + value, digest_size=16).digest()
            self.size_bytes += len(value)
            self.events.append(new_outgoing((key, value, [(CHAIN_HEADER, chain), *headers])))
            event_id += 1
        self.flow, self.chain = flow, chain

    def _follow_step(self, fact: Fact, event_id: int, headers: Headers, steps: BatchSteps) -> None:
        at = fact.flow_id, run_id_of(fact)
        row = steps.row(at)
        was = row.step if row else None
        step = evolve_step(was, fact)
        doc = step_doc(step)
        self.totals = self.totals.after(was, step)
        of_steps = self.of_steps
        if of_steps is None:
            of_steps = self.of_steps = StepConsequences()
        of_steps.rows[at] = StepRow(step, doc)
        self.size_bytes += len(doc)
        if offers_work(step, fact):
            offered = work_record(event_id, step, headers)
            of_steps.work.append(offered)
            self.size_bytes += len(offered.record.value or b"")
        if step.runtime == "managed":
            reason = fact.payload.get("reason")
            of_steps.events.append(StepEvent(fact.kind, was, step, reason))
