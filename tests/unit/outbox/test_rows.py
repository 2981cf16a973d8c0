"""Commands of an outbox's rows, and columns of outcomes."""

import json
from typing import Any

import pytest

from processor.contract.outcomes import Code, Outcome
from processor.contract.values import instant
from processor.engine.codec import Readable, Unreadable
from processor.outbox.rows import (
    RENEW_MAX_MS,
    OutboxRow,
    SentRow,
    bound_ms,
    columns_of,
    is_of,
    is_renewable,
    read_row,
    refusal,
)

FLOW = "6f1f3a52-0000-4000-8000-000000000001"
COMMAND = "7f1f3a52-0000-4000-8000-000000000002"
NOW, WINDOW, MINUTE = 1_795_000_000_000, 3_600_000, 60_000
START = {"kind": "start_running", "issued_by": "shop"}


def row(command: Any = START, **more: Any) -> OutboxRow:
    return OutboxRow(1, FLOW, COMMAND, json.dumps(command), None, **more)


def read(command: Any, expires_ms: int = NOW) -> Readable | Unreadable:
    return read_row(row(command), expires_ms)


def sent(command: Any = START) -> SentRow:
    one = row(command, sent_ms=NOW, expires_ms=NOW + WINDOW // 2)
    readable = read_row(one, NOW + WINDOW // 2)
    assert isinstance(readable, Readable)
    return SentRow(one, readable)


def outcome(of: SentRow, **more: Any) -> Outcome:
    fields = {
        "command_id": COMMAND,
        "flow_id": FLOW,
        "kind": "start_running",
        "verdict": "accepted",
        "code": None,
        "message": "The flow is running.",
        "revision": 1,
        "status": "running",
        "event_ids": [7],
        "allowed": ["cancel"],
        "details": {},
        "dry_run": False,
        "command_digest": of.sent.digest.hex(),
        "source": {"topic": "taskflow.commands", "partition": 0, "offset": 3},
        "at": instant(NOW),
        **more,
    }
    return Outcome.model_validate_json(json.dumps(fields))


def test_a_command_gets_the_ids_of_its_row_and_a_bound() -> None:
    readable = read(START, NOW + 5)
    assert isinstance(readable, Readable)
    assert readable.record.key == FLOW.encode()
    assert json.loads(readable.record.value or b"") == {
        **START,
        "flow_id": FLOW,
        "command_id": COMMAND,
        "expires_at": instant(NOW + 5),
    }


def test_a_row_that_is_sent_again_is_sent_to_the_byte() -> None:
    first, again = (read_row(row(), NOW) for _ in range(2))
    assert first.record.value == again.record.value


@pytest.mark.parametrize(
    ("own", "bound"),
    [
        (None, NOW + WINDOW // 2),
        (NOW + MINUTE, NOW + MINUTE),
        (NOW + 2 * WINDOW, NOW + WINDOW // 2),
    ],
)
def test_the_sooner_of_the_two_bounds_holds(own: int | None, bound: int) -> None:
    command = START if own is None else {**START, "expires_at": instant(own)}
    assert bound_ms(row(command), NOW, WINDOW) == bound
    readable = read(command, bound)
    assert isinstance(readable, Readable)
    assert readable.command.expires_at == instant(bound)


@pytest.mark.parametrize(
    ("command", "code", "says"),
    [
        ([START], Code.MALFORMED, "one JSON object"),
        ("text", Code.MALFORMED, "one JSON object"),
        ({"kind": "start"}, Code.INVALID_COMMAND, "not a valid command"),
        ({**START, "more": 1}, Code.INVALID_COMMAND, "not a valid command"),
        ({**START, "flow_id": COMMAND}, Code.INVALID_COMMAND, "flow_id is not that of the row"),
        ({**START, "command_id": FLOW}, Code.INVALID_COMMAND, "command_id is not that of the row"),
        ({**START, "expires_at": "soon"}, Code.INVALID_COMMAND, "not a valid command"),
        ({**START, "schema_version": 2}, Code.UNSUPPORTED_VERSION, "schema_version 1"),
        ({"kind": "fail", "issued_by": "s", "reason": "x" * 2**20}, Code.TOO_LARGE, "512 KiB"),
        ({**START, "expected_revision": 1e300}, Code.MALFORMED, "within the limits"),
    ],
)
def test_what_no_processor_could_read_is_refused(command: Any, code: Code, says: str) -> None:
    unreadable = read(command)
    assert isinstance(unreadable, Unreadable)
    columns = refusal(row(command), unreadable)
    assert (columns.verdict, columns.code) == ("refused", code)
    assert says in columns.message
    assert columns.allowed is None


def test_a_number_without_end_is_refused() -> None:
    endless = row()._replace(command='{"kind": 1e400}')
    unreadable = read_row(endless, NOW)
    assert isinstance(unreadable, Unreadable)
    assert unreadable.code is Code.MALFORMED


def test_an_outcome_is_that_of_an_equal_command() -> None:
    one, topic = sent(), "taskflow.commands"
    assert is_of(one, outcome(one), topic)
    assert is_of(one, outcome(one, verdict="quarantined", command_digest=None), topic)
    assert not is_of(one, outcome(one, command_id=FLOW), topic)
    assert not is_of(one, outcome(one, command_digest="0" * 32), topic)
    assert not is_of(one, outcome(one, verdict="forwarded"), topic)
    assert not is_of(one, outcome(one), "taskflow.control")


def test_a_duplicate_has_the_first_verdict() -> None:
    one = sent()
    again = outcome(one, verdict="duplicate", original="rejected", code="not_found")
    columns = columns_of(one.row, again, NOW)
    assert (columns.verdict, columns.code) == ("rejected", "not_found")


@pytest.mark.parametrize(
    ("later", "verdict"), [(RENEW_MAX_MS, "rejected"), (RENEW_MAX_MS + 1, "unknown")]
)
def test_expired_says_nothing_of_a_first_copy_whose_outcome_may_be_gone(
    later: int, verdict: str
) -> None:
    one = sent()
    expired = outcome(one, verdict="rejected", code="expired", message="It came too late.")
    columns = columns_of(one.row, expired, NOW + later)
    assert (columns.verdict, columns.code) == (verdict, "expired")
    assert ("may have been applied" in columns.message) is (verdict == "unknown")


def test_details_with_a_nul_fit_into_the_column() -> None:
    one = sent()
    strange = outcome(one, message="a\0", details={"k": "\0", "n": "\\u0000"})
    columns = columns_of(one.row, strange, NOW)
    assert columns.message == "a\ufffd"
    assert json.loads(columns.details) == {"k": "\ufffd", "n": "\\u0000"}


@pytest.mark.parametrize(
    ("code", "own", "later", "renewable"),
    [
        ("expired", None, WINDOW, True),
        ("not_found", None, WINDOW, False),
        ("expired", NOW + MINUTE, WINDOW, False),
        ("expired", NOW + 3 * WINDOW, WINDOW, True),
        ("expired", NOW + 3 * WINDOW, 4 * WINDOW, False),
        ("expired", None, WINDOW // 4, True),
        ("expired", None, WINDOW // 4 - 1, False),  # this machine's clock is behind the broker's
        ("expired", None, RENEW_MAX_MS, True),
        ("expired", None, RENEW_MAX_MS + 1, False),
    ],
)
def test_only_what_came_too_late_by_the_relays_bound_is_sent_anew(
    code: str, own: int | None, later: int, renewable: bool
) -> None:
    command = START if own is None else {**START, "expires_at": instant(own)}
    bound = bound_ms(row(command), NOW, WINDOW)
    one = row(command, sent_ms=NOW, expires_ms=bound)
    refused = outcome(sent(), verdict="rejected", code=code)
    assert is_renewable(one, refused, NOW + later, WINDOW) is renewable
