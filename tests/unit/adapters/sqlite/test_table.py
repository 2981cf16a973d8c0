"""The local table writes a batch whole or not at all, and only on what it was decided on."""

import asyncio
import resource
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from processor.adapters.sqlite import (
    FlowTable,
    TableConflict,
    TableCorrupt,
    TableFailed,
    statements,
)
from processor.adapters.sqlite.files import SCHEMA
from processor.contract.outcomes import Code
from processor.engine.rows import Changes
from tests.unit.adapters.sqlite.tables import (
    NOON_MS,
    at,
    flow_row,
    foreign,
    later,
    ledger_entry,
    opened,
    step_row,
    uuid,
)


@pytest_asyncio.fixture
async def table(tmp_path: Path) -> AsyncIterator[FlowTable]:
    async with opened(tmp_path) as table:
        yield table


async def content(table: FlowTable) -> list[Any]:
    return [
        row
        for name in ("stored", "flow", "step", "ledger")
        for row in foreign(table, f"SELECT * FROM {name}")
    ]


async def refused(table: FlowTable, changes: Changes, *, position: int = 1) -> None:
    """Given a change that does not apply, nothing at all is written."""
    was = await content(table)
    with pytest.raises(TableConflict):
        await table.write(changes, before=at(position), after=at(position + 1))
    assert await content(table) == was


async def test_what_is_written_comes_back(table: FlowTable) -> None:
    flows = [flow_row(n, revision=n % 3) for n in range(1, 700)]
    steps = [step_row(1, "run"), step_row(1, "r\x1e\x1f\x00ü"), step_row(2, "run")]
    ledger_entries = [
        ledger_entry(1),
        ledger_entry(2, code=Code.REVISION_MISMATCH, expected=1, actual=2),
        ledger_entry(3, attempt=1, due_at="2026-05-28T20:31:43.000Z"),
    ]

    await table.write(
        Changes(inserted=flows, steps=steps, ledger_entries=ledger_entries),
        before=None,
        after=at(1),
    )

    assert await table.checkpoint() == at(1)
    assert await table.flows([uuid(n) for n in range(1200)]) == {f.flow.id: f for f in flows}
    keys = [(row.step.flow_id, row.step.run_id) for row in steps]
    assert await table.steps([*keys, (uuid(9), "run")]) == dict(zip(keys, steps, strict=True))
    assert await table.run_ids([uuid(1), uuid(3)]) == {
        uuid(1): ["r\x1e\x1f\x00ü", "run"],
        uuid(3): [],
    }
    found = await table.ledger_entries([n.to_bytes(16, "big") for n in range(100)])
    assert found == {row.key: row for row in ledger_entries}
    assert await table.next_row_number() == 700
    assert await table.count_flows() == 699
    assert table.size_bytes() > 0


async def test_an_empty_table_remembers_nothing(table: FlowTable) -> None:
    assert await table.checkpoint() is None
    assert await table.flows([]) == {}
    assert await table.next_row_number() == 1


@pytest.mark.parametrize("before", [None, at(0), at(2)])
async def test_a_batch_on_another_position_is_refused(table: FlowTable, before: Any) -> None:
    await table.write(Changes(), before=None, after=at(1))
    with pytest.raises(TableConflict):
        await table.write(Changes(inserted=[flow_row(1)]), before=before, after=at(3))
    assert await table.checkpoint() == at(1)
    assert await table.flows([uuid(1)]) == {}


async def test_an_empty_table_has_no_position_to_build_on(table: FlowTable) -> None:
    with pytest.raises(TableConflict):
        await table.write(Changes(), before=at(1), after=at(2))
    assert await table.checkpoint() is None


@pytest.mark.parametrize("count", [1, 2, 8, 30, 64, 65, 512, 700])
async def test_updates_name_what_they_were_decided_on(table: FlowTable, count: int) -> None:
    rows = [flow_row(n) for n in range(1, count + 1)]
    await table.write(Changes(inserted=rows), before=None, after=at(1))
    newer = [later(row, current_step="second") for row in rows]

    stale = flow_row(count, revision=7)
    mixed = [*zip(rows[:-1], newer[:-1], strict=True), (stale, later(stale))]
    await refused(table, Changes(updated=mixed))

    await table.write(
        Changes(updated=list(zip(rows, newer, strict=True))), before=at(1), after=at(2)
    )
    assert list((await table.flows([row.flow.id for row in rows])).values()) == newer


