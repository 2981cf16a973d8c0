"""Values on the compacted `state` topic: the present, for a new owner or any consumer.

Keys: a flow id → FlowSnapshot; `{flow id}/{run_id}` → StepSnapshot; `cursor/{partition}` →
Cursor. A null value says that the flow was pruned.
"""

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from processor.contract.flow import Flow
from processor.contract.steps import AnyStep
from processor.contract.values import DIGEST_PATTERN, EventId, Message, Offset

CURSOR_PREFIX = "cursor/"


class FlowSnapshot(Message):
    """A flow with the id and the chain value of its newest event, which pin the audit's tail."""

    flow: Flow
    last_event_id: EventId
    chain: Annotated[str, StringConstraints(pattern=DIGEST_PATTERN)]


class StepSnapshot(Message):
    step: AnyStep


class Cursor(Message):
    """How far a partition has been decided; written in every transaction.

    `commands` and `control` are the next offsets to read, `next_event_id` the full id of the
    next FlowEvent. `offered`: up to that event id all work items are written; 0 before the first
    event.
    """

    commands: Offset
    control: Offset
    next_event_id: EventId
    offered: Annotated[int, Field(ge=0)]
    schema_version: Literal[1] = 1
