"""Fold a command's facts into the steps of its flow."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Final, NamedTuple

from processor.contract.headers import Headers
from processor.domain.evolve import STEP_KINDS, evolve_step
from processor.domain.facts import Fact
from processor.domain.step import Step
from processor.domain.steps import StepTotals, offers_work, run_id_of
from processor.engine.batch import WorkRecord, work_record
from processor.engine.batch_steps import BatchSteps, StepKey


class StepChange(NamedTuple):
    """What one of a command's facts makes of a step, and the work item that it offers. Nothing of
    it stands until the command has its outcome. `was` is the step before the fact, None: not there.
    """

    at: StepKey
    fact: Fact
    was: Step | None
    step: Step
    work: WorkRecord | None


# As rows.new_flow_row.
_new_step_change: Final[
    Callable[[tuple[StepKey, Fact, Step | None, Step, WorkRecord | None]], StepChange]
] = partial(tuple.__new__, StepChange)


def follow_steps(
    facts: Iterable[Fact], event_id: int, headers: Headers, steps: BatchSteps, totals: StepTotals
) -> tuple[list[StepChange], StepTotals]:
    """What those of a command's `facts` that happen to steps make of them, and the flow's `totals`
    after that. The facts' events have ids from `event_id` on; `headers` are the command's."""
    changes = []
    for fact in facts:
        if fact.kind in STEP_KINDS:
            at = fact.flow_id, run_id_of(fact)
            was = steps.step(at)
            step = evolve_step(was, fact)
            totals = totals.after(was, step)
            work = work_record(event_id, step, headers) if offers_work(step, fact) else None
            changes.append(_new_step_change((at, fact, was, step, work)))
        event_id += 1
    return changes, totals
