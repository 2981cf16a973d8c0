"""When something is missing: what a takeover makes of it, and what repairs it."""

import random
import shutil
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest

from processor.adapters.sqlite import FlowTable, open_table
from processor.adapters.sqlite.dump import dump
from processor.cli.rebuild.tables import all_rows
from processor.cli.rebuild.topics import snapshots
from processor.engine.batch import Outgoing, first_event_id
from processor.engine.ports import OffsetRange
from processor.engine.rows import Checkpoint, Position
from processor.errors import CursorMissing, HistoryLost
from processor.recovery import repair
from processor.recovery.catch_up import CatchUp
from processor.recovery.checkpoint import settled, stand
from processor.recovery.consistent_cut import MovedOn, consistent_cut
from processor.recovery.rebuild import catch_up, first_difference, rebuild
from processor.recovery.repair import Skip, plan_restoration, plan_skip, restore, skip
from processor.recovery.restore import Restore
from processor.recovery.table_match import knows_events_before
from processor.testing.memory.kafka import TxnState
from tests.support.scripted_ports import Point, ScriptedHistory, Stage
from tests.support.tables import read_tables
from tests.unit.commands import (
    create,
    finish,
    flow_id,
    life,
    observe,
    prune,
    schedule,
    start,
    step,
    update,
)

TRAFFIC = 160
HELD = ("extend_step", "complete_step", "fail_step", "release_step")
STEPS = ("schedule_step", "schedule_step", "start_step", "start_step", *HELD, "retry_step")
OWNED = {"issued_by": create(0)["issued_by"]}


def traffic(seed: int) -> list[tuple[str, dict[str, Any]]]:
    """Commands of every kind of fate, resends and prunes among them."""
    chance = random.Random(seed)
    made: list[tuple[str, dict[str, Any]]] = []
    for _ in range(TRAFFIC):
        number = chance.randrange(12)
        kind = chance.choice(
            ["create", "create", "start", "update", "observe", "finish", "prune", "again", *STEPS]
        )
        if kind == "again" and made:
            made.append(chance.choice(made))
        elif kind == "prune":
            made.append(("control", prune(number)))
        elif kind in STEPS:
            run_id = f"run/{chance.randrange(5)}"
            fields = {"attempt": chance.choice([1, 1, 2])} if kind in HELD else {}
            if kind == "fail_step":
                fields |= {"reason": "503", "retry": chance.random() < 0.7, "retry_after_ms": 0}
            issued_by = {} if kind in ("schedule_step", "retry_step") else {"issued_by": "x:1"}
            made.append(
                (
                    "commands",
                    schedule(number, run_id, input_json={"n": number})
                    if kind == "schedule_step"
                    else {**step(kind, number, run_id, **fields), **(issued_by or OWNED)},
                )
            )
        else:
            commands = {
                "start": start(number),
                "update": update(number, revision=chance.choice([None, 1, 2])),
                "observe": observe(number, f"run/{chance.randrange(3)}"),
                "finish": finish(number),
            }
            made.append(("commands", commands.get(kind, create(number))))
    return made


async def worked(stage: Stage, seed: int = 1) -> None:
    for n, (topic, command) in enumerate(traffic(seed)):
        stage.kafka.send(command, topic=topic)
        if n % 40 == 0:
            await stage.works()
    await stage.works()


def history(stage: Stage) -> ScriptedHistory:
    return ScriptedHistory(stage.kafka, stage.script, stage.place.partition)


@asynccontextmanager
async def table_at(stage: Stage, path: Path) -> AsyncIterator[FlowTable]:
    place = stage.place
    async with open_table(
        path, partition=place.partition, prefix=place.topics.prefix, partitions=place.partitions
    ) as table:
        yield table


async def rebuilt(stage: Stage, name: str, *, from_audit: bool) -> Path:
    path = stage.state_dir.with_name(name) / "made.db"
    async with table_at(stage, path) as table:
        view = await consistent_cut(stage.place, history(stage))
        await rebuild(stage.place, table, view, from_audit=from_audit)
    return path


def difference(one: Path, other: Path) -> str | None:
    with dump(one) as here, dump(other) as there:
        found = first_difference(all_rows(here, 0), all_rows(there, 0))
    return None if found is None else str(found)


async def stopped(stage: Stage) -> str:
    """What the owner says, again and again, while it decides nothing."""
    outcomes = len(stage.kafka.outcomes)
    before = len(stage.errors)
    async with stage.running():
        errors = await stage.failed(before + 2)
    assert len(stage.kafka.outcomes) == outcomes
    assert errors[-1] == errors[-2]
    return errors[-1]


async def skipped(stage: Stage) -> Skip:
    plan = await plan_skip(stage.place, history(stage))
    assert plan is not None
    await skip(stage.place, history(stage), stage._new_writer, plan)
    assert await plan_skip(stage.place, history(stage)) is None, "it may be repeated"
    return plan


