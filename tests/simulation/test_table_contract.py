"""The table in memory and the one in SQLite, held to the same scenarios: what one refuses or
answers, so does the other."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from pathlib import Path
from random import Random
from typing import Any, Final

import pytest

from processor.adapters.sqlite.errors import TableConflict
from processor.contract.flow import FlowStatus
from processor.contract.steps import StepStatus
from processor.contract.values import instant
from processor.engine.ports import Table
from processor.engine.rows import (
    Changes,
    Checkpoint,
    Deadline,
    FlowRow,
    LedgerEntry,
    Position,
    RestoreChunk,
    StepDue,
    StepRow,
)
from tests.simulation.ports import Calm
from tests.simulation.tables import DiskFile, open_table
from tests.unit.adapters.sqlite.tables import (
    NOON_MS,
    at,
    flow_row,
    later,
    ledger_entry,
    managed_row,
    opened,
    snapshot,
    step_row,
    step_snapshot,
    uuid,
)

Open = Callable[[], AbstractAsyncContextManager[Any]]

FAR_MS: Final = NOON_MS + 10_000
FORGOTTEN_MS = 60
"""Answers that are older may be gone or not, as each table finds it convenient."""
STATUSES: Final = (FlowStatus.RUNNING, FlowStatus.WAITING, FlowStatus.FINISHED)
UNFINISHED: Final = Checkpoint(Position(0, 0, 1), -1, -1, 0)
WAITS: Final = (
    {"kind": "timer", "at": instant(NOON_MS + 5)},
    {"kind": "manual"},
    {"kind": "manual", "timeout_at": instant(NOON_MS + 9)},
)


def in_memory() -> Open:
    disk: dict[int, DiskFile] = {}
    return lambda: open_table(disk, 0, Calm())


@pytest.fixture(params=["in memory", "in SQLite"])
def open_it(request: pytest.FixtureRequest, tmp_path: Path) -> Open:
    return in_memory() if request.param == "in memory" else lambda: opened(tmp_path)


@asynccontextmanager
async def holding(open_it: Open, *rows: FlowRow) -> AsyncIterator[Table]:
    async with open_it() as table:
        await table.write(Changes(inserted=list(rows)), before=None, after=at(1))
        yield table


async def refuses(table: Table, changes: Changes, *, before: Checkpoint | None) -> None:
    """A write that is refused leaves nothing behind."""
    was = await everything(table)
    with pytest.raises(TableConflict):
        await table.write(changes, before=before, after=at(9))
    assert await everything(table) == was


async def ledger_entries(table: Table) -> dict[bytes, LedgerEntry]:
    """The answers that no write of these tests lets go of."""
    found = await table.ledger_entries([number.to_bytes(16, "big") for number in range(10)])
    return {key: entry for key, entry in found.items() if entry.at_ms >= FORGOTTEN_MS}


async def everything(table: Table) -> tuple[Any, ...]:
    """All that can be asked of a table of the flows and answers 1 to 9."""
    ids = [uuid(number) for number in range(10)]
    return (
        await table.checkpoint(),
        await table.next_row_number(),
        await table.count_flows(),
        await table.flows(ids),
        await table.steps([(flow_id, run) for flow_id in ids for run in "rs"]),
        await table.run_ids(ids),
        await ledger_entries(table),
        await table.due(None, NOON_MS + 100, 100),
        await table.due(Deadline(NOON_MS + 5, uuid(3)), NOON_MS + 9, 2),
        await table.armed(),
        {
            flow_id: sorted(rows, key=lambda row: row.step.run_id)
            for flow_id, rows in (await table.live_steps(ids)).items()
        },
        await table.count_live(),
        await table.steps_due(StepStatus.PENDING, None, NOON_MS + 50, 100),
        await table.steps_due(StepStatus.PENDING, StepDue(NOON_MS + 9, uuid(3), "r"), FAR_MS, 2),
        await table.steps_due(StepStatus.RUNNING, None, FAR_MS, 100),
        await table.ended(None, NOON_MS + 100, 100),
        await table.ended(Deadline(NOON_MS, uuid(2)), NOON_MS + 3, 1),
        await table.untouched(),
    )


async def test_a_new_table_is_empty(open_it: Open) -> None:
    async with open_it() as table:
        checkpoint, number, count, flows, *_ = await everything(table)
        assert (checkpoint, number, count, flows) == (None, 1, 0, {})


async def test_what_was_written_is_there_after_it_was_closed(open_it: Open) -> None:
    async with holding(open_it, flow_row(1), flow_row(2)) as table:
        was = await everything(table)
    async with open_it() as table:
        assert await everything(table) == was
        assert await table.checkpoint() == at(1)


@pytest.mark.parametrize("before", [None, at(2)])
async def test_a_write_onto_another_position_is_refused(
    open_it: Open, before: Checkpoint | None
) -> None:
    async with holding(open_it, flow_row(1)) as table:
        await refuses(table, Changes(inserted=[flow_row(2)]), before=before)


async def test_a_first_write_is_refused_where_a_position_is_expected(open_it: Open) -> None:
    async with open_it() as table:
        await refuses(table, Changes(), before=at(1))


@pytest.mark.parametrize(
    "was",
    [
        flow_row(1, revision=1),
        flow_row(1, event=7),
        flow_row(2),
        flow_row(3)._replace(row_number=1),
    ],
)
async def test_a_flow_that_is_not_as_it_was_decided_on_is_neither_changed_nor_deleted(
    open_it: Open, was: FlowRow
) -> None:
    async with holding(open_it, flow_row(1)) as table:
        await refuses(table, Changes(updated=[(was, later(was))]), before=at(1))
        await refuses(table, Changes(deleted=[was]), before=at(1))


@pytest.mark.parametrize(
    "row", [flow_row(1), flow_row(1)._replace(row_number=2), flow_row(2)._replace(row_number=1)]
)
async def test_an_id_or_a_number_that_is_there_is_not_inserted_again(
    open_it: Open, row: FlowRow
) -> None:
    async with holding(open_it, flow_row(1)) as table:
        await refuses(table, Changes(inserted=[row]), before=at(1))


async def test_a_refusal_undoes_what_was_done_before_it(open_it: Open) -> None:
    async with holding(open_it, flow_row(1), flow_row(2)) as table:
        changes = Changes(
            deleted=[flow_row(1)],
            inserted=[flow_row(3)],
            steps=[step_row(2, "r")],
            ledger_entries=[ledger_entry(1)],
        )
        changes.inserted.append(flow_row(2))
        await refuses(table, changes, before=at(1))


async def test_a_flow_may_go_and_come_again_in_one_write(open_it: Open) -> None:
    async with holding(open_it, flow_row(1)) as table:
        await table.write(Changes(steps=[step_row(1, "r")]), before=at(1), after=at(2))
        changes = Changes(
            deleted=[flow_row(1)], inserted=[flow_row(1, event=9)._replace(row_number=2)]
        )
        await table.write(changes, before=at(2), after=at(3))

        assert (await table.flows([uuid(1)]))[uuid(1)].last_event_id == 9
        assert await table.run_ids([uuid(1)]) == {uuid(1): []}


async def test_clearing_leaves_nothing(open_it: Open) -> None:
    async with holding(open_it, flow_row(1)) as table:
        await table.clear()
        assert await table.checkpoint() is None
        assert await table.count_flows() == 0


async def test_a_newer_answer_takes_the_place_of_an_older_and_old_ones_may_be_forgotten(
    open_it: Open,
) -> None:
    async with holding(open_it) as table:
        for offset, (number, at_ms) in enumerate([(1, 10), (2, -1), (1, 30), (3, 25)], start=1):
            entries = [ledger_entry(number, at_ms=FORGOTTEN_MS + at_ms)]
            changes = Changes(ledger_entries=entries, forget_before_ms=FORGOTTEN_MS)
            await table.write(changes, before=at(offset), after=at(offset + 1))
        found = await ledger_entries(table)
        assert sorted(one.at_ms - FORGOTTEN_MS for one in found.values()) == [25, 30]


@pytest.mark.parametrize("seed", range(12))
async def test_both_answer_alike_whatever_is_written(tmp_path: Path, seed: int) -> None:
    rng = Random(seed)
    async with in_memory()() as model, opened(tmp_path) as real:
        checkpoint: Checkpoint | None = None
        for turn in range(1, 25):
            changes = drawn(rng, await everything(real))
            before = checkpoint if rng.random() < 0.95 else at(99)
            refused = []
            for table in (model, real):
                try:
                    await table.write(changes, before=before, after=at(turn))
                except TableConflict:
                    refused.append(table)
            assert len(refused) in (0, 2), f"one refuses {changes}"
            checkpoint = checkpoint if refused else at(turn)
            assert await everything(model) == await everything(real)


@pytest.mark.parametrize("seed", range(6))
async def test_both_are_filled_alike(tmp_path: Path, seed: int) -> None:
    rng = Random(seed)
    async with in_memory()() as model, opened(tmp_path) as real:
        for table in (model, real):
            await table.write(Changes(inserted=[flow_row(9)]), before=None, after=at(1))
            await table.begin_restore(UNFINISHED)
        for _ in range(rng.randrange(6)):
            part = chunk(rng)
            for table in (model, real):
                await table.restore(part)
        for table in (model, real):
            await table.end_restore(at(7))
        assert await everything(model) == await everything(real)
        assert await real.checkpoint() == at(7)
        for turn in range(8, 12):
            changes = drawn(rng, await everything(real))
            for table in (model, real):
                with suppress(TableConflict):
                    await table.write(changes, before=await table.checkpoint(), after=at(turn))
            assert await everything(model) == await everything(real)


@pytest.mark.parametrize("restored", [0, 1])
async def test_a_filling_that_was_cut_short_is_unfinished_and_may_be_begun_again(
    open_it: Open, restored: int
) -> None:
    async with holding(open_it, flow_row(1), flow_row(2)) as table:
        await table.begin_restore(UNFINISHED)
        for number in range(restored):
            await table.restore(RestoreChunk(flows=[snapshot(flow_row(number + 3))]))
    async with open_it() as table:
        assert await table.checkpoint() == UNFINISHED
        await table.begin_restore(UNFINISHED)
        await table.restore(RestoreChunk(flows=[snapshot(flow_row(5))]))
        await table.end_restore(at(2))
        assert set(await table.flows([uuid(n) for n in range(9)])) == {uuid(5)}
    async with open_it() as table:
        await table.clear()
        await table.write(Changes(inserted=[flow_row(1)]), before=None, after=at(1))
        changes = Changes(inserted=[flow_row(1)._replace(row_number=2)])
        with pytest.raises(TableConflict):
            await table.write(changes, before=at(1), after=at(2))


def chunk(rng: Random) -> RestoreChunk:
    """Some of nine flows and their steps, each once."""
    part = RestoreChunk()
    for number in rng.sample(range(1, 10), rng.randrange(9)):
        status = rng.choice(STATUSES)
        wait = rng.choice(WAITS) if status is FlowStatus.WAITING else None
        row = flow_row(
            number,
            revision=rng.randrange(5),
            status=status,
            wait_json=wait,
            owner_session_key=rng.choice(("kate", "\0 é 😀", '"\x1f\\u0041')),
        )
        if rng.random() < 0.3:
            part.flows_gone.append(uuid(number))
        else:
            part.flows.append(snapshot(row))
        if rng.random() < 0.3:
            part.steps_gone.append((uuid(number), "r"))
        else:
            part.steps.append(step_snapshot(any_step(rng, number, "r")))
    part.ledger_entries = [
        ledger_entry(n, at_ms=rng.randrange(99)) for n in rng.sample(range(10), 3)
    ]
    return part


def any_step(rng: Random, flow: int, run: str) -> StepRow:
    at_ms = NOON_MS + rng.randrange(9)
    if rng.random() < 0.3:
        return step_row(flow, run, at_ms=at_ms)
    status, text = rng.choice(list(StepStatus)), "x" * rng.randrange(5)
    due_ms = NOON_MS + rng.randrange(99)
    return managed_row(flow, run, status, due_ms=due_ms, at_ms=at_ms, input_json=text)


def drawn(rng: Random, holds: tuple[Any, ...]) -> Changes:
    """Changes that mostly fit what a table holds."""
    changes = Changes()
    number = holds[1]
    rows: list[FlowRow] = list(holds[3].values())
    for row in rows:
        match rng.randrange(8):
            case 0:
                changes.deleted.append(row)
            case 1 | 2 | 3:
                status = rng.choice(STATUSES)
                wait = rng.choice(WAITS) if status is FlowStatus.WAITING else None
                after = flow_row(
                    int(row.flow.id.replace("-", ""), 16),
                    revision=row.flow.revision + 1,
                    status=status,
                    wait_json=wait,
                    cancel_requested=rng.random() < 0.2,
                )
                after = after._replace(row_number=row.row_number)
                was = row if rng.random() < 0.97 else row._replace(last_event_id=5)
                changes.updated.append((was, after))
    for _ in range(rng.randrange(3)):
        changes.inserted.append(flow_row(rng.randrange(1, 9))._replace(row_number=number))
        number += 1
    for _ in range(rng.randrange(3)):
        flow, run = rng.randrange(1, 9), rng.choice("rs")
        if rng.random() < 0.3:
            changes.deleted_steps.append((uuid(flow), run))
        else:
            changes.steps.append(any_step(rng, flow, run))
    for key in rng.sample(range(10), rng.randrange(3)):
        changes.ledger_entries.append(ledger_entry(key, at_ms=rng.randrange(100)))
    if rng.random() < 0.3:
        changes.forget_before_ms = rng.randrange(FORGOTTEN_MS)
    return changes
