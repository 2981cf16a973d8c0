"""A worker between its group and its partitions: what it starts, awaits, and gives up."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from processor.errors import InstanceIdTaken, TaskflowError
from processor.partition.standby import StandbyPhase
from processor.partition.status import PartitionPhase, PartitionStatus
from processor.telemetry.metrics import Metrics
from processor.worker import worker as worker_module
from processor.worker.worker import Worker
from tests.support.scripted_kafka import PATIENCE_S


class ScriptedMember:
    """The group's consumer, as far as a worker runs it."""

    def __init__(self, assigned: Callable[[frozenset[int]], None], revoked: Any) -> None:
        self.assigned = assigned
        self.revoked = revoked
        self.failed = asyncio.Event()
        self.refused: TaskflowError | None = None
        self.started = asyncio.Event()
        self.stopped = asyncio.Event()
        self.unfetched: set[int] = set()
        self.responds = True
        self.breaks: Exception | None = None

    async def start(self) -> None:
        if self.breaks is not None:
            raise self.breaks
        self.started.set()

    async def stop(self, *, timeout_s: float) -> None:
        self.stopped.set()

    async def undone(self, partitions: Iterable[int]) -> set[int]:
        if not self.responds:
            await asyncio.Event().wait()
        return self.unfetched & set(partitions)


class ScriptedProcessor:
    """An owner whose batches begin and end as the test says."""

    def __init__(self, partition: int) -> None:
        self.partition = partition
        self.status = PartitionStatus(0.0, PartitionPhase.RUNNING)
        self.lag = 0
        self.shares: list[int] = []
        self.released = asyncio.Event()
        self.begun = asyncio.Event()
        self.ended = asyncio.Event()
        self.pending = asyncio.Event()
        self.pending.set()
        self.may_end = asyncio.Event()
        self.may_end.set()
        self.swallows = 0
        """So many cancellations have no effect."""

    def share(self, partitions: int) -> None:
        self.shares.append(partitions)

    async def run(self) -> None:
        self.begun.set()
        try:
            while True:
                try:
                    await asyncio.Event().wait()
                except asyncio.CancelledError:
                    if not self.swallows:
                        raise
                    self.swallows -= 1
        finally:
            await self.may_end.wait()
            self.ended.set()

    def release(self) -> None:
        self.released.set()

    async def idle(self) -> None:
        await self.pending.wait()


class ScriptedStandby:
    """A follower whose table closes when the test says so."""

    def __init__(self, partition: int) -> None:
        self.partition = partition
        self.phase = StandbyPhase.FOLLOWING
        self.lag = 7
        self.error = None
        self.begun = asyncio.Event()
        self.ended = asyncio.Event()
        self.may_end = asyncio.Event()
        self.may_end.set()

    async def run(self) -> None:
        self.begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            await self.may_end.wait()
            self.ended.set()


class Stage:
    """A worker and all that it made; with `standby`, one that follows those of three partitions
    that it is not given."""

    def __init__(self, *, watchdog_timeout_s: float = 60.0, standby: bool = False) -> None:
        self.members: list[ScriptedMember] = []
        self.owners: list[ScriptedProcessor] = []
        self.standbys: list[ScriptedStandby] = []
        self.joined: asyncio.Queue[ScriptedMember] = asyncio.Queue()
        self.stop = asyncio.Event()
        self.first_breaks: Exception | None = None
        self.worker = Worker(
            self._join,
            self._own,  # type: ignore[arg-type]
            metrics=Metrics(),
            watchdog_timeout_s=watchdog_timeout_s,
            new_standby=self._follow if standby else None,  # type: ignore[arg-type]
            partitions=3,
        )

    def _follow(self, partition: int) -> ScriptedStandby:
        self.standbys.append(ScriptedStandby(partition))
        return self.standbys[-1]

    def _join(self, assigned: Any, revoked: Any) -> Any:
        member = ScriptedMember(assigned, revoked)
        member.breaks, self.first_breaks = self.first_breaks, None
        self.members.append(member)
        self.joined.put_nowait(member)
        return member

    def _own(self, partition: int, member: Any) -> ScriptedProcessor:
        self.owners.append(ScriptedProcessor(partition))
        return self.owners[-1]

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not holds():
                await everything_else()

    async def member(self) -> ScriptedMember:
        """The next one that joins."""
        async with asyncio.timeout(PATIENCE_S):
            member = await self.joined.get()
            await member.started.wait()
            return member

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.worker.run(self.stop))
        try:
            yield
        finally:
            self.stop.set()
            await asyncio.wait_for(task, PATIENCE_S)


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_module, "RESTART_PAUSE_S", 0.0)


