"""Resends: from where they are answered, and for how long."""

import sqlite3
from contextlib import closing
from typing import Any

import pytest

from processor.adapters.sqlite import ledger
from processor.engine.batch import WriteSet
from processor.engine.ports import Fetched
from processor.engine.rows import Position
from processor.partition.input_queue import InputQueue
from processor.testing.memory.kafka import TxnState
from processor.testing.memory.record import Appended
from tests.support.builders import HOUR_MS, MINUTE_MS
from tests.support.scripted_ports import Stage
from tests.unit.commands import create, start, update


def verdicts(stage: Stage) -> list[Any]:
    return [(one["verdict"], one["code"]) for one in stage.kafka.outcomes]


@pytest.mark.parametrize("disk", ["its disk", "an empty disk"])
async def test_a_resend_after_a_restart_is_answered_with_the_first_outcome(
    stage: Stage, disk: str
) -> None:
    first, refused = create(1), update(1, revision=9)
    stage.kafka.send(first, refused)
    await stage.works()
    if disk == "an empty disk":
        stage.lose_disk()
    stage.kafka.send(first, {**refused, "patch": 1})
    stage.kafka.send(refused, topic="control")

    await stage.works()

    assert set(verdicts(stage)[2:]) == {
        ("duplicate", None),
        ("duplicate", "revision_mismatch"),
        ("rejected", "idempotency_conflict"),
    }
    again = next(one for one in stage.kafka.outcomes[2:] if one["code"] is None)
    assert (again["event_ids"], again["original"]) == ([1], "accepted")
    stage.assert_clean()


@pytest.mark.parametrize("disk", ["in memory", "its disk", "an empty disk"])
@pytest.mark.parametrize(
    ("after_ms", "verdict"),
    [(HOUR_MS, ("duplicate", None)), (HOUR_MS + 1, ("rejected", "already_exists"))],
    ids=["at the window", "1 ms after"],
)
async def test_the_window_is_exact(
    stage: Stage, disk: str, after_ms: int, verdict: tuple[str, str | None]
) -> None:
    first = create(1)
    stage.kafka.send(first)
    if disk != "in memory":
        await stage.works()
    if disk == "an empty disk":
        stage.lose_disk()
    stage.kafka.later(after_ms)
    stage.kafka.send(first)

    await stage.works()

    assert verdicts(stage)[1] == verdict
    stage.assert_clean()


@pytest.mark.parametrize("disk", ["its disk", "an empty disk"])
async def test_a_backlog_is_held_against_the_window_of_its_own_time(
    stage: Stage, disk: str
) -> None:
    """A worker that was away for long finds resends that were sent within the window."""
    first = create(1)
    stage.kafka.send(first)
    await stage.works()
    stage.kafka.later(HOUR_MS)
    stage.kafka.send(first)
    stage.kafka.later(5 * HOUR_MS)
    stage.kafka.send(create(2, owner_session_key="agent:x"), topic="control")
    if disk == "an empty disk":
        stage.lose_disk()

    await stage.works()

    assert ("duplicate", None) in verdicts(stage)
    stage.assert_clean()


async def test_answers_are_kept_while_a_topics_broker_is_silent_about_its_backlog(
    stage: Stage,
) -> None:
    """It must not pass for a topic without commands: those that come may be old."""
    first = create(1)
    stage.kafka.send(first)
    await stage.works()
    stage.kafka.later(HOUR_MS)
    stage.kafka.send(first)
    stage.kafka.later(5 * HOUR_MS)
    stage.kafka.send(create(2, owner_session_key="agent:x"), topic="control")
    stage.source.assign(0)
    stage.source.mute = {stage.place.topics.commands}

    async with stage.running():
        await stage.quiet()
        assert len(stage.kafka.outcomes) == 2
        stage.source.mute.clear()
        stage.kafka.notify()
        await stage.kafka.until(lambda: len(stage.kafka.outcomes) == 3)

    assert verdicts(stage)[2] == ("duplicate", None)