async def restored(stage: Stage) -> None:
    path = stage.state_dir.with_name("restoring") / "made.db"
    async with table_at(stage, path) as table:
        plan = await plan_restoration(
            stage.place, table, await consistent_cut(stage.place, history(stage))
        )
    assert plan is not None
    with dump(path) as rows:
        await restore(stage.place, history(stage), stage._new_writer, plan, snapshots(rows))
    shutil.rmtree(path.parent)


def lose(stage: Stage, topic: str, *, keep: int = 0) -> None:
    """The topic is made anew, or (`keep`) cut at an offset."""
    del stage.kafka.log(topic).entries[keep:]


# Tables


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
    ("sql", "told"),
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
async def test_the_first_difference_is_named(stage: Stage, sql: str, told: str) -> None:
    for number in (1, 2):
        stage.kafka.send(*life(number))
    await stage.works()
    built = await rebuilt(stage, "made", from_audit=True)
    with closing(sqlite3.connect(stage.path)) as db:
        db.execute(sql)
        db.commit()
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    assert told.format(flow_id(2)) in str(difference(stage.path, built))


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


# Sources that lost something


async def test_commands_that_were_removed_undecided_are_skipped_once_that_is_accepted(
    stage: Stage,
) -> None:
    stage.kafka.send(create(1))
    await stage.works()
    stage.kafka.send(create(2), create(3))
    stage.kafka.expire(stage.place.topics.commands, before=2)
    assert "`taskflow rebuild --skip-lost --partition 0`" in await stopped(stage)

    plan = await skipped(stage)
    await stage.works()

    assert (plan.was.commands, plan.to.commands) == (1, 2)
    assert [one["source"]["offset"] for one in stage.kafka.outcomes] == [0, 2]


@pytest.mark.parametrize("new", [0, 1, 2, 5])
async def test_a_topic_that_was_made_anew_is_read_from_its_start_once_that_is_accepted(
    stage: Stage, new: int
) -> None:
    stage.kafka.send(create(1), create(2))
    await stage.works()
    lose(stage, stage.place.topics.commands)
    stage.kafka.later(1)
    stage.kafka.send(*(create(10 + n) for n in range(new)))
    told = await stopped(stage)
    assert "made anew. `taskflow rebuild --skip-lost --partition 0`" in told

    plan = await skipped(stage)
    await stage.works()

    assert plan.to.commands == 0
    sources = [one["source"]["offset"] for one in stage.kafka.outcomes]
    assert sources == [0, 1, *range(new)]
    await stage.works()
    assert stage.errors[-1] in told  # nothing new


async def test_of_a_topic_that_was_cut_what_is_left_is_not_decided_again(stage: Stage) -> None:
    stage.kafka.send(create(1), create(2))
    await stage.works()
    stage.kafka.later(1)
    stage.kafka.send(create(3), create(4))
    await stage.works()
    lose(stage, stage.place.topics.commands, keep=3)
    assert "ends at offset 3, but 4 is next" in await stopped(stage)

    plan = await skipped(stage)
    stage.kafka.later(1)
    stage.kafka.send(create(5))
    await stage.works()

    assert plan.to.commands == 3
    assert [one["source"]["offset"] for one in stage.kafka.outcomes] == [0, 1, 2, 3, 3]


async def test_what_was_shown_must_still_be_so_when_it_is_done(stage: Stage) -> None:
    stage.kafka.send(create(1))
    await stage.works()
    stage.kafka.send(create(2), create(3))
    stage.kafka.expire(stage.place.topics.commands, before=2)
    plan = await plan_skip(stage.place, history(stage))
    assert plan is not None
    stage.kafka.expire(stage.place.topics.commands, before=3)

    with pytest.raises(MovedOn):
        await skip(stage.place, history(stage), stage._new_writer, plan)

    assert len(stage.kafka.read(stage.place.topics.state)) == 2
    (await skipped(stage))


async def test_whoever_is_fenced_while_he_repairs_begins_again(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repair, "WRITE_PAUSE_S", 0)
    await worked(stage)
    before = await rebuilt(stage, "before", from_audit=False)
    lose(stage, stage.place.topics.state)
    stage.kafka.send(create(60))
    stage.kafka.expire(stage.place.topics.commands, before=stage.kafka.log("taskflow.commands").end)

    def fenced() -> None:
        stage.kafka.fence("taskflow-0")

    stage.script.at(Point.BEGIN, fenced)
    stage.script.at(Point.COMMIT, fenced, nth=2)
    await restored(stage)
    stage.script.at(Point.COMMITTED, OSError("the answer was lost"))
    await skipped(stage)

    assert difference(before, await rebuilt(stage, "after", from_audit=False)) is None


