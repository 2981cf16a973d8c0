"""Write a batch's outcomes, and the dead letters of what is quarantined."""

from collections.abc import Mapping
from hashlib import blake2b
from typing import Any, Final

from processor.contract import dead_letters
from processor.contract.headers import Headers, RecordPlace
from processor.contract.outcomes import Code, Verdict
from processor.contract.values import COMMAND_MAX_BYTES, instant
from processor.domain import messages
from processor.domain.decision import NO_DETAILS
from processor.engine.batch import Decoded, Forward, Outbound, Outgoing, WriteSet
from processor.engine.codec import Readable, Record, Unreadable, traceparent
from processor.engine.encoding import NO_RESULT, OutcomeHead, outcome_doc, source_doc

OUTCOME_KEY_MAX_BYTES: Final = 512 * 1024
"""An unreadable record's key is its outcome's key too, up to what the topic takes."""
ORIGINALS_MAX_BYTES: Final = 2 * 1024 * 1024
"""Key and headers that a dead letter repeats; a compressed bomb may hold far more."""


class BatchOutcomes:
    """Puts one outcome for each record of `batch` into `outbound`."""

    def __init__(self, batch: WriteSet, outbound: Outbound) -> None:
        self._batch = batch
        self._outcomes = outbound.outcomes
        self._add = outbound.outcomes.add
        self._dead_letters = outbound.dead_letters
        self._counts: dict[OutcomeHead, int] = {}
        self.size_bytes = 0
        """Of all that was put."""
        self.verdict = Verdict.ACCEPTED
        """Of the newest outcome."""

    def __len__(self) -> int:
        """How many were put."""
        return len(self._outcomes)

    def count_up(self) -> None:
        """Note in the batch's tally what was put."""
        for head, count in self._counts.items():
            self._batch.tally[head.labels] += count
        self._counts = {}

    def put(
        self,
        item: Decoded,
        head: OutcomeHead,
        result: str = NO_RESULT,
        details: Mapping[str, Any] = NO_DETAILS,
        *,
        source: str | None = None,
        original: Verdict | None = None,
    ) -> None:
        """Write the outcome of `item`, as the last step. `result` and `source` are JSON, as of
        `result_doc` and `source_doc`."""
        record, batch = item.record, self._batch
        source = source or source_doc(record)
        value = outcome_doc(item, head, result, details, source, original)
        key = record.key  # the flow id, by check 5
        if not isinstance(item, Readable):
            flow_id = item.flow_id
            key = flow_id.encode() if flow_id else key and key[:OUTCOME_KEY_MAX_BYTES]
        headers: Headers = ()
        if record.headers and (headers := traceparent(record.headers)):
            batch.traced.append((item, value))
        self._add(key, value, headers)
        self.verdict = head.verdict
        self.size_bytes += len(value) + len(key or b"")
        self._counts[head] = self._counts.get(head, 0) + 1

    def quarantine(self, item: Unreadable) -> None:
        """Set `item` aside."""
        message = messages.refused(item.code, {**item.details, "problem": item.problem})
        quarantined = dead_letter(item.record, item.code, message)
        head = OutcomeHead(item.kind, Verdict.QUARANTINED, item.code, message)
        self.put(item, head, details=item.details)
        self._dead_letters.add(*quarantined)
        self.size_bytes += _size_bytes(quarantined)

    def forward(self, item: Readable, partition: int) -> None:
        """Have `item` sent again, to the partition that its key belongs to."""
        record = item.record
        origin = str(RecordPlace(record.topic, record.partition, record.offset))
        header = (dead_letters.FORWARDED_FROM, origin.encode())
        copy = Outgoing(record.key, record.value, [*record.headers, header])
        source = (record.topic, record.offset)
        self._batch.forwards.append(Forward(record.topic, partition, copy, source))
        head = OutcomeHead(item.command.kind, Verdict.FORWARDED, None, messages.FORWARDED)
        self.put(item, head, details={"partition": partition})


def set_aside(item: Decoded, code: Code) -> Unreadable:
    """A record that could be read as a command, and is quarantined all the same."""
    if isinstance(item, Unreadable):
        return Unreadable(item.record, code)
    command = item.command
    return Unreadable(
        item.record,
        code,
        command_id=command.command_id,
        flow_id=command.flow_id,
        kind=command.kind,
        dry_run=bool(command.dry_run),
        digest=item.digest,
    )


def _size_bytes(record: Outgoing) -> int:
    """What a record of any bytes takes: a sender may put all of it into its key or its headers."""
    headers = sum(len(name) + len(value or b"") for name, value in record.headers)
    return len(record.key or b"") + len(record.value or b"") + headers


def dead_letter(record: Record, code: str, message: str) -> Outgoing:
    """The record as it was, with the reason added as headers."""
    value = record.value
    added = [
        (dead_letters.CODE, code),
        (dead_letters.MESSAGE, message),
        (dead_letters.SOURCE_TOPIC, record.topic),
        (dead_letters.SOURCE_PARTITION, str(record.partition)),
        (dead_letters.SOURCE_OFFSET, str(record.offset)),
        (dead_letters.SOURCE_TIMESTAMP, instant(record.timestamp)),
    ]
    if value is not None and len(value) > COMMAND_MAX_BYTES:
        added.append((dead_letters.TRUNCATED, str(len(value))))
        added.append((dead_letters.DIGEST, blake2b(value, digest_size=16).hexdigest()))
        value = value[:COMMAND_MAX_BYTES]
    key, originals = record.key, list(record.headers)
    if len(key or b"") + sum(len(k) + len(v or b"") for k, v in originals) > ORIGINALS_MAX_BYTES:
        key, originals = key and key[:OUTCOME_KEY_MAX_BYTES], []
    return Outgoing(key, value, [*originals, *((name, text.encode()) for name, text in added)])
