"""Commands: what producers and operators ask for, one change to one flow each.

Null in an optional field equals absent, except in `patch`, where it is a value.
"""

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from processor.contract.flow import Wait
from processor.contract.steps import StepStatus
from processor.contract.values import (
    Attempt,
    DelayMs,
    Json,
    LeaseMs,
    LongText,
    Message,
    Revision,
    Text,
    Timestamp,
    Uuid,
    WaitText,
)


class CommandKind(StrEnum):
    CREATE_MANAGED = "create_managed"
    CREATE_MIRRORED = "create_mirrored"
    START_RUNNING = "start_running"
    SET_WAITING = "set_waiting"
    RESUME = "resume"
    RESUME_EXTERNAL = "resume_external"
    FINISH = "finish"
    FAIL = "fail"
    REQUEST_CANCEL = "request_cancel"
    CANCEL = "cancel"
    UPDATE_STATE = "update_state"
    RECORD_STEP_OBSERVATION = "record_step_observation"
    SCHEDULE_STEP = "schedule_step"
    START_STEP = "start_step"
    EXTEND_STEP = "extend_step"
    COMPLETE_STEP = "complete_step"
    FAIL_STEP = "fail_step"
    RELEASE_STEP = "release_step"
    CANCEL_STEP = "cancel_step"
    RETRY_STEP = "retry_step"
    WAKE = "wake"
    WAKE_STEP = "wake_step"
    PRUNE = "prune"


class CommandBase(Message):
    """The fields of every command."""

    command_id: Uuid
    """Idempotency key: sent twice for a flow, the command is applied once."""
    flow_id: Uuid
    """Must equal the record key."""
    issued_by: Text
    """Session key of the sender, claimed and not proven."""
    expected_revision: Revision | None = None
    """Refuse unless the flow is at this revision."""
    expires_at: Timestamp | None = None
    """Refuse if the broker appended the command later."""
    dry_run: bool | None = False
    """Decide and write the outcome; nothing else changes or is recorded."""
    schema_version: Literal[1] | None = 1
    """Anything else is quarantined as `unsupported_version`."""


class Create(CommandBase):
    """The fields of both creates."""

    controller_id: Text
    goal: LongText
    requester_origin: Text
    current_step: Text | None = "init"
    state_json: Json = Field(default_factory=dict)
    """`{}` unless given; at most 256 KiB as written."""
    owner_session_key: Text | None = None
    """`issued_by` unless given; on the commands topic it must be `issued_by`."""


class CreateManaged(Create):
    """A new flow, to be started: created, revision 0."""

    kind: Literal["create_managed"] = "create_managed"


class CreateMirrored(Create):
    """A flow for work that already runs elsewhere: running, revision 1."""

    kind: Literal["create_mirrored"] = "create_mirrored"


class StartRunning(CommandBase):
    """created → running."""

    kind: Literal["start_running"] = "start_running"


class SetWaiting(CommandBase):
    """running → waiting."""

    kind: Literal["set_waiting"] = "set_waiting"
    wait: Wait
    """What becomes the flow's `wait_json`. Its time must lie after the append time, and not past
    the horizon."""


class Resume(CommandBase):
    """waiting → running, merging `state_patch` if there is one."""

    kind: Literal["resume"] = "resume"
    state_patch: Json = None
    """Merged into the state, by top-level keys."""


class ResumeExternal(CommandBase):
    """waiting → running, if `topic` and `correlation_id` are those that the flow waits for.

    Anyone may send it: the correlation id is its authority.
    """

    kind: Literal["resume_external"] = "resume_external"
    topic: WaitText
    correlation_id: WaitText
    payload: Json = None
    """Merged into the state as `{"resume_event": payload}`."""


class Finish(CommandBase):
    """running → finished, merging `final_state` if there is one."""

    kind: Literal["finish"] = "finish"
    final_state: Json = None
    """Merged into the state, by top-level keys."""


class Fail(CommandBase):
    """running or waiting → failed, recording the reason in the state."""

    kind: Literal["fail"] = "fail"
    reason: LongText
    """Merged into the state as `{"failure": {"reason", "at"}}`."""


class RequestCancel(CommandBase):
    """Asks for cancellation. Set already, or flow terminal: accepted, and nothing happens."""

    kind: Literal["request_cancel"] = "request_cancel"


class Cancel(CommandBase):
    """Any non-terminal status → cancelled."""

    kind: Literal["cancel"] = "cancel"


class UpdateState(CommandBase):
    """Merges `patch` into the state and moves `current_step`; the status stays."""

    kind: Literal["update_state"] = "update_state"
    patch: Json
    """Its top-level keys overwrite those of the state; if either is not an object, it replaces the
    state. Required, and null is a value."""
    next_step: Text | None = None
    """Becomes `current_step`."""


