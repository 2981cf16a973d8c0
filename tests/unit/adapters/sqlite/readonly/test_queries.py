"""Looking at the tables shows what a worker has written, and changes nothing."""

import re
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from processor.adapters.sqlite import TableCorrupt, TableFailed, open_table, table_path
from processor.adapters.sqlite.files import SCHEMA
from processor.adapters.sqlite.readonly import queries as queries
from processor.contract.flow import FlowStatus
from processor.contract.values import instant
from processor.engine.rows import Changes, FlowRow
from tests.unit.adapters.sqlite.tables import (
    NOON_MS,
    at,
    contents,
    flow_row,
    opened,
    put_back,
    step_row,
    uuid,
)


def listing(state_dir: Path) -> list[tuple[str, int, int]]:
    stats = [(path, path.stat()) for path in sorted(state_dir.iterdir())]
    return [(path.name, stat.st_size, stat.st_mtime_ns) for path, stat in stats]


async def given(state_dir: Path, partition: int, *flows: FlowRow) -> None:
    path = table_path(state_dir, "taskflow", partition)
    async with open_table(path, partition=partition, prefix="taskflow", partitions=2) as table:
        await table.write(Changes(inserted=list(flows)), before=None, after=at(1))


def test_only_the_tables_of_the_prefix_are_found(tmp_path: Path) -> None:
    for name in ("t-10.db", "t-9.db", "t-1-2.db", "t-1.db-wal", "tt-1.db", "t-x.db"):
        (tmp_path / name).touch()
    assert queries.tables(tmp_path, "t") == {9: tmp_path / "t-9.db", 10: tmp_path / "t-10.db"}
    assert list(queries.tables(tmp_path, "t-1").values()) == [tmp_path / "t-1-2.db"]
    assert queries.tables(tmp_path / "missing", "t") == {}


async def test_the_newest_change_comes_first_over_all_partitions(tmp_path: Path) -> None:
    def row(number: int, minute: int, **values: Any) -> FlowRow:
        return flow_row(number, updated_at=instant(NOON_MS + 60_000 * minute), **values)

    await given(tmp_path, 0, row(4, 1), row(1, 3), row(2, 2, owner_session_key="other"))
    await given(tmp_path, 1, row(3, 1), row(5, 4, status=FlowStatus.FINISHED))
    paths = queries.tables(tmp_path, "taskflow").values()

    def ids(**wanted: Any) -> list[str]:
        return [flow.id for flow in queries.list_flows(paths, **{"limit": 9, **wanted})]

    assert ids() == [uuid(n) for n in (5, 1, 2, 3, 4)]
    assert ids(limit=4) == [uuid(n) for n in (5, 1, 2, 3)]
    assert ids(owner="other") == [uuid(2)]
    assert ids(status=FlowStatus.FINISHED) == [uuid(5)]
    assert ids(owner="other", status=FlowStatus.FINISHED) == []


def waiting(number: int, at_ms: int | None, **values: Any) -> FlowRow:
    timeout = {} if at_ms is None else {"timeout_at": instant(at_ms)}
    wait = {"kind": "manual", **timeout}
    return flow_row(number, status=FlowStatus.WAITING, wait_json=wait, **values)


async def test_waits_come_the_soonest_first_and_those_without_an_end_last(tmp_path: Path) -> None:
    await given(
        tmp_path,
        0,
        waiting(1, None),
        waiting(2, NOON_MS + 5),
        waiting(3, NOON_MS + 1, owner_session_key="other"),
        flow_row(4),
        waiting(5, NOON_MS + 9, cancel_requested=True),
    )
    await given(
        tmp_path,
        1,
        waiting(6, NOON_MS + 1),
        waiting(7, None, owner_session_key="other"),
        waiting(8, NOON_MS + 3),
        flow_row(9, status=FlowStatus.FINISHED),
    )
    paths = queries.tables(tmp_path, "taskflow").values()

    def ids(**wanted: Any) -> list[str]:
        return [flow.id for flow in queries.list_waiting(paths, **{"limit": 9, **wanted})]

    assert ids() == [uuid(n) for n in (5, 3, 6, 8, 2, 1, 7)]
    assert ids(limit=4) == [uuid(n) for n in (5, 3, 6, 8)]
    assert ids(limit=6) == [uuid(n) for n in (5, 3, 6, 8, 2, 1)]
    assert ids(owner="other") == [uuid(3), uuid(7)]
    assert ids(owner="nobody") == []
    assert queries.list_waiting([], limit=9) == []