async def test_each_partition_that_it_is_given_has_an_owner_and_a_share_of_the_memory() -> None:
    stage = Stage()
    async with stage.running():
        member = await stage.member()
        ready = [stage.worker.ready]
        member.assigned(frozenset({0, 3}))
        assert [processor.partition for processor in stage.owners] == [0, 3]
        assert [processor.shares for processor in stage.owners] == [[2], [2]]
        ready.append(stage.worker.ready)
        stage.owners[1].status.phase = PartitionPhase.RECOVERING
        assert [*ready, stage.worker.ready] == [False, True, False]
        assert stage.worker.report()["partitions"]["3"]["phase"] == "bringing the table up to date"


async def test_a_partition_that_stays_keeps_its_owner() -> None:
    stage = Stage()
    async with stage.running():
        member = await stage.member()
        member.assigned(frozenset({0, 1}))
        member.assigned(frozenset({1, 2}))
        assert [processor.partition for processor in stage.owners] == [0, 1, 2]
        assert [processor.released.is_set() for processor in stage.owners] == [True, False, False]


async def test_a_partition_given_up_is_awaited_before_it_is_taken_again() -> None:
    stage = Stage()
    async with stage.running():
        member = await stage.member()
        member.assigned(frozenset({0}))
        await stage.owners[0].begun.wait()
        stage.owners[0].may_end.clear()
        member.assigned(frozenset())
        member.assigned(frozenset({0}))
        first, second = stage.owners
        await first.released.wait()
        assert not second.begun.is_set()
        first.may_end.set()
        await asyncio.wait_for(second.begun.wait(), PATIENCE_S)
        assert first.ended.is_set()


async def test_however_often_it_changes_hands_a_partition_has_one_owner_at_a_time() -> None:
    stage = Stage()
    async with stage.running():
        member = await stage.member()
        member.assigned(frozenset({0}))
        await stage.owners[0].begun.wait()
        stage.owners[0].may_end.clear()
        for numbers in (frozenset[int](), frozenset({0}), frozenset[int](), frozenset({0})):
            member.assigned(numbers)
            await everything_else()
        first, second, third = stage.owners
        assert second.released.is_set()
        assert not second.begun.is_set()
        assert not third.begun.is_set()
        first.may_end.set()
        await asyncio.wait_for(third.begun.wait(), PATIENCE_S)
        assert first.ended.is_set()
        assert not second.begun.is_set()


