"""The group goes on: what is kept, what is fetched again, and what is dropped."""

from dataclasses import replace
from typing import Any

import pytest

from processor.engine.codec import decode
from processor.engine.rows import Position
from processor.partition import input_queue
from processor.partition.status import PartitionPhase
from tests.support.moments import Op
from tests.support.scripted_ports import Stage
from tests.unit.commands import create, update


async def test_a_partition_that_stays_keeps_producer_and_memory_and_is_only_sought_again(
    stage: Stage,
) -> None:
    stage.kafka.send(create(1))

    async with stage.running() as owner:
        await stage.quiet()
        loads = stage.script.passed[Op.LOAD]
        stage.source.rebalance()
        stage.kafka.send(update(1, revision=0))
        await stage.quiet()
        assert owner._batches.cache.flows == 1

    assert stage.source.attached == [Position(0, 0, 1), Position(1, 0, 2)]
    assert stage.script.passed[Op.LOAD] == loads
    assert stage.kafka.journal.count("fence") == 1
    stage.assert_clean()


async def test_records_fetched_for_an_older_generation_are_dropped(stage: Stage) -> None:
    stage.kafka.send(create(1), create(2))
    begun: list[int] = []
    stage.script.at(Op.FETCHED, stage.source.rebalance)
    stage.script.at(Op.BEGIN, lambda: begun.append(stage.source.generation))

    await stage.works()

    assert begun == [3]
    assert stage.source.attached == [Position(0, 0, 1)] * 2
    stage.assert_clean()


async def test_records_that_an_assignment_outlives_while_they_are_read_are_dropped(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage.kafka.send(create(1), create(2))
    begun: list[int] = []
    stage.script.at(Op.BEGIN, lambda: begun.append(stage.source.generation))

    def rebalanced(record: Any) -> Any:
        if stage.source.generation == 1:
            stage.source.rebalance()
        return decode(record)

    monkeypatch.setattr(input_queue, "decode", rebalanced)

    await stage.works()

    assert begun == [3]
    assert stage.source.attached == [Position(0, 0, 1)] * 2
    stage.assert_clean()


async def test_records_left_over_from_an_older_generation_are_fetched_anew(stage: Stage) -> None:
    stage.kafka.send(create(1), create(2), create(3))
    stage.script.at(Op.WRITTEN, stage.source.rebalance, nth=2)
    stage.place = replace(stage.place, output_max_bytes=1)

    await stage.works()

    assert stage.source.attached == [Position(0, 0, 1), Position(1, 0, 2)]
    stage.assert_clean()


async def test_records_below_the_position_are_dropped(stage: Stage) -> None:
    stage.kafka.send(create(1), create(2))
    stage.kafka.send(create(3, owner_session_key="agent:x"), topic="control")

    async with stage.running():
        await stage.quiet()
        stage.source.stray(0, 0)
        stage.kafka.send(create(4))
        await stage.quiet()

    assert [one["verdict"] for one in stage.kafka.outcomes] == ["accepted"] * 4
    stage.assert_clean()


async def test_a_partition_that_is_taken_away_waits_and_decides_nothing(stage: Stage) -> None:
    async with stage.running() as owner:
        await stage.quiet()
        stage.source.revoke()
        stage.kafka.send(create(1))
        await owner.idle()
        assert stage.kafka.outcomes == []
        stage.source.assign(0)
        await stage.quiet()

    assert stage.kafka.journal.count("fence") == 1
    stage.assert_clean()


async def test_release_finishes_the_batch_in_hand_and_begins_no_more(stage: Stage) -> None:
    stage.kafka.send(*(create(n) for n in range(8)))

    async with stage.running() as owner:
        stage.script.at(Op.COMMIT, owner.release)
        await stage.kafka.until(lambda: stage.kafka.outcomes)
        await owner.idle()

    assert len(stage.kafka.outcomes) == 4
    assert owner.status.phase is PartitionPhase.RELEASED
    await stage.works()
    stage.assert_clean()


async def test_what_was_fetched_before_the_release_is_left_to_the_next_owner(
    stage: Stage,
) -> None:
    stage.kafka.send(create(1))

    async with stage.running() as owner:
        stage.script.at(Op.FETCHED, owner.release)
        await stage.kafka.until(lambda: owner.status.phase is PartitionPhase.RELEASED)

    assert stage.kafka.outcomes == []
    assert stage.writers[0].discarded


async def test_an_owner_that_was_fenced_takes_over_again_only_if_the_group_says_so(
    stage: Stage,
) -> None:
    async with stage.running():
        await stage.quiet()
        stage.kafka.fence("taskflow-0")
        stage.kafka.send(create(1))
        stage.script.at(Op.FETCHED, lambda: stage.script.at(Op.CONFIRM, stage.source.revoke))
        errors = await stage.failed(times=2)
        assert stage.kafka.outcomes == []
        assert stage.kafka.journal == ["fence", "fence"]
        stage.source.assign(0)
        await stage.quiet()

    assert [error.partition(":")[0] for error in errors] == ["Fenced", "OwnershipLost"]
    stage.assert_clean()


async def test_a_lag_is_what_is_not_decided_yet(stage: Stage) -> None:
    seen: list[int] = []
    stage.kafka.send(*(create(n) for n in range(9)))

    async with stage.running() as owner:
        for nth in (1, 2, 3):
            stage.script.at(Op.COMMIT, lambda: seen.append(owner.lag), nth=nth)
        await stage.quiet()
        assert owner.lag == 0

    assert seen == [9, 5, 1]