async def test_what_ended_is_read_in_portions_over_all_partitions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def over(number: int, at_ms: int, status: FlowStatus = FlowStatus.FINISHED) -> FlowRow:
        owner = "odd" if number % 2 else "even"
        return flow_row(
            number,
            revision=number,
            status=status,
            updated_at=instant(at_ms),
            owner_session_key=owner,
        )

    failed, cancelled, finished = FlowStatus.FAILED, FlowStatus.CANCELLED, FlowStatus.FINISHED
    await given(
        tmp_path, 0, *(over(n, NOON_MS + n // 4, failed) for n in range(1, 10)), flow_row(99)
    )
    await given(
        tmp_path, 1, over(20, NOON_MS, cancelled), over(21, NOON_MS + 1), over(22, NOON_MS + 9)
    )
    paths = queries.tables(tmp_path, "taskflow").values()
    expected = [(n, NOON_MS, failed) for n in (1, 2, 3)]
    expected += [(20, NOON_MS, cancelled)]
    expected += [(n, NOON_MS + 1, failed) for n in (4, 5, 6, 7)]
    expected += [(21, NOON_MS + 1, finished)]
    expected += [(n, NOON_MS + 2, failed) for n in (8, 9)]
    whole = [
        queries.Ended(uuid(n), instant(at_ms), status, n, "odd" if n % 2 else "even", "größer")
        for n, at_ms, status in expected
    ]

    monkeypatch.setattr(queries, "ENDED_AT_ONCE", 2)
    assert list(queries.ended(paths, before_ms=NOON_MS + 3)) == whole
    assert list(queries.ended(paths, before_ms=NOON_MS + 2, limit=None)) == whole[:9]
    assert list(queries.ended(paths, before_ms=NOON_MS + 3, limit=6)) == whole[:6]
    odd = queries.ended(paths, before_ms=NOON_MS + 3, owner="odd")
    assert [flow.flow_id for flow in odd] == [uuid(n) for n in (1, 3, 5, 7, 21, 9)]
    assert list(queries.ended(paths, before_ms=NOON_MS)) == []


async def test_a_list_of_what_ended_holds_no_table_between_its_portions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queries, "ENDED_AT_ONCE", 2)
    rows = [flow_row(n, status=FlowStatus.FAILED) for n in range(1, 6)]
    async with opened(tmp_path) as table:
        await table.write(Changes(inserted=rows), before=None, after=at(1))
        listed = queries.ended([table.path], before_ms=NOON_MS + 1)
        assert next(listed).flow_id == uuid(1)
        # Neither what was shown nor what comes next needs to be there any more.
        await table.write(Changes(deleted=rows[:3]), before=at(1), after=at(2))
        with closing(sqlite3.connect(table.path, isolation_level=None)) as db:
            assert db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] == 0
        assert [flow.flow_id for flow in listed] == [uuid(2), uuid(4), uuid(5)]


