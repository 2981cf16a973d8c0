"""FlowEvents: the facts on the audit topic. Folding a flow's events gives its row and steps."""

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from processor.contract.flow import FlowStatus, FlowStep
from processor.contract.values import (
    EventId,
    Instant,
    Json,
    LongText,
    Message,
    Revision,
    Source,
    Text,
    Uuid,
)

CHAIN_HEADER = "taskflow-chain"
"""16 bytes: BLAKE2b-128(chain of the flow's previous event ‖ this record's value)."""
TRACEPARENT_HEADER = "traceparent"
"""W3C trace context, carried from a command to everything that it causes."""
TRACEPARENT_MAX_BYTES = 4096
"""A longer one (W3C's has 55 bytes) ends with its command: what that causes could be too large for
the topics."""
CHAIN_START = bytes(16)


class EventKind(StrEnum):
    CREATED = "created"
    STARTED = "started"
    WAITING = "waiting"
    RESUMED = "resumed"
    FINISHED = "finished"
    FAILED = "failed"
    CANCEL_REQUESTED = "cancel_requested"
    CANCELLED = "cancelled"
    STATE_UPDATED = "state_updated"
    STEP_OBSERVED = "step_observed"
    PRUNED = "pruned"


class Nothing(Message):
    """The payload of a fact that its kind says whole."""


class CreatedPayload(Message):
    controller_id: Text
    goal: LongText
    owner_session_key: Text
    requester_origin: Text
    current_step: Text
    state_json: Json


class WaitingPayload(Message):
    wait: dict[str, Json]


class ResumedPayload(Message):
    """What ended the wait, and what it brought: null where nothing."""

    by: Literal["command", "external_event", "timer", "timeout"]
    state_patch: Json


class FinishedPayload(Message):
    """What was merged into the state: null where nothing."""

    final_state: Json


class FailedPayload(Message):
    reason: LongText


class StateUpdatedPayload(Message):
    patch: Json
    next_step: Text | None


class StepObservedPayload(Message):
    step: FlowStep


class EventBase(Message):
    """The fields of every FlowEvent."""

    id: EventId
    """Unique: partition * 2**40 + n, with n = 1, 2, 3 … without a gap in each partition."""
    flow_id: Uuid
    at: Instant
    """The broker's append time of the command."""
    revision: Revision
    """The flow's after the event; of a pruned flow the last."""
    status: FlowStatus
    """The flow's after the event; of a pruned flow the last."""
    command_id: Uuid
    actor: Text
    """The command's `issued_by`."""
    source: Source
    """The command's record."""
    schema_version: Literal[1] = 1


class Created(EventBase):
    kind: Literal["created"]
    payload_json: CreatedPayload


class Started(EventBase):
    kind: Literal["started"]
    payload_json: Nothing


class Waiting(EventBase):
    kind: Literal["waiting"]
    payload_json: WaitingPayload


class Resumed(EventBase):
    kind: Literal["resumed"]
    payload_json: ResumedPayload


class Finished(EventBase):
    kind: Literal["finished"]
    payload_json: FinishedPayload


class Failed(EventBase):
    kind: Literal["failed"]
    payload_json: FailedPayload


class CancelRequested(EventBase):
    kind: Literal["cancel_requested"]
    payload_json: Nothing


class Cancelled(EventBase):
    kind: Literal["cancelled"]
    payload_json: Nothing


class StateUpdated(EventBase):
    kind: Literal["state_updated"]
    payload_json: StateUpdatedPayload


class StepObserved(EventBase):
    kind: Literal["step_observed"]
    payload_json: StepObservedPayload


class Pruned(EventBase):
    kind: Literal["pruned"]
    payload_json: Nothing


FlowEvent = (
    Created
    | Started
    | Waiting
    | Resumed
    | Finished
    | Failed
    | CancelRequested
    | Cancelled
    | StateUpdated
    | StepObserved
    | Pruned
)
AnyEvent = Annotated[FlowEvent, Field(discriminator="kind")]

EVENTS: TypeAdapter[FlowEvent] = TypeAdapter(AnyEvent)
"""Reads a FlowEvent: `EVENTS.validate_json(record.value)`."""