@pytest.mark.parametrize(
    "was",
    [
        flow_row(1, revision=1, event=100),
        flow_row(1, event=101),
        flow_row(1, event=100, id=uuid(5)),
        flow_row(2, event=100, id=uuid(1)),
    ],
    ids=["revision", "event", "id", "number"],
)
async def test_a_row_that_is_another_is_neither_changed_nor_deleted(
    table: FlowTable, was: Any
) -> None:
    await table.write(Changes(inserted=[flow_row(1)]), before=None, after=at(1))
    await refused(table, Changes(updated=[(was, later(flow_row(1)))]))
    await refused(table, Changes(deleted=[was]))


async def test_an_existing_flow_is_not_inserted_again(table: FlowTable) -> None:
    await table.write(Changes(inserted=[flow_row(1)]), before=None, after=at(1))
    await refused(table, Changes(inserted=[flow_row(2), flow_row(3, id=uuid(1))]))
    await refused(table, Changes(inserted=[flow_row(1, id=uuid(2))]))


async def test_a_flow_goes_with_its_steps_and_its_id_can_come_back(table: FlowTable) -> None:
    old, other = flow_row(1, revision=4), flow_row(2)
    steps = [step_row(1, "a"), step_row(1, "b"), step_row(2, "a")]
    await table.write(Changes(inserted=[old, other], steps=steps), before=None, after=at(1))

    new = flow_row(3, id=uuid(1))
    await table.write(
        Changes(deleted=[old], inserted=[new], steps=[step_row(1, "c")]), before=at(1), after=at(2)
    )

    assert await table.flows([uuid(1), uuid(2)]) == {uuid(1): new, uuid(2): other}
    assert await table.run_ids([uuid(1), uuid(2)]) == {uuid(1): ["c"], uuid(2): ["a"]}


async def test_a_step_seen_again_replaces_the_older(table: FlowTable) -> None:
    newer = step_row(1, "run", at_ms=NOON_MS + 1)
    await table.write(Changes(steps=[step_row(1, "run")]), before=None, after=at(1))
    await table.write(Changes(steps=[newer, step_row(1, "next")]), before=at(1), after=at(2))
    assert (await table.steps([(uuid(1), "run")])) == {(uuid(1), "run"): newer}
    assert await table.run_ids([uuid(1)]) == {uuid(1): ["next", "run"]}


async def test_another_hand_is_seen_before_and_during_a_write(table: FlowTable) -> None:
    await table.write(Changes(inserted=[flow_row(1)]), before=None, after=at(1))
    foreign(table, "SELECT count(*) FROM flow")
    foreign(table, "PRAGMA wal_checkpoint(PASSIVE)")
    assert await table.untouched()

    foreign(table, "UPDATE flow SET owner = 'mallory'")

    assert not await table.untouched()
    await refused(table, Changes(inserted=[flow_row(2)]))
    assert not await table.untouched()

    await table.clear()
    assert await table.untouched()
    await table.write(Changes(inserted=[flow_row(2)]), before=None, after=at(1))
    assert await table.untouched()


async def test_own_commits_and_checkpoints_are_no_other_hand(table: FlowTable) -> None:
    # Enough for the log to be written back several times.
    for position in range(20):
        flows = [flow_row(position * 500 + n, goal="x" * 1000) for n in range(1, 501)]
        await table.write(
            Changes(inserted=flows),
            before=at(position - 1) if position else None,
            after=at(position),
        )
        assert await table.untouched()


@pytest.mark.parametrize(
    "edit",
    [
        "doc = replace(doc, 'owner\"', 'other\"')",
        "doc = ''",
        "doc = doc || char(30)",
        "revision = revision + 1",
        "last_event_id = last_event_id + 1",
        "chain = zeroblob(16)",
        "id = '00000000-0000-0000-0000-00000000000f'",
        "crc = crc + 1",
    ],
)
async def test_an_edited_flow_is_not_believed(tmp_path: Path, edit: str) -> None:
    async with opened(tmp_path) as table:
        changes = Changes(inserted=[flow_row(1, revision=1), flow_row(2)])
        await table.write(changes, before=None, after=at(1))
        foreign(table, f"UPDATE flow SET {edit} WHERE n = 1")
        with pytest.raises(TableCorrupt):
            await table.flows([uuid(1), uuid(15)])
    async with opened(tmp_path) as table:
        assert await table.checkpoint() is None


async def test_an_edited_step_or_answer_is_not_believed(table: FlowTable) -> None:
    changes = Changes(steps=[step_row(1, "run")], ledger_entries=[ledger_entry(1)])
    await table.write(changes, before=None, after=at(1))
    foreign(table, "UPDATE step SET doc = replace(doc, 'task\"', 'tusk\"')")
    foreign(table, "UPDATE ledger SET details = '[\"nonsense\",{}]'")
    with pytest.raises(TableCorrupt):
        await table.steps([(uuid(1), "run")])
    with pytest.raises(TableCorrupt):
        await table.ledger_entries([ledger_entry(1).key])