@pytest.mark.parametrize(
    ("sql", "walk"),
    [
        (queries.SOONEST, "SEARCH flow USING INDEX flow_due (due_ms>?)"),
        (queries.OPEN, "SEARCH flow USING INDEX flow_open (due_ms=?)"),
        (
            queries.ENDED,
            "SEARCH flow USING INDEX flow_ended ((updated_at,id)>(?,?) AND updated_at<?)",
        ),
    ],
)
def test_a_list_by_time_walks_an_index_and_sorts_nothing(sql: str, walk: str) -> None:
    with closing(sqlite3.connect(":memory:")) as db:
        db.executescript(SCHEMA)
        plan = db.execute(f"EXPLAIN QUERY PLAN {sql}", [1] * len(set(re.findall(r"\?\d", sql))))
        assert [row[3] for row in plan] == [walk]


async def test_a_flow_is_shown_with_its_steps_in_order(tmp_path: Path) -> None:
    row = flow_row(1, revision=2)
    steps = [step_row(1, "b"), step_row(1, "c", at_ms=NOON_MS - 1), step_row(1, "a")]
    async with opened(tmp_path) as table:
        await table.write(Changes(inserted=[row], steps=steps), before=None, after=at(1))
        paths = queries.tables(tmp_path, "taskflow").values()
        view = queries.find_flow(paths, uuid(1))
        assert queries.find_flow(paths, uuid(2)) is None

    assert view is not None
    assert view.flow.model_dump() == row.flow.document()
    assert (view.last_event_id, view.chain) == (row.last_event_id, row.chain)
    assert [step.run_id for step in view.steps] == ["c", "a", "b"]


async def test_looking_neither_waits_for_a_writer_nor_leaves_a_trace(tmp_path: Path) -> None:
    async with opened(tmp_path) as table:
        await table.write(Changes(inserted=[flow_row(1)]), before=None, after=at(1))
        with closing(sqlite3.connect(table.path, isolation_level=None)) as writer:
            writer.execute("BEGIN IMMEDIATE")
            writer.execute("DELETE FROM flow")
            was = [entry[:2] for entry in listing(tmp_path)]
            assert len(queries.list_flows([table.path], limit=9)) == 1
            assert [entry[:2] for entry in listing(tmp_path)] == was
            writer.execute("ROLLBACK")
        assert await table.untouched()
        await table.write(Changes(inserted=[flow_row(2)]), before=at(1), after=at(2))
        assert len(queries.list_flows([table.path], limit=9)) == 2


async def test_looking_at_a_table_at_rest_makes_no_file(tmp_path: Path) -> None:
    await given(tmp_path, 0, flow_row(1))
    was = listing(tmp_path)
    assert len(queries.list_flows(queries.tables(tmp_path, "taskflow").values(), limit=9)) == 1
    assert listing(tmp_path) == was
    assert len(was) == 1


async def test_what_a_killed_worker_left_in_the_log_is_shown_and_stays(tmp_path: Path) -> None:
    async with opened(tmp_path) as table:
        await table.write(Changes(inserted=[flow_row(1)]), before=None, after=at(1))
        left = contents(tmp_path)
    put_back(tmp_path, left)
    assert len(queries.list_flows(queries.tables(tmp_path, "taskflow").values(), limit=9)) == 1
    kept = contents(tmp_path)
    for name in ("taskflow-0.db", "taskflow-0.db-wal"):
        assert kept[name] == left[name]


async def test_what_cannot_be_shown_is_told(tmp_path: Path) -> None:
    await given(tmp_path, 0, flow_row(1))
    (path,) = queries.tables(tmp_path, "taskflow").values()
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("UPDATE flow SET doc = '{}'")
        with pytest.raises(TableCorrupt):
            queries.list_flows([path], limit=9)
        db.execute("PRAGMA user_version = 9")
        with pytest.raises(TableFailed, match="format 9"):
            queries.list_flows([path], limit=9)
    path.write_bytes(b"not a database" * 1000)
    with pytest.raises(TableCorrupt):
        queries.find_flow([path], uuid(1))
    path.unlink()
    with pytest.raises(TableFailed):
        queries.find_flow([path], uuid(1))
    assert "taskflow-0.db" not in contents(tmp_path)
