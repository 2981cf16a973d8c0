"""Another hand on the table: what is noticed, before anything is committed, and what is not."""

import shutil
import sqlite3
from contextlib import closing

import pytest

from processor.recovery.checkpoint import TAIL
from tests.support.moments import Op
from tests.support.scripted_ports import Stage
from tests.support.tables import read_tables
from tests.unit.commands import create, flow_id, start, update

EDITS = {
    "a revision": "UPDATE flow SET revision = 7 WHERE id = :id",
    "a document": "UPDATE flow SET doc = replace(doc, 'goal 1', 'goal 2') WHERE id = :id",
    "a chain": "UPDATE flow SET chain = x'00' WHERE id = :id",
    "a row is gone": "DELETE FROM flow WHERE id = :id",
    "the position": "UPDATE stored SET commands = 0",
    "the next event": "UPDATE stored SET next_event_id = 1",
    "the ledger": "DELETE FROM ledger",
}


def edit(stage: Stage, sql: str) -> None:
    with closing(sqlite3.connect(stage.path, isolation_level=None)) as db:
        db.execute(sql, {"id": flow_id(1)} if ":id" in sql else {})


def given(stage: Stage) -> None:
    stage.kafka.send(create(1), create(2))


@pytest.mark.parametrize("cached", [True, False], ids=["in the cache", "not in the cache"])
@pytest.mark.parametrize("what", EDITS)
async def test_an_edit_stops_the_partition_before_anything_is_committed_and_then_heals(
    stage: Stage, what: str, cached: bool
) -> None:
    given(stage)
    async with stage.running(cache_bytes=1 << 20 if cached else 0):
        await stage.quiet()
        edit(stage, EDITS[what])
        stage.kafka.send(update(1, revision=0), start(2))
        commits = stage.kafka.journal.count("commit")
        (error,) = await stage.failed()
        assert stage.kafka.journal.count("commit") == commits
        await stage.quiet()

    assert error.startswith(("TableDistrusted", "TableCorrupt"))
    assert len(stage.errors) == 1
    stage.assert_clean()


async def test_an_edit_in_the_midst_of_a_commit_is_found_when_the_table_is_written(
    stage: Stage,
) -> None:
    given(stage)
    await stage.works()
    stage.script.at(Op.COMMIT, lambda: edit(stage, "UPDATE flow SET revision = 7"))
    stage.kafka.send(update(1, revision=0), start(2))

    async with stage.running():
        (error,) = await stage.failed()
        await stage.quiet()

    assert error.startswith("TableConflict")
    stage.assert_clean()


async def test_an_edit_during_the_recovery_heals_too(stage: Stage) -> None:
    given(stage)
    stage.script.at(Op.WRITE, lambda: edit(stage, "DELETE FROM ledger"))

    await stage.works()

    stage.assert_clean()


async def others_change(stage: Stage) -> None:
    """A takeover compares the flows of the newest events with them; flow 1 is not among these."""
    stage.kafka.send(*(update(2) for _ in range(TAIL)))
    await stage.works()


@pytest.mark.parametrize("what", ["a revision", "a document", "a chain"])
async def test_a_row_edited_while_the_worker_was_away_is_noticed_when_it_is_used(
    stage: Stage, what: str
) -> None:
    given(stage)
    await stage.works()
    await others_change(stage)
    edit(stage, EDITS[what])
    stage.kafka.send(update(2))
    await stage.works()
    assert stage.errors == []
    stage.kafka.send(update(1, revision=0))

    await stage.works()

    assert stage.errors[0].startswith("TableCorrupt")
    assert stage.kafka.outcomes[-1]["verdict"] == "accepted"
    stage.assert_clean()


@pytest.mark.parametrize(
    "edited",
    [
        "UPDATE stored SET next_event_id = 1",
        "UPDATE stored SET next_event_id = 1000",
        "UPDATE stored SET audit = 0",
        "UPDATE stored SET audit = 2",
        "UPDATE stored SET commands = 99",
        "UPDATE stored SET outcomes = 999",
        "DELETE FROM flow WHERE id = :id",
        "UPDATE flow SET chain = x'00' WHERE id = :id",
        "UPDATE flow SET doc = '' WHERE id = :id",
    ],
)
async def test_a_table_edited_while_it_was_behind_is_filled_anew_if_it_cannot_be_rolled_forward(
    stage: Stage, edited: str
) -> None:
    given(stage)
    await stage.works()
    behind = stage.state_dir.with_name("behind")
    shutil.copytree(stage.state_dir, behind)
    stage.kafka.send(start(1), update(1, revision=1), create(3))
    await stage.works()
    stage.state_dir = behind
    edit(stage, edited)
    stage.kafka.send(update(1, revision=2))

    await stage.works()

    assert stage.kafka.outcomes[-1]["verdict"] == "accepted"
    stage.assert_clean()


async def test_a_row_of_the_newest_events_that_was_deleted_is_noticed_at_the_takeover(
    stage: Stage,
) -> None:
    given(stage)
    await stage.works()
    edit(stage, EDITS["a row is gone"])
    stage.kafka.send(update(1, revision=0))

    await stage.works()

    assert stage.kafka.outcomes[-1]["verdict"] == "accepted"
    stage.assert_clean()


async def test_a_row_deleted_while_the_worker_was_away_is_not_noticed(stage: Stage) -> None:
    """The limit: rows are checked one by one, not their number, and beforehand only those of the
    newest events. A file that others may write to is a file that others may write to."""
    given(stage)
    await stage.works()
    await others_change(stage)
    edit(stage, EDITS["a row is gone"])
    stage.kafka.send(update(1, revision=0))

    await stage.works()

    assert stage.kafka.outcomes[-1]["code"] == "not_found"
    (table,) = read_tables([stage.state_dir], stage.place.topics.prefix)
    assert flow_id(1) not in table.flow_ids
