"""Outcomes: the answer to each record of `commands` and `control`, exactly one each."""

from enum import StrEnum
from typing import Any

from pydantic import Field

from schemas.flow import FlowStatus
from schemas.values import Digest, EventId, Instant, Message, Revision, Source, Uuid


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
    WAIT_MISMATCH = "wait_mismatch"
    NOT_DUE = "not_due"
    INVALID_DATA = "invalid_data"
    STATE_TOO_LARGE = "state_too_large"
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
    """What became of one record.

    `revision` and `status` are the flow's after the command, null where there is no flow; for
    an accepted dry run, what they would be. `allowed`: the kinds, sorted, that the state machine
    would take now from the same topic. What cannot be known from the bytes is null, `dry_run` of
    what is not an object included.
    A duplicate carries the first outcome's verdict as `original`, and its code, message,
    revision, status, event_ids and details.
    """

    command_id: Uuid | None
    flow_id: Uuid | None
    kind: str | None
    verdict: Verdict
    code: Code | None
    message: str
    revision: Revision | None
    status: FlowStatus | None
    event_ids: list[EventId]
    allowed: list[str] | None
    details: dict[str, Any]
    dry_run: bool | None
    command_digest: Digest | None
    source: Source
    at: Instant
    original: Verdict | None = Field(default=None)

    @property
    def final(self) -> bool:
        """Whether this is the last word: all but `forwarded` are."""
        return self.verdict is not Verdict.FORWARDED
