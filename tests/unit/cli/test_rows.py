"""Tables on a terminal: each row on one line, and room for the columns that matter most."""

from typing import Any

import orjson
import pytest
from rich.console import Console

from processor.cli.common.rows import Column, age, layout, moment, print_rows, short_ids
from processor.cli.deadletters.lookup import print_dead_letters
from processor.cli.flow.execute import print_flows, print_waits
from processor.contract.flow import Flow
from processor.contract.headers import DeadLetterFacts, RecordPlace
from processor.contract.values import instant
from processor.ops.deadletters import DeadLetterRecord, Spot

NOON_MS = 1_795_348_800_000
FLOW_ID = "6f1f3a52-0000-4000-8000-000000000001"


def printed(width: int, show: Any) -> list[str]:
    out = Console(width=width, color_system=None, legacy_windows=False)
    with out.capture() as captured:
        show(out)
    return captured.get().splitlines()


def flow(flow_id: str = FLOW_ID, **fields: Any) -> Flow:
    about: dict[str, Any] = {
        "id": flow_id,
        "controller_id": "reports",
        "goal": "Write the report of week 7, and have it approved by two people",
        "owner_session_key": "session:reports-of-the-northern-region",
        "requester_origin": "schedule",
        "current_step": "collect-the-figures",
        "state_json": {},
        "wait_json": None,
        "status": "running",
        "cancel_requested": False,
        "revision": 12,
        "created_at": instant(NOON_MS - 7_200_000),
        "updated_at": instant(NOON_MS - 300_000),
    }
    return Flow.model_validate_json(orjson.dumps(about | fields))


def test_a_list_of_flows_at_80_columns_keeps_goal_owner_and_age() -> None:
    head, row = printed(80, lambda out: print_flows(out, [flow()], NOON_MS))

    assert head.split() == ["id", "status", "changed", "rev", "owner", "goal"]
    assert row.startswith("6f1f3a52  running  5m")
    assert "Write the report of week 7, and ha" in row
    assert max(len(head), len(row)) <= 80


def test_a_wide_terminal_shows_a_goal_in_full() -> None:
    row = printed(200, lambda out: print_flows(out, [flow()], NOON_MS))[1]
    assert row.endswith("Write the report of week 7, and have it approved by two people")
    assert "session:reports-of-the-northern-region" in row


def test_what_waits_at_80_columns_keeps_the_time_that_is_left() -> None:
    wait = {
        "kind": "external_event",
        "topic": "payments.settled",
        "correlation_id": "order-17",
        "timeout_at": instant(NOON_MS + 7_500_000),
    }
    waiting = flow(status="waiting", wait_json=wait)
    head, row = printed(80, lambda out: print_waits(out, [waiting], NOON_MS))

    assert "left" in head.split()
    assert "event payment" in row
    assert "in 2 h 5 min" in row
    assert "Write the report" in row
    assert len(row) <= 80


def test_dead_letters_at_80_columns_say_why() -> None:
    place = RecordPlace("taskflow.commands", 3, 91_234)
    facts = DeadLetterFacts("malformed", "it is not JSON, at line 1, column 28", place, 1, None)
    dead_letter = DeadLetterRecord(Spot(0, 17), NOON_MS - 90_000, None, b"{", (), facts)
    head, row = printed(80, lambda out: print_dead_letters(out, [dead_letter], None, NOON_MS))

    assert head.split() == ["letter", "age", "code", "from", "why"]
    assert row.startswith("0/17    1m   malformed")
    assert "it is not JSON, at line 1, column 28" in row


def test_columns_of_a_higher_rank_are_left_out_first_and_the_widest_is_cut() -> None:
    columns = [Column("id"), Column("step", 6, rank=2), Column("owner", 8, rank=1), Column("x", 10)]
    widest = [8, 12, 20, 40]

    assert layout(columns, widest, 100) == {0: 8, 1: 12, 2: 20, 3: 40}
    assert layout(columns, widest, 66) == {0: 8, 1: 12, 2: 20, 3: 20}
    assert layout(columns, widest, 38) == {0: 8, 1: 6, 2: 8, 3: 10}
    assert layout(columns, widest, 37) == {0: 8, 2: 12, 3: 13}
    assert layout(columns, widest, 24) == {0: 8, 3: 14}
    assert layout(columns, widest, 5) == {0: 8, 3: 10}


@pytest.mark.parametrize("width", [20, 80, 300])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    rows = [("a" * 30, "世界" * 40, "\x1b[2J" * 9), ("b", "", "x" * 200)]
    columns = (Column("id"), Column("goal", 10), Column("why", 6, rank=1))
    lines = printed(width, lambda out: print_rows(out, columns, rows))
    assert len(lines) == 3
    assert all(Console().measure(line).maximum <= width for line in lines)
    assert not any("\x1b" in line for line in lines)


def test_ids_are_as_long_as_it_takes_to_tell_them_apart() -> None:
    other = FLOW_ID.replace("6f1f", "7f1f")
    assert short_ids([FLOW_ID, other]) == {FLOW_ID: "6f1f3a52", other: "7f1f3a52"}
    near = FLOW_ID.removesuffix("1") + "2"
    assert short_ids([FLOW_ID, near]) == {FLOW_ID: FLOW_ID, near: near}
    assert short_ids([]) == {}


def test_ages_are_written_as_options_take_durations() -> None:
    ages = [age(instant(NOON_MS - s * 1000), NOON_MS) for s in (-5, 0, 59, 60, 7_199, 200_000)]
    assert ages == ["0s", "0s", "59s", "1m", "1h", "2d"]
    assert moment("2026-11-22T21:02:08.123Z") == "2026-11-22 21:02:08"
