"""The processor's own headers, told from a sender's by where they stand and what they hold."""

from typing import Any

import pytest

from processor.contract.dead_letters import (
    CODE,
    DIGEST,
    FORWARDED_FROM,
    MESSAGE,
    REDRIVEN_FROM,
    SOURCE_OFFSET,
    SOURCE_PARTITION,
    SOURCE_TIMESTAMP,
    SOURCE_TOPIC,
    TRUNCATED,
)
from processor.contract.headers import (
    DeadLetterFacts,
    RecordPlace,
    chain_of,
    forwarded_from,
    integer,
    place_of,
    redriven_from,
    split_dead_letter,
    without_forwarding,
    without_journey,
)

NINES = b"9" * 5_000
FORWARDED = (FORWARDED_FROM, b"t.commands/1/2")
REDRIVEN = (REDRIVEN_FROM, b"t.deadletters/0/7")
MINE = ("mine", None)


@pytest.mark.parametrize(
    ("raw", "number"),
    [
        (b"0", 0),
        (b"17", 17),
        (str(2**63 - 1).encode(), 2**63 - 1),
        (str(2**63).encode(), None),
        (b"9" * 20, None),
        (NINES, None),
        (None, None),
        (b"", None),
        (b"-1", None),
        (b"+1", None),
        (b" 1", None),
        (b"1_0", None),
        (b"007", None),
        (b"1.0", None),
        (b"\xff", None),
        ("١٢".encode(), None),  # digits to Python's int
        ("１２".encode(), None),
        ("²".encode(), None),
    ],
)
def test_a_number_is_what_the_processor_can_have_written(
    raw: bytes | None, number: int | None
) -> None:
    assert integer(raw) == number


@pytest.mark.parametrize(
    ("raw", "place"),
    [
        (b"t.commands/1/2", RecordPlace("t.commands", 1, 2)),
        (b"a/b/1/2", RecordPlace("a/b", 1, 2)),
        (b"t.commands/1/" + NINES, None),
        (f"t/{2**31}/0".encode(), None),
        (b"/1/2", None),
        (b"1/2", None),
        (b"\xff/1/2", None),
        (b"", None),
        (None, None),
    ],
)
def test_a_place_is_topic_partition_offset(raw: bytes | None, place: RecordPlace | None) -> None:
    assert place_of(raw) == place
    if place is not None:
        assert str(place).encode() == raw


@pytest.mark.parametrize(
    ("headers", "place"),
    [
        ([FORWARDED], RecordPlace("t.commands", 1, 2)),
        ([FORWARDED, FORWARDED], RecordPlace("t.commands", 1, 2)),
        ([FORWARDED, MINE], None),
        ([(FORWARDED_FROM, None)], None),
        ([(FORWARDED_FROM, b"t.commands/1/" + NINES)], None),
        ([(FORWARDED_FROM, b"t.commands/1/-2")], None),
        ([], None),
    ],
)
def test_a_copy_is_what_ends_with_its_origin(headers: Any, place: RecordPlace | None) -> None:
    assert forwarded_from(headers) == place
    assert without_forwarding(headers) == (headers if place is None else headers[:-1])


@pytest.mark.parametrize(
    ("headers", "redriven", "journey"),
    [
        ([MINE, REDRIVEN], True, 1),
        ([MINE, REDRIVEN, FORWARDED], True, 2),
        ([MINE, FORWARDED], False, 1),
        ([FORWARDED, REDRIVEN, MINE], False, 0),
        ([(REDRIVEN_FROM, b"t.deadletters/0/" + NINES)], False, 0),
        ([(REDRIVEN_FROM, None), FORWARDED], False, 1),
    ],
)
def test_a_journey_stands_at_the_end_and_a_senders_headers_stay(
    headers: Any, redriven: bool, journey: int
) -> None:
    assert (redriven_from(headers) is not None) is redriven
    assert without_journey(headers) == headers[: len(headers) - journey]


ADDED = [
    (CODE, b"malformed"),
    (MESSAGE, b"it is empty"),
    (SOURCE_TOPIC, b"t.commands"),
    (SOURCE_PARTITION, b"3"),
    (SOURCE_OFFSET, b"9"),
    (SOURCE_TIMESTAMP, b"1970-01-01T00:00:01.000Z"),
]
CUT = [(TRUNCATED, b"600000"), (DIGEST, b"0" * 32)]
FACTS = DeadLetterFacts("malformed", "it is empty", RecordPlace("t.commands", 3, 9), 1_000, None)


@pytest.mark.parametrize(
    ("original", "added", "facts"),
    [
        ([], ADDED, FACTS),
        ([(TRUNCATED, NINES), *ADDED[::-1], MINE], ADDED, FACTS),
        ([*ADDED, *CUT], ADDED, FACTS),
        (ADDED, ADDED + CUT, FACTS._replace(truncated=600_000)),
        ([MINE, *ADDED, ("x", b"")], [], None),
        (ADDED[1:], [], None),
        ([], [], None),
    ],
)
def test_what_a_dead_letter_adds_is_told_from_what_its_record_brought(
    original: Any, added: Any, facts: DeadLetterFacts | None
) -> None:
    assert split_dead_letter([*original, *added]) == (original, facts)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((SOURCE_PARTITION, value) for value in (None, b"", NINES, b"-1", b"\xd9\xa1", b"\xff")),
        *((SOURCE_OFFSET, value) for value in (None, b"", NINES, b"1e3")),
        *((SOURCE_TOPIC, value) for value in (None, b"")),
    ],
)
def test_a_place_that_the_processor_cannot_have_written_is_none(
    name: str, value: bytes | None
) -> None:
    headers = [(one, value if one == name else held) for one, held in ADDED]

    assert split_dead_letter(headers) == ([], FACTS._replace(source=None))


@pytest.mark.parametrize("value", [None, b"", NINES, b"9" * 20, "٣".encode(), b"-1"])
def test_a_size_or_a_time_that_the_processor_cannot_have_written_is_none(
    value: bytes | None,
) -> None:
    headers = [*ADDED[:5], (SOURCE_TIMESTAMP, value), (TRUNCATED, value), CUT[1]]

    assert split_dead_letter(headers) == ([], FACTS._replace(source_ms=None))


def test_what_is_no_text_is_shown_as_far_as_it_is() -> None:
    headers = [(CODE, b"\xff"), (MESSAGE, None), *ADDED[2:]]

    assert split_dead_letter(headers) == ([], FACTS._replace(code="\ufffd", message=""))


def test_a_record_without_a_chain_has_an_empty_one() -> None:
    assert chain_of([("taskflow-chain", b"x" * 16)]) == b"x" * 16
    assert chain_of([("taskflow-chain", None)]) == chain_of([]) == b""