async def everything_else() -> None:
    """Let all tasks go as far as they can."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_revoking_waits_for_the_batch_in_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage()
    async with stage.running():
        member = await stage.member()
        member.assigned(frozenset({0}))
        stage.owners[0].pending.clear()
        revoking = asyncio.ensure_future(member.revoked())
        _, pending = await asyncio.wait([revoking], timeout=0.01)
        assert pending
        stage.owners[0].pending.set()
        await asyncio.wait_for(revoking, PATIENCE_S)
        assert not stage.owners[0].released.is_set()


async def test_revoking_waits_only_so_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_module, "REVOKE_TIMEOUT_S", 0.01)
    stage = Stage()
    async with stage.running():
        member = await stage.member()
        member.assigned(frozenset({0}))
        stage.owners[0].pending.clear()
        await asyncio.wait_for(member.revoked(), PATIENCE_S)
        stage.owners[0].pending.set()


async def test_stopping_finishes_the_batch_in_hand_and_then_leaves_the_group() -> None:
    stage = Stage()
    async with stage.running():
        member = await stage.member()
        member.assigned(frozenset({0}))
        (processor,) = stage.owners
        await processor.begun.wait()
        processor.pending.clear()
        stage.stop.set()
        await asyncio.wait_for(processor.released.wait(), PATIENCE_S)
        assert not processor.ended.is_set()
        assert not member.stopped.is_set()
        processor.pending.set()
    assert processor.ended.is_set()
    assert member.stopped.is_set()


async def test_stopping_waits_for_a_batch_only_within_the_deadline(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(worker_module, "DRAIN_TIMEOUT_S", 0.01)
    stage = Stage()
    async with stage.running():
        member = await stage.member()
        member.assigned(frozenset({0, 1}))
        for processor in stage.owners:
            await processor.begun.wait()
            processor.pending.clear()
    assert all(processor.ended.is_set() for processor in stage.owners)


async def test_a_worker_that_is_cancelled_again_while_a_batch_ends_leaves_the_group() -> None:
    """As by who ends a task that takes its time: the consumer must not stay open for that."""
    stage = Stage()
    life = asyncio.create_task(stage.worker.run(stage.stop))
    member = await stage.member()
    member.assigned(frozenset({0}))
    (processor,) = stage.owners
    await processor.begun.wait()
    processor.pending.clear()
    life.cancel()
    await asyncio.wait_for(processor.released.wait(), PATIENCE_S)
    await everything_else()
    assert not member.stopped.is_set()

    life.cancel()

    await asyncio.wait_for(member.stopped.wait(), PATIENCE_S)
    assert not processor.ended.is_set()  # its batch goes on
    processor.pending.set()
    await asyncio.wait_for(asyncio.wait([life]), PATIENCE_S)
    assert life.cancelled()
    assert processor.ended.is_set()


async def test_a_consumer_that_failed_is_replaced_and_owns_anew() -> None:
    stage = Stage()
    async with stage.running():
        first = await stage.member()
        first.assigned(frozenset({0}))
        first.failed.set()
        second = await stage.member()
        assert first.stopped.is_set()
        assert not stage.worker.report()["joined"]
        second.assigned(frozenset({0}))
        assert len(stage.owners) == 2


async def test_what_a_consumer_is_given_while_it_is_stopped_gets_no_owner() -> None:
    """It would fetch from a consumer that is gone, and keep the partition from the next one."""
    stage = Stage()
    async with stage.running():
        first = await stage.member()

        async def stop(*, timeout_s: float) -> None:
            first.assigned(frozenset({0}))

        first.stop = stop  # type: ignore[method-assign]
        first.failed.set()
        second = await stage.member()
        assert stage.owners == []
        first.assigned(frozenset({0}))
        assert stage.owners == []
        second.assigned(frozenset({0}))
        assert [processor.partition for processor in stage.owners] == [0]


async def test_a_consumer_that_cannot_start_is_replaced() -> None:
    stage = Stage()
    stage.first_breaks = OSError("broker away")
    async with stage.running():
        async with asyncio.timeout(PATIENCE_S):
            first, second = await stage.joined.get(), await stage.joined.get()
            await second.started.wait()
        assert first.stopped.is_set()


async def test_the_watchdog_replaces_a_consumer_that_does_not_fetch_what_is_there() -> None:
    stage = Stage(watchdog_timeout_s=0.02)
    async with stage.running():
        first = await stage.member()
        first.assigned(frozenset({0}))
        first.unfetched = {0}
        second = await stage.member()
        assert first.stopped.is_set()
        assert second is not first


async def test_the_watchdog_replaces_a_consumer_that_gets_no_answer_at_all() -> None:
    stage = Stage(watchdog_timeout_s=0.02)
    async with stage.running():
        first = await stage.member()
        first.responds = False
        await stage.member()
        assert first.stopped.is_set()


@pytest.mark.parametrize("what", ["nothing to fetch", "progress", "still restoring"])
async def test_the_watchdog_leaves_a_consumer_alone_that_has(what: str) -> None:
    stage = Stage(watchdog_timeout_s=0.02)
    async with stage.running():
        member = await stage.member()
        member.assigned(frozenset({0}))
        (processor,) = stage.owners
        asked = 0
        enough = asyncio.Event()
        if what == "still restoring":
            processor.status.phase = PartitionPhase.RECOVERING

        async def undone(partitions: Iterable[int]) -> set[int]:
            nonlocal asked
            asked += 1
            if asked == 20:
                enough.set()
            if what == "progress":
                processor.status.progressed_at += 1
            return set() if what == "nothing to fetch" else {0}

        member.undone = undone  # type: ignore[method-assign]
        await asyncio.wait_for(enough.wait(), PATIENCE_S)
        assert len(stage.members) == 1


async def test_a_member_that_must_not_join_again_ends_the_worker_with_its_sentence() -> None:
    stage = Stage()
    running = asyncio.create_task(stage.worker.run(stage.stop))
    member = await stage.member()
    member.assigned(frozenset({0}))
    member.refused = InstanceIdTaken("another one has our name")
    member.failed.set()

    with pytest.raises(InstanceIdTaken, match="another one has our name"):
        await asyncio.wait_for(running, PATIENCE_S)

    assert member.stopped.is_set()
    assert stage.owners[0].released.is_set()
    assert len(stage.members) == 1


async def test_an_owner_that_swallows_a_cancellation_is_cancelled_again() -> None:
    stage = Stage()
    async with stage.running():
        member = await stage.member()
        member.assigned(frozenset({0}))
        processor = stage.owners[0]
        await processor.begun.wait()
        processor.swallows = 1

        member.assigned(frozenset())

        async with asyncio.timeout(PATIENCE_S):
            await processor.ended.wait()


async def test_an_owner_that_ends_with_an_error_does_not_end_the_worker() -> None:
    stage = Stage()

    async def breaks() -> None:
        raise ZeroDivisionError

    async with stage.running():
        member = await stage.member()
        member.assigned(frozenset({0}))
        stage.owners[0].run = breaks  # type: ignore[method-assign]
        member.assigned(frozenset())
        member.assigned(frozenset({1}))
        await asyncio.wait_for(stage.owners[1].begun.wait(), PATIENCE_S)


# Partitions of others


async def test_what_it_is_not_given_is_followed_once_the_group_has_spoken() -> None:
    stage = Stage(standby=True)
    async with stage.running():
        member = await stage.member()
        assert stage.standbys == []
        member.assigned(frozenset({1}))
        assert [standby.partition for standby in stage.standbys] == [0, 2]
        assert stage.worker.ready, "whether it stands by is no part of being ready"
        assert stage.worker.report()["standby"] == {
            partition: {"phase": "following", "lag": 7, "error": None} for partition in ("0", "2")
        }
        member.assigned(frozenset({1}))
        assert len(stage.standbys) == 2, "those that go on are left alone"
    assert all(standby.ended.is_set() for standby in stage.standbys)


async def test_without_standby_nothing_is_followed() -> None:
    stage = Stage()
    async with stage.running():
        member = await stage.member()
        member.assigned(frozenset({1}))
        assert stage.standbys == []
        assert stage.worker.report()["standby"] == {}


async def test_an_owner_begins_when_its_partitions_follower_has_closed_the_table() -> None:
    stage = Stage(standby=True)
    async with stage.running():
        member = await stage.member()
        member.assigned(frozenset({0, 1}))
        (standby,) = stage.standbys
        await standby.begun.wait()
        standby.may_end.clear()
        member.assigned(frozenset({0, 1, 2}))
        await everything_else()
        processor = stage.owners[-1]
        assert processor.partition == 2
        assert not processor.begun.is_set()
        standby.may_end.set()
        await asyncio.wait_for(processor.begun.wait(), PATIENCE_S)
        assert standby.ended.is_set()
        assert "2" not in stage.worker.report()["standby"]


async def test_a_partition_that_was_given_up_is_followed_when_its_owner_has_ended() -> None:
    stage = Stage(standby=True)
    async with stage.running():
        member = await stage.member()
        member.assigned(frozenset({0, 1, 2}))
        processor = stage.owners[0]
        await processor.begun.wait()
        processor.may_end.clear()
        member.assigned(frozenset({1, 2}))
        await everything_else()
        assert stage.standbys == []
        processor.may_end.set()
        await stage.until(lambda: bool(stage.standbys))
        assert processor.ended.is_set()
        assert [standby.partition for standby in stage.standbys] == [0]


async def test_given_up_and_given_again_a_partition_is_not_followed_in_between() -> None:
    stage = Stage(standby=True)
    async with stage.running():
        member = await stage.member()
        member.assigned(frozenset({0, 1, 2}))
        first = stage.owners[0]
        await first.begun.wait()
        first.may_end.clear()
        member.assigned(frozenset({1, 2}))
        member.assigned(frozenset({0, 1, 2}))
        first.may_end.set()
        second = stage.owners[-1]
        await asyncio.wait_for(second.begun.wait(), PATIENCE_S)
        assert stage.standbys == []


async def test_while_the_group_is_joined_anew_those_that_follow_go_on() -> None:
    stage = Stage(standby=True)
    async with stage.running():
        member = await stage.member()
        member.assigned(frozenset({0}))
        member.failed.set()
        again = await stage.member()
        assert not any(standby.ended.is_set() for standby in stage.standbys)
        assert [standby.partition for standby in stage.standbys] == [1, 2]
        again.assigned(frozenset({1}))
        await stage.until(lambda: len(stage.standbys) == 3)
        assert stage.standbys[-1].partition == 0
        await stage.standbys[0].ended.wait()
