"""A file that is not this partition's table is thrown away; the table then starts empty."""

import asyncio
import sqlite3
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from processor.adapters.sqlite import FlowTable, TableFailed, bulk_load, table_path
from processor.adapters.sqlite.files import CACHE_KIB, FORMAT, SCHEMA
from processor.engine.rows import Changes, Checkpoint, RestoreChunk
from tests.unit.adapters.sqlite.tables import (
    at,
    contents,
    flow_row,
    opened,
    put_back,
    snapshot,
    uuid,
)


async def given_a_table(state_dir: Path) -> Path:
    async with opened(state_dir) as table:
        flows = [flow_row(n, goal="x" * 2000) for n in range(1, 200)]
        await table.write(Changes(inserted=flows), before=None, after=at(1))
        return table.path


def edit(path: Path, sql: str) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute(sql)


async def starts_empty(state_dir: Path, because: str, **identity: Any) -> None:
    with capture_logs() as logs:
        async with opened(state_dir, **identity) as table:
            assert await table.checkpoint() is None
            assert await table.count_flows() == 0
            await table.write(Changes(inserted=[flow_row(1)]), before=None, after=at(1))
    (logged,) = logs
    assert logged["log_level"] == "warning"
    assert because in logged["reason"]
    async with opened(state_dir, **identity) as table:
        assert await table.checkpoint() == at(1)


async def test_a_table_keeps_what_was_written(tmp_path: Path) -> None:
    await given_a_table(tmp_path / "made" / "deep")
    with capture_logs() as logs:
        async with opened(tmp_path / "made" / "deep") as table:
            assert await table.checkpoint() == at(1)
            assert await table.count_flows() == 199
    assert logs == []
    assert list(contents(tmp_path / "made" / "deep")) == ["taskflow-0.db"]


@pytest.mark.parametrize("identity", [{"partition": 1}, {"prefix": "other"}, {"partitions": 8}])
async def test_the_table_of_another_partition_starts_empty(
    tmp_path: Path, identity: dict[str, Any]
) -> None:
    await given_a_table(tmp_path)
    await starts_empty(tmp_path, "it belongs to 'taskflow', partition 0 of 4", **identity)


@pytest.mark.parametrize("version", [1, 99])
async def test_another_format_starts_empty(tmp_path: Path, version: int) -> None:
    edit(await given_a_table(tmp_path), f"PRAGMA user_version = {version}")
    await starts_empty(tmp_path, f"it is of format {version}, not {FORMAT}")


async def test_another_program_s_database_starts_empty(tmp_path: Path) -> None:
    path = table_path(tmp_path, "taskflow", 0)
    edit(path, "CREATE TABLE mine (x)")
    await starts_empty(tmp_path, "it is of format 0")
    path.unlink()
    edit(path, "CREATE TABLE mine (x)")
    edit(path, f"PRAGMA user_version = {FORMAT}")
    await starts_empty(tmp_path, "no such table")


@pytest.mark.parametrize("content", [b"not a database" * 1000, b"x" * 10])
async def test_what_is_no_database_starts_empty(tmp_path: Path, content: bytes) -> None:
    table_path(tmp_path, "taskflow", 0).write_bytes(content)
    await starts_empty(tmp_path, "not a database")


async def test_a_damaged_page_starts_empty(tmp_path: Path) -> None:
    path = await given_a_table(tmp_path)
    with path.open("r+b") as file:
        file.seek(4096 * 20)
        file.write(b"\xff" * 4096)
    await starts_empty(tmp_path, "")


async def test_a_lost_index_entry_starts_empty(tmp_path: Path) -> None:
    # The flow would be taken for one that does not exist.
    path = await given_a_table(tmp_path)
    with closing(sqlite3.connect(path)) as db:
        (root,) = db.execute("SELECT rootpage FROM sqlite_master WHERE name = 'flow_id'").fetchone()
    with path.open("r+b") as file:
        # An index without a single entry.
        file.seek(4096 * (root - 1))
        file.write(bytes([10, 0, 0, 0, 0, 0x10, 0, 0]))
    await starts_empty(tmp_path, "")


async def test_a_path_that_cannot_be_used_is_told_and_kept(tmp_path: Path) -> None:
    table_path(tmp_path, "taskflow", 0).mkdir()
    with pytest.raises(TableFailed):
        async with opened(tmp_path):
            pass
    assert table_path(tmp_path, "taskflow", 0).is_dir()


async def test_a_locked_file_is_told_and_kept(tmp_path: Path) -> None:
    path = await given_a_table(tmp_path)
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA locking_mode = EXCLUSIVE")
        db.execute("BEGIN EXCLUSIVE")
        with pytest.raises(TableFailed):
            async with opened(tmp_path):
                pass
    async with opened(tmp_path) as table:
        assert await table.checkpoint() == at(1)


