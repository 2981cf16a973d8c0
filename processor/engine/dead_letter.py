"""Make a dead letter: the original record with the reason in headers."""

from hashlib import blake2b
from typing import Final

from processor.contract import dead_letters
from processor.contract.outcomes import Code
from processor.contract.values import COMMAND_MAX_BYTES, instant
from processor.engine.batch import Outgoing
from processor.engine.codec import Record

OUTCOME_KEY_MAX_BYTES: Final = 512 * 1024
"""An unreadable record's key is its outcome's key too, up to what the topic takes."""
ORIGINALS_MAX_BYTES: Final = 2 * 1024 * 1024
"""Key and headers that a dead letter repeats; a compressed bomb may hold far more."""


def dead_letter(record: Record, code: Code, message: str) -> Outgoing:
    """The record as it was, with the reason added as headers."""
    value = record.value
    added = [
        (dead_letters.CODE, str(code)),
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
