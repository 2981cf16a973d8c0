"""What people see of waits: what for, until when, and how much longer."""

import io
import json
from typing import Any

import pytest
from rich.console import Console

from processor.cli.flow.execute import print_flow, print_waits
from processor.cli.flow.lookup import Found
from processor.cli.flow.wait_format import awaited, span, time_left, until
from processor.contract.flow import Flow, FlowStatus
from processor.contract.values import instant
from tests.unit.adapters.sqlite.tables import NOON_MS, flow_row, step_row

HOUR_MS = 3_600_000


def flow_of(number: int, **values: Any) -> Flow:
    return Flow.model_validate(flow_row(number, **values).flow.document(), strict=False)


def waiting(wait: dict[str, Any], number: int = 1, **values: Any) -> Flow:
    return flow_of(number, status=FlowStatus.WAITING, wait_json=wait, **values)


def timer(left_ms: int) -> dict[str, Any]:
    return {"kind": "timer", "at": instant(NOON_MS + left_ms)}


def shown_to_people(width: int = 200) -> tuple[Console, io.StringIO]:
    errors = io.StringIO()
    return Console(file=errors, width=width, highlight=False), errors


@pytest.mark.parametrize(
    ("duration_ms", "words"),
    [
        (0, "< 1 s"),
        (999, "< 1 s"),
        (1000, "1 s"),
        (59_999, "59 s"),
        (61_000, "1 min 1 s"),
        (2 * HOUR_MS + 5 * 60_000 + 59_000, "2 h 5 min"),
        (HOUR_MS + 59_000, "1 h"),
        (30 * 24 * HOUR_MS, "30 d"),
        (29 * 24 * HOUR_MS + HOUR_MS, "29 d 1 h"),
    ],
)
def test_a_duration_is_said_in_its_two_largest_units(duration_ms: int, words: str) -> None:
    assert span(duration_ms) == words


@pytest.mark.parametrize(
    ("wait", "cancel", "what", "end", "left"),
    [
        (timer(7_500_000), False, "timer", "2026-11-22 14:05:00", "in 2 h 5 min"),
        (timer(-3000), False, "timer", "2026-11-22 11:59:57", "overdue 3 s"),
        (timer(0), False, "timer", "2026-11-22 12:00:00", "overdue < 1 s"),
        ({"kind": "manual"}, False, "manual", "-", "-"),
        (
            {"kind": "manual", "timeout_at": instant(NOON_MS + 1000)},
            False,
            *("manual", "2026-11-22 12:00:01", "in 1 s"),
        ),
        (
            {"kind": "external_event", "topic": "payments", "correlation_id": "p-7"},
            False,
            *("event payments / p-7", "-", "-"),
        ),
        ({"kind": "manual"}, True, "manual", "-", "at once (cancel requested)"),
        (timer(5000), True, "timer", "2026-11-22 12:00:05", "at once (cancel requested)"),
    ],
)
def test_a_wait_is_said_with_its_end_and_the_time_left(
    wait: dict[str, object], cancel: bool, what: str, end: str, left: str
) -> None:
    flow = waiting(wait, cancel_requested=cancel)
    assert (awaited(flow), until(flow), time_left(flow, NOON_MS)) == (what, end, left)


def test_who_does_not_wait_waits_for_nothing() -> None:
    flow = flow_of(1)
    assert (awaited(flow), until(flow), time_left(flow, NOON_MS)) == ("", "-", "-")


def test_waiting_flows_are_one_a_row() -> None:
    out, errors = shown_to_people()
    event = {"kind": "external_event", "topic": "payments", "correlation_id": "p-7"}
    flows = [waiting(timer(7_500_000), 1), waiting(event, 2)]

    print_waits(out, flows, NOON_MS)

    head, *rows = errors.getvalue().splitlines()
    assert head.split() == ["id", "waits", "for", "until", "left", "owner", "step", "goal"]
    assert "timer                 2026-11-22 14:05:00  in 2 h 5 min  owner" in rows[0]
    assert "event payments / p-7  -                    -             owner" in rows[1]