async def test_a_cancelled_write_is_finished_before_the_next_call(table: FlowTable) -> None:
    flows = [flow_row(n) for n in range(1, 3000)]
    writing = asyncio.create_task(table.write(Changes(inserted=flows), before=None, after=at(1)))
    await asyncio.sleep(0)
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing

    assert await table.checkpoint() == at(1)
    assert await table.count_flows() == len(flows)
    await table.write(Changes(inserted=[flow_row(3000)]), before=at(1), after=at(2))


@pytest.mark.parametrize("steps", range(1, 12))
async def test_a_write_killed_by_a_closing_loop_leaves_no_open_transaction(
    table: FlowTable, steps: int
) -> None:
    await table.write(Changes(), before=None, after=at(1))
    bystanders = asyncio.all_tasks()
    flows = [flow_row(n) for n in range(1, 1500)]
    writing = asyncio.create_task(table.write(Changes(inserted=flows), before=at(1), after=at(2)))
    for _ in range(steps):
        await asyncio.sleep(0.0005)
    for task in asyncio.all_tasks() - bystanders:
        task.cancel()
    await asyncio.gather(writing, return_exceptions=True)

    checkpoint = await table.checkpoint()
    assert await table.count_flows() == (len(flows) if checkpoint == at(2) else 0)
    await table.write(Changes(inserted=[flow_row(2000)]), before=checkpoint, after=at(3))
    assert await table.untouched()


async def test_calls_take_turns(table: FlowTable) -> None:
    flows = [flow_row(n) for n in range(1, 1000)]
    _, found = await asyncio.gather(
        table.write(Changes(inserted=flows), before=None, after=at(1)),
        table.flows([row.flow.id for row in flows]),
    )
    assert len(found) in {0, len(flows)}


@contextmanager
def full_disk(size_bytes: int) -> Iterator[None]:
    """No file of this process grows beyond `size_bytes`."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


async def test_a_full_disk_fails_the_batch_and_nothing_of_it_is_there(table: FlowTable) -> None:
    before = flow_row(1)
    await table.write(Changes(inserted=[before]), before=None, after=at(1))
    was = await content(table)
    big = Changes(
        updated=[(before, later(before))],
        # More than the cache holds, so that it spills before the commit.
        inserted=[flow_row(n, state_json="x" * 200_000) for n in range(2, 80)],
        ledger_entries=[ledger_entry(n) for n in range(1000)],
    )

    with full_disk(table.size_bytes() + 100_000), pytest.raises(TableFailed) as failure:
        await table.write(big, before=at(1), after=at(2))

    assert isinstance(failure.value.__cause__, sqlite3.Error)
    assert failure.value.retriable
    assert await content(table) == was
    assert await table.untouched()
    await table.write(big, before=at(1), after=at(2))
    assert await table.checkpoint() == at(2)


async def test_a_locked_file_fails_the_batch(table: FlowTable) -> None:
    with closing(sqlite3.connect(table.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(TableFailed):
            await table.write(Changes(inserted=[flow_row(1)]), before=None, after=at(1))
        other.execute("ROLLBACK")
    await table.write(Changes(inserted=[flow_row(1)]), before=None, after=at(1))


async def test_clear_leaves_nothing(table: FlowTable) -> None:
    changes = Changes(
        inserted=[flow_row(1)], steps=[step_row(1, "a")], ledger_entries=[ledger_entry(1)]
    )
    await table.write(changes, before=None, after=at(1))
    await table.clear()
    assert await content(table) == []
    await table.write(changes, before=None, after=at(1))


@pytest.mark.parametrize(
    "name", [name for name, rows in vars(statements).items() if isinstance(rows, statements.Rows)]
)
def test_no_statement_scans_a_table(name: str) -> None:
    rows: statements.Rows = getattr(statements, name)
    with closing(sqlite3.connect(":memory:")) as db:
        db.executescript(SCHEMA)
        for size in statements.SIZES:
            ((sql, parameters, _),) = rows.writing([None] * rows.width * size)
            plan = [row[3] for row in db.execute(f"EXPLAIN QUERY PLAN {sql}", parameters)]
            assert not {f"SCAN {table}" for table in ("flow", "step", "ledger")} & set(plan), plan


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 8, 9, 31, 32, 63, 64, 65, 255, 256, 511, 5000])
def test_chunks_hold_every_row_once_and_are_at_least_half_full(count: int) -> None:
    rows = statements.Rows("VALUES :rows", 1)
    written = list(rows.writing(range(count)))
    assert sum(held for _, _, held in written) == count
    assert [n for _, values, _ in written for n in values if n is not None] == list(range(count))
    assert all(len(values) in statements.SIZES for _, values, _ in written)
    assert all(2 * held >= len(values) for _, values, held in written)