class RecordStepObservation(CommandBase):
    """Inserts or updates the step (`flow_id`, `run_id`); anyone may send it, at any time."""

    kind: Literal["record_step_observation"] = "record_step_observation"
    run_id: Text
    task: Text
    status: Literal[
        StepStatus.PENDING,
        StepStatus.RUNNING,
        StepStatus.SUCCEEDED,
        StepStatus.FAILED,
        StepStatus.CANCELLED,
    ]
    child_session_key: Text | None = None
    """Absent: the old one stays."""
    result_json: Json = None
    """Absent: the old one is cleared. At most 64 KiB as written."""


class ScheduleStep(CommandBase):
    """Creates a managed step: pending, and offered unless `not_before` lies ahead."""

    kind: Literal["schedule_step"] = "schedule_step"
    run_id: Text
    """Names the step within its flow; taken once, by a managed or an observed step."""
    task: Text
    """What is to be done: executors know it by this name."""
    input_json: Json = None
    """At most 64 KiB as written."""
    not_before: Timestamp | None = None
    """The step is offered then; it must not lie past the horizon."""
    timeout_at: Timestamp | None = None
    """The step fails then, whatever it is doing. It must lie after the append time, and not past
    the horizon."""
    max_attempts: Annotated[int, Field(ge=1, le=100)] | None = 3
    lease_ms: LeaseMs | None = 300_000
    """For how long an executor holds the step without extending its lease."""
    backoff_ms: DelayMs | None = 1_000
    """Delay after the first attempt that failed; it doubles with each one."""


class NamedStep(CommandBase):
    """The fields of every command about a managed step that is there."""

    run_id: Text


class HeldStep(NamedStep):
    """The fields of every command of a step's holder."""

    attempt: Attempt
    """Must be the step's: the one that the accepted `start_step` returned."""


class StartStep(NamedStep):
    """pending → running: the sender holds the step until its lease ends. Anyone may send it."""

    kind: Literal["start_step"] = "start_step"


class ExtendStep(HeldStep):
    """Renews the lease from the append time on."""

    kind: Literal["extend_step"] = "extend_step"
    progress_json: Json = None
    """At most 4 KiB as written; absent: the last one stays."""


class CompleteStep(HeldStep):
    """running → succeeded; also pending → succeeded, while no executor has started it since."""

    kind: Literal["complete_step"] = "complete_step"
    result_json: Json = None
    """At most 64 KiB as written."""


class FailStep(HeldStep):
    """running → pending, to be tried again, or failed."""

    kind: Literal["fail_step"] = "fail_step"
    reason: LongText
    retry: bool | None = True
    """False: another attempt is of no use."""
    retry_after_ms: DelayMs | None = None
    """Instead of the backoff."""


class ReleaseStep(HeldStep):
    """running → pending: given back unharmed. No attempt is lost, and it is offered at once."""

    kind: Literal["release_step"] = "release_step"


class CancelStep(NamedStep):
    """pending or running → cancelled."""

    kind: Literal["cancel_step"] = "cancel_step"


class RetryStep(NamedStep):
    """pending, failed or cancelled → pending: offered at once, with more attempts."""

    kind: Literal["retry_step"] = "retry_step"
    attempts: Annotated[int, Field(ge=1, le=100)] | None = 1
    """How many the step has at least from here on."""


class Wake(CommandBase):
    """Control only. Ends a wait whose time has come, or cancels a flow that was asked to."""

    kind: Literal["wake"] = "wake"


class WakeStep(NamedStep):
    """Control only. Does what is due of a managed step: a lease that ended, a timeout, an offer."""

    kind: Literal["wake_step"] = "wake_step"


class Prune(CommandBase):
    """Control only. Removes a terminal flow and its steps; the audit stays."""

    kind: Literal["prune"] = "prune"


Command = (
    CreateManaged
    | CreateMirrored
    | StartRunning
    | SetWaiting
    | Resume
    | ResumeExternal
    | Finish
    | Fail
    | RequestCancel
    | Cancel
    | UpdateState
    | RecordStepObservation
    | ScheduleStep
    | StartStep
    | ExtendStep
    | CompleteStep
    | FailStep
    | ReleaseStep
    | CancelStep
    | RetryStep
    | Wake
    | WakeStep
    | Prune
)
StepCommand = (
    ScheduleStep
    | StartStep
    | ExtendStep
    | CompleteStep
    | FailStep
    | ReleaseStep
    | CancelStep
    | RetryStep
    | WakeStep
)
"""The commands about managed steps."""
AnyCommand = Annotated[Command, Field(discriminator="kind")]

COMMANDS: TypeAdapter[Command] = TypeAdapter(AnyCommand)
"""Reads a command from a JSON object: `COMMANDS.validate_python(mapping)`."""

MODELS: dict[str, type[CommandBase]] = {
    str(model.model_fields["kind"].default): model for model in Command.__args__
}
CONTROL_ONLY = frozenset({CommandKind.WAKE, CommandKind.WAKE_STEP, CommandKind.PRUNE})
"""Kinds that are refused (`forbidden`) on the commands topic."""