def test_what_a_producer_wrote_moves_no_cursor() -> None:
    out, errors = shown_to_people()
    event = {"kind": "external_event", "topic": "t", "correlation_id": "\x1b[2J\u009b1m"}

    print_waits(out, [waiting(event, owner_session_key="a\nb")], NOON_MS)
    found = Found(waiting(event, goal="\x1b]0;one\nline").model_dump(mode="json"), 1, "00", [])
    print_flow(out, found, NOON_MS)

    assert errors.getvalue().isprintable() or {
        char for char in errors.getvalue() if not char.isprintable()
    } == {"\n"}
    assert "event t / \\x1b[2J\\x9b1m" in errors.getvalue()
    assert "a\\x0ab" in errors.getvalue()


@pytest.mark.parametrize("width", [60, 200])
def test_a_flow_is_shown_with_the_time_left_and_its_steps_in_full(width: int) -> None:
    out, errors = shown_to_people(width)
    steps = [
        json.loads(step_row(1, name, at_ms=NOON_MS + n).doc)
        for n, name in enumerate(("classify", "file"))
    ]
    steps[0] |= {"child_session_key": "session:7", "result_json": {"text": "x" * 300}}
    flow = waiting(timer(7_500_000)).model_dump(mode="json")

    print_flow(out, Found(flow, 1, "00", steps), NOON_MS)

    text = errors.getvalue()
    whole = "".join(text.split())
    assert [*flow] == [
        word for line in text.splitlines() for word in line.split()[:1] if word in flow
    ]
    assert "(timeleft)in2h5min" in whole
    for step in steps:
        for name in ("run_id", "task", "status", "runtime", "created_at", "updated_at", "id"):
            assert step[name] in whole, name
    assert "bysession:7" in whole
    assert "x" * 300 in whole
    assert whole.index("classify") < whole.index("file")


def test_no_time_is_left_of_no_wait() -> None:
    out, errors = shown_to_people()
    print_flow(out, Found(flow_row(1).flow.document(), 1, "00", []), NOON_MS)
    assert "time left" not in errors.getvalue()
    assert "steps" not in errors.getvalue()


@pytest.mark.parametrize(
    ("status", "about", "errors"),
    [
        ("running", {"due": 200_000}, "attempt 2 of 3, lease ends in 3 min 20 s\n"),
        ("running", {"due": -5000}, "lease was over 5 s ago\n"),
        ("pending", {"due": 5000, "offers": 0}, "may be started in 5 s\n"),
        ("pending", {"due": 5000, "offers": 1}, "offered once, again in 5 s\n"),
        (
            "pending",
            {"due": 5000, "offers": 4, "timeout": 60_000},
            "offered 4 times, again in 5 s, fails in 1 min\n",
        ),
        ("succeeded", {"due": None}, "attempt 2 of 3\n"),
    ],
)
def test_a_managed_step_is_shown_with_its_attempt_and_lease(
    status: str, about: dict[str, int | None], errors: str
) -> None:
    def at(left_ms: int | None) -> str | None:
        return None if left_ms is None else instant(NOON_MS + left_ms)

    out, shown = shown_to_people(80)
    step = json.loads(step_row(1, "card-7").doc) | {
        "runtime": "managed",
        "status": status,
        "child_session_key": "bank:one",
        "input_json": {"card": 7},
        "execution": {
            "attempt": 2,
            "max_attempts": 3,
            "offers": about.get("offers", 0),
            "due_at": at(about["due"]),
            "timeout_at": at(about.get("timeout")),
            "progress": {"asked": 1},
            "last_failure": {"reason": "no\x1b[2J answer", "at": instant(NOON_MS - 61_000)},
        },
    }

    flow = flow_row(1).flow.document()
    print_flow(out, Found(flow, 1, "00", [step]), NOON_MS)

    text = shown.getvalue()
    assert errors in text
    assert "by bank:one\n  last failure 1 min 1 s ago: no\\x1b[2J answer\n" in text
    assert 'progress {"asked":1}\n  input {"card":7}\n' in text


def test_a_wait_for_steps_names_them() -> None:
    some = {"kind": "steps", "run_ids": ["a", "b"]}

    assert awaited(waiting({"kind": "steps"})) == "all its steps"
    assert awaited(waiting(some)) == "the steps a, b"
    assert awaited(waiting({**some, "mode": "any"})) == "one of the steps a, b"
