"""What is said of a record that is no command: the fault, where it is, and what is wanted."""

import json
from typing import Any
from uuid import UUID, uuid5

import pytest

from processor.contract.commands import MODELS
from processor.contract.values import COMMAND_MAX_BYTES
from processor.engine.codec import Readable, Unreadable, decode
from processor.engine.decode_errors import bounded, nearest_first
from processor.testing.memory.record import Appended
from tests.support.builders import FLOW_ID, MORNING, document
from tests.support.partition import Partition

DEEP = "it is nested deeper than 64"
RANGE = "a number is out of range: at most 9,007,199,254,740,991 either way"


def read(value: bytes | dict[str, Any]) -> Unreadable:
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    item = decode(Appended("t.commands", 0, 0, MORNING, FLOW_ID.encode(), raw))
    assert isinstance(item, Unreadable)
    return item


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (b'{"a":1e400}', f"{RANGE}, at line 1, column 6"),
        (b'{"a":-1e400}', f"{RANGE}, at line 1, column 6"),
        (b'{"a":\n' + b"9" * 5_000 + b"}", f"{RANGE}, at line 2, column 1"),
        (b'{"a":' + b"9" * 5_000 + b".5e3}", f"{RANGE}, at line 1, column 6"),
        (b'{"a":9007199254740992}', RANGE),
        (b'{"a":[-1e16]}', RANGE),
        (b"[" * 200_000 + b"]" * 200_000, f"{DEEP}, at line 1, column 1026"),
        (b"[" * 200_000, f"{DEEP}, at line 1, column 1026"),
        (b"[" * 1_025, f"{DEEP}, at line 1, column 896"),
        (b'{"a":' * 50_000 + b"1" + b"}" * 50_000, f"{DEEP}, at line 1, column 5122"),
        (b'{"a":' * 65 + b"1" + b"}" * 65, DEEP),
        (b'{"a":"\\ud800"}', "a lone surrogate, at line 1, column 7"),
        (b'{"a":"\\udc00"}', "a lone surrogate, at line 1, column 7"),
        (b'{"a":"\\ud800\\ud800"}', "a lone surrogate, at line 1, column 7"),
        (b'{"a":"\\ud800\\u0041"}', "a lone surrogate, at line 1, column 7"),
        (b'{"\\uDBFF":1}', "a lone surrogate, at line 1, column 3"),
        ('{\n "ü":"\\ud800"}'.encode(), "a lone surrogate, at line 2, column 7"),
        (b'{"a":"\xed\xa0\x80"}', "it is not UTF-8 at byte 6"),
        (b'{"a":"\\ud800\\uZZZZ"}', "it is not JSON, at line 1, column 7"),
        (b'{"a":NaN}', "it is not JSON, at line 1, column 6"),
        (b"[1", "it is not JSON, at line 1, column 3"),
        (b"\xef\xbb\xbf{}", "it starts with a byte order mark"),
        (b"", "it is empty"),
        (b"[]", "it is not an object"),
    ],
)
def test_what_is_malformed_is_named_with_its_place(value: bytes, said: str) -> None:
    item = read(value)

    assert (str(item.code), item.problem) == ("malformed", said)


def problem_of(field: str, **fields: Any) -> str:
    (problem,) = (
        error["problem"]
        for error in read({**document("cancel"), **fields}).details["errors"]
        if error["field"] == field
    )
    return str(problem)


@pytest.mark.parametrize(
    ("kind", "nearest"),
    [
        ("create", ["create_managed", "create_mirrored"]),
        ("craete_managed", ["create_managed"]),
        ("CreateMirrored", ["create_mirrored"]),
        ("finsh", ["finish"]),
        ("waiting", ["set_waiting"]),
        ("resumeExternal", ["resume_external", "resume"]),
    ],
)
def test_an_unknown_kind_is_answered_with_the_kinds_nearest_first(
    kind: str, nearest: list[str]
) -> None:
    said = problem_of("kind", kind=kind)

    listed = said.removeprefix("Unknown kind; the kinds, nearest first: ").split(", ")
    assert sorted(listed) == sorted(MODELS)
    assert listed[: len(nearest)] == nearest


@pytest.mark.parametrize("kind", ["", "\x00", "é", "x" * 500_000, 7, ["a"], {}])
def test_whatever_stands_for_a_kind_all_kinds_are_listed(kind: Any) -> None:
    said = problem_of("kind", kind=kind)

    assert said.startswith("Unknown kind; the kinds, nearest first: ")
    assert all(name in said for name in MODELS)
    assert len(said) < 1_000


