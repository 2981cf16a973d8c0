"""The local table finds flows by time: waits that end by themselves, and flows that ended."""

import re
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from processor.adapters.sqlite import FlowTable, TableCorrupt, statements
from processor.adapters.sqlite.files import SCHEMA
from processor.contract.flow import FlowStatus
from processor.contract.values import instant
from processor.domain.transitions import TERMINAL
from processor.engine.rows import Changes, Deadline, FlowRow
from tests.unit.adapters.sqlite.tables import NOON_MS, at, flow_row, later, opened, uuid

FOREVER_MS = 2**63 - 1


@pytest_asyncio.fixture
async def table(tmp_path: Path) -> AsyncIterator[FlowTable]:
    async with opened(tmp_path) as table:
        yield table


def timer(at_ms: int) -> dict[str, Any]:
    return {"status": FlowStatus.WAITING, "wait_json": {"kind": "timer", "at": instant(at_ms)}}


def manual(timeout_ms: int | None = None) -> dict[str, Any]:
    timeout = {} if timeout_ms is None else {"timeout_at": instant(timeout_ms)}
    return {"status": FlowStatus.WAITING, "wait_json": {"kind": "manual", **timeout}}


def terminal(number: int, at_ms: int, status: FlowStatus = FlowStatus.FINISHED) -> FlowRow:
    return flow_row(number, status=status, updated_at=instant(at_ms))


async def in_chunks(
    ask: Callable[[Deadline | None, int, int], Awaitable[list[Deadline]]], until_ms: int, size: int
) -> list[Deadline]:
    """All that is found, `size` at a time."""
    found: list[Deadline] = []
    while chunk := await ask(found[-1] if found else None, until_ms, size):
        assert len(chunk) <= size
        found.extend(chunk)
    return found


async def test_waits_are_due_in_the_order_of_their_times(table: FlowTable) -> None:
    rows = [
        flow_row(1, **timer(NOON_MS + 3)),
        flow_row(2, **manual(NOON_MS + 1)),
        flow_row(3, **timer(NOON_MS + 2)),
        flow_row(4, **timer(NOON_MS + 2)),
        flow_row(5, **manual()),
        flow_row(6, **manual(), cancel_requested=True),
        flow_row(7),
        flow_row(8, status=FlowStatus.FINISHED),
        flow_row(9, cancel_requested=True),
    ]
    await table.write(Changes(inserted=rows), before=None, after=at(1))

    due = [
        Deadline(0, uuid(6)),
        Deadline(NOON_MS + 1, uuid(2)),
        Deadline(NOON_MS + 2, uuid(3)),
        Deadline(NOON_MS + 2, uuid(4)),
        Deadline(NOON_MS + 3, uuid(1)),
    ]
    assert await table.due(None, FOREVER_MS, 100) == due
    assert await table.due(None, NOON_MS + 2, 100) == due[:4]
    assert await table.due(None, NOON_MS + 1, 1) == due[:1]
    assert await table.due(due[2], NOON_MS + 3, 100) == due[3:]
    assert await table.due(due[4], NOON_MS + 3, 100) == []
    assert await table.armed() == 5


async def test_many_waits_of_one_moment_come_in_chunks(table: FlowTable) -> None:
    # Numbered against the order of their ids.
    rows = [flow_row(n, id=uuid(5000 - n), **timer(NOON_MS)) for n in range(1, 2001)]
    await table.write(Changes(inserted=rows), before=None, after=at(1))
    found = await in_chunks(table.due, NOON_MS, 300)
    assert found == [Deadline(NOON_MS, uuid(n)) for n in range(3000, 5000)]
    assert await table.armed() == 2000


async def test_a_wait_is_due_as_its_newest_change_says(table: FlowTable) -> None:
    was = [flow_row(n, **timer(NOON_MS + n)) for n in range(1, 7)] + [flow_row(7)]
    now = [
        later(was[0]),
        later(was[1], **timer(NOON_MS + 100)),
        later(was[2], **manual()),
        later(was[3], **timer(NOON_MS + 4), cancel_requested=True),
        later(was[4], status=FlowStatus.CANCELLED),
    ]
    now.append(later(was[6], **timer(NOON_MS + 50)))
    await table.write(Changes(inserted=was), before=None, after=at(1))
    await table.write(
        Changes(deleted=[was[5]], updated=list(zip(was[:5] + was[6:], now, strict=True))),
        before=at(1),
        after=at(2),
    )
    assert await table.due(None, FOREVER_MS, 100) == [
        Deadline(0, uuid(4)),
        Deadline(NOON_MS + 50, uuid(7)),
        Deadline(NOON_MS + 100, uuid(2)),
    ]
    assert await table.armed() == 3
    await table.clear()
    assert await table.due(None, FOREVER_MS, 100) == []
    assert await table.armed() == 0