async def test_where_nothing_is_lost_nothing_is_skipped(stage: Stage) -> None:
    assert await plan_skip(stage.place, history(stage)) is None
    stage.kafka.send(create(1))
    await stage.works()
    assert await plan_skip(stage.place, history(stage)) is None


# A state topic that lost something


async def test_a_state_topic_that_was_made_anew_is_written_from_the_audit(stage: Stage) -> None:
    await worked(stage)
    before = await rebuilt(stage, "before", from_audit=False)
    lose(stage, stage.place.topics.state)
    assert "CursorMissing" in await stopped(stage)
    stage.lose_disk()
    assert "`taskflow rebuild --restore-state --partition 0`" in await stopped(stage)

    await restored(stage)

    assert difference(before, await rebuilt(stage, "after", from_audit=False)) is None
    stage.kafka.send(create(50))
    await stage.works()
    assert stage.kafka.outcomes[-1]["verdict"] == "accepted"
    tables = read_tables([stage.state_dir], stage.place.topics.prefix)
    assert len(tables[0].flows) > 1
    await restored(stage)  # it may be repeated
    assert difference(stage.path, await rebuilt(stage, "again", from_audit=False)) is None


async def test_a_state_topic_that_was_put_back_gets_its_tombstones(stage: Stage) -> None:
    stage.kafka.send(*life(1), *life(2))
    await stage.works()
    old = len(stage.kafka.log(stage.place.topics.state).entries)
    stage.kafka.send(prune(1), topic="control")
    await stage.works()
    lose(stage, stage.place.topics.state, keep=old)
    told = await stopped(stage)
    assert "was truncated or put back" in told
    assert "--restore-state" in told

    await restored(stage)
    stage.lose_disk()
    await stage.works()

    (table,) = read_tables([stage.state_dir], stage.place.topics.prefix)
    assert table.flow_ids == {flow_id(2)}
    assert difference(stage.path, await rebuilt(stage, "made", from_audit=True)) is None


async def test_a_restoration_that_was_cut_short_is_asked_for_again(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repair, "PORTION_MAX_RECORDS", 1)
    await worked(stage)
    lose(stage, stage.place.topics.state)
    path = stage.state_dir.with_name("restoring") / "made.db"
    async with table_at(stage, path) as table:
        plan = await plan_restoration(
            stage.place, table, await consistent_cut(stage.place, history(stage))
        )
    assert plan is not None

    def cut_short() -> Any:
        with dump(path) as rows:
            yield next(iter(snapshots(rows)))
        raise OSError("killed")

    with pytest.raises(OSError, match="killed"):
        await restore(stage.place, history(stage), stage._new_writer, plan, cut_short())
    assert len(stage.kafka.read(stage.place.topics.state)) == 1
    stage.lose_disk()
    assert "--restore-state" in await stopped(stage)
    shutil.rmtree(path.parent)
    await restored(stage)
    stage.lose_disk()
    await stage.works()
    assert difference(stage.path, await rebuilt(stage, "made", from_audit=True)) is None


async def test_a_state_topic_with_fewer_records_than_there_are_flows_is_not_believed(
    stage: Stage,
) -> None:
    stage.kafka.send(*(create(n) for n in range(20)))
    await stage.works()
    cursor = stage.kafka.log(stage.place.topics.state).entries[-2]
    # An owner that went on writing while the topic was made anew leaves a right cursor.
    lose(stage, stage.place.topics.state)
    assert cursor.record is not None
    stage.kafka.append("taskflow.state", 0, b"cursor/0", cursor.record.value)

    told = await stopped(stage)

    assert "ends at offset 1, but the table has 20 flows" in told
    await restored(stage)
    await stage.works()
    stage.lose_disk()
    await stage.works()
    assert difference(stage.path, await rebuilt(stage, "made", from_audit=True)) is None


async def test_an_audit_that_lost_events_cannot_be_mended_and_is_not_written_on(
    stage: Stage,
) -> None:
    stage.kafka.send(*life(1))
    await stage.works()
    lose(stage, stage.place.topics.audit)

    told = await stopped(stage)

    assert "names 5 as the next event, but the audit topic ends before 1" in told
    assert "put the topic back from a copy" in told


async def test_lost_outcomes_cost_the_memory_of_resends_and_nothing_else(stage: Stage) -> None:
    stage.kafka.send(*life(1))
    await stage.works()
    lose(stage, stage.place.topics.outcomes)
    stage.kafka.send(create(2))

    await stage.works()

    assert stage.errors == []
    assert [one["source"]["offset"] for one in stage.kafka.outcomes] == [4]


