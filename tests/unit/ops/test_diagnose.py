"""Where in the bytes the fault lies."""

import json
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from processor.contract.outcomes import Code
from processor.contract.values import COMMAND_MAX_BYTES
from processor.ops.diagnose import diagnose, hex_dump, places
from processor.ops.json_path import Path, value_at
from tests.support.builders import FLOW_ID, document

KEY = FLOW_ID.encode()
GOOD = orjson.dumps(document("start_running"))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


def test_a_command_has_no_fault() -> None:
    assert diagnose(KEY, GOOD) == (None, [])


@pytest.mark.parametrize(
    ("value", "at", "says"),
    [
        (b"", None, "no value"),
        (b"\xef\xbb\xbf{}", 0, "byte order mark"),
        ('{"é":"'.encode() + b'\xff"}', 7, "byte 0xff"),
        ('{"é":1,}'.encode(), 7, "trailing comma"),
        (b'{"n":NaN}', 5, "not JSON"),
        (b'{"s":"\\ud800"}', 6, "a lone surrogate"),
        (b'{"n":1e400}', 5, "out of range"),
        (b'{"n":' + b"9" * 5_000 + b"}", 5, "out of range"),
        (b"[" * 200_000 + b"]" * 200_000, 1025, "nested deeper"),
        (b"[1]", 0, "not a JSON object"),
        (b'{"a":[1,{"b":90071992547409930}]}', 13, "beyond"),
        (b'{"a":' + b"[" * 64 + b"]" * 64 + b"}", 5 + 63, "nested deeper"),
    ],
)
def test_what_is_malformed_is_found_at_its_byte(value: bytes, at: int | None, says: str) -> None:
    code, (fault,) = diagnose(KEY, value)

    assert code is Code.MALFORMED
    assert fault.at == at
    assert says in fault.problem


def test_each_field_that_is_wrong_is_found() -> None:
    command = document("set_waiting") | {"wait": {"kind": "timer", "at": 7}, "ö": 1}
    value = orjson.dumps(command)

    code, faults = diagnose(KEY, value)

    assert code is Code.INVALID_COMMAND
    found = {fault.path: fault.at for fault in faults}
    assert value[found["$.wait.at"] :].startswith(b"7}")
    assert value[found["$['ö']"] :] == b"1}"


def test_the_key_the_version_and_the_size() -> None:
    assert diagnose(None, GOOD).code is Code.INVALID_KEY
    assert "missing" in diagnose(None, GOOD).faults[0].problem
    version = orjson.dumps(document("start_running") | {"schema_version": 2})
    assert version[diagnose(KEY, version).faults[0].at :] == b"2}"
    large = b'{"a":"' + b"x" * COMMAND_MAX_BYTES + b'"}'
    assert diagnose(KEY, large).faults[0].at == COMMAND_MAX_BYTES


def test_without_a_search_the_fields_are_named_all_the_same() -> None:
    value = orjson.dumps(document("start_running") | {"a": [0] * 9, "issued_by": 7})

    found, quick = diagnose(KEY, value), diagnose(KEY, value, locate=False)

    assert quick.code is found.code
    assert [fault._replace(at=None) for fault in found.faults] == quick.faults
    assert all(fault.at is not None for fault in found.faults)


@given(JSON, st.sampled_from([None, 1]))
def test_each_place_of_a_value_begins_where_it_says(value: Any, indent: int | None) -> None:
    text = json.dumps(value, ensure_ascii=False, indent=indent)
    decoder = json.JSONDecoder(strict=False)
    seen: list[Path] = []

    for place in places(text):
        assert decoder.raw_decode(text, place.at)[0] == value_at(value, place.path)
        seen.append(place.path)

    assert len(set(seen)) == len(seen) == count(value)


def count(value: Any) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + sum(map(count, inner))


def test_a_dump_shows_the_line_of_the_fault() -> None:
    lines = hex_dump(bytes(range(256)), around=200, lines=4)

    assert [line[0] for line in lines] == [" ", " ", ">", " "]
    assert lines[2].startswith(">000000c0  c0 c1 c2")
    assert hex_dump(b"AB\x00", around=0) == [">00000000  " + "41 42 00".ljust(47) + "  AB."]