@pytest.mark.parametrize("disk", ["its disk", "an empty disk"])
async def test_answers_are_kept_for_commands_that_lie_in_an_open_transaction(
    stage: Stage, disk: str
) -> None:
    """They become visible late, and count from when they were appended."""
    first = create(1)
    stage.kafka.send(first)
    await stage.works()
    stage.kafka.later(HOUR_MS)
    topics, open_one = stage.place.topics, stage.kafka.begin()
    sent = next(stage.kafka.log(topics.commands).committed(0, 1))
    stage.kafka.append(topics.commands, 0, sent.key, sent.value, transaction=open_one)
    stage.kafka.later(14 * MINUTE_MS)
    stage.kafka.send(create(2, owner_session_key="agent:x"), topic="control")
    await stage.works()
    if disk == "an empty disk":
        stage.lose_disk()
    await stage.works()
    stage.kafka.end(open_one, TxnState.COMMITTED)

    await stage.works()

    assert verdicts(stage)[2] == ("duplicate", None)
    stage.assert_clean()


async def test_old_answers_are_forgotten_once_nobody_can_ask_for_them(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger, "GENERATION_MIN_ROWS", 4)
    stage.kafka.send(create(1))
    await stage.works()
    for _ in range(3):
        stage.kafka.later(HOUR_MS)
        stage.kafka.send(start(1), create(2, owner_session_key="agent:x"))
        stage.kafka.send(update(1), topic="control")
        await stage.works()

    with closing(sqlite3.connect(stage.path)) as db:
        ((count,),) = db.execute("SELECT count(*) FROM ledger")
    assert count < len(stage.kafka.outcomes)
    stage.assert_clean()


async def test_a_dry_run_and_a_strangers_command_burn_no_id(stage: Stage) -> None:
    looks = create(1, dry_run=True)
    stranger = {**create(2), "issued_by": "agent:eve", "owner_session_key": "agent:kate"}
    stage.kafka.send(looks, stranger)
    await stage.works()
    stage.lose_disk()
    stage.kafka.send({**looks, "dry_run": False}, {**stranger, "issued_by": "agent:kate"})

    await stage.works()

    assert verdicts(stage)[2:] == [("accepted", None)] * 2
    stage.assert_clean()


OLD_MS, NEW_MS = 1_000 * HOUR_MS, 1_005 * HOUR_MS


@pytest.mark.parametrize("old", ["commands", "control"])
@pytest.mark.parametrize(
    ("lag", "pending", "forgets"),
    [
        (0, False, True),
        (0, True, False),
        (1, False, False),
        (1, True, False),
        (None, False, False),
    ],
    ids=["at its end", "a record is pending", "it lags", "it lags and pends", "nothing is known"],
)
async def test_outcomes_are_forgotten_by_the_newest_record_of_a_topic_only_where_nothing_is_left(
    stage: Stage,
    monkeypatch: pytest.MonkeyPatch,
    old: str,
    lag: int | None,
    pending: bool,
    forgets: bool,
) -> None:
    """The topic `old` was last heard of five hours before the other one."""
    topics = stage.place.topics
    of_old, other = (
        (topics.commands, topics.control)
        if old == "commands"
        else (topics.control, topics.commands)
    )
    queue = InputQueue(stage.place, stage.source, batch_max_records=4, appended=lambda _: None)
    await queue.attach(Position(0, 0, 1))
    lags = (lag, 0) if old == "commands" else (0, lag)
    monkeypatch.setattr(stage.source, "lags", lambda _: lags)
    if pending:
        record = [Appended(of_old, 0, 0, OLD_MS, b"k", b"{}")]
        await queue.put(Fetched(record, []) if old == "commands" else Fetched([], record))
    batch = WriteSet(Position(0, 0, 1))
    batch.newest.update({of_old: OLD_MS, other: NEW_MS})

    assert queue.oldest_to_come_ms(batch) == (NEW_MS if forgets else OLD_MS)
