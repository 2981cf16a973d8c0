"""A flow's steps as `decide` needs them, and their counts."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final, NamedTuple, TypeGuard

import orjson

from processor.contract.events import EventKind
from processor.contract.steps import LIVE, StepStatus
from processor.contract.values import parse_timestamp
from processor.domain.facts import Fact
from processor.domain.step import Execution, ManagedStep, Step

_PENDING: Final = StepStatus.PENDING
UNSUCCESSFUL: Final = frozenset({StepStatus.FAILED, StepStatus.CANCELLED})
_OFFERING: Final = frozenset(
    {
        EventKind.STEP_SCHEDULED,
        EventKind.STEP_RELEASED,
        EventKind.STEP_RETRIED,
        EventKind.STEP_DISPATCHED,
    }
)


class StepTotals(NamedTuple):
    """A flow's steps, counted: what bounds and joins depend on."""

    steps: int = 0
    """All of them, managed and observed."""
    live: int = 0
    """Managed ones that are pending or running."""
    live_bytes: int = 0
    """What `input_json` of those takes as written (null: 4)."""
    unsuccessful: int = 0
    """Managed ones that have failed or were cancelled."""

    def after(self, before: Step | None, after: Step) -> "StepTotals":
        """The totals once a step that was `before` (None: not there) is `after`."""
        was_live, now_live = before is not None and is_live(before), is_live(after)
        if was_live and now_live:
            return self
        steps, live, live_bytes, unsuccessful = self
        if was_live or now_live:
            size = input_bytes(after)  # an input never changes
            live, live_bytes = (
                live + now_live - was_live,
                live_bytes + (size if now_live else -size),
            )
        if before is None:
            steps += 1
        elif not was_live:
            unsuccessful -= _is_unsuccessful(before)
        return StepTotals(steps, live, live_bytes, unsuccessful + _is_unsuccessful(after))


NO_TOTALS: Final = StepTotals()


class FlowSteps(NamedTuple):
    """A flow's steps, as far as one command needs them.

    `named` is the step that the command names, if the flow has it; `listed` the managed steps, by
    run id, that are listed by the join for which the flow waits or would wait; `live` all managed
    steps that have not ended, in order of their run ids' UTF-8 bytes, for a command that may end
    the flow.
    """

    totals: StepTotals = NO_TOTALS
    named: Step | None = None
    listed: Mapping[str, StepStatus] = {}
    live: Sequence[ManagedStep] = ()


# As rows.new_flow_row.
new_flow_steps: Final[
    Callable[
        [tuple[StepTotals, Step | None, Mapping[str, StepStatus], Sequence[ManagedStep]]], FlowSteps
    ]
] = partial(tuple.__new__, FlowSteps)
NONE_LISTED: Final[Mapping[str, StepStatus]] = {}
NO_STEPS: Final = FlowSteps()


def _is_unsuccessful(step: Step) -> bool:
    return step.runtime == "managed" and step.status in UNSUCCESSFUL


def input_bytes(step: Step) -> int:
    """What `input_json` takes, as written."""
    return len(orjson.dumps(step.input_json)) if step.runtime == "managed" else 0


def is_live(step: Step) -> TypeGuard[ManagedStep]:
    """Whether `step` is managed and has not ended."""
    return step.runtime == "managed" and step.status in LIVE


def execution_doc(execution: Execution) -> dict[str, Any]:
    """`execution` as JSON, in a fact's payload."""
    return execution.__dict__


def offers_work(after: Step, fact: Fact) -> TypeGuard[ManagedStep]:
    """Whether `fact`, which made a step `after`, offered it: a work item must be written."""
    return (
        fact.kind in _OFFERING
        and after.runtime == "managed"
        and after.status is _PENDING
        and after.execution.offers > 0
    )


StepTimer = tuple[StepStatus, int]
"""The status of a step that has not ended, and when the processor looks at it, in ms of the
broker's clock."""


def step_timer(step: Step) -> StepTimer | None:
    """When the processor looks at `step`; None: never, as of all but live steps."""
    due_ms = step_due_ms(step)
    return None if due_ms is None else (step.status, due_ms)


def step_due_ms(step: Step) -> int | None:
    """When the processor looks at `step`, in ms of the broker's clock; None: never."""
    if step.runtime != "managed" or step.execution.due_at is None:
        return None
    return parse_timestamp(step.execution.due_at)


def run_id_of(fact: Fact) -> str:
    """The run id of the step that a step's `fact` is about."""
    payload = fact.payload
    run_id: str = payload["run_id"] if "run_id" in payload else payload["step"]["run_id"]
    return run_id
