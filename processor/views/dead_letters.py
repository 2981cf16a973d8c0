"""Dead letters as the views show them. Pure."""

from typing import Any, Final

import orjson

from processor.contract import dead_letters
from processor.contract.values import instant
from processor.views.database import DeadLetterRow

VALUE_SHOWN: Final = 2048
KEY_SHOWN: Final = 256


def letter_of(message: Any) -> DeadLetterRow:
    """The row of a record of `deadletters`, whatever stands in it."""
    headers = {
        name: bytes(value or b"").decode("utf-8", "replace")
        for name, value in dict(message.headers or ()).items()
    }
    value: bytes = message.value or b""
    at_ms: int = message.timestamp
    code = headers.get(dead_letters.CODE, "unknown")
    size = headers.get(dead_letters.TRUNCATED, "")
    doc = {
        "partition": message.partition,
        "offset": message.offset,
        "at": instant(at_ms),
        "code": code,
        "message": headers.get(dead_letters.MESSAGE, ""),
        "source": {
            "topic": headers.get(dead_letters.SOURCE_TOPIC, ""),
            "partition": _number(headers.get(dead_letters.SOURCE_PARTITION)),
            "offset": _number(headers.get(dead_letters.SOURCE_OFFSET)),
        },
        "source_at": headers.get(dead_letters.SOURCE_TIMESTAMP),
        "key": None if message.key is None else _text(message.key[:KEY_SHOWN]),
        "value": _text(value[:VALUE_SHOWN]),
        "size": int(size) if size.isdecimal() else len(value),
    }
    return DeadLetterRow(message.partition, message.offset, at_ms, code, orjson.dumps(doc))


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "replace")


def _number(text: str | None) -> int:
    return int(text) if text is not None and text.isdecimal() else 0
