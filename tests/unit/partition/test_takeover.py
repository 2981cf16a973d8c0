"""Taking a partition over: from nothing, from a table, from an empty disk, and not at all."""

import shutil
from typing import Any

import pytest
import structlog

from processor.engine.rows import Position
from processor.recovery.table_match import TABLE_MAX_AGE_MS
from processor.testing.memory.kafka import Transaction, TxnState
from tests.support.builders import DAY_MS, FLOW_ID, HOUR_MS, TIMER, document, timer
from tests.support.moments import Op
from tests.support.scripted_ports import ScriptedHistory, Stage
from tests.support.tables import read_tables
from tests.unit.commands import create, flow_id, life, prune, update


async def test_nothing_is_there_and_the_first_command_is_decided(stage: Stage) -> None:
    stage.kafka.send(create(1))

    await stage.works()

    (outcome,) = stage.kafka.outcomes
    assert (outcome["verdict"], outcome["event_ids"]) == ("accepted", [1])
    assert stage.source.attached == [Position(0, 0, 1)]
    stage.assert_clean()


async def test_nobody_has_decided_yet_so_it_starts_where_the_topics_begin(stage: Stage) -> None:
    stage.kafka.send(create(1), create(2))
    stage.kafka.expire(stage.place.topics.commands, before=1)

    await stage.works()

    assert [one["source"]["offset"] for one in stage.kafka.outcomes] == [1]


async def test_a_table_is_rolled_forward_by_what_was_decided_elsewhere(stage: Stage) -> None:
    stage.kafka.send(*life(1), create(2))
    await stage.works()
    behind = stage.state_dir.with_name("behind")
    shutil.copytree(stage.state_dir, behind)
    stage.kafka.send(update(2, revision=0), *life(3), create(4))
    stage.kafka.send(prune(1), topic="control")
    await stage.works()
    read = stage.script.passed[Op.READ]
    stage.state_dir = behind

    await stage.works()

    assert stage.script.passed[Op.READ] > read
    stage.assert_clean()
    (table,) = read_tables([stage.state_dir], stage.place.topics.prefix)
    assert flow_id(1) not in table.flow_ids
    assert {flow_id(2), flow_id(3), flow_id(4)} <= table.flow_ids


async def test_a_table_that_is_up_to_date_reads_no_state(stage: Stage) -> None:
    stage.kafka.send(*life(1))
    await stage.works()
    stage.kafka.log(stage.place.topics.state).entries[0].compacted = True
    stage.kafka.send(update(1, revision=99))

    await stage.works()

    assert stage.kafka.outcomes[-1]["code"] == "revision_mismatch"
    stage.assert_clean()


async def test_an_empty_disk_is_filled_from_state_and_recent_outcomes(stage: Stage) -> None:
    stage.kafka.send(*life(1), *life(2), create(3))
    stage.kafka.send(prune(1), topic="control")
    await stage.works()
    stage.kafka.compact(stage.place.topics.state)
    stage.lose_disk()
    stage.kafka.send(update(3, revision=0))

    await stage.works()

    assert stage.kafka.outcomes[-1]["verdict"] == "accepted"
    stage.assert_clean()


async def test_a_filling_that_was_cut_short_begins_again(stage: Stage) -> None:
    stage.kafka.send(*(create(n) for n in range(12)))
    await stage.works()
    stage.lose_disk()
    stage.script.at(Op.WRITTEN, stage.script.crash, nth=3)
    await stage.crashes()

    await stage.works()

    stage.assert_clean()


@pytest.mark.parametrize(
    ("away_ms", "restored"), [(TABLE_MAX_AGE_MS - 1, 0), (TABLE_MAX_AGE_MS, 1)]
)
async def test_a_table_that_was_away_for_half_of_delete_retention_is_filled_anew(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, away_ms: int, restored: int
) -> None:
    stage.kafka.send(*life(1), create(2))
    await stage.works()
    stale = stage.state_dir.with_name("stale")
    shutil.copytree(stage.state_dir, stale)
    stage.kafka.send(prune(1), topic="control")
    stage.kafka.later(away_ms)
    await stage.works()
    stage.kafka.compact(stage.place.topics.state)
    stage.state_dir = stale
    log = stage.kafka.log(stage.place.topics.state)
    state_reads = []

    class Watched(ScriptedHistory):
        def read(self, topic: str, start: int, end: int) -> Any:
            state_reads.append(topic == stage.place.topics.state and end == log.end)
            return super().read(topic, start, end)

    monkeypatch.setattr(stage, "_new_history", lambda _: Watched(stage.kafka, stage.script, 0))
    await stage.works()

    assert sum(state_reads) == 1 + restored  # the newest cursor is always looked for
    (table,) = read_tables([stale], stage.place.topics.prefix)
    assert table.flow_ids == {flow_id(2)}
    stage.assert_clean()


