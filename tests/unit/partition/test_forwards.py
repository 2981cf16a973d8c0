"""Records on the wrong partition: sent on before anything is said about it."""

from dataclasses import replace
from pathlib import Path

import pytest

from processor.engine.partitioner import partition_of
from tests.support.moments import Op
from tests.support.partition import PLACE
from tests.support.scripted_ports import Stage
from tests.unit.commands import create, flow_id

HERE = 1
RIGHT = [n for n in range(40) if partition_of(flow_id(n).encode(), 4) == HERE]
WRONG = [n for n in range(40) if partition_of(flow_id(n).encode(), 4) == 3]


@pytest.fixture
def stage(stage: Stage, tmp_path: Path) -> Stage:
    """Partition 1 of 4."""
    return Stage(tmp_path / "state", replace(PLACE, partition=HERE, partitions=4))


def given(stage: Stage, *numbers: int) -> None:
    stage.kafka.send(*(create(n) for n in numbers), partition=HERE)


async def outcomes_of(stage: Stage) -> list[tuple[str, str | None]]:
    await stage.works()
    outcomes = stage.kafka.read(stage.place.topics.outcomes, HERE)
    return [(one["verdict"], one["code"]) for one in outcomes]


def copies(stage: Stage) -> int:
    return len(stage.kafka.read(stage.place.topics.commands, 3))


async def test_forwards_go_out_before_the_outcome_is_committed(stage: Stage) -> None:
    given(stage, RIGHT[0], WRONG[0])

    assert await outcomes_of(stage) == [("accepted", None), ("forwarded", None)]

    assert stage.kafka.journal == ["fence", "forward", "begin", "commit"]
    (copy,) = stage.kafka.log(stage.place.topics.commands, 3).committed(0, 9)
    assert copy.headers == (("taskflow-forwarded-from", b"taskflow.commands/1/1"),)


@pytest.mark.parametrize("point", [Op.FORWARD, Op.FORWARDED])
async def test_a_forward_that_fails_is_sent_again_and_nothing_is_committed_before(
    stage: Stage, point: Op
) -> None:
    given(stage, WRONG[0], RIGHT[0])
    stage.script.at(point, OSError("broker away"))

    assert await outcomes_of(stage) == [("forwarded", None), ("accepted", None)]

    assert copies(stage) == (1 if point is Op.FORWARD else 2)
    assert stage.kafka.journal.count("begin") == 1


@pytest.mark.parametrize("point", [Op.FORWARD, Op.FORWARDED, Op.COMMIT, Op.COMMITTED])
async def test_after_a_crash_a_forward_is_there_at_least_once(stage: Stage, point: Op) -> None:
    given(stage, WRONG[0], RIGHT[0])
    stage.script.at(point, stage.script.crash)
    await stage.crashes()

    assert await outcomes_of(stage) == [("forwarded", None), ("accepted", None)]

    assert copies(stage) == (2 if point in (Op.FORWARDED, Op.COMMIT) else 1)


async def test_a_copy_that_is_too_large_is_quarantined_and_the_rest_forwarded_once(
    stage: Stage,
) -> None:
    given(stage, WRONG[0], RIGHT[0], WRONG[1])
    stage.forwarder.too_large = {(stage.place.topics.commands, 0)}

    assert await outcomes_of(stage) == [
        ("quarantined", "internal_error"),
        ("accepted", None),
        ("forwarded", None),
    ]

    assert copies(stage) == 1
    assert len(stage.kafka.read(stage.place.topics.outcomes, 3)) == 0


async def test_event_ids_of_a_partition_begin_at_its_own_number(stage: Stage) -> None:
    given(stage, RIGHT[0])

    await outcomes_of(stage)

    (event,) = stage.kafka.read(stage.place.topics.audit, HERE)
    assert event["id"] == HERE * 2**40 + 1