async def test_a_killed_worker_s_table_is_whole(tmp_path: Path) -> None:
    async with opened(tmp_path) as table:
        await table.write(Changes(inserted=[flow_row(1)]), before=None, after=at(1))
        left = contents(tmp_path)
    put_back(tmp_path, left)
    async with opened(tmp_path) as table:
        assert await table.checkpoint() == at(1)
        assert await table.count_flows() == 1


async def test_a_table_that_was_filled_is_whole_and_durable_and_what_it_always_was(
    tmp_path: Path,
) -> None:
    path = await given_a_table(tmp_path)
    flows = [flow_row(n, goal="x" * 2000) for n in range(200, 900)]
    flows[300] = flow_row(500, owner_session_key="a\0 é")
    async with opened(tmp_path) as table:
        await table.begin_restore(at(0))
        await table.restore(RestoreChunk(flows=list(map(snapshot, flows))))
        await table.restore(
            RestoreChunk(flows=list(map(snapshot, flows[:50])), flows_gone=[uuid(899)])
        )
        with closing(sqlite3.connect(path)) as db:
            assert (
                db.execute("SELECT name FROM sqlite_master WHERE type = 'index'").fetchall() == []
            )
        await table.end_restore(at(3))
        assert await pragma(table, "synchronous") == 1
        assert await pragma(table, "temp_store") == 2
        assert await pragma(table, "cache_size") == -CACHE_KIB, "and not the one that filled it"
    with closing(sqlite3.connect(path)) as db, closing(sqlite3.connect(":memory:")) as new:
        new.executescript(SCHEMA)
        schema = "SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY name"
        assert db.execute(schema).fetchall() == new.execute(schema).fetchall()
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        owners = db.execute("SELECT DISTINCT owner, status, revision FROM flow").fetchall()
        assert sorted(owners) == [("a\0 é", "running", 0), ("owner", "running", 0)]
    async with opened(tmp_path) as table:
        assert await table.count_flows() == 699
        assert len(await table.flows([row.flow.id for row in flows])) == 699, "each has its CRC"


async def test_who_reads_the_old_rows_keeps_nobody_from_filling_new_ones(tmp_path: Path) -> None:
    path = await given_a_table(tmp_path)
    async with opened(tmp_path) as table:
        await table._connection.execute("PRAGMA busy_timeout = 1")
        with closing(sqlite3.connect(path, isolation_level=None)) as reader:
            reader.execute("BEGIN")
            assert reader.execute("SELECT count(*) FROM flow").fetchone() == (199,)
            await table.begin_restore(at(0))
            assert await pragma(table, "synchronous") == 1, "the disk is waited for, then"
            await table.restore(RestoreChunk(flows=[snapshot(flow_row(1))]))
            await table.end_restore(at(3))
            assert reader.execute("SELECT count(*) FROM flow").fetchone() == (199,)
        assert await table.count_flows() == 1


async def test_a_filling_that_cannot_be_made_durable_fails_and_stays_unfinished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk_load, "CHECKPOINT_TRIES", 2)
    path = await given_a_table(tmp_path)
    async with opened(tmp_path) as table:
        await table._connection.execute("PRAGMA busy_timeout = 1")
        await table.begin_restore(at(0))
        await table.restore(RestoreChunk(flows=[snapshot(flow_row(1))]))
        with closing(sqlite3.connect(path, isolation_level=None)) as reader:
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM flow").fetchone()
            with pytest.raises(TableFailed, match="a reader holds the table"):
                await table.end_restore(at(3))
        assert await table.checkpoint() == at(0)


async def test_a_filling_that_nobody_waits_for_ends_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = threading.Event()

    def for_ever(db: sqlite3.Connection, after: Checkpoint) -> None:
        # Told from within the statement: an interruption before it begins would not end it.
        db.create_function("begun", 0, begun.set)
        db.execute(
            "WITH RECURSIVE n AS (SELECT begun() UNION ALL SELECT 1 FROM n) SELECT max(1) FROM n"
        )

    monkeypatch.setattr(bulk_load, "finish", for_ever)
    await given_a_table(tmp_path)
    async with opened(tmp_path) as table:
        await table.begin_restore(at(0))
        ending = asyncio.create_task(table.end_restore(at(3)))
        await asyncio.to_thread(begun.wait)
        ending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await ending
        assert await table.checkpoint() == at(0)


async def pragma(table: FlowTable, name: str) -> Any:
    ((value,),) = await table._connection.execute_fetchall(f"PRAGMA {name}")
    return value
