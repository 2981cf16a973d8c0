"""The local table holds managed steps: found by time, by their flow while live, and counted
in their flow's row."""

import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import pytest
import pytest_asyncio

from processor.adapters.sqlite import FlowTable, TableCorrupt, statements
from processor.adapters.sqlite.files import SCHEMA
from processor.contract.steps import StepStatus
from processor.domain.steps import StepTotals
from processor.engine.rows import Changes, Checkpoint, Position, RestoreChunk, StepDue, StepRow
from tests.unit.adapters.sqlite.tables import (
    NOON_MS,
    at,
    flow_row,
    later,
    managed_row,
    opened,
    snapshot,
    step_row,
    step_snapshot,
    uuid,
)

PENDING, RUNNING = StepStatus.PENDING, StepStatus.RUNNING
ENDED = (StepStatus.SUCCEEDED, StepStatus.FAILED, StepStatus.CANCELLED)
FOREVER_MS = 2**62
UNFINISHED = Checkpoint(Position(0, 0, 1), -1, -1, 0)


@pytest_asyncio.fixture
async def table(tmp_path: Path) -> AsyncIterator[FlowTable]:
    async with opened(tmp_path) as table:
        yield table


async def put(table: FlowTable, *steps: StepRow, before: int | None = None, after: int = 1) -> None:
    was = None if before is None else at(before)
    await table.write(Changes(steps=list(steps)), before=was, after=at(after))


async def test_steps_are_due_in_the_order_of_their_times_each_status_by_itself(
    table: FlowTable,
) -> None:
    await put(
        table,
        managed_row(1, "b", due_ms=NOON_MS + 2),
        managed_row(1, "a", due_ms=NOON_MS + 2),
        managed_row(2, "a", due_ms=NOON_MS + 1),
        managed_row(3, "a", RUNNING, due_ms=NOON_MS + 1),
        managed_row(4, "ü\x1e\x1f\x00", due_ms=NOON_MS + 3),
        *(managed_row(5, status, status) for status in ENDED),
        step_row(6, "observed"),
    )
    first = [
        StepDue(NOON_MS + 1, uuid(2), "a"),
        StepDue(NOON_MS + 2, uuid(1), "a"),
        StepDue(NOON_MS + 2, uuid(1), "b"),
    ]
    assert await table.steps_due(PENDING, None, NOON_MS + 2, 9) == first
    assert await table.steps_due(PENDING, None, FOREVER_MS, 2) == first[:2]
    assert await table.steps_due(PENDING, first[1], FOREVER_MS, 9) == [
        first[2],
        StepDue(NOON_MS + 3, uuid(4), "ü\x1e\x1f\x00"),
    ]
    assert await table.steps_due(RUNNING, None, FOREVER_MS, 9) == [
        StepDue(NOON_MS + 1, uuid(3), "a")
    ]
    assert await table.count_live() == (4, 1)


async def test_a_step_that_moves_is_found_where_it_is(table: FlowTable) -> None:
    await put(table, managed_row(1, "a", due_ms=NOON_MS))
    await put(table, managed_row(1, "a", RUNNING, due_ms=NOON_MS + 5), before=1, after=2)
    assert await table.steps_due(PENDING, None, FOREVER_MS, 9) == []
    assert await table.steps_due(RUNNING, None, FOREVER_MS, 9) == [
        StepDue(NOON_MS + 5, uuid(1), "a")
    ]
    await put(table, managed_row(1, "a", StepStatus.FAILED), before=2, after=3)
    assert await table.count_live() == (0, 0)
    assert await table.live_steps([uuid(1)]) == {}


async def test_live_steps_are_those_of_the_flows_that_have_not_ended(table: FlowTable) -> None:
    live = [managed_row(1, f"r{n}", PENDING if n % 2 else RUNNING) for n in range(20)]
    ended = [managed_row(1, status, status) for status in ENDED]
    others = [managed_row(2, "a"), step_row(1, "observed")]
    await put(table, *live, *ended, *others)
    # Three keys make a statement of eight, padded with the last one.
    found = await table.live_steps([uuid(3), uuid(4), uuid(1)])
    assert found.keys() == {uuid(1)}
    assert sorted(found[uuid(1)], key=lambda row: row.step.run_id) == sorted(
        live, key=lambda row: row.step.run_id
    )


