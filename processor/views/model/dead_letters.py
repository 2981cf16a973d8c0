"""Format dead letters for the views. Pure."""

from typing import Final

import orjson

from processor.contract.headers import DeadLetterFacts, RecordPlace, split_dead_letter
from processor.contract.values import instant
from processor.views.model.database import DeadLetterRow
from processor.views.model.projection import ViewMessage

VALUE_SHOWN: Final = 2048
KEY_SHOWN: Final = 256
NOWHERE: Final = RecordPlace("", 0, 0)
NO_FACTS: Final = DeadLetterFacts("unknown", "", None, None, None)


def dead_letter_row(message: ViewMessage) -> DeadLetterRow:
    """The row of a record of `deadletters`, whatever stands in it."""
    _, facts = split_dead_letter(message.headers or ())
    facts = facts or NO_FACTS
    source = facts.source or NOWHERE
    value: bytes = message.value or b""
    at_ms: int = message.timestamp
    doc = {
        "partition": message.partition,
        "offset": message.offset,
        "at": instant(at_ms),
        "code": facts.code,
        "message": facts.message,
        "source": source._asdict(),
        "source_at": None if facts.source_ms is None else instant(facts.source_ms),
        "key": None if message.key is None else _text(message.key[:KEY_SHOWN]),
        "value": _text(value[:VALUE_SHOWN]),
        "size": len(value) if facts.truncated is None else facts.truncated,
    }
    return DeadLetterRow(message.partition, message.offset, at_ms, facts.code, orjson.dumps(doc))


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "replace")
