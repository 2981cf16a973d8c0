"""What is a signal, and what is none."""

import tracemalloc
from typing import Any

import orjson
import pytest

from processor.client.signals.signal_reader import InvalidSignal, read_signal, resume_command
from processor.contract.signals import SIGNAL_MAX_BYTES
from processor.contract.values import COMMAND_MAX_BYTES
from processor.engine.encoding import encode

WHOLE = {"id": "s1", "topic": "payments", "correlation_id": "order-17", "payload": {"n": 1}}


def test_a_signal_is_read_and_null_is_absent() -> None:
    signal = read_signal(orjson.dumps(WHOLE | {"schema_version": None, "payload": None}))

    assert signal.payload is None
    command = resume_command(signal, flow_id="f", command_id="c", revision=7)
    assert "payload" not in command
    assert (command["issued_by"], command["expected_revision"]) == ("signal:s1", 7)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "empty"),
        (b"", "empty"),
        (b"[]", "no JSON object"),
        (b"{", "no JSON"),
        (b"\xef\xbb\xbf{}", "byte order mark"),
        (WHOLE | {"id": ""}, "id"),
        (WHOLE | {"id": "x" * 201}, "id"),
        (WHOLE | {"topic": 1}, "topic"),
        ({"id": "s1", "topic": "payments"}, "correlation_id"),
        (WHOLE | {"flow_id": "f"}, "flow_id"),
        (WHOLE | {"schema_version": 2}, "schema_version"),
        (WHOLE | {"payload": 2**60}, "out of range"),
        (WHOLE | {"payload": [[]] * 1}, None),
        (WHOLE | {"payload": "x" * SIGNAL_MAX_BYTES}, "larger"),
    ],
)
def test_what_is_none_is_refused_with_the_reason(value: Any, words: str | None) -> None:
    raw = value if value is None or isinstance(value, bytes) else orjson.dumps(value)
    if words is None:
        read_signal(raw)
        return
    with pytest.raises(InvalidSignal, match=words):
        read_signal(raw)


def test_a_payload_is_nested_no_deeper_than_a_command_may_be() -> None:
    deep: Any = 1
    for _ in range(64):
        deep = [deep]
    with pytest.raises(InvalidSignal, match="nested deeper"):
        read_signal(orjson.dumps(WHOLE | {"payload": deep}))


def test_fifty_thousand_unknown_fields_take_no_more_memory_than_twenty() -> None:
    many = orjson.dumps(WHOLE | {f"{n:x}": 1 for n in range(50_000)})
    tracemalloc.start()
    try:
        orjson.loads(many)
        _, parsed = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        with pytest.raises(InvalidSignal, match="Extra inputs"):
            read_signal(many)
        _, read = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert read < 2 * parsed


def test_the_largest_signal_makes_a_command_that_is_small_enough() -> None:
    names = {"id": "é" * 200, "topic": "é" * 512, "correlation_id": "é" * 512}
    rest = SIGNAL_MAX_BYTES - len(orjson.dumps(names | {"payload": ""}))
    signal = read_signal(orjson.dumps(names | {"payload": "x" * rest}))

    command = resume_command(
        signal,
        flow_id="0" * 36,
        command_id="0" * 36,
        revision=2**53 - 1,
    )
    assert len(encode(command)) <= COMMAND_MAX_BYTES
