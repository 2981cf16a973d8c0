"""Signals: events that name a wait by topic and correlation id instead of a flow.

An extension outside of the contract: only `taskflow signals` reads and writes them.
"""

from typing import Annotated, Final, Literal

from pydantic import Field

from processor.contract.values import COMMAND_MAX_BYTES, Json, Message, WaitText

SIGNAL_MAX_BYTES: Final = COMMAND_MAX_BYTES - 8 * 1024
"""A signal's value, so that the `resume_external` that carries its payload is no larger than a
command may be."""

UNCLAIMED: Final = "unclaimed"
"""Code of a dead letter: no flow waited for the signal within its time to live."""
UNDELIVERABLE: Final = "undeliverable"
"""Code of a dead letter: the waiting flow refuses it for good, as for a state too large."""
INVALID: Final = "invalid_signal"
"""Code of a dead letter: the record is not a signal."""


class SignalMessage(Message):
    """An event without a flow id: the value of a record on `signals`."""

    id: Annotated[str, Field(min_length=1, max_length=200)]
    """The event's id; a signal with the same id, topic and correlation id is delivered once."""
    topic: WaitText
    """The topic of the flow's wait; not a Kafka topic."""
    correlation_id: WaitText
    payload: Json = None
    """Becomes `resume_event` of the flow's state, unless it is absent or null."""
    schema_version: Literal[1] | None = None
