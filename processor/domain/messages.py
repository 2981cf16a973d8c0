"""Word each outcome in one sentence for a person: no secrets, no payload."""

from types import MappingProxyType
from typing import Any, Final

from processor.contract.commands import CommandKind
from processor.contract.outcomes import Code
from processor.domain.transitions import STEP_COMMANDS

ACCEPTED: Final = MappingProxyType(
    {
        CommandKind.CREATE_MANAGED: "The flow was created.",
        CommandKind.CREATE_MIRRORED: "The flow was created and is running.",
        CommandKind.START_RUNNING: "The flow is running.",
        CommandKind.SET_WAITING: "The flow is waiting.",
        CommandKind.RESUME: "The flow was resumed.",
        CommandKind.RESUME_EXTERNAL: "The flow was resumed by its event.",
        CommandKind.FINISH: "The flow is finished.",
        CommandKind.FAIL: "The flow has failed.",
        CommandKind.REQUEST_CANCEL: "The request to cancel is noted.",
        CommandKind.CANCEL: "The flow is cancelled.",
        CommandKind.UPDATE_STATE: "The state was updated.",
        CommandKind.RECORD_STEP_OBSERVATION: "The step was recorded.",
        CommandKind.SCHEDULE_STEP: "The step was scheduled.",
        CommandKind.START_STEP: "The step was started.",
        CommandKind.EXTEND_STEP: "The lease of the step is in force.",
        CommandKind.COMPLETE_STEP: "The step has succeeded.",
        CommandKind.FAIL_STEP: "The failure of the step was recorded.",
        CommandKind.RELEASE_STEP: "The step was released and is offered again.",
        CommandKind.CANCEL_STEP: "The step is cancelled.",
        CommandKind.RETRY_STEP: "The step is offered again.",
        CommandKind.WAKE: "The wait has ended.",
        CommandKind.WAKE_STEP: "What was due of the step was done.",
        CommandKind.PRUNE: "The flow was removed; its audit stays.",
    }
)
DRY_RUN_ACCEPTED: Final = "The command would be accepted; it was a dry run, so nothing changed."
FORWARDED: Final = "The record lay on the wrong partition and was sent to the right one."

_REFUSED: Final = MappingProxyType(
    {
        Code.TOO_LARGE: "The value is over 512 KiB or the key over 64 bytes.",
        Code.MALFORMED: "The value is not one JSON object within the limits: {problem}.",
        Code.UNSUPPORTED_VERSION: "Only schema_version 1 is understood.",
        Code.INVALID_COMMAND: "The object is not a valid command: {problem}.",
        Code.INVALID_KEY: "The record key must be the flow_id, on the partition it hashes to.",
        Code.IDEMPOTENCY_CONFLICT: "This command_id was already used for another command.",
        Code.FORBIDDEN: "This kind is only taken from the control topic.",
        Code.EXPIRED: "The broker appended the command after its expires_at.",
        Code.ALREADY_EXISTS: "A flow with this id exists already.",
        Code.NOT_FOUND: "There is no flow with this id.",
        Code.NOT_OWNER: "Only the flow's owner may send this command.",
        Code.REVISION_MISMATCH: "The flow is not at the expected revision.",
        Code.ALREADY_TERMINAL: "The flow has ended and takes no more changes.",
        Code.CANCEL_PENDING: "Cancellation was requested; only a cancel goes on from here.",
        Code.ILLEGAL_TRANSITION: "A flow that is {from} does not take this command.",
        Code.STEP_EXISTS: "The flow has a step with this run_id already.",
        Code.STEP_NOT_FOUND: "The flow has no managed step with this run_id.",
        Code.WAIT_MISMATCH: "The flow waits for something else.",
        Code.NOT_DUE: "The wait is not over yet.",
        Code.NOT_HOLDER: "The sender does not hold the step in this attempt.",
        Code.INVALID_DATA: "The time {problem}.",
        Code.STATE_TOO_LARGE: "{field} would take {size_bytes} bytes of at most {limit_bytes}.",
        Code.TOO_MANY_STEPS: "The flow has as many steps as it may have, {limit}.",
        Code.INTERNAL_ERROR: "The record could not be handled; the processor's log says why.",
    }
)


_REFUSED_OF_STEPS: Final = MappingProxyType(
    {
        Code.ILLEGAL_TRANSITION: "A step that is {from} does not take this command.",
        Code.NOT_DUE: "The step is not due yet.",
    }
)
"""Where a command about a managed step gets another sentence."""
_REFUSED_OF_FIELDS: Final = MappingProxyType(
    {
        "wait.prompt": "The prompt {problem}.",
        "wait.run_ids": "The join {problem}.",
        "live_steps": "The flow has as many steps that have not ended as it may have, {limit}.",
        "live_inputs": "The inputs of the flow's live steps would take {size_bytes} bytes of at "
        "most {limit_bytes}.",
    }
)
"""Where a field gets another sentence."""
_STEP_COMMANDS: Final = frozenset(map(str, STEP_COMMANDS))
_ACCEPTED_BY_NAME: Final = {str(kind): text for kind, text in ACCEPTED.items()}


def accepted(kind: str) -> str:
    """The sentence for an accepted command."""
    return _ACCEPTED_BY_NAME[kind]


def refused(code: Code, details: dict[str, Any], kind: str | None = None) -> str:
    """The sentence for a refusal of a command of `kind`; `details` are those of the outcome."""
    sentence = _REFUSED_OF_FIELDS.get(details.get("field", "")) or _REFUSED[code]
    if kind in _STEP_COMMANDS:
        sentence = _REFUSED_OF_STEPS.get(code, sentence)
    return sentence.format_map(details)
