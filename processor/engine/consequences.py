"""Fold a command's facts into the steps of its flow."""

from collections.abc import Iterable

from processor.contract.headers import Headers
from processor.domain.evolve import STEP_KINDS, evolve_step
from processor.domain.facts import Fact
from processor.domain.steps import StepTotals, offers_work, run_id_of
from processor.engine.batch import StepEvent, WorkRecord, new_step_event, work_record
from processor.engine.batch_steps import BatchSteps, StepKey
from processor.engine.encoding import step_doc
from processor.engine.rows import StepRow, new_step_row


class StepConsequences:
    """What a command makes of steps, and the work items that it offers. Nothing of it stands until
    the command has its outcome. `totals` count the flow's steps."""

    __slots__ = ("events", "rows", "size_bytes", "totals", "work")

    def __init__(self, totals: StepTotals) -> None:
        self.totals = totals
        self.rows: dict[StepKey, StepRow] = {}
        self.events: list[StepEvent] = []
        self.work: list[WorkRecord] = []
        self.size_bytes = 0

    def follow(
        self, facts: Iterable[Fact], event_id: int, headers: Headers, steps: BatchSteps
    ) -> None:
        """Fold those of `facts` that happen to steps; their events have ids from `event_id` on."""
        for fact in facts:
            if fact.kind in STEP_KINDS:
                self._follow_one(fact, event_id, headers, steps)
            event_id += 1

    def _follow_one(self, fact: Fact, event_id: int, headers: Headers, steps: BatchSteps) -> None:
        at = fact.flow_id, run_id_of(fact)
        row = steps.row(at)
        was = row.step if row else None
        step = evolve_step(was, fact)
        doc = step_doc(step)
        self.totals = self.totals.after(was, step)
        self.rows[at] = new_step_row((step, doc))
        self.size_bytes += len(doc)
        if offers_work(step, fact):
            offered = work_record(event_id, step, headers)
            self.work.append(offered)
            self.size_bytes += len(offered.record.value or b"")
        if step.runtime == "managed":
            reason = fact.payload.get("reason")
            self.events.append(new_step_event((fact.kind, was, step, reason)))
