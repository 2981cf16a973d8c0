"""A large table is used at once and checked beside; what is damaged in it is still not believed."""

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from processor.adapters.sqlite import FlowTable, TableCorrupt
from processor.adapters.sqlite import integrity_check as checking
from processor.contract.flow import FlowStatus
from processor.contract.values import instant
from processor.engine.rows import Changes
from tests.support.machine import patience
from tests.unit.adapters.sqlite.tables import (
    NOON_MS,
    at,
    contents,
    flow_row,
    opened,
    put_back,
    uuid,
)

ENDLESS = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT count(*) FROM n"
WAIT = {"kind": "timer", "at": instant(NOON_MS)}


@pytest.fixture(autouse=True)
def every_file_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checking, "AT_ONCE_MAX_BYTES", 0)
    monkeypatch.setattr(checking, "BACKGROUND_AFTER_S", 0)


async def given_a_table(state_dir: Path) -> Path:
    async with opened(state_dir) as table:
        flows = [
            flow_row(n, goal="x" * 2000, status=FlowStatus.WAITING, wait_json=WAIT)
            for n in range(1, 200)
        ]
        await table.write(Changes(inserted=flows), before=None, after=at(1))
        return table.path


async def use(table: FlowTable) -> None:
    while True:
        await table.untouched()


async def is_found_out(state_dir: Path) -> None:
    """The table is used until it is distrusted; the next one starts empty."""
    async with opened(state_dir) as table:
        assert await table.checkpoint() == at(1)
        with pytest.raises(TableCorrupt, match="its check says"):
            await asyncio.wait_for(use(table), patience(30))
        for call in (
            table.checkpoint(),
            table.clear(),
            table.write(Changes(), before=at(1), after=at(2)),
        ):
            with pytest.raises(TableCorrupt):
                await call
    async with opened(state_dir) as table:
        assert await table.checkpoint() is None


@pytest.mark.parametrize("index", ["flow_id", "flow_due"])
async def test_a_lost_index_entry_is_found_while_the_table_is_used(
    tmp_path: Path, index: str
) -> None:
    path = await given_a_table(tmp_path)
    with closing(sqlite3.connect(path)) as db:
        sql = "SELECT rootpage FROM sqlite_master WHERE name = ?"
        (root,) = db.execute(sql, (index,)).fetchone()
    with path.open("r+b") as file:
        # An index without a single entry.
        file.seek(4096 * (root - 1))
        file.write(bytes([10, 0, 0, 0, 0, 0x10, 0, 0]))
    await is_found_out(tmp_path)


async def test_a_time_that_became_another_is_found_while_the_table_is_used(tmp_path: Path) -> None:
    path = await given_a_table(tmp_path)
    whole = path.read_bytes()
    # It stands in a row and in an index; either way they no longer agree.
    place = whole.rindex(NOON_MS.to_bytes(6, "big"))
    path.write_bytes(whole[:place] + (NOON_MS + 2**40).to_bytes(6, "big") + whole[place + 6 :])
    await is_found_out(tmp_path)


async def checked(table: FlowTable, verdicts: "asyncio.Queue[str]") -> None:
    assert await asyncio.wait_for(verdicts.get(), patience(30)) == checking.SOUND
    assert await table.untouched()


async def test_a_sound_table_is_checked_beside_its_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await given_a_table(tmp_path)
    verdicts: asyncio.Queue[str] = asyncio.Queue()
    ask = checking._verdict

    async def check(connection: sqlite3.Connection) -> str:
        verdicts.put_nowait(await ask(connection))
        return checking.SOUND

    monkeypatch.setattr(checking, "_verdict", check)
    async with opened(tmp_path) as table:
        await table.write(Changes(inserted=[flow_row(300)]), before=at(1), after=at(2))
        await checked(table, verdicts)
        await table.write(Changes(inserted=[flow_row(301)]), before=at(2), after=at(3))
    async with opened(tmp_path) as table:
        assert await table.checkpoint() == at(3)
        await checked(table, verdicts)
    assert list(contents(tmp_path)) == ["taskflow-0.db"]


async def test_a_table_closes_without_waiting_for_its_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await given_a_table(tmp_path)
    began = asyncio.Event()
    ask = checking._verdict

    async def check(connection: sqlite3.Connection) -> str:
        began.set()
        return await ask(connection)

    monkeypatch.setattr(checking, "_verdict", check)
    monkeypatch.setattr(checking, "CHECK", ENDLESS)
    async with asyncio.timeout(patience(30)):
        async with opened(tmp_path) as table:
            await began.wait()
            assert await table.checkpoint() == at(1)
    assert list(contents(tmp_path)) == ["taskflow-0.db"]


async def test_a_truncated_file_starts_empty(tmp_path: Path) -> None:
    path = await given_a_table(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    async with opened(tmp_path) as table:
        assert await table.checkpoint() is None


async def test_a_row_that_was_damaged_is_not_believed(tmp_path: Path) -> None:
    path = await given_a_table(tmp_path)
    path.write_bytes(path.read_bytes().replace(b"controller_id", b"kontroller_id", 1))
    async with opened(tmp_path) as table:
        with pytest.raises(TableCorrupt):
            await table.flows([uuid(n) for n in range(1, 200)])
    async with opened(tmp_path) as table:
        assert await table.checkpoint() is None


async def test_a_log_that_ends_in_the_middle_leaves_the_batches_before(tmp_path: Path) -> None:
    async with opened(tmp_path) as table:
        await table.write(Changes(inserted=[flow_row(1)]), before=None, after=at(1))
        before = contents(tmp_path)["taskflow-0.db-wal"]
        flows = [flow_row(n) for n in range(2, 100)]
        await table.write(Changes(inserted=flows), before=at(1), after=at(2))
        left = contents(tmp_path)
    log = left["taskflow-0.db-wal"]
    left["taskflow-0.db-wal"] = log[: (len(before) + len(log)) // 2]
    put_back(tmp_path, left)
    async with opened(tmp_path) as table:
        assert await table.checkpoint() == at(1)
        assert await table.count_flows() == 1
