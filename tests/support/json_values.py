"""Reads the JSON that records carry."""

import json
from typing import Any, Protocol


class Valued(Protocol):
    """A record of any kind: a written one, a read one, one of memory."""

    @property
    def value(self) -> bytes | None: ...


def json_of(record: Valued) -> Any:
    """What the value of `record` says, which must have one."""
    assert record.value is not None, f"a tombstone: {record}"
    return json.loads(record.value)
