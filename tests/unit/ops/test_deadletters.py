"""Dead letters: what is read of them, and what goes back."""

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from processor.contract.dead_letters import CODE, FORWARDED_FROM, REDRIVEN_FROM
from processor.contract.headers import DeadLetterFacts, RecordPlace
from processor.contract.outcomes import Code
from processor.contract.values import COMMAND_MAX_BYTES
from processor.engine.batch_outcomes import dead_letter
from processor.engine.partitioner import partition_of
from processor.ops.deadletters import (
    DeadLetterRecord,
    Spot,
    Wanted,
    dead_letter_of,
    outbound,
    partition_for,
    redriven_spot,
)
from tests.unit.adapters.sqlite.tables import NOON_MS, uuid

KEY = uuid(1).encode()


def record(**fields: Any) -> Any:
    given = {"topic": "t.commands", "partition": 3, "offset": 9, "timestamp": NOON_MS}
    return SimpleNamespace(**{**given, "key": KEY, "value": b"{", "headers": [], **fields})


def quarantined(source: Any, **where: Any) -> DeadLetterRecord:
    made = dead_letter(source, Code.MALFORMED, "it is not JSON")
    place = {"topic": "t.deadletters", "partition": 3, "offset": 5, **where}
    return dead_letter_of(
        record(key=made.key, value=made.value, headers=list(made.headers), **place)
    )


def test_a_letter_says_what_it_is_of() -> None:
    dead_letter = quarantined(record())

    source = RecordPlace("t.commands", 3, 9)
    facts = DeadLetterFacts("malformed", "it is not JSON", source, NOON_MS, None)
    assert dead_letter.facts == facts
    assert dead_letter.sendable is None


def test_what_goes_back_is_the_record_as_it_was_and_names_the_letter() -> None:
    source = record(headers=[("traceparent", b"00-x"), (CODE, b"its own")])

    sent = outbound(quarantined(source), "t.deadletters")

    assert (sent.topic, sent.key, sent.value) == ("t.commands", KEY, b"{")
    assert sent.headers == [*source.headers, (REDRIVEN_FROM, b"t.deadletters/3/5")]
    assert redriven_spot(record(headers=sent.headers), "t.deadletters") == Spot(3, 5)
    assert redriven_spot(record(headers=sent.headers), "u.deadletters") is None


names = st.sampled_from([CODE, "taskflow-message", "traceparent", "x", "taskflow-digest"])


@given(st.lists(st.tuples(names, st.binary(max_size=4)), max_size=6), st.booleans())
def test_burying_and_sending_back_is_the_identity(headers: Any, large: bool) -> None:
    value = b"x" * (COMMAND_MAX_BYTES + large)
    source = record(headers=headers, value=value)

    dead_letter = quarantined(source)

    if large:
        assert dead_letter.facts.truncated == COMMAND_MAX_BYTES + 1
        assert dead_letter.sendable is not None
    assert outbound(dead_letter, "d").headers[:-1] == headers
    assert dead_letter.value == value[:COMMAND_MAX_BYTES]


def test_a_second_journey_names_the_second_letter_only() -> None:
    travelled = [(REDRIVEN_FROM, b"t.deadletters/0/0"), (FORWARDED_FROM, b"t.commands/1/2")]

    sent = outbound(quarantined(record(headers=travelled), offset=6), "t.deadletters")

    assert sent.headers == [(REDRIVEN_FROM, b"t.deadletters/3/6")]


def test_it_goes_to_the_partition_of_its_key_or_where_it_lay() -> None:
    assert partition_for(outbound(quarantined(record()), "d"), 7) == partition_of(KEY, 7)
    assert partition_for(outbound(quarantined(record(key=None)), "d"), 7) == 3
    edited = outbound(quarantined(record(key=None)), "d", key=KEY, value=b"{}")
    assert (partition_for(edited, 7), edited.value) == (partition_of(KEY, 7), b"{}")


@pytest.mark.parametrize(
    ("wanted", "takes"),
    [
        (Wanted(), True),
        (Wanted((Spot(3, 5),)), True),
        (Wanted((Spot(3, 6),)), False),
        (Wanted(code="malformed"), True),
        (Wanted(code="too_large"), False),
        (Wanted(since_ms=NOON_MS, until_ms=NOON_MS + 1), True),
        (Wanted(since_ms=NOON_MS + 1), False),
        (Wanted(until_ms=NOON_MS), False),
        (Wanted(key=KEY), True),
        (Wanted(key=b"other"), False),
    ],
)
def test_letters_are_chosen(wanted: Wanted, takes: bool) -> None:
    assert wanted.takes(quarantined(record())) is takes


def test_a_record_that_nobody_buried_is_shown_too() -> None:
    dead_letter = dead_letter_of(record(headers=[("x", b"1")]))

    assert dead_letter.facts == DeadLetterFacts("", "", None, None, None)
    assert dead_letter.headers == [("x", b"1")]
    assert dead_letter.sendable == "it does not say where it came from"
