"""Outcomes: exactly one for each record of `commands` and `control`."""

from enum import StrEnum
from typing import Any

from pydantic import Field

from processor.contract.flow import FlowStatus
from processor.contract.values import Digest, EventId, Instant, Message, Revision, Source, Uuid


class Verdict(StrEnum):
    ACCEPTED = "accepted"
    REJECTED = "rejected"
    DUPLICATE = "duplicate"
    QUARANTINED = "quarantined"
    FORWARDED = "forwarded"
    """Not final: the copy on the right partition gets an outcome of its own."""


class Code(StrEnum):
    """Why a command was refused, in the order in which it is checked."""

    TOO_LARGE = "too_large"
    MALFORMED = "malformed"
    UNSUPPORTED_VERSION = "unsupported_version"
    INVALID_COMMAND = "invalid_command"
    INVALID_KEY = "invalid_key"
    IDEMPOTENCY_CONFLICT = "idempotency_conflict"
    FORBIDDEN = "forbidden"
    EXPIRED = "expired"
    ALREADY_EXISTS = "already_exists"
    NOT_FOUND = "not_found"
    NOT_OWNER = "not_owner"
    REVISION_MISMATCH = "revision_mismatch"
    ALREADY_TERMINAL = "already_terminal"
    CANCEL_PENDING = "cancel_pending"
    ILLEGAL_TRANSITION = "illegal_transition"
    STEP_EXISTS = "step_exists"
    STEP_NOT_FOUND = "step_not_found"
    WAIT_MISMATCH = "wait_mismatch"
    NOT_DUE = "not_due"
    NOT_HOLDER = "not_holder"
    INVALID_DATA = "invalid_data"
    STATE_TOO_LARGE = "state_too_large"
    TOO_MANY_STEPS = "too_many_steps"
    INTERNAL_ERROR = "internal_error"


QUARANTINE = frozenset(
    {
        Code.TOO_LARGE,
        Code.MALFORMED,
        Code.UNSUPPORTED_VERSION,
        Code.INVALID_COMMAND,
        Code.INVALID_KEY,
        Code.INTERNAL_ERROR,
    }
)
FORGOTTEN = frozenset({Code.FORBIDDEN, Code.NOT_OWNER, Code.IDEMPOTENCY_CONFLICT})
"""Rejections that do not burn the command id: a stranger cannot answer for the owner."""


class Outcome(Message):
    """What became of one record. What cannot be known from its bytes is null."""

    command_id: Uuid | None
    flow_id: Uuid | None
    kind: str | None
    verdict: Verdict
    code: Code | None
    """Why the command was refused; null where it was not."""
    message: str
    """One sentence for a person: no secrets, no payload."""
    revision: Revision | None
    """The flow's after the command, null where it has none; for an accepted dry run, what it would
    be."""
    status: FlowStatus | None
    """As `revision`."""
    event_ids: list[EventId]
    """The FlowEvents that the command caused."""
    allowed: list[str] | None
    """The kinds, sorted, that the state machine would take now from the same topic; null where
    there is no flow to speak of."""
    details: dict[str, Any]
    dry_run: bool | None
    command_digest: Digest | None
    """Hex BLAKE2b-128 of the command as JSON with sorted keys, compact, UTF-8."""
    source: Source
    """The record whose outcome this is."""
    at: Instant
    """The broker's append time of that record."""
    original: Verdict | None = Field(default=None)
    """Of a duplicate: the first outcome's verdict. Its code, message, revision, status, event_ids
    and details are the first outcome's too."""

    @property
    def final(self) -> bool:
        """Whether this is the last word: all but `forwarded` are."""
        return self.verdict is not Verdict.FORWARDED