async def test_totals_are_kept_with_their_flow(tmp_path: Path) -> None:
    totals = StepTotals(5, 2, 4_000, 1)
    row = flow_row(1)._replace(totals=totals)
    async with opened(tmp_path) as table:
        await table.write(Changes(inserted=[row, flow_row(2)]), before=None, after=at(1))
        assert await table.flows([uuid(1), uuid(2)]) == {uuid(1): row, uuid(2): flow_row(2)}
        after = later(row)._replace(totals=StepTotals(5, 1, 2_000, 2))
        await table.write(Changes(updated=[(row, after)]), before=at(1), after=at(2))
    async with opened(tmp_path) as table:
        assert await table.flows([uuid(1)]) == {uuid(1): after}


@pytest.mark.parametrize("live", ["3", "1 "])
async def test_edited_totals_are_not_believed(tmp_path: Path, live: str) -> None:
    row = flow_row(1)._replace(totals=StepTotals(5, 2, 4_000, 1))
    async with opened(tmp_path) as table:
        await table.write(Changes(inserted=[row]), before=None, after=at(1))
        with closing(sqlite3.connect(table.path)) as db, db:
            db.execute(f"UPDATE flow SET steps = replace(steps, '5 2 ', '5 {live} ')")
        with pytest.raises(TableCorrupt):
            await table.flows([uuid(1)])


async def test_a_table_that_is_filled_counts_its_steps(table: FlowTable) -> None:
    steps = [
        managed_row(1, "a", input_json="xx"),
        managed_row(1, "b", RUNNING),
        managed_row(1, "c", StepStatus.FAILED, input_json="long"),
        managed_row(1, "d", StepStatus.SUCCEEDED),
        step_row(1, "e"),
        managed_row(3, "a", input_json={"n": 1}),
    ]
    older = [managed_row(1, "d", input_json="before"), managed_row(2, "gone")]
    await table.begin_restore(UNFINISHED)
    await table.restore(
        RestoreChunk(
            flows=[snapshot(flow_row(n)) for n in (1, 2, 3)],
            steps=[step_snapshot(row) for row in older],
        )
    )
    await table.restore(
        RestoreChunk(steps=[step_snapshot(row) for row in steps], steps_gone=[(uuid(2), "gone")])
    )
    await table.end_restore(at(1))
    flows = await table.flows([uuid(n) for n in (1, 2, 3)])
    assert flows[uuid(1)].totals == StepTotals(5, 2, 4 + 4, 1)
    assert flows[uuid(2)].totals == StepTotals()
    assert flows[uuid(3)].totals == StepTotals(1, 1, 7, 0)
    assert await table.count_live() == (2, 1)
    assert (await table.live_steps([uuid(1)]))[uuid(1)] in (steps[:2], steps[1::-1])


async def test_the_steps_of_a_flow_that_is_deleted_go_with_it(table: FlowTable) -> None:
    row = flow_row(1)._replace(totals=StepTotals(10_000, 1, 4, 0))
    steps = [managed_row(1, f"r{n}", StepStatus.SUCCEEDED) for n in range(9_999)]
    await table.write(
        Changes(inserted=[row], steps=[*steps, managed_row(1, "live")]), before=None, after=at(1)
    )
    await table.write(Changes(deleted=[row]), before=at(1), after=at(2))
    assert await table.run_ids([uuid(1)]) == {uuid(1): []}
    assert await table.count_live() == (0, 0)


@pytest.mark.parametrize(
    ("sql", "keys"),
    [
        (statements.STEPS_DUE[statements.PENDING], (0, "", "", 1, 1)),
        (statements.STEPS_DUE[statements.RUNNING], (0, "", "", 1, 1)),
        (statements.COUNT_LIVE, ()),
        (next(statements.LIVE_STEPS.reading([("a",)]))[0], ("a",)),
    ],
)
def test_steps_are_found_by_their_indexes(sql: str, keys: tuple[object, ...]) -> None:
    with closing(sqlite3.connect(":memory:")) as db:
        db.executescript(SCHEMA)
        plan = [row[3] for row in db.execute(f"EXPLAIN QUERY PLAN {sql}", keys)]
    indexes = ("step_pending", "step_running", "step_live")
    looked_at = [line for line in plan if "step" in line]
    assert looked_at
    assert all(any(index in line for index in indexes) for line in looked_at), plan