def test_of_equally_near_names_the_order_is_that_of_the_alphabet() -> None:
    assert nearest_first("", ["b", "a"]) == nearest_first("zz", ["b", "a"]) == ["a", "b"]


def test_the_kinds_of_a_wait_are_listed_too() -> None:
    value = document("set_waiting", wait={"kind": "time", "at": "2026-01-01T00:00:00Z"})

    (error,) = read(value).details["errors"]

    assert error["field"] == "wait.kind"
    assert error["problem"].startswith("Unknown kind; the kinds, nearest first: timer, ")


@pytest.mark.parametrize(
    "given", ["order-17", FLOW_ID.upper(), f"{{{FLOW_ID}}}", FLOW_ID + "\n", ""]
)
def test_what_is_no_uuid_is_told_how_to_make_one(given: str) -> None:
    said = problem_of("flow_id", flow_id=given)

    assert "a UUID in lower case" in said
    assert "uuid.uuid5(namespace, key)" in said
    assert "order-17" not in said
    assert problem_of("command_id", command_id=given) == "must be a UUID in lower case"
    # What is told there works.
    made = str(uuid5(UUID(FLOW_ID), given))
    value = json.dumps({**document("cancel"), "flow_id": made}).encode()
    record = Appended("t.commands", 0, 0, MORNING, made.encode(), value)
    assert isinstance(decode(record), Readable)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("9999-12-31T23:59:59-01:00", "outside the years 1..9999 in UTC"),
        ("0001-01-01T00:00:00+00:01", "outside the years 1..9999 in UTC"),
        ("0000-06-01T00:00:00Z", "outside the years 1..9999 in UTC"),
        ("9999-12-31T23:59:60Z", "outside the years 1..9999 in UTC"),
        ("2026-02-29T00:00:00Z", "not an RFC 3339 time with an offset"),
        ("2026-06-01T00:00:00", "not an RFC 3339 time with an offset"),
        ("10000-01-01T00:00:00Z", "not an RFC 3339 time with an offset"),
    ],
)
def test_a_time_that_cannot_be_is_told_from_one_that_is_none(text: str, said: str) -> None:
    assert problem_of("expires_at", expires_at=text) == said


def test_a_dead_letter_of_an_invalid_command_carries_its_errors() -> None:
    partition = Partition()
    value = json.dumps({"kind": "create", "x" * 100: 1, "schema_version": 1}).encode()

    batch = partition.handle([Appended("t.commands", 0, 0, MORNING, b"k", value)])

    (dead_letter,) = batch.dead_letters
    message = dict(dead_letter.headers)["taskflow-message"]
    assert message is not None
    outcome = json.loads(batch.outcomes[0].value or b"")
    assert outcome["message"] == message.decode()
    (error,) = outcome["details"]["errors"]
    assert outcome["message"] == (f"The object is not a valid command: kind: {error['problem']}.")


def test_each_error_is_in_the_sentence_with_its_field() -> None:
    item = read({**document("cancel"), "issued_by": ["secret"], "\x1b" * 300: 1, "reason": "x"})

    errors = item.details["errors"]
    assert [error["field"] for error in errors] == ["issued_by", "\x1b" * 256, "reason"]
    assert item.problem == (
        "issued_by: Input should be a valid string; "
        + "\x1b" * 64
        + "…: Extra inputs are not permitted; reason: Extra inputs are not permitted"
    )
    assert "secret" not in json.dumps(errors)


def test_values_of_a_closed_list_are_named_as_they_are_sent() -> None:
    fields = {"run_id": "r", "task": "t", "status": "done"}
    (error,) = read(document("record_step_observation", **fields)).details["errors"]

    assert error == {
        "field": "status",
        "problem": "Input should be 'pending', 'running', 'succeeded', 'failed' or 'cancelled'",
    }


@pytest.mark.parametrize("inside", ["", "wait"])
def test_a_hundred_thousand_unknown_fields_cost_no_more_than_twenty(inside: str) -> None:
    many = ",".join(f'"{n:x}":1' for n in range(58_000))
    few = ",".join(f'"{n:x}":1' for n in range(30))
    form = (
        '{"kind":"set_waiting","wait":{"kind":"manual"HERE}}' if inside else '{"kind":"cancel"HERE}'
    )
    huge = form.replace("HERE", f",{many}").encode()
    small = form.replace("HERE", f",{few}").encode()
    assert len(huge) < COMMAND_MAX_BYTES

    found = read(huge)

    assert found.details == read(small).details
    assert len(found.details["errors"]) == 20
    kept = bounded(json.loads(huge))
    assert len(kept.get("wait", kept)) < 64
