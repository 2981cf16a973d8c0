"""Rebuilt tables, and what differs between two."""

import shutil
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from processor.adapters.sqlite.readonly.dump import dump
from processor.errors import HistoryLost
from processor.recovery.consistent_cut import consistent_cut
from processor.recovery.rebuild import catch_up, rebuild
from tests.support.scripted_ports import ScriptedHistory, Stage
from tests.support.tables import read_tables
from tests.unit.commands import (
    create,
    flow_id,
    life,
    observe,
    prune,
    start,
    update,
)
from tests.unit.recovery.deployments import difference, history, rebuilt, table_at, worked


@pytest.mark.parametrize("seed", range(5))
async def test_both_ways_to_make_a_table_anew_agree_with_the_live_one(
    stage: Stage, seed: int
) -> None:
    await worked(stage, seed)

    from_state = await rebuilt(stage, "state-made", from_audit=False)
    from_audit = await rebuilt(stage, "audit-made", from_audit=True)

    assert difference(stage.path, from_state) is None
    assert difference(stage.path, from_audit) is None
    with dump(from_audit) as rows:
        assert min(rows.counts()) > 0


@pytest.mark.parametrize(
    ("sql", "sentence"),
    [
        ("UPDATE flow SET doc = replace(doc, 'goal 2', 'goal X') WHERE n = 2", "flow {}: doc is"),
        ("UPDATE flow SET chain = zeroblob(16) WHERE n = 2", "flow {}: chain is 0000"),
        ("DELETE FROM flow WHERE n = 2", "flow {} is in the rebuilt table only"),
        ("DELETE FROM step WHERE n = 2", "step {}/run-1 is in the rebuilt table only"),
        (
            "INSERT INTO step SELECT 9, flow_id, 'x', status, due_ms, 0, crc, doc FROM step "
            "WHERE n = 2",
            "live table",
        ),
        ("UPDATE ledger SET details = '[\"not_found\",{}]'", "answer"),
    ],
)
async def test_the_first_difference_is_named(stage: Stage, sql: str, sentence: str) -> None:
    for number in (1, 2):
        stage.kafka.send(*life(number))
    await stage.works()
    built = await rebuilt(stage, "made", from_audit=True)
    with closing(sqlite3.connect(stage.path)) as db:
        db.execute(sql)
        db.commit()
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    assert sentence.format(flow_id(2)) in str(difference(stage.path, built))


async def test_a_table_that_is_behind_is_compared_where_the_topics_are(stage: Stage) -> None:
    stage.kafka.send(*life(1))
    await stage.works()
    behind = stage.state_dir.with_name("behind")
    shutil.copytree(stage.state_dir, behind)
    stage.kafka.send(create(2), update(2))
    await stage.works()

    async with table_at(stage, behind / stage.path.name) as table:
        assert (
            await catch_up(stage.place, table, await consistent_cut(stage.place, history(stage)))
            is None
        )

    assert difference(behind / stage.path.name, stage.path) is None


async def test_while_somebody_writes_the_topics_are_taken_where_a_transaction_ends(
    stage: Stage,
) -> None:
    stage.kafka.send(*life(1), create(2))
    await stage.works()

    class Busy(ScriptedHistory):
        async def settled(self, topics: Any, on_hanging: Any = None) -> Any:
            """The ends are not of one moment: a transaction comes between two of them."""
            first, *rest = topics
            found = await super().settled(rest)
            stage.kafka.send(update(2), observe(2, f"r{len(stage.kafka.outcomes)}"))
            await stage.works()
            return {**(await super().settled([first])), **found}

    view = await consistent_cut(stage.place, Busy(stage.kafka, stage.script, 0))
    path = stage.state_dir.with_name("made") / "made.db"
    async with table_at(stage, path) as table:
        checkpoint = await rebuild(stage.place, table, view, from_audit=False)
    other = path.with_name("other.db")
    async with table_at(stage, other) as table:
        assert await rebuild(stage.place, table, view, from_audit=True) == checkpoint

    assert difference(path, other) is None
    assert checkpoint.position.commands < len(stage.kafka.outcomes)
    assert view.offset_ranges[stage.place.topics.audit].end < stage.kafka.log("taskflow.audit").end


@pytest.mark.parametrize("ends_in", ["an event", "a prune", "a refusal"])
async def test_the_table_of_another_cluster_that_meets_by_chance_is_filled_anew(
    stage: Stage, tmp_path: Path, ends_in: str
) -> None:
    def story(number: int) -> None:
        stage.kafka.send(*life(number), create(number + 1))
        if ends_in == "a prune":
            stage.kafka.send(prune(number), topic="control")
        elif ends_in == "a refusal":
            stage.kafka.send(start(number))

    story(1)
    await stage.works()
    elsewhere = stage.state_dir
    stage = Stage(tmp_path / "here")
    story(3)
    await stage.works()
    stage.state_dir = elsewhere
    stage.kafka.send(create(5))

    await stage.works()

    (table,) = read_tables([elsewhere], stage.place.topics.prefix)
    assert flow_id(2) not in table.flow_ids
    assert {flow_id(4), flow_id(5)} <= table.flow_ids
    stage.assert_clean()


async def test_an_event_that_was_edited_is_found_when_the_audit_is_folded(stage: Stage) -> None:
    stage.kafka.send(*life(1))
    await stage.works()
    entry = stage.kafka.log(stage.place.topics.audit).entries[1]
    assert entry.record is not None
    assert entry.record.value is not None
    entry.record = replace(entry.record, value=entry.record.value.replace(b"agent", b"somebody"))

    with pytest.raises(HistoryLost, match=r"offset 1 .* chain does not follow.*--from state"):
        await rebuilt(stage, "made", from_audit=True)
    await rebuilt(stage, "other", from_audit=False)


async def test_an_audit_that_retention_cut_is_not_folded(stage: Stage) -> None:
    stage.kafka.send(*life(1))
    await stage.works()
    stage.kafka.expire(stage.place.topics.audit, before=1)

    with pytest.raises(
        HistoryLost, match=r"begins at offset 1: what happened before.*--from state"
    ):
        await rebuilt(stage, "made", from_audit=True)