@pytest.mark.parametrize(
    ("away_ms", "table"),
    [(TABLE_MAX_AGE_MS - 1, "caught up"), (TABLE_MAX_AGE_MS, "restored")],
)
async def test_a_table_from_before_the_first_answer_is_as_old_as_that(
    stage: Stage, away_ms: int, table: str
) -> None:
    await stage.works()
    empty = shutil.copytree(stage.state_dir, stage.state_dir.with_name("empty"))
    stage.kafka.send(*life(1))
    await stage.works()
    stage.kafka.later(away_ms)
    stage.kafka.send(create(2))
    await stage.works()
    stage.state_dir = empty

    with structlog.testing.capture_logs() as logs:
        await stage.works()

    assert [line["table"] for line in logs if "taken over" in line["event"]] == [table]
    stage.assert_clean()


async def test_outcomes_without_a_cursor_mean_that_nothing_is_ever_decided(stage: Stage) -> None:
    stage.kafka.send(create(1))
    await stage.works()
    for entry in stage.kafka.log(stage.place.topics.state).entries:
        entry.compacted = True
    stage.lose_disk()
    stage.kafka.send(create(2))

    async with stage.running():
        errors = await stage.failed(times=4)

    assert all(error.startswith("CursorMissing") for error in errors)
    assert len(stage.kafka.outcomes) == 1


async def test_commands_that_retention_took_undecided_are_told_and_not_skipped(
    stage: Stage,
) -> None:
    stage.kafka.send(create(1))
    await stage.works()
    stage.kafka.send(create(2), create(3))
    stage.kafka.expire(stage.place.topics.commands, before=2)

    async with stage.running():
        errors = await stage.failed()

    assert "taskflow.commands partition 0 begins at offset 2, but 1 is next" in errors[0]
    assert len(stage.kafka.outcomes) == 1


async def test_a_topic_that_was_made_anew_is_told_and_not_read_from_its_start(
    stage: Stage,
) -> None:
    stage.kafka.send(create(1), create(2))
    await stage.works()
    stage.kafka.log(stage.place.topics.commands).entries.pop()

    async with stage.running():
        errors = await stage.failed()

    assert "ends at offset 1, but 2 is next: the topic was truncated or recreated" in errors[0]
    assert len(stage.kafka.outcomes) == 2


async def test_markers_that_retention_took_are_no_loss_where_the_cursor_says_so(
    stage: Stage,
) -> None:
    stage.kafka.send(create(1))
    await stage.works()
    behind = stage.state_dir.with_name("behind")
    shutil.copytree(stage.state_dir, behind)
    foreign = stage.kafka.begin()
    commands = stage.place.topics.commands
    stage.kafka.append(commands, 0, b"k", b"never committed", transaction=foreign)
    stage.kafka.end(foreign, TxnState.ABORTED)
    async with stage.running():
        await stage.quiet()
        stage.monotonic_s += 3600
        stage.source.return_nothing()
        await stage.kafka.until(lambda: len(stage.kafka.read(stage.place.topics.state)) == 3)
    stage.kafka.expire(commands, before=3)
    stage.state_dir = behind
    stage.kafka.send(create(2))

    await stage.works()

    assert stage.errors == []
    stage.assert_clean()


async def test_a_foreign_open_transaction_is_waited_for_and_the_older_cursor_not_taken(
    stage: Stage,
) -> None:
    topics, kafka = stage.place.topics, stage.kafka
    foreign = kafka.begin()
    kafka.append(topics.state, 0, b"foreign", b"{}", transaction=foreign)
    kafka.send(create(1))
    hidden = kafka.begin_for("t", kafka.fence("t"))
    for record in ((topics.state, b"cursor/0"), (topics.outcomes, None)):
        kafka.append(record[0], 0, record[1], b"{}", transaction=hidden)
    kafka.end(hidden, TxnState.ABORTED)

    async with stage.running() as owner:
        await kafka.until(lambda: stage.script.passed[Op.SETTLE])
        assert kafka.outcomes == []
        assert (owner.status.waits or "") == f"a transaction is open on {topics.state}"
        kafka.end(foreign, TxnState.ABORTED)
        await stage.quiet()
        assert (owner.status.error, owner.status.waits) == (None, None)

    stage.assert_clean()


async def test_what_an_owner_left_open_that_no_fence_ends_is_aborted_and_decided_again(
    stage: Stage,
) -> None:
    kafka, topics = stage.kafka, stage.place.topics
    commands = [create(1), create(2), create(3)]
    kafka.send(commands[0])
    await stage.works()

    def markers_are_lost() -> None:
        kafka.lose_markers(f"{topics.prefix}-0")
        raise ConnectionError("the broker went away")

    stage.script.at(Op.COMMIT, markers_are_lost)
    kafka.send(*commands[1:])

    await stage.works()

    assert len(stage.errors) == 1
    assert kafka.journal[-4:] == ["fence", "abort", "begin", "commit"]
    assert [one["command_id"] for one in kafka.outcomes] == [one["command_id"] for one in commands]
    assert [one["id"] for one in kafka.events] == [1, 2, 3]
    stage.assert_clean()


