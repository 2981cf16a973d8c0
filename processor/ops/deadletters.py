"""Dead letters as an operator handles them: what they are of, and how they go back.

A letter that is sent back loses what was added to it, and gets one header that names the letter.
By that header, which stands on the source topic for as long as the record does, anybody can see
what was sent back already.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

from processor.contract import dead_letters
from processor.contract.values import parse_timestamp
from processor.engine.codec import Headers, Record
from processor.engine.partitioner import partition_of
from processor.ops.diagnose import Diagnosis, diagnose

ADDED: Final = (
    *(dead_letters.CODE, dead_letters.MESSAGE, dead_letters.SOURCE_TOPIC),
    *(dead_letters.SOURCE_PARTITION, dead_letters.SOURCE_OFFSET, dead_letters.SOURCE_TIMESTAMP),
    *(dead_letters.TRUNCATED, dead_letters.DIGEST),
)
OF_A_JOURNEY: Final = (dead_letters.FORWARDED_FROM, dead_letters.REDRIVEN_FROM)
"""Headers of an earlier way of the record, which its new one does not share."""


class Spot(NamedTuple):
    """Where a record lies, within one topic."""

    partition: int
    offset: int

    def __str__(self) -> str:
        return f"{self.partition}/{self.offset}"


class DeadLetterRecord(NamedTuple):
    """`headers` are the original ones; `at_ms` is when the dead letter was written, `source_ms`
    when the record was. What is not told is empty, 0 or None: anybody may have written it."""

    spot: Spot
    at_ms: int
    key: bytes | None
    value: bytes | None
    headers: Headers
    code: str
    message: str
    source_topic: str
    source_partition: int
    source_offset: int
    source_ms: int
    truncated_bytes: int | None

    @property
    def sendable(self) -> str | None:
        """Why it cannot go back as it is, or None."""
        if not self.source_topic:
            return "it does not say where it came from"
        if self.truncated_bytes is not None:
            return f"only the first part of its {self.truncated_bytes:,} bytes was kept"
        return None

    @property
    def diagnosis(self) -> Diagnosis:
        return diagnose(self.key, self.value)


class RedriveRecord(NamedTuple):
    """A record to write to `topic`; `partition` None: by its key."""

    topic: str
    partition: int | None
    key: bytes | None
    value: bytes | None
    headers: Headers


def letter_of(record: Record) -> DeadLetterRecord:
    """The letter in a record of the dead letters' topic."""
    original, added = _split(record.headers)
    number = {
        name: int(added[name])
        for name in (
            dead_letters.SOURCE_PARTITION,
            dead_letters.SOURCE_OFFSET,
            dead_letters.TRUNCATED,
        )
        if added.get(name, "").isdecimal()
    }
    try:
        source_ms = parse_timestamp(added.get(dead_letters.SOURCE_TIMESTAMP, ""))
    except ValueError:
        source_ms = 0
    return DeadLetterRecord(
        Spot(record.partition, record.offset),
        record.timestamp,
        record.key,
        record.value,
        original,
        added.get(dead_letters.CODE, ""),
        added.get(dead_letters.MESSAGE, ""),
        added.get(dead_letters.SOURCE_TOPIC, ""),
        number.get(dead_letters.SOURCE_PARTITION, 0),
        number.get(dead_letters.SOURCE_OFFSET, 0),
        source_ms,
        number.get(dead_letters.TRUNCATED),
    )


def _split(headers: Headers) -> tuple[Headers, dict[str, str]]:
    """The original headers, and the added ones: the last six, or eight, in the order in which they
    are added. A record may have brought the same names itself."""
    names = tuple(name for name, _ in headers)
    for added in (ADDED, ADDED[:6]):
        if names[-len(added) :] == added:
            end = len(headers) - len(added)
            told = {n: (v or b"").decode("utf-8", "replace") for n, v in headers[end:]}
            return list(headers[:end]), told
    return list(headers), {}


def outbound(
    letter: DeadLetterRecord, name: str, *, key: bytes | None = None, value: bytes | None = None
) -> RedriveRecord:
    """What goes back for a letter of the topic `name`, with `key` and `value` if they were
    edited."""
    headers = [(n, v) for n, v in letter.headers if n not in OF_A_JOURNEY]
    headers.append((dead_letters.REDRIVEN_FROM, f"{name}/{letter.spot}".encode()))
    key = letter.key if key is None else key
    return RedriveRecord(
        letter.source_topic,
        letter.source_partition if key is None else None,
        key,
        letter.value if value is None else value,
        headers,
    )


def partition_for(record: RedriveRecord, partitions: int) -> int:
    """Without a key, where it came from."""
    if record.partition is not None:
        return record.partition % partitions
    return partition_of(record.key or b"", partitions)


def redriven_from(record: Record, name: str) -> Spot | None:
    """The letter of the topic `name` that a record was sent back for."""
    for header, value in record.headers:
        if header == dead_letters.REDRIVEN_FROM:
            topic, _, rest = (value or b"").decode("utf-8", "replace").partition("/")
            partition, _, offset = rest.partition("/")
            if topic == name and partition.isdecimal() and offset.isdecimal():
                return Spot(int(partition), int(offset))
    return None


class Wanted(NamedTuple):
    """Which letters are meant; what is None or empty does not matter."""

    spots: Sequence[Spot] = ()
    code: str | None = None
    since_ms: int | None = None
    until_ms: int | None = None
    key: bytes | None = None

    def takes(self, letter: DeadLetterRecord) -> bool:
        return (
            (not self.spots or letter.spot in self.spots)
            and self.code in (None, letter.code)
            and (self.since_ms is None or letter.at_ms >= self.since_ms)
            and (self.until_ms is None or letter.at_ms < self.until_ms)
            and self.key in (None, letter.key)
        )
