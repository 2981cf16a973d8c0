"""Whatever goes wrong, and wherever: the partition is taken over again, and in the end every
command has exactly one outcome, and topics and table are what the contract says."""

import asyncio
from collections.abc import Callable

import pytest

from processor.adapters.sqlite import TableFailed
from processor.errors import OwnershipLost
from processor.partition.processor import PartitionProcessor
from processor.partition.status import PartitionPhase
from tests.support.moments import Op
from tests.support.scripted_ports import Action, Stage
from tests.unit.commands import create, life, prune, update


def commit_then_time_out(stage: Stage) -> None:
    """The request arrives and takes effect late; the answer never comes."""
    stage.kafka.end_late("taskflow-0")
    raise TimeoutError


FAULTS: dict[str, tuple[Op, Callable[[Stage], Action]]] = {
    "the table cannot be opened": (Op.OPEN, lambda _: TableFailed("disk full")),
    "ownership is lost": (Op.CONFIRM, lambda _: OwnershipLost("the group moved on")),
    "fencing fails": (Op.FENCE, lambda _: TimeoutError()),
    "settling fails": (Op.SETTLE, lambda _: OSError("broker away")),
    "history cannot be read": (Op.READ, lambda _: OSError("broker away")),
    "a fetch raises": (Op.FETCH, lambda _: OSError("broker away")),
    "a fetch raises what it had": (Op.FETCHED, lambda _: OSError("broker away")),
    "the generation changes in mid-fetch": (Op.FETCHED, lambda s: s.source.rebalance),
    "the generation changes before the commit": (Op.BEGIN, lambda s: s.source.rebalance),
    "the table cannot be read": (Op.LOAD, lambda _: TableFailed("I/O error")),
    "a transaction cannot begin": (Op.BEGIN, lambda _: OSError("broker away")),
    "a commit fails before it took effect": (Op.COMMIT, lambda _: OSError("broker away")),
    "a commit fails after it took effect": (Op.COMMITTED, lambda _: OSError("broker away")),
    "a commit hangs, and never takes effect": (Op.COMMIT, lambda _: TimeoutError()),
    "a commit hangs, and takes effect late": (
        Op.COMMIT,
        lambda stage: lambda: commit_then_time_out(stage),
    ),
    "another owner fences before the commit": (
        Op.COMMIT,
        lambda stage: lambda: void(stage.kafka.fence("taskflow-0")),
    ),
    "the table cannot be written": (Op.WRITE, lambda _: TableFailed("disk full")),
    "the table was written, but says not": (Op.WRITTEN, lambda _: TableFailed("I/O error")),
    "a bug": (Op.LOAD, lambda _: ZeroDivisionError()),
}


COMMITTED = Op.COMMITTED
NOT_REACHED = {
    *(Op.FORWARD, Op.FORWARDED, Op.OFFER, Op.OFFERED),
    *(Op.FENCED, Op.TOUCH, Op.PRODUCE, Op.RECOVER),
}
"""Those that records of other partitions, and steps, have (test_forwards and test_work_items), and
those of the simulation alone."""
ONCE_PER_TAKEOVER = {Op.OPEN, Op.CONFIRM, Op.FENCE, Op.SETTLE}


def void(_: object) -> None:
    return None


def given(stage: Stage) -> None:
    """Five batches of four, with a history before them."""
    stage.kafka.send(*life(1), create(2), update(2, revision=0))
    again = update(3, revision=0)
    stage.kafka.send(prune(1), topic="control")
    stage.kafka.send(create(3), again, again, *life(4), *life(5), update(2, revision=0))
    stage.kafka.send(create(1), update(9), prune(4), topic="control")


@pytest.mark.parametrize("nth", [1, pytest.param(2, marks=pytest.mark.soak), 3])
@pytest.mark.parametrize("fault", FAULTS)
async def test_after_an_error_the_partition_goes_on(stage: Stage, fault: str, nth: int) -> None:
    point, action = FAULTS[fault]
    stage.script.at(point, action(stage), nth=nth)
    given(stage)

    async with stage.running() as owner:
        await stage.quiet()
        assert owner.status.phase is PartitionPhase.RUNNING
        assert owner.status.error is None

    stage.assert_clean()


