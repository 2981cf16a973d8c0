"""What is run where topics lost something."""

import shutil
from typing import Any

import orjson
import pytest

from processor.adapters.sqlite.readonly.dump import dump
from processor.cli.rebuild.topics import snapshots
from processor.recovery import repair
from processor.recovery.consistent_cut import MovedOn, consistent_cut
from processor.recovery.repair import plan_restoration, plan_skip, restore, skip
from tests.support.moments import Op
from tests.support.scripted_ports import Stage
from tests.support.tables import read_tables
from tests.unit.commands import (
    create,
    flow_id,
    life,
    prune,
)
from tests.unit.recovery.deployments import (
    difference,
    history,
    lose,
    rebuilt,
    restored,
    skipped,
    stopped,
    table_at,
    worked,
)

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
    sentence = await stopped(stage)
    assert "recreated. `taskflow rebuild --skip-lost --partition 0`" in sentence

    plan = await skipped(stage)
    await stage.works()

    assert plan.to.commands == 0
    sources = [one["source"]["offset"] for one in stage.kafka.outcomes]
    assert sources == [0, 1, *range(new)]
    await stage.works()
    assert stage.errors[-1] in sentence  # nothing new


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

    stage.script.at(Op.BEGIN, fenced)
    stage.script.at(Op.COMMIT, fenced, nth=2)
    await restored(stage)
    stage.script.at(Op.COMMITTED, OSError("the answer was lost"))
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
    sentence = await stopped(stage)
    assert "was truncated or put back" in sentence
    assert "--restore-state" in sentence

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
    # An owner that went on writing while the topic was recreated leaves a right cursor.
    lose(stage, stage.place.topics.state)
    assert cursor.record is not None
    stage.kafka.append("taskflow.state", 0, b"cursor/0", cursor.record.value)

    sentence = await stopped(stage)

    assert "ends at offset 1, but the table has 20 flows" in sentence
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

    sentence = await stopped(stage)

    assert "names 5 as the next event, but the audit topic ends before 1" in sentence
    assert "put the topic back from a copy" in sentence


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

    sentence = await stopped(stage)

    assert sentence.startswith("WrittenByNewer")
    assert "install the version that wrote it" in sentence
