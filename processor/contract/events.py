"""FlowEvents: the facts on the audit topic. Folding a flow's events gives its row and steps."""

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from processor.contract.flow import FlowStatus
from processor.contract.steps import Execution, ManagedStep, ObservedStep, StepStatus
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
    STEP_SCHEDULED = "step_scheduled"
    STEP_STARTED = "step_started"
    STEP_EXTENDED = "step_extended"
    STEP_RELEASED = "step_released"
    STEP_RETRIED = "step_retried"
    STEP_DISPATCHED = "step_dispatched"
    STEP_SUCCEEDED = "step_succeeded"
    STEP_FAILED = "step_failed"
    STEP_CANCELLED = "step_cancelled"
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

    by: Literal["command", "external_event", "timer", "timeout", "steps"]
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
    step: ObservedStep


class StepScheduledPayload(Message):
    step: ManagedStep


class StepChanges(Message):
    """What the event set on the step, at its new value."""

    updated_at: Instant
    execution: Execution


class StepStartedChanges(Message):
    status: Literal[StepStatus.RUNNING]
    child_session_key: Text
    updated_at: Instant
    execution: Execution


class StepReleasedChanges(Message):
    status: Literal[StepStatus.PENDING]
    child_session_key: None
    updated_at: Instant
    execution: Execution


class StepRetriedChanges(Message):
    status: Literal[StepStatus.PENDING]
    child_session_key: Text | None
    """The holder stays after a lease that ran out: a late result counts."""
    result_json: None
    updated_at: Instant
    execution: Execution


class StepSucceededChanges(Message):
    status: Literal[StepStatus.SUCCEEDED]
    result_json: Json
    updated_at: Instant
    execution: Execution


class StepFailedChanges(Message):
    status: Literal[StepStatus.FAILED]
    result_json: Json
    """`{"failure": {"reason", "at"}}`"""
    updated_at: Instant
    execution: Execution


class StepCancelledChanges(Message):
    status: Literal[StepStatus.CANCELLED]
    updated_at: Instant
    execution: Execution


class StepChangedPayload(Message):
    """Of `step_extended` and `step_dispatched`."""

    run_id: Text
    changes: StepChanges


class StepStartedPayload(Message):
    run_id: Text
    changes: StepStartedChanges


class StepReleasedPayload(Message):
    run_id: Text
    changes: StepReleasedChanges


class StepRetriedPayload(Message):
    run_id: Text
    changes: StepRetriedChanges
    reason: LongText | None
    """Why the attempt failed; null after a `retry_step`."""


class StepSucceededPayload(Message):
    run_id: Text
    changes: StepSucceededChanges


class StepFailedPayload(Message):
    run_id: Text
    changes: StepFailedChanges
    reason: LongText


class StepCancelledPayload(Message):
    run_id: Text
    changes: StepCancelledChanges
    by: Literal["command", "flow"]


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


class StepScheduled(EventBase):
    kind: Literal["step_scheduled"]
    payload_json: StepScheduledPayload


class StepStarted(EventBase):
    kind: Literal["step_started"]
    payload_json: StepStartedPayload


class StepExtended(EventBase):
    kind: Literal["step_extended"]
    payload_json: StepChangedPayload


class StepReleased(EventBase):
    kind: Literal["step_released"]
    payload_json: StepReleasedPayload


class StepRetried(EventBase):
    kind: Literal["step_retried"]
    payload_json: StepRetriedPayload


class StepDispatched(EventBase):
    kind: Literal["step_dispatched"]
    payload_json: StepChangedPayload


class StepSucceeded(EventBase):
    kind: Literal["step_succeeded"]
    payload_json: StepSucceededPayload


class StepFailed(EventBase):
    kind: Literal["step_failed"]
    payload_json: StepFailedPayload


class StepCancelled(EventBase):
    kind: Literal["step_cancelled"]
    payload_json: StepCancelledPayload


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
    | StepScheduled
    | StepStarted
    | StepExtended
    | StepReleased
    | StepRetried
    | StepDispatched
    | StepSucceeded
    | StepFailed
    | StepCancelled
    | Pruned
)
AnyEvent = Annotated[FlowEvent, Field(discriminator="kind")]

EVENTS: TypeAdapter[FlowEvent] = TypeAdapter(AnyEvent)
"""Reads a FlowEvent: `EVENTS.validate_json(record.value)`."""