@pytest.mark.parametrize("nth", [1, pytest.param(2, marks=pytest.mark.soak), 3])
@pytest.mark.parametrize("fault", FAULTS)
async def test_an_error_while_a_table_is_rolled_forward_loses_nothing(
    stage: Stage, fault: str, nth: int
) -> None:
    given(stage)
    stage.script.at(Op.WRITE, stage.script.crash, nth=3)
    await stage.crashes()
    point, action = FAULTS[fault]
    stage.script.at(point, action(stage), nth=nth)

    await stage.works()

    stage.assert_clean()


@pytest.mark.parametrize("disk", ["its disk", "an empty disk"])
@pytest.mark.parametrize("nth", [1, pytest.param(2, marks=pytest.mark.soak), 3])
@pytest.mark.parametrize("point", sorted(set(Op) - NOT_REACHED))
async def test_after_a_crash_the_next_owner_goes_on(
    stage: Stage, point: Op, nth: int, disk: str
) -> None:
    given(stage)
    if point is Op.READ:
        stage.script.at(Op.WRITE, TableFailed("disk full"), nth=3)
    elif point in ONCE_PER_TAKEOVER:
        for before in range(1, nth):
            stage.script.at(Op.FETCHED, OSError("broker away"), nth=before)
    stage.script.at(point, stage.script.crash, nth=nth)
    await stage.crashes()
    if disk == "an empty disk":
        stage.lose_disk()

    await stage.works()

    stage.assert_clean()


@pytest.mark.parametrize("point", [COMMITTED, Op.WRITE, Op.WRITTEN])
async def test_a_commit_that_took_effect_but_was_reported_failed_is_not_repeated(
    stage: Stage, point: Op
) -> None:
    stage.kafka.send(create(1), update(1, revision=0))
    # An empty table is written once before any batch is.
    stage.script.at(point, TableFailed("reported failed"), nth=1 if point is COMMITTED else 2)

    await stage.works()

    assert stage.kafka.journal == ["fence", "begin", "commit", "fence"]
    assert [one["id"] for one in stage.kafka.events] == [1, 2]
    stage.assert_clean()


async def test_the_error_is_shown_until_the_partition_runs_again(stage: Stage) -> None:
    stage.script.at(Op.FETCH, OSError("broker away"))
    seen: list[str | None] = []

    async with stage.running() as owner:
        stage.script.at(Op.SETTLE, lambda: seen.append(owner.status.error), nth=2)
        await stage.kafka.until(lambda: stage.errors and stage.source.idle)
        assert owner.status.error is None

    assert seen == ["OSError: broker away"]


async def test_a_partition_that_keeps_failing_waits_longer_each_time(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    from processor.partition import processor as partition

    monkeypatch.setattr(partition, "BACKOFF_MIN_S", 0.05)
    pauses: list[float] = []

    async def at_once(released: asyncio.Event, pause_s: float) -> bool:
        pauses.append(pause_s)
        return released.is_set()

    stage.kafka.send(create(1))
    for nth in range(1, 10):
        stage.script.at(Op.BEGIN, OSError("broker away"), nth=nth)
    monkeypatch.setattr(partition, "sleep_unless", at_once)

    async with stage.running():
        await stage.quiet()

    assert pauses[:9] == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0, 5.0]


async def test_an_error_that_never_ends_can_be_released(stage: Stage) -> None:
    stage.kafka.send(create(1))
    for nth in range(1, 100):
        stage.script.at(Op.FENCE, OSError("broker away"), nth=nth)

    owner: PartitionProcessor
    async with stage.running() as owner:
        await stage.failed(times=2)

    assert owner.status.phase is PartitionPhase.RELEASED
    assert stage.kafka.outcomes == []
