"""When a batch is full: by all that its records make it write."""

from dataclasses import replace
from typing import Any

import pytest

from processor.engine.batch import LoadedState, Outgoing, WriteSet
from processor.engine.codec import decode
from processor.engine.command_handler import CommandHandler
from processor.engine.rows import Position
from processor.testing.memory.record import Appended
from tests.support.builders import MORNING
from tests.support.partition import PLACE

COUNT = 10
KIB = 1024


def quarantined(output_max_bytes: int, fields: dict[str, Any]) -> WriteSet:
    """What a batch writes of COUNT records that are no commands, as far as it takes them."""
    place = replace(PLACE, output_max_bytes=output_max_bytes)
    record = {"key": b"k", "value": b"{bad", "headers": (), **fields}
    items = [
        decode(Appended(place.topics.commands, 0, offset, MORNING, **record))
        for offset in range(COUNT)
    ]
    handler = CommandHandler(place, LoadedState(), Position(0, 0, 1), next_row_number=1)
    room = handler.add(items)
    batch = handler.finish()
    assert room is (batch.handled == COUNT)
    return batch


def size_bytes(record: Outgoing) -> int:
    headers = sum(len(name) + len(value or b"") for name, value in record.headers)
    return len(record.key or b"") + len(record.value or b"") + headers


@pytest.mark.parametrize(
    "fields",
    [
        {"value": b"x" * KIB},
        {"value": None, "key": None},
        {"key": b"k" * KIB},
        {"headers": (("mine", b"x" * KIB), ("null", None))},
        {"headers": (("n" * KIB, b""),)},
        {"value": b"x" * (600 * KIB)},
    ],
)
def test_a_dead_letter_counts_with_its_key_its_value_and_its_headers(
    fields: dict[str, Any],
) -> None:
    whole = quarantined(10**9, fields)
    assert whole.handled == COUNT
    # All are of one length, and so are their outcomes: offsets have one digit.
    (each,) = {
        size_bytes(outcome) + size_bytes(dead_letter)
        for outcome, dead_letter in zip(whole.outcomes, whole.dead_letters, strict=True)
    }

    # A batch is full once it is larger than it may be.
    assert quarantined(5 * each - 1, fields).handled == 5
    assert quarantined(5 * each, fields).handled == 6
