"""The values that messages are made of, at their limits."""

from typing import Any

import pytest
from pydantic import ValidationError

from processor.contract import COMMANDS, EVENTS, Cursor, Outcome
from tests.support.builders import document

INTEGER_MAX = 2**53 - 1


def reads(kind: str, **fields: Any) -> bool:
    try:
        COMMANDS.validate_python(document(kind, **fields))
    except ValidationError:
        return False
    return True


def creates(**fields: Any) -> bool:
    about = {"controller_id": "c", "goal": "g", "requester_origin": "o"}
    return reads("create_managed", **{**about, **fields})


@pytest.mark.parametrize(
    ("field", "longest"),
    [
        ("issued_by", 256),
        ("controller_id", 256),
        ("requester_origin", 256),
        ("current_step", 256),
        ("owner_session_key", 256),
        ("goal", 4096),
    ],
)
def test_a_text_has_a_least_and_a_greatest_length_in_code_points(field: str, longest: int) -> None:
    assert creates(**{field: "😀"})
    assert creates(**{field: "😀" * longest})
    assert not creates(**{field: "😀" * (longest + 1)})
    assert not creates(**{field: ""})


@pytest.mark.parametrize("field", ["topic", "correlation_id"])
def test_what_is_waited_for_may_be_named_in_512_code_points(field: str) -> None:
    names = {"topic": "t", "correlation_id": "c"}
    for length, fits in ((1, True), (512, True), (513, False), (0, False)):
        named = {**names, field: "x" * length}
        assert reads("resume_external", **named) is fits
        assert reads("set_waiting", wait={"kind": "external_event", **named}) is fits


def test_a_reason_may_take_4096_code_points() -> None:
    assert reads("fail", reason="x" * 4096)
    assert not reads("fail", reason="x" * 4097)
    assert not reads("fail", reason="")


@pytest.mark.parametrize("field", ["run_id", "task", "child_session_key"])
def test_the_texts_of_a_step_take_256_code_points(field: str) -> None:
    step = {"run_id": "r", "task": "t", "status": "running"}
    assert reads("record_step_observation", **{**step, field: "x" * 256})
    assert not reads("record_step_observation", **{**step, field: "x" * 257})


@pytest.mark.parametrize("field", ["command_id", "flow_id"])
@pytest.mark.parametrize(
    ("uuid", "fits"),
    [
        ("2fce7035-2e57-5ac8-98cf-336ebef3eea6", True),
        ("00000000-0000-0000-0000-000000000000", True),
        ("2FCE7035-2e57-5ac8-98cf-336ebef3eea6", False),
        ("2fce70352e575ac898cf336ebef3eea6", False),
        ("{2fce7035-2e57-5ac8-98cf-336ebef3eea6}", False),
        ("2fce7035-2e57-5ac8-98cf-336ebef3eea6\n", False),
        ("2fce7035-2e57-5ac8-98cf-336ebef3eeag", False),
        ("", False),
        (None, False),
    ],
)
def test_a_uuid_is_36_characters_in_lower_case(field: str, uuid: str | None, fits: bool) -> None:
    assert reads("start_running", **{field: uuid}) is fits


@pytest.mark.parametrize(
    ("revision", "fits"),
    [
        (0, True),
        (INTEGER_MAX, True),
        (None, True),
        (-1, False),
        (INTEGER_MAX + 1, False),
        (1.0, False),
        (True, False),
        ("1", False),
    ],
)
def test_an_expected_revision_is_an_integer_from_zero(revision: Any, fits: bool) -> None:
    assert reads("start_running", expected_revision=revision) is fits


@pytest.mark.parametrize(
    ("flag", "fits"), [(True, True), (False, True), (None, True), (1, False), ("true", False)]
)
def test_a_dry_run_is_a_boolean(flag: Any, fits: bool) -> None:
    assert reads("start_running", dry_run=flag) is fits


@pytest.mark.parametrize(("expiry", "fits"), [("2026-11-22T21:02:08Z", True), (None, True)])
def test_an_expiry_is_a_time(expiry: str | None, fits: bool) -> None:
    assert reads("start_running", expires_at=expiry) is fits


@pytest.mark.parametrize("expiry", ["tomorrow", "2026-11-22", 1_780_000_000_000, ""])
def test_what_is_no_time_is_no_expiry(expiry: Any) -> None:
    assert not reads("start_running", expires_at=expiry)


@pytest.mark.parametrize("kind", ["", "create", "CANCEL", None, 1, ["cancel"]])
def test_an_unknown_kind_is_refused(kind: str) -> None:
    assert not reads(kind)


def test_an_unknown_field_is_refused_in_a_command_and_in_a_wait() -> None:
    assert not reads("start_running", colour="red")
    assert not reads("set_waiting", wait={"kind": "manual", "at": "2026-11-22T21:02:08Z"})


def test_a_field_of_another_kind_is_unknown() -> None:
    assert not reads("cancel", reason="x")


def test_a_required_field_may_not_be_missing_or_null() -> None:
    assert not reads("fail")
    assert not reads("fail", reason=None)
    assert not reads("set_waiting", wait=None)
    assert not reads("update_state")


def test_a_patch_is_required_and_may_be_null() -> None:
    assert reads("update_state", patch=None)


def test_a_wait_is_one_of_three_kinds() -> None:
    assert reads("set_waiting", wait={"kind": "timer", "at": "2026-11-22T21:02:08Z"})
    assert not reads("set_waiting", wait={"kind": "timer"})
    assert not reads("set_waiting", wait={"kind": "timer", "at": None})
    assert not reads("set_waiting", wait={"kind": "event"})
    assert not reads("set_waiting", wait={"kind": "external_event", "topic": "t"})
    assert not reads("set_waiting", wait="manual")


def test_infinity_and_nan_are_no_revision() -> None:
    for number in (float("nan"), float("inf")):
        assert not reads("start_running", expected_revision=number)


def test_a_command_is_read_only() -> None:
    command = COMMANDS.validate_python(document("cancel"))
    with pytest.raises(ValidationError):
        command.issued_by = "somebody"  # type: ignore[misc]


def test_published_messages_are_read_from_their_json() -> None:
    event = (
        '{"id":1,"flow_id":"2fce7035-2e57-5ac8-98cf-336ebef3eea6","kind":"started",'
        '"payload_json":{},"at":"2026-11-22T21:02:08.123Z","revision":1,"status":"running",'
        '"command_id":"083007e4-8539-5e5d-a864-3e22390d7692","actor":"a",'
        '"source":{"topic":"taskflow.commands","partition":0,"offset":0},"schema_version":1}'
    )
    assert EVENTS.validate_json(event).kind == "started"
    cursor = (
        '{"commands":3,"control":0,"next_event_id":1099511627777,"offered":0,"schema_version":1}'
    )
    assert Cursor.model_validate_json(cursor).next_event_id == 2**40 + 1


def test_an_outcome_about_unreadable_bytes_knows_little() -> None:
    outcome = Outcome.model_validate_json(
        '{"command_id":null,"flow_id":null,"kind":null,"verdict":"quarantined",'
        '"code":"malformed","message":"It is empty.","revision":null,"status":null,'
        '"event_ids":[],"allowed":null,"details":{},"dry_run":null,"command_digest":null,'
        '"source":{"topic":"taskflow.commands","partition":0,"offset":7},'
        '"at":"2026-11-22T21:02:08.123Z"}'
    )
    assert outcome.final
