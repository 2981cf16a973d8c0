"""Dead letters for an operator: where they came from, and the record that goes back.

A letter that is sent back loses what was added to it, and gets one header that names the letter.
By that header, which stands on the source topic for as long as the record does, any reader sees
what was sent back already.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

from processor.contract import dead_letters
from processor.contract.headers import (
    DeadLetterFacts,
    Headers,
    RecordPlace,
    redriven_from,
    split_dead_letter,
    without_journey,
)
from processor.engine.codec import Record
from processor.engine.partitioner import partition_of
from processor.ops.diagnose import Diagnosis, diagnose

LOCATED_MAX_BYTES: Final = 8 * 1024
"""To find a place in a value of this size takes 15 ms at most: a list may have thousands."""


class Spot(NamedTuple):
    """Where a record lies, within one topic."""

    partition: int
    offset: int

    def __str__(self) -> str:
        return f"{self.partition}/{self.offset}"


class DeadLetterRecord(NamedTuple):
    """`headers` are the original ones, `facts` what was added to them; `at_ms` is when the dead
    letter was written."""

    spot: Spot
    at_ms: int
    key: bytes | None
    value: bytes | None
    headers: Headers
    facts: DeadLetterFacts

    @property
    def source_topic(self) -> str | None:
        """The full name of the topic that its record lay on; None if it does not say so."""
        return None if self.facts.source is None else self.facts.source.topic

    @property
    def sendable(self) -> str | None:
        """Why it cannot go back as it is, or None."""
        if self.facts.source is None:
            return "it does not say where it came from"
        if self.facts.truncated is not None:
            return f"only the first part of its {self.facts.truncated:,} bytes was kept"
        return None

    @property
    def diagnosis(self) -> Diagnosis:
        """What the processor would say of it today; of a large value not where in it."""
        return diagnose(self.key, self.value, locate=len(self.value or b"") <= LOCATED_MAX_BYTES)


NO_FACTS: Final = DeadLetterFacts("", "", None, None, None)


class RedriveRecord(NamedTuple):
    """A record to write to `topic`; `partition` None: by its key."""

    topic: str
    partition: int | None
    key: bytes | None
    value: bytes | None
    headers: Headers


def dead_letter_of(record: Record) -> DeadLetterRecord:
    """Read a record of the dead letters' topic, from any producer."""
    headers, facts = split_dead_letter(record.headers)
    return DeadLetterRecord(
        Spot(record.partition, record.offset),
        record.timestamp,
        record.key,
        record.value,
        headers,
        facts or NO_FACTS,
    )


def outbound(
    dead_letter: DeadLetterRecord,
    name: str,
    *,
    key: bytes | None = None,
    value: bytes | None = None,
    headers: Headers = (),
) -> RedriveRecord:
    """Make the record that goes back for a dead letter of the topic `name`, with `key` and `value`
    if they were edited, and `headers` behind its own. The dead letter must say where it came from.
    """
    source = dead_letter.facts.source
    assert source is not None, "what does not say where it came from stays"
    origin = str(RecordPlace(name, *dead_letter.spot))
    journey = (dead_letters.REDRIVEN_FROM, origin.encode())
    key = dead_letter.key if key is None else key
    return RedriveRecord(
        source.topic,
        source.partition if key is None else None,
        key,
        dead_letter.value if value is None else value,
        [*without_journey(dead_letter.headers), *headers, journey],
    )


def partition_for(record: RedriveRecord, partitions: int) -> int:
    """Without a key, where it came from."""
    if record.partition is not None:
        return record.partition % partitions
    return partition_of(record.key or b"", partitions)


def redriven_spot(record: Record, name: str) -> Spot | None:
    """The dead letter of the topic `name` that a record was redriven for."""
    place = redriven_from(record.headers)
    return Spot(place.partition, place.offset) if place and place.topic == name else None


class Wanted(NamedTuple):
    """Which letters are meant; what is None or empty does not matter. `key`: how it begins."""

    spots: Sequence[Spot] = ()
    code: str | None = None
    since_ms: int | None = None
    until_ms: int | None = None
    key: bytes | None = None

    def takes(self, dead_letter: DeadLetterRecord) -> bool:
        return (
            (not self.spots or dead_letter.spot in self.spots)
            and self.code in (None, dead_letter.facts.code)
            and (self.since_ms is None or dead_letter.at_ms >= self.since_ms)
            and (self.until_ms is None or dead_letter.at_ms < self.until_ms)
            and (self.key is None or (dead_letter.key or b"").startswith(self.key))
        )