async def test_what_was_committed_and_lost_its_markers_is_in_no_table_afterwards(
    stage: Stage,
) -> None:
    kafka, topics = stage.kafka, stage.place.topics
    commit_for = kafka.commit_for

    def acknowledged(transactional_id: str, epoch: int) -> None:
        """As the coordinator does: first the answer, then the markers, of which none comes."""
        kafka.commit_for = commit_for  # type: ignore[method-assign]
        kafka.lose_markers(transactional_id)

    kafka.send(create(1))
    await stage.works()
    kafka.commit_for = acknowledged  # type: ignore[method-assign]
    kafka.send(create(2))
    stage.script.at(Op.WRITTEN, ConnectionError("the broker went away"))

    with structlog.testing.capture_logs() as logs:
        await stage.works()

    (reason,) = [one["reason"] for one in logs if one["event"] == "the table is restored"]
    assert reason.startswith("it is ahead of the topics")
    assert kafka.log(topics.state).stable_end == kafka.log(topics.state).end
    stage.assert_clean()


async def test_what_is_committed_on_one_topic_and_open_on_another_is_left_to_an_operator(
    stage: Stage,
) -> None:
    kafka, topics = stage.kafka, stage.place.topics
    kafka.send(create(1))

    def one_marker_came() -> None:
        torn = kafka.lose_markers(f"{topics.prefix}-0")
        torn.state = TxnState.COMMITTED
        kafka.mark(torn, (topics.outcomes, 0))
        left.append(torn)
        raise ConnectionError("the broker went away")

    left: list[Transaction] = []
    stage.script.at(Op.COMMIT, one_marker_came)
    async with stage.running():
        await kafka.until(lambda: any(one.hanging_reported for one in stage.histories))
        assert "abort" not in kafka.journal
        for topic in (topics.audit, topics.state):
            kafka.mark(left[0], (topic, 0))
        await stage.quiet()

    assert len(kafka.outcomes) == 1
    stage.assert_clean()


async def test_an_open_transaction_on_commands_does_not_hold_up_control(stage: Stage) -> None:
    stage.kafka.send(create(1))
    await stage.works()
    stage.lose_disk()
    foreign = stage.kafka.begin()
    stage.kafka.append(stage.place.topics.commands, 0, b"k", b"{}", transaction=foreign)
    stage.kafka.send(create(2, owner_session_key="agent:x"), topic="control")

    await stage.works()

    assert stage.kafka.outcomes[-1]["source"]["topic"] == stage.place.topics.control
    stage.kafka.end(foreign, TxnState.ABORTED)
    stage.assert_clean()


async def test_a_partition_that_went_to_another_is_neither_fenced_nor_read(stage: Stage) -> None:
    stage.kafka.send(create(1))
    stage.source.revoke()
    assigned = stage.source.assigned

    async def stale(partition: int) -> int:
        stage.source.assigned = assigned  # type: ignore[method-assign]
        return 1

    stage.source.assigned = stale  # type: ignore[method-assign]

    async with stage.running():
        errors = await stage.failed()
        assert stage.kafka.journal == []
        stage.source.assign(0)
        await stage.quiet()

    assert errors == ["OwnershipLost: partition 0 is not ours"]
    stage.assert_clean()


async def test_a_partition_that_is_lost_while_it_is_restored_decides_nothing(stage: Stage) -> None:
    stage.kafka.send(create(1))
    stage.script.at(Op.SETTLE, stage.source.revoke)

    async with stage.running():
        errors = await stage.failed()
        assert stage.kafka.outcomes == []
        stage.source.assign(0)
        await stage.quiet()

    assert errors == ["OwnershipLost: partition 0 is not ours"]
    stage.assert_clean()


async def test_histories_are_closed_also_when_they_fail(stage: Stage) -> None:
    stage.kafka.send(create(1))
    stage.script.at(Op.READ, OSError("gone"))
    stage.script.at(Op.SETTLE, OSError("gone"))

    await stage.works()

    assert [history.closed for history in stage.histories] == [True] * len(stage.histories)


async def test_waiting_flows_and_steps_come_back_from_state(stage: Stage) -> None:
    observed = document(
        "record_step_observation", flow_id=FLOW_ID, run_id="ü/1", task="t", status="running"
    )
    waits = document("set_waiting", flow_id=FLOW_ID, wait=timer(stage.kafka.now_ms + HOUR_MS))
    start = document("start_running", flow_id=FLOW_ID)
    made = document(
        "create_managed", flow_id=FLOW_ID, controller_id="c", goal="g", requester_origin="r"
    )
    stage.kafka.send(made, start, waits, observed)
    await stage.works()
    stage.lose_disk()
    stage.kafka.later(DAY_MS)
    stage.kafka.send(document("wake", flow_id=FLOW_ID, issued_by=TIMER), topic="control")

    await stage.works()

    assert stage.kafka.outcomes[-1]["verdict"] == "accepted"
    stage.assert_clean()
