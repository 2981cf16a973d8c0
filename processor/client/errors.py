"""Errors of the client. `FlowClient.send` returns a refusal as an Outcome; FlowHandle raises it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from processor.contract import Command, Outcome
from processor.errors import TaskflowError

if TYPE_CHECKING:
    from processor.client.flow_client import Receipt


class InvalidCommand(TaskflowError, ValueError):
    """The processor could not read this as a command, so it was not sent.

    `errors` holds up to 20 `{"field", "problem"}`, without values.
    """

    def __init__(self, problem: str, errors: Sequence[dict[str, str]] = ()) -> None:
        self.errors = list(errors)
        fields = "; ".join(f"{error['field']}: {error['problem']}" for error in self.errors)
        super().__init__(f"{problem} It was not sent." + (f" {fields}." if fields else ""))


class CommandNotSent(TaskflowError):
    """The command is certainly not in Kafka, so it will not be applied.

    `retriable` says whether sending it again may help.
    """

    def __init__(self, problem: str, *, retriable: bool = False) -> None:
        self.retriable = retriable
        super().__init__(problem)


class SendUncertain(TaskflowError):
    """Kafka refused a copy of a record after an earlier copy may have been written."""

    retriable = True


class OutcomeTimeout(TaskflowError):
    """No outcome came in time. The command may still be applied.

    Sending `command`, the very same, again is safe: within the dedupe window it is applied once,
    and after its `expires_at` never. `receipt` is None if Kafka has not acknowledged it either.
    """

    retriable = True

    def __init__(self, command: Command, receipt: "Receipt | None", reason: str) -> None:
        self.command = command
        self.receipt = receipt
        super().__init__(
            f"{reason}; command {command.command_id} may still be applied. "
            "Sending the same one again is safe."
        )


class CommandRefused(TaskflowError):
    """The processor refused a command of a FlowHandle; nothing was changed.

    `outcome` is all of it, `code` why, and `allowed` the kinds that would be taken now.
    """

    def __init__(self, outcome: Outcome) -> None:
        self.outcome = outcome
        self.code = outcome.code
        self.allowed = outcome.allowed
        super().__init__(f"{outcome.kind} was refused ({outcome.code}): {outcome.message}")


class AuditGap(TaskflowError):
    """The audit topic does not hold what must come next in a partition: a fact is missing."""


class UnreadableEvent(TaskflowError):
    """A record on the audit topic is no FlowEvent that this version knows."""
