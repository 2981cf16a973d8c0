"""What an owner takes in while broker or disk are slow, and how that is seen from outside."""

import asyncio
from dataclasses import replace

import orjson
import pytest

from processor.partition.input_queue import FETCH_BYTES, LARGE_BYTES
from tests.support.moments import Op
from tests.support.scripted_kafka import PATIENCE_S
from tests.support.scripted_ports import Stage
from tests.unit.commands import create

SLOW_S = 30.0


def waited_s(stage: Stage, waits_for: str) -> float:
    labels = {"partition": "0", "waits_for": waits_for}
    return stage.metrics.registry.get_sample_value("taskflow_waited_seconds_total", labels) or 0.0


def metric(stage: Stage, name: str) -> float | None:
    return stage.metrics.registry.get_sample_value(name, {"partition": "0"})


@pytest.mark.parametrize(
    ("point", "waits_for"),
    [
        (Op.COMMIT, "broker"),
        (Op.FORWARD, "broker"),
        (Op.WRITE, "disk"),
        (Op.LOAD, "disk"),
        (Op.FETCH, "commands"),
    ],
)
async def test_what_is_waited_for_is_told(stage: Stage, point: Op, waits_for: str) -> None:
    stage.place = replace(stage.place, partitions=2)  # so that some are to be forwarded

    def slow() -> None:
        stage.monotonic_s += SLOW_S

    async with stage.running():
        await stage.quiet()
        stage.script.at(point, slow)
        stage.kafka.send(*(create(number) for number in range(6)))
        await stage.quiet()

    assert waited_s(stage, waits_for) == SLOW_S
    others = {"broker", "disk", "commands"} - {waits_for}
    assert {waited_s(stage, other) for other in others} == {0.0}


@pytest.mark.parametrize("point", [Op.COMMIT, Op.WRITE])
async def test_while_broker_or_disk_are_slow_nothing_more_is_fetched(
    stage: Stage, point: Op
) -> None:
    reached, go_on = asyncio.Event(), asyncio.Event()

    async def hang() -> None:
        reached.set()
        await go_on.wait()

    async with stage.running(batch_max_records=4):
        await stage.quiet()
        stage.script.at(point, hang)
        stage.kafka.send(*(create(number) for number in range(100)))
        await asyncio.wait_for(reached.wait(), PATIENCE_S)
        fetches = stage.script.passed[Op.FETCH]
        stage.kafka.send(*(create(number) for number in range(100, 200)))
        for _ in range(50):
            await asyncio.sleep(0)

        assert stage.script.passed[Op.FETCH] == fetches
        assert metric(stage, "taskflow_in_hand_records") == 4
        assert 4 * 200 < (metric(stage, "taskflow_in_hand_bytes") or 0) < 4 * 1000
        go_on.set()
        await stage.quiet()
        assert metric(stage, "taskflow_in_hand_records") == 0
    assert metric(stage, "taskflow_in_hand_records") is None, "nobody owns it any more"
    assert len(stage.kafka.outcomes) == 200


async def test_of_large_records_fewer_are_taken_in_hand(stage: Stage) -> None:
    """Each is in memory several times over, and compressed they take little of a fetch."""
    pending: list[int] = []

    def note() -> None:
        pending.append(int(metric(stage, "taskflow_in_hand_records") or 0))
        stage.script.at(Op.LOAD, note)

    large = [create(number, state_json={"note": "x" * 60_000}) for number in range(400)]
    each = len(orjson.dumps(large[0]))
    async with stage.running(batch_max_records=1000):
        await stage.quiet()
        stage.script.at(Op.LOAD, note)
        stage.kafka.send(*large)
        await stage.quiet()
        of_large = pending.copy()
        pending.clear()
        stage.kafka.send(*(create(number) for number in range(400, 2000)))
        await stage.quiet()

    assert of_large[0] == FETCH_BYTES // LARGE_BYTES, "nothing is known of the first ones"
    assert FETCH_BYTES // each in of_large
    assert len(stage.kafka.outcomes) == 2000
    assert list(dict.fromkeys(pending))[:2] == [FETCH_BYTES // each, 1000], (
        "of small ones, as many as make a batch"
    )


@pytest.mark.parametrize(("neighbours", "share"), [(1, 1000), (4, 1000), (16, 250), (64, 150)])
async def test_many_partitions_of_a_process_share_what_may_be_in_hand(
    stage: Stage, neighbours: int, share: int
) -> None:
    pending: list[int] = []

    def note() -> None:
        pending.append(int(metric(stage, "taskflow_in_hand_records") or 0))
        stage.script.at(Op.LOAD, note)

    async with stage.running(batch_max_records=1000) as owner:
        owner.share(neighbours)
        await stage.quiet()
        stage.kafka.send(*(create(number) for number in range(50)))
        await stage.quiet()
        stage.script.at(Op.LOAD, note)
        stage.kafka.send(*(create(number) for number in range(50, 2050)))
        await stage.quiet()

    assert max(pending) == share
    assert len(stage.kafka.outcomes) == 2050
