"""Bytes to commands: checks 1 to 5, at the corners where JSON libraries differ."""

import json
import tracemalloc
from typing import Any

import pytest

from processor.contract.commands import UpdateState
from processor.engine.codec import Readable, Unreadable, decode
from processor.engine.encoding import flow_doc
from processor.testing.memory.record import Appended
from tests.support.builders import FLOW_ID, document
from tests.unit.adapters.sqlite.tables import flow_row

KEY = FLOW_ID.encode()
NO_TIME = "not an RFC 3339 time with an offset"


def read(value: Any, key: Any = KEY) -> Any:
    raw = value if isinstance(value, bytes) else json.dumps(value, ensure_ascii=False).encode()
    return decode(Appended("t.commands", 0, 0, 0, key, raw))


def code_of(value: Any, key: Any = KEY) -> Any:
    item = read(value, key)
    return str(item.code) if isinstance(item, Unreadable) else None


def errors_of(value: Any) -> Any:
    item = read(value)
    assert isinstance(item, Unreadable)
    return {error["field"]: error["problem"] for error in item.details["errors"]}


def with_number(text: Any) -> Any:
    """A command whose expected_revision is the number `text`."""
    value = json.dumps(document("cancel", expected_revision="HERE"))
    return value.replace('"HERE"', text).encode()


@pytest.mark.parametrize("text", ["0", "-0", "9007199254740991"])
def test_an_integer_has_neither_fraction_nor_exponent(text: str) -> None:
    assert code_of(with_number(text)) is None


@pytest.mark.parametrize("text", ["1.0", "1e0", "1E5", "-0.0", "true", '"1"', "[]", "-1"])
def test_what_is_no_integer_is_refused(text: str) -> None:
    assert errors_of(with_number(text)).keys() == {"expected_revision"}


@pytest.mark.parametrize(
    "text", ["9007199254740992", "-9007199254740992", "1e16", "1e400", "NaN", "Infinity", "9" * 400]
)
def test_a_number_out_of_range_is_malformed_wherever_it_stands(text: str) -> None:
    assert code_of(with_number(text)) == "malformed"


@pytest.mark.parametrize("version", [2, 0, -1, True, False, "1", 1.0, [1], {}])
def test_only_version_1_is_read(version: Any) -> None:
    assert code_of(document("dance", schema_version=version)) == "unsupported_version"


def test_of_a_repeated_name_the_last_counts_everywhere() -> None:
    good = json.dumps(document("update_state", patch="HERE"))[1:]
    before = '{"kind":"dance","flow_id":7,"schema_version":9,"schema_version":null,"patch":1e17,'
    value = before + good.replace('"HERE"', '{"a":{"b":1,"b":2},"a":{"b":3,"b":4}}')
    item = read(value.encode())
    assert isinstance(item, Readable)
    assert isinstance(item.command, UpdateState)
    assert item.command.patch == {"a": {"b": 4}}


def test_a_null_in_an_optional_field_is_absent_and_leaves_no_trace() -> None:
    wait = {"kind": "manual", "timeout_at": None}
    spoken = read(document("set_waiting", wait=wait, dry_run=None, command_id=FLOW_ID))
    silent = read(document("set_waiting", wait={"kind": "manual"}, command_id=FLOW_ID))
    assert isinstance(spoken, Readable)
    assert isinstance(silent, Readable)
    assert spoken.command == silent.command
    assert spoken.digest == silent.digest


