"""Flows that ended long ago go, some at a time; what happened to them stays."""

import sqlite3
from contextlib import closing
from dataclasses import replace
from typing import Any

import pytest

from processor.contract.flow import FlowStatus
from processor.contract.values import instant
from processor.domain import decide
from processor.partition.scheduling.retention import ACTOR, LOOK_EVERY_S, has_ended
from tests.support.builders import DAY_MS, document
from tests.support.moments import Op
from tests.support.scripted_ports import Stage
from tests.unit.adapters.sqlite.tables import NOON_MS, flow_row
from tests.unit.commands import create, flow_id, life, prune, start
from tests.unit.partition.scheduling.test_processor_timers import crash_at

LOOK_EVERY_MS = int(LOOK_EVERY_S * 1000)
COUNT = 8


@pytest.fixture
def stage(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> Stage:
    """Flows are kept for a day after their end, and removed three at a time."""
    stage.place = replace(stage.place, retain_terminal_ms=DAY_MS)
    monkeypatch.setattr("processor.partition.scheduling.retention.STEP_MAX", 3)
    return stage


def lives(stage: Stage) -> None:
    stage.kafka.send(*(one for n in range(COUNT) for one in life(n)), create(99), start(99))


def prunes(stage: Stage) -> list[str]:
    """Whom the processor itself has told to go."""
    control = stage.kafka.read(stage.place.topics.control)
    return [one["flow_id"] for one in control if one["issued_by"] == ACTOR]


def present(stage: Stage) -> set[str]:
    """The keys on `state` whose last record is no tombstone."""
    log = stage.kafka.log(stage.place.topics.state)
    newest = {r.key: r.value for r in log.committed(0, log.end)}
    return {(key or b"").decode() for key, value in newest.items() if value is not None}


async def test_they_go_a_day_after_their_end_in_small_steps_and_their_audit_stays(
    stage: Stage,
) -> None:
    lives(stage)
    at_once: list[int] = []
    async with stage.running(batch_max_records=50):
        await stage.quiet()
        events = stage.kafka.events
        await stage.goes_on(DAY_MS)
        assert prunes(stage) == []
        for nth in range(1, 20):
            stage.script.at(Op.COMMITTED, lambda: at_once.append(len(prunes(stage))), nth=nth)
        await stage.goes_on(LOOK_EVERY_MS)

    assert sorted(prunes(stage)) == sorted(map(flow_id, range(COUNT)))
    assert max(b - a for a, b in zip([0, *at_once], at_once, strict=False)) == 3
    assert present(stage) == {"cursor/0", flow_id(99)}
    assert stage.kafka.events[: len(events)] == events
    assert [one["kind"] for one in stage.kafka.events[len(events) :]] == ["pruned"] * COUNT
    stage.assert_clean()


async def test_who_keeps_them_for_seconds_does_not_wait_a_minute(stage: Stage) -> None:
    stage.place = replace(stage.place, retain_terminal_ms=5_000)
    async with stage.running():
        lives(stage)
        await stage.quiet()
        await stage.goes_on(10_000)

    assert sorted(prunes(stage)) == sorted(map(flow_id, range(COUNT)))
    stage.assert_clean()


async def test_the_id_of_one_that_is_gone_may_be_used_again(stage: Stage) -> None:
    lives(stage)
    async with stage.running(batch_max_records=50):
        await stage.quiet()
        await stage.goes_on(DAY_MS + LOOK_EVERY_MS)
        stage.kafka.send(create(1))
        await stage.quiet()
        await stage.goes_on(LOOK_EVERY_MS)

    assert (stage.kafka.outcomes[-1]["verdict"], stage.kafka.outcomes[-1]["revision"]) == (
        "accepted",
        0,
    )
    assert prunes(stage).count(flow_id(1)) == 1
    stage.assert_clean()


async def test_off_means_never(stage: Stage) -> None:
    stage.place = replace(stage.place, retain_terminal_ms=None)
    lives(stage)
    async with stage.running():
        await stage.quiet()
        await stage.goes_on(1000 * DAY_MS)

    assert prunes(stage) == []


async def test_one_that_could_not_go_is_told_again_later(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    stubborn = {flow_id(2)}

    def breaks(command: Any, *rest: Any, **how: Any) -> Any:
        if command.kind == "prune" and command.flow_id in stubborn:
            raise ZeroDivisionError
        return decide.decide(command, *rest, **how)

    monkeypatch.setattr("processor.engine.command_handler.decide", breaks)
    lives(stage)
    async with stage.running(batch_max_records=50):
        await stage.quiet()
        await stage.goes_on(DAY_MS + LOOK_EVERY_MS)
        assert prunes(stage).count(flow_id(2)) == 1
        assert flow_id(2) in present(stage)
        stubborn.clear()
        await stage.goes_on(LOOK_EVERY_MS - 1)
        assert prunes(stage).count(flow_id(2)) == 1
        await stage.goes_on(1)

    assert present(stage) == {"cursor/0", flow_id(99)}
    assert len(prunes(stage)) == COUNT + 1
    stage.assert_clean()


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE flow SET updated_at = '2020-01-01T00:00:00.000Z'",
        "UPDATE flow SET status = 'finished', updated_at = '2020-01-01T00:00:00.000Z'",
    ],
)
async def test_an_index_alone_removes_nobody(stage: Stage, damage: str) -> None:
    lives(stage)
    await stage.works(batch_max_records=50)
    with closing(sqlite3.connect(stage.path, isolation_level=None)) as db:
        db.execute(damage)

    async with stage.running():
        await stage.settles()
        await stage.goes_on(LOOK_EVERY_MS)

    assert prunes(stage) == []


async def test_one_that_begins_a_new_life_in_the_very_batch_is_left_alone(stage: Stage) -> None:
    stage.kafka.send(*life(1))
    async with stage.running(batch_max_records=50):
        await stage.quiet()
        stage.kafka.later(DAY_MS)
        stage.kafka.send(prune(1, issued_by="operator:ana"), topic="control")
        stage.kafka.later(1)
        stage.kafka.send(create(1), document("cancel", flow_id=flow_id(1)))
        stage.monotonic_s += DAY_MS / 1000 + LOOK_EVERY_S
        stage.kafka.now_ms += LOOK_EVERY_MS
        await stage.settles()
        await stage.goes_on(LOOK_EVERY_MS)

    assert prunes(stage) == []
    assert flow_id(1) in present(stage)
    stage.assert_clean()


@pytest.mark.parametrize("nth", [1, 2, 4])
@pytest.mark.parametrize("point", [Op.COMMIT, Op.COMMITTED, Op.WRITTEN])
async def test_a_crash_in_between_tells_nobody_twice(stage: Stage, point: Op, nth: int) -> None:
    lives(stage)
    await stage.works(batch_max_records=50)
    stage.later(DAY_MS + LOOK_EVERY_MS)
    # The first transaction asks for the time.
    await crash_at(stage, point, 1 + nth, "kept")

    async with stage.running(batch_max_records=50):
        await stage.settles()
        await stage.goes_on(LOOK_EVERY_MS)

    assert sorted(prunes(stage)) == sorted(map(flow_id, range(COUNT)))
    assert present(stage) == {"cursor/0", flow_id(99)}
    stage.assert_clean()


@pytest.mark.parametrize(("before_ms", "ended"), [(NOON_MS, False), (NOON_MS + 1, True)])
def test_a_flow_that_ended_at_the_very_time_is_kept(before_ms: int, ended: bool) -> None:
    row = flow_row(1, status=FlowStatus.FINISHED, updated_at=instant(NOON_MS))
    assert has_ended(row, before_ms) is ended
