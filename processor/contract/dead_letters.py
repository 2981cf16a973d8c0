"""Dead letters: raw bytes of what could not be read as a command, and why.

Key, value and headers are the original ones; these headers, text in UTF-8, are added.
"""

from typing import Annotated

from pydantic import Field

from processor.contract.outcomes import Code
from processor.contract.values import Digest, Instant, Message

CODE = "taskflow-code"
MESSAGE = "taskflow-message"
SOURCE_TOPIC = "taskflow-source-topic"
SOURCE_PARTITION = "taskflow-source-partition"
SOURCE_OFFSET = "taskflow-source-offset"
SOURCE_TIMESTAMP = "taskflow-source-timestamp"
TRUNCATED = "taskflow-truncated"
DIGEST = "taskflow-digest"
FORWARDED_FROM = "taskflow-forwarded-from"
"""On a forwarded command: topic/partition/offset of the record that it is a copy of."""
REDRIVEN_FROM = "taskflow-redriven-from"
"""On a record that an operator sent back: topic/partition/offset of its dead letter."""

Decimal = Annotated[str, Field(pattern=r"^[0-9]+$")]


class DeadLetterHeaders(Message):
    """The headers that are added to a dead letter, as text."""

    code: Code = Field(alias=CODE)
    message: str = Field(alias=MESSAGE)
    source_topic: str = Field(alias=SOURCE_TOPIC)
    source_partition: Decimal = Field(alias=SOURCE_PARTITION)
    source_offset: Decimal = Field(alias=SOURCE_OFFSET)
    source_timestamp: Instant = Field(alias=SOURCE_TIMESTAMP)
    """The broker's append time of the source record."""
    truncated: Decimal | None = Field(default=None, alias=TRUNCATED)
    """Size in bytes of a value of which only the first 512 KiB were kept."""
    digest: Digest | None = Field(default=None, alias=DIGEST)
    """Hex BLAKE2b-128 of the whole value, where it was cut."""