async def test_what_a_newer_version_wrote_is_not_decided_on(stage: Stage) -> None:
    stage.kafka.send(create(1))
    await stage.works()
    cursor = stage.kafka.read(stage.place.topics.state)[-1]
    newer = orjson.dumps({**cursor, "schema_version": 2})
    stage.kafka.append(stage.place.topics.state, 0, b"cursor/0", newer)
    stage.kafka.send(create(2))

    told = await stopped(stage)

    assert told.startswith("WrittenByNewer")
    assert "install the version that wrote it" in told


# What heals without a word


async def test_deleted_group_offsets_and_an_expired_transactional_id_are_no_matter(
    stage: Stage,
) -> None:
    stage.kafka.send(create(1))
    await stage.works()
    stage.kafka.group_offsets.clear()
    stage.kafka._epochs.clear()
    stage.kafka.send(create(2))

    await stage.works()

    assert stage.errors == []
    stage.assert_clean()


async def test_a_takeover_that_fails_leaves_the_table_as_it_was(stage: Stage) -> None:
    stage.kafka.send(*life(1))
    await stage.works()
    kept = shutil.copytree(stage.state_dir, stage.state_dir.with_name("kept"))
    lose(stage, stage.place.topics.state)

    async with table_at(stage, stage.path) as table:
        with pytest.raises(CursorMissing):
            await Restore(stage.place, table, history(stage)).run(trust_table=False)

    assert difference(kept / stage.path.name, stage.path) is None


async def test_a_foreign_transaction_is_no_part_of_what_is_looked_at(stage: Stage) -> None:
    stage.kafka.send(create(1))
    await stage.works()
    foreign = stage.kafka.begin()
    stage.kafka.put([Outgoing(b"x", b"{}", ())], "taskflow.state", 0, foreign)
    stage.kafka.end(foreign, TxnState.ABORTED)

    assert set(await settled(stage.place, history(stage))) == {
        *(stage.place.topics.state, stage.place.topics.outcomes, stage.place.topics.audit)
    }
    assert difference(stage.path, await rebuilt(stage, "made", from_audit=False)) is None


# What a table and the topics say of each other


async def test_a_table_that_is_rolled_forward_stands_behind_the_last_outcome_of_each_topic(
    stage: Stage,
) -> None:
    """No cursor corrects it: a standby has none."""
    stage.kafka.send(create(1))
    await stage.works()
    behind = stage.state_dir.with_name("behind")
    shutil.copytree(stage.state_dir, behind)
    stage.kafka.send(start(1), update(1))
    stage.kafka.send(update(1), update(1), topic="control")
    await stage.works()

    async with table_at(stage, behind / stage.path.name) as table:
        checkpoint = await table.checkpoint()
        assert checkpoint is not None
        topics = stage.place.topics
        offset_ranges = await history(stage).visible([topics.audit, topics.outcomes])
        checkpoint = await CatchUp(stage.place, table, history(stage)).advance(
            checkpoint, offset_ranges
        )

    assert (checkpoint.position.commands, checkpoint.position.control) == (3, 2)


@pytest.mark.parametrize(
    ("start", "next_event_id", "known"),
    [
        (0, first_event_id(0), True),
        (0, first_event_id(0) + 1, False),
        (7, first_event_id(0), True),
        (7, first_event_id(0) + 5, True),
    ],
    ids=["nothing happened", "events are missing", "all expired, by chance the first", "expired"],
)
async def test_a_table_without_events_before_it_is_of_these_topics_unless_some_are_missing(
    stage: Stage, start: int, next_event_id: int, known: bool
) -> None:
    checkpoint = Checkpoint(Position(0, 0, next_event_id), start, 0, 0)
    async with table_at(stage, stage.path) as table:
        found = await knows_events_before(
            stage.place, table, history(stage), OffsetRange(start, start), checkpoint
        )
    assert found is known


@pytest.mark.parametrize("audit", [True, False], ids=["audit", "no audit"])
@pytest.mark.parametrize("outcomes", [True, False], ids=["outcomes", "no outcomes"])
async def test_a_cursor_may_be_missing_only_where_nothing_was_ever_decided(
    stage: Stage, audit: bool, outcomes: bool
) -> None:
    stage.kafka.send(create(1))
    await stage.works()
    topics = stage.place.topics
    for topic, kept in ((topics.audit, audit), (topics.outcomes, outcomes)):
        if not kept:
            lose(stage, topic)
    lose(stage, topics.state)
    log_reader = history(stage)
    offset_ranges = await log_reader.visible([topics.audit, topics.outcomes])

    if audit or outcomes:
        with pytest.raises(CursorMissing, match="holds no cursor although commands were decided"):
            await stand(stage.place, log_reader, offset_ranges, None)
    else:
        found = await stand(stage.place, log_reader, offset_ranges, None)
        assert found[:2] == (Position(0, 0, first_event_id(0)), None)
