"""What a take-over mends by itself, and what it must not believe."""

import shutil

import pytest

from processor.engine.batch import Outgoing, first_event_id
from processor.engine.ports import OffsetRange
from processor.engine.rows import Checkpoint, Position
from processor.errors import CursorMissing
from processor.recovery.catch_up import CatchUp
from processor.recovery.checkpoint import settled, stand
from processor.recovery.restore import Restore
from processor.recovery.table_match import knows_events_before
from processor.testing.memory.kafka import TxnState
from tests.support.scripted_ports import Stage
from tests.unit.commands import (
    create,
    life,
    start,
    update,
)
from tests.unit.recovery.deployments import difference, history, lose, rebuilt, table_at

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
