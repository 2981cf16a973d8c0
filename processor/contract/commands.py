"""Commands: what producers and operators ask for, one change to one flow each.

Null in an optional field equals absent, except in `patch`, where it is a value.
"""

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from processor.contract.flow import StepStatus, Wait
from processor.contract.values import (
    Json,
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
    WAKE = "wake"
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
    """Decide and answer; nothing else changes or is recorded."""
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


class Wake(CommandBase):
    """Control only. Ends a wait whose time has come, or cancels a flow that was asked to."""

    kind: Literal["wake"] = "wake"


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
    | Wake
    | Prune
)
AnyCommand = Annotated[Command, Field(discriminator="kind")]

COMMANDS: TypeAdapter[Command] = TypeAdapter(AnyCommand)
"""Reads a command from a JSON object: `COMMANDS.validate_python(mapping)`."""

MODELS: dict[str, type[CommandBase]] = {
    str(model.model_fields["kind"].default): model for model in Command.__args__
}
CONTROL_ONLY = frozenset({CommandKind.WAKE, CommandKind.PRUNE})
"""Kinds that are refused (`forbidden`) on the commands topic."""
