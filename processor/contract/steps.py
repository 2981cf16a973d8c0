"""Steps of flows: observed ones, managed ones, and the work items that offer them."""

from enum import StrEnum
from typing import Annotated, Final, Literal

from pydantic import Field, TypeAdapter

from processor.contract.values import (
    INTEGER_MAX,
    Attempt,
    DelayMs,
    EventId,
    Instant,
    Json,
    LeaseMs,
    LongText,
    Message,
    Text,
    Uuid,
)

TASK_HEADER: Final = "taskflow-task"
"""On a work item: the step's task, in UTF-8."""


class StepStatus(StrEnum):
    PENDING = "pending"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


class FlowStep(Message):
    """The fields of every step; `id` is UUIDv5(`flow_id`, `run_id`)."""

    id: Uuid
    flow_id: Uuid
    runtime: Literal["managed", "mirrored"]
    child_session_key: Text | None
    run_id: Text
    task: Text
    status: StepStatus
    result_json: Json
    created_at: Instant
    updated_at: Instant


class ObservedStep(FlowStep):
    """A piece of work that was reported by `record_step_observation`."""

    runtime: Literal["mirrored"]


class StepFailure(Message):
    """Why an attempt, or the step, failed: the executor's reason, `lease expired` or `timeout`."""

    reason: LongText
    at: Instant


class Execution(Message):
    """How far a managed step is, and by which rules it is executed."""

    attempt: Attempt
    """How often the step was started."""
    max_attempts: Annotated[int, Field(ge=1, le=INTEGER_MAX)]
    """As scheduled; `release_step` and `retry_step` may raise it."""
    lease_ms: LeaseMs
    backoff_ms: DelayMs
    offers: Annotated[int, Field(ge=0, le=INTEGER_MAX)]
    """Work items since the step may be started; 0 while it is running, or pending and not yet
    offered. Stays as it was once the step has ended."""
    due_at: Instant | None
    """When the processor looks at the step: the end of its lease; the time from which it may be
    started; when it is offered again. Null once it has ended; never later than `timeout_at`."""
    timeout_at: Instant | None
    """When the step fails, whatever it is doing."""
    progress: Json
    """The newest `progress_json` of an `extend_step`, or null."""
    last_failure: StepFailure | None
    """The newest failure, lapse of a lease or timeout; nothing clears it."""


class ManagedStep(FlowStep):
    """A piece of work that taskflow offers, lends to one executor at a time, and retries.

    `child_session_key` is the holder: `issued_by` of the `start_step` in force. It stays after the
    end.
    """

    runtime: Literal["managed"]
    input_json: Json
    execution: Execution


Step = ObservedStep | ManagedStep
AnyStep = Annotated[Step, Field(discriminator="runtime")]

STEPS: TypeAdapter[Step] = TypeAdapter(AnyStep)
"""Reads a step: `STEPS.validate_json(doc)`."""

LIVE: Final = frozenset({StepStatus.PENDING, StepStatus.RUNNING})
"""The statuses of a managed step that has not ended."""


class WorkItem(Message):
    """A managed step that may be started: a hint, no lock. `start_step` is what one executor gets.

    Written at least once for each offering, after its event is committed.
    """

    flow_id: Uuid
    run_id: Text
    task: Text
    attempt: Annotated[int, Field(ge=1, le=INTEGER_MAX)]
    """The attempt that a start would have."""
    max_attempts: Annotated[int, Field(ge=1, le=INTEGER_MAX)]
    input_json: Json
    lease_ms: LeaseMs
    event_id: EventId
    """The event that offered the step."""
    at: Instant
    """That event's time."""
