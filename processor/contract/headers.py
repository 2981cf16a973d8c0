"""Distinguish the headers that the processor adds from a sender's, by their position.

A sender may write any header, ours included, with any bytes or none, and as often as it likes.
Copies and dead letters repeat all of them, and what the processor adds stands behind them. So only
the headers at the end of a record count, and only those with a value that the processor can have
written. Nothing here raises, whatever the bytes are.
"""

from collections.abc import Sequence
from enum import StrEnum
from typing import Final, NamedTuple

from processor.contract import dead_letters
from processor.contract.events import CHAIN_HEADER
from processor.contract.values import parse_timestamp

Header = tuple[str, bytes | None]
Headers = Sequence[Header]

OFFSET_MAX: Final = 2**63 - 1
PARTITION_MAX: Final = 2**31 - 1
SIZE_MAX: Final = 2**31 - 1
"""Of a record, in bytes."""
MOVED_FROM: Final = "taskflow-moved-from"
"""On an event that a repartition copied: the prefix it came from and the id it had, prefix/id."""
PROGRESS: Final = "taskflow-repartition"
"""On a cursor, while topics are being copied: how far the old side is copied, as JSON."""
ISSUED_BY: Final = "taskflow-issued-by"
"""On a record that an operator sent by HTTP: who did, as they say."""
REASON: Final = "taskflow-reason"
"""On such a record: why, in their words."""
ADDED: Final = (
    *(dead_letters.CODE, dead_letters.MESSAGE, dead_letters.SOURCE_TOPIC),
    *(dead_letters.SOURCE_PARTITION, dead_letters.SOURCE_OFFSET, dead_letters.SOURCE_TIMESTAMP),
)
"""What every dead letter adds, in this order."""
ADDED_OF_A_CUT_VALUE: Final = (*ADDED, dead_letters.TRUNCATED, dead_letters.DIGEST)


class CloudEventHeader(StrEnum):
    """The headers of CloudEvents 1.0 (binary mode of the Kafka binding), which workers with
    TASKFLOW_CLOUDEVENTS_SOURCE add to outcomes and FlowEvents.

    They repeat fields of the value. taskflow never reads them.
    """

    SPECVERSION = "ce_specversion"
    SOURCE = "ce_source"
    ID = "ce_id"
    TYPE = "ce_type"
    TIME = "ce_time"
    SUBJECT = "ce_subject"
    CONTENT_TYPE = "content-type"


CLOUDEVENTS_VERSION: Final = "1.0"
EVENT_TYPE: Final = "taskflow.event."
"""Followed by the kind of the FlowEvent."""
OUTCOME_TYPE: Final = "taskflow.outcome."
"""Followed by the verdict."""
VALUE_TYPE: Final = "application/json"
_OF_CLOUDEVENTS: Final = frozenset(header.value for header in CloudEventHeader)


class RecordPlace(NamedTuple):
    """Where a record lies; `topic` is the full name."""

    topic: str
    partition: int
    offset: int

    def __str__(self) -> str:
        return f"{self.topic}/{self.partition}/{self.offset}"


class DeadLetterFacts(NamedTuple):
    """What the added headers of a dead letter say; None where a value is none of the processor's.

    `source_ms`: when the broker appended the source record. `truncated`: the size in bytes of a
    value of which only the first part was kept.
    """

    code: str
    message: str
    source: RecordPlace | None
    source_ms: int | None
    truncated: int | None


def integer(raw: bytes | None, largest: int = OFFSET_MAX) -> int | None:
    """Read a number as the processor writes it: ASCII digits without sign, spaces or leading
    zeros, at most `largest`. None for anything else: `int` takes other scripts' digits too, and
    raises for more than 4,300 of them."""
    if raw is None or len(raw) > len(str(largest)) or not raw.isdigit():
        return None
    value = int(raw)
    return value if value <= largest and len(raw) == len(str(value)) else None


def place_of(value: bytes | None) -> RecordPlace | None:
    """Read topic/partition/offset; None for anything else."""
    try:
        topic, partition, offset = (value or b"").decode().rsplit("/", 2)
    except ValueError:
        return None
    return _place(topic, partition.encode(), offset.encode())


def _place(topic: str, partition: bytes | None, offset: bytes | None) -> RecordPlace | None:
    index, at = integer(partition, PARTITION_MAX), integer(offset)
    if not topic or index is None or at is None:
        return None
    return RecordPlace(topic, index, at)


def chain_of(headers: Headers) -> bytes:
    """The chain value of an event's record; empty if it has none."""
    return dict(headers).get(CHAIN_HEADER) or b""


def without_cloudevents(headers: Headers) -> list[Header]:
    """The headers that a worker without a source would have written."""
    return [header for header in headers if header[0] not in _OF_CLOUDEVENTS]


def forwarded_from(headers: Headers) -> RecordPlace | None:
    """The record that one with these headers is a forwarded copy of; None if it is no copy."""
    if not headers or headers[-1][0] != dead_letters.FORWARDED_FROM:
        return None
    return place_of(headers[-1][1])


def redriven_from(headers: Headers) -> RecordPlace | None:
    """The dead letter that a record with these headers was redriven for; None if it was not."""
    last = _before_forwarding(headers)
    if last == 0 or headers[last - 1][0] != dead_letters.REDRIVEN_FROM:
        return None
    return place_of(headers[last - 1][1])


def without_forwarding(headers: Headers) -> Headers:
    """The headers that a forwarded copy shares with its original."""
    return list(headers[: _before_forwarding(headers)])


def without_journey(headers: Headers) -> Headers:
    """The headers that the sender wrote: without what says that the record was redriven, and then
    forwarded."""
    last = _before_forwarding(headers)
    return list(headers[: last if redriven_from(headers) is None else last - 1])


def _before_forwarding(headers: Headers) -> int:
    return len(headers) - (forwarded_from(headers) is not None)


def split_dead_letter(headers: Headers) -> tuple[Headers, DeadLetterFacts | None]:
    """The original headers of a dead letter, and what was added to them; None if nothing was, so
    that the record is no dead letter of the processor's."""
    names = tuple(name for name, _ in headers[-len(ADDED_OF_A_CUT_VALUE) :])
    for added in (ADDED_OF_A_CUT_VALUE, ADDED):
        if names[-len(added) :] == added:
            start = len(headers) - len(added)
            return list(headers[:start]), _facts(dict(headers[start:]))
    return list(headers), None


def _facts(added: dict[str, bytes | None]) -> DeadLetterFacts:
    topic, time = _text(added[dead_letters.SOURCE_TOPIC]), added[dead_letters.SOURCE_TIMESTAMP]
    try:
        source_ms = parse_timestamp(_text(time))
    except ValueError:
        source_ms = None
    return DeadLetterFacts(
        _text(added[dead_letters.CODE]),
        _text(added[dead_letters.MESSAGE]),
        _place(topic, added[dead_letters.SOURCE_PARTITION], added[dead_letters.SOURCE_OFFSET]),
        source_ms,
        integer(added.get(dead_letters.TRUNCATED), SIZE_MAX),
    )


def _text(raw: bytes | None) -> str:
    return (raw or b"").decode("utf-8", "replace")