async def test_flows_that_ended_come_the_oldest_first(table: FlowTable) -> None:
    rows = [
        terminal(1, NOON_MS + 2, FlowStatus.CANCELLED),
        terminal(2, NOON_MS),
        terminal(3, NOON_MS + 1, FlowStatus.FAILED),
        terminal(4, NOON_MS + 1),
        flow_row(5, **timer(NOON_MS)),
        flow_row(6, status=FlowStatus.CREATED),
        flow_row(7),
    ]
    await table.write(Changes(inserted=rows), before=None, after=at(1))

    ended = [
        Deadline(NOON_MS, uuid(2)),
        Deadline(NOON_MS + 1, uuid(3)),
        Deadline(NOON_MS + 1, uuid(4)),
        Deadline(NOON_MS + 2, uuid(1)),
    ]
    assert await table.ended(None, NOON_MS + 3, 100) == ended
    assert await table.ended(None, NOON_MS + 2, 100) == ended[:3]
    assert await table.ended(None, NOON_MS, 100) == []
    assert await table.ended(None, NOON_MS + 3, 2) == ended[:2]
    assert await in_chunks(table.ended, NOON_MS + 3, 1) == ended

    changes = Changes(
        deleted=[rows[2]], updated=[(rows[6], later(rows[6], status=FlowStatus.FAILED))]
    )
    await table.write(changes, before=at(1), after=at(2))
    assert await table.ended(None, NOON_MS + 2, 100) == [
        ended[0],
        ended[2],
        Deadline(NOON_MS + 1, uuid(7)),
    ]


def edit(table: FlowTable, sql: str) -> None:
    with closing(sqlite3.connect(table.path, isolation_level=None)) as db:
        db.execute(sql)


async def test_a_damaged_time_says_nothing_about_the_flow(table: FlowTable) -> None:
    row = flow_row(1, **timer(NOON_MS + 1000))
    await table.write(Changes(inserted=[row]), before=None, after=at(1))
    edit(table, "UPDATE flow SET due_ms = 1")
    assert await table.due(None, NOON_MS, 9) == [Deadline(1, uuid(1))]
    assert await table.flows([uuid(1)]) == {uuid(1): row}


async def test_what_is_no_time_is_not_believed(table: FlowTable) -> None:
    rows = [terminal(1, NOON_MS), flow_row(2, **timer(NOON_MS))]
    await table.write(Changes(inserted=rows), before=None, after=at(1))
    edit(table, "UPDATE flow SET updated_at = '2026' WHERE n = 1")
    edit(table, "UPDATE flow SET due_ms = 1.5 WHERE n = 2")
    with pytest.raises(TableCorrupt):
        await table.due(None, NOON_MS, 9)
    with pytest.raises(TableCorrupt):
        await table.ended(None, NOON_MS + 1, 9)
    assert table.doubted


def plan(sql: str, parameters: int) -> list[str]:
    with closing(sqlite3.connect(":memory:")) as db:
        db.executescript(SCHEMA)
        return [row[3] for row in db.execute(f"EXPLAIN QUERY PLAN {sql}", [1] * parameters)]


@pytest.mark.parametrize(
    ("sql", "parameters", "walk"),
    [
        (statements.DUE, 4, "flow_due ((due_ms,id)>(?,?) AND due_ms<?)"),
        (statements.ARMED, 0, "flow_due (due_ms>?)"),
        (statements.ENDED, 4, "flow_ended ((updated_at,id)>(?,?) AND updated_at<?)"),
    ],
)
def test_a_query_by_time_walks_its_index_and_nothing_else(
    sql: str, parameters: int, walk: str
) -> None:
    steps = plan(sql, parameters)
    assert f"SEARCH flow USING COVERING INDEX {walk}" in steps
    assert not any("TEMP B-TREE" in step for step in steps)


def test_the_next_number_is_found_and_not_counted() -> None:
    assert plan(statements.NEXT_ROW_NUMBER, 0) == ["SEARCH flow"]


def test_the_index_of_what_ended_holds_the_terminal_statuses() -> None:
    (index,) = re.findall(r"CREATE INDEX flow_ended .*?;", SCHEMA, re.DOTALL)
    assert set(re.findall(r"status = '(\w+)'", index)) == TERMINAL
