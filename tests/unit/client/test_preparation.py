"""What is filled into a command before it is sent, and what is not sent at all."""

from typing import Any
from uuid import UUID, uuid4

import orjson
import pytest

from processor.client import InvalidCommand
from processor.client.preparation import Prepared, prepare
from processor.contract import COMMANDS
from processor.contract.commands import CreateManaged, SetWaiting, UpdateState
from processor.contract.flow import TimerWait
from processor.engine.codec import command_digest

FLOW = "8f14e45f-ceea-467f-9575-0cb0a9b1c8a1"
CREATE = {
    "kind": "create_managed",
    "flow_id": FLOW,
    "issued_by": "session-1",
    "controller_id": "c",
    "goal": "g",
    "requester_origin": "o",
}
NOW_MS = 1_795_381_328_123  # 2026-11-22T21:02:08.123Z
HALF_AN_HOUR_MS = 1_800_000


def prepared(command: Any, expires_after_ms: int | None = HALF_AN_HOUR_MS) -> Prepared:
    return prepare(command, now_ms=NOW_MS, expires_after_ms=expires_after_ms)


def test_a_command_gets_an_id_and_expires_in_half_a_window() -> None:
    command = prepared(CREATE).command
    assert UUID(command.command_id).version == 4
    assert command.expires_at == "2026-11-22T21:32:08.123Z"


def test_what_the_caller_says_stays() -> None:
    said = {**CREATE, "command_id": str(uuid4()), "expires_at": "2026-11-22T22:00:00+01:00"}
    command = prepared(said).command
    assert command.command_id == said["command_id"]
    assert command.expires_at == "2026-11-22T21:00:00.000Z"


def test_a_command_need_not_expire() -> None:
    assert prepared(CREATE, expires_after_ms=None).command.expires_at is None


def test_the_key_is_the_flow_id() -> None:
    assert prepared(CREATE).key == FLOW.encode()


@pytest.mark.parametrize(
    "fields",
    [
        CREATE,
        {**CREATE, "state_json": {"é": [1, 2.5, None]}, "dry_run": False, "current_step": None},
        {"kind": "update_state", "flow_id": FLOW, "issued_by": "s", "patch": None},
        {
            "kind": "set_waiting",
            "flow_id": FLOW,
            "issued_by": "s",
            "wait": {"kind": "timer", "at": "2026-11-23T00:00:00+02:00"},
        },
    ],
)
def test_a_prepared_command_sent_again_equals_itself(fields: dict[str, Any]) -> None:
    first = prepared(prepared(fields).command)
    again = prepared(first.command)
    assert again == first
    assert first.digest == command_digest(orjson.loads(first.value))


def test_a_model_keeps_its_nulls_and_its_kind() -> None:
    patch = UpdateState(command_id=str(uuid4()), flow_id=FLOW, issued_by="s", patch=None)
    assert orjson.loads(prepared(patch).value)["patch"] is None
    wait = SetWaiting(
        command_id=str(uuid4()),
        flow_id=FLOW,
        issued_by="s",
        wait=TimerWait(kind="timer", at="2026-11-23T00:00:00Z"),
    )
    assert orjson.loads(prepared(wait).value)["kind"] == "set_waiting"


def test_values_are_read_as_the_processor_reads_them() -> None:
    ready = prepared(CREATE)
    assert COMMANDS.validate_json(ready.value) == ready.command
    assert isinstance(ready.command, CreateManaged)


def test_a_refused_command_names_its_fields_and_no_values() -> None:
    with pytest.raises(InvalidCommand) as caught:
        prepared({**CREATE, "goal": "", "secret": "hunter2"})
    assert {error["field"] for error in caught.value.errors} == {"goal", "secret"}
    assert "goal" in str(caught.value)
    assert "hunter2" not in str(caught.value)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"kind": "no_such_kind", "flow_id": FLOW},
        {**CREATE, "flow_id": FLOW.upper()},
        {**CREATE, "flow_id": None},
        {**CREATE, "state_json": float("nan")},
        {**CREATE, "state_json": {"deep": [{"x": float("inf")}]}},
        {**CREATE, "state_json": 2**53},
        {**CREATE, "state_json": 2**64},
        {**CREATE, "state_json": "\ud800"},
        {**CREATE, "state_json": object()},
        {**CREATE, "state_json": {1: 2}},
        {**CREATE, "state_json": "x" * 600_000},
        {**CREATE, "schema_version": 2},
    ],
)
def test_what_would_be_quarantined_is_not_sent(fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidCommand):
        prepared(fields)


def test_too_deep_is_not_sent() -> None:
    deep: Any = 1
    for _ in range(70):
        deep = [deep]
    with pytest.raises(InvalidCommand):
        prepared({**CREATE, "state_json": deep})