@pytest.mark.parametrize(
    ("kind", "fields", "wrong"),
    [
        ("cancel", {"patch": None}, "patch"),
        ("cancel", {"": None}, ""),
        ("cancel", {"cancel": 1}, "cancel"),
        ("update_state", {}, "patch"),
        ("create_managed", {"controller_id": "c", "goal": None, "requester_origin": "r"}, "goal"),
        ("set_waiting", {"wait": None}, "wait"),
        ("set_waiting", {"wait": {}}, "wait.kind"),
        ("set_waiting", {"wait": {"kind": "nap", "timeout_at": None}}, "wait.kind"),
        ("set_waiting", {"wait": {"kind": "manual", "timer": 1}}, "wait.timer"),
        ("set_waiting", {"wait": {"kind": "manual", "": 1}}, "wait."),
        (
            "set_waiting",
            {"wait": {"kind": "timer", "at": "2026-11-22T21:02:08Z", "timeout_at": None}},
            "wait.timeout_at",
        ),
        ("dance", {"patch": 1}, "kind"),
    ],
)
def test_the_wrong_field_is_named(kind: str, fields: Any, wrong: str) -> None:
    assert errors_of(document(kind, **fields)).keys() == {wrong}


def test_twenty_problems_are_named_and_no_value() -> None:
    errors = errors_of(document("cancel", issued_by=["secret"], **{f"x{n}": n for n in range(30)}))
    assert len(errors) == 20
    assert "secret" not in json.dumps(errors)


@pytest.mark.parametrize(
    "text",
    [
        "2026-11-22t21:02:08z",
        "2026-11-22T21:02:08.1Z",
        "2026-11-22T21:02:08.1234567890123+14:00",
        "2026-11-22T21:02:08-23:59",
        "2026-11-22T21:02:08-00:00",
        "2016-12-31T23:59:60Z",
        "2017-01-01T00:59:60+01:00",
        "9999-12-31T23:59:59.999Z",
    ],
)
def test_a_time_may_be_written_in_any_way_of_rfc_3339(text: str) -> None:
    assert code_of(document("cancel", expires_at=text)) is None


@pytest.mark.parametrize(
    "text",
    [
        "2026-11-22T21:02:08",
        "2026-11-22T21:02Z",
        "2026-11-22T24:00:00Z",
        "2026-02-29T00:00:00Z",
        "2026-11-22T21:02:60Z",
        "2026-11-22T21:02:08.Z",
        "2026-11-22T21:02:08+24:00",
        "2026-11-22T21:02:08+0100",
        "2026-11-22T21:02:08Z\n",
        "٢٠٢٦-11-22T21:02:08Z",
    ],
)
def test_what_is_no_time_is_refused(text: str) -> None:
    assert errors_of(document("cancel", expires_at=text)) == {"expires_at": NO_TIME}


def test_texts_are_measured_in_code_points() -> None:
    assert code_of(document("fail", reason="\U0001f600" * 4096)) is None
    assert errors_of(document("fail", reason="\U0001f600" * 4097)).keys() == {"reason"}
    assert code_of(document("cancel", issued_by="\0" * 256)) is None


@pytest.mark.parametrize(
    ("key", "code"),
    [
        (None, "invalid_key"),
        (b"", "invalid_key"),
        (b"k" * 64, "invalid_key"),
        (b"k" * 65, "too_large"),
    ],
)
def test_a_key_is_the_flow_id_and_never_long(key: bytes | None, code: str) -> None:
    assert code_of(document("cancel"), key) == code


def test_the_checks_come_in_the_contract_s_order() -> None:
    """Each value has all the faults of those after it."""
    unknown = document("dance", schema_version=2)
    found = [
        code_of(b'{"schema_version":2,"n":1e16}'.ljust(512 * 1024 + 1), b"k"),
        code_of(b'{"schema_version":2,"n":1e16}'.ljust(512 * 1024), b"k"),
        code_of(unknown, b"k"),
        code_of({**unknown, "schema_version": 1}, b"k"),
        code_of(document("cancel"), b"k"),
    ]
    expected = ["too_large", "malformed", "unsupported_version", "invalid_command", "invalid_key"]
    assert found == expected


def test_a_flows_document_takes_no_more_memory_than_its_length() -> None:
    flow = flow_row(1, state_json={"note": "x" * 5_000}).flow
    tracemalloc.start()
    try:
        docs = [flow_doc(flow) for _ in range(50)]
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert taken < 1.1 * sum(map(len, docs))
