"""A group member: run a partition processor for each assigned partition."""

import asyncio
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import structlog

from processor.engine.ports import GroupConsumer
from processor.errors import TaskflowError
from processor.partition.processor import PartitionProcessor
from processor.partition.standby import StandbyReplica
from processor.partition.status import PartitionPhase
from processor.runtime import end_tasks, sleep_unless
from processor.telemetry.metrics import Metrics

log = structlog.get_logger()

DRAIN_TIMEOUT_S: Final = 4.0
"""Pending batches may take this long to finish; shutting down takes 5 s at most."""
REVOKE_TIMEOUT_S: Final = 3.0
RESTART_PAUSE_S: Final = 0.5


class Member(GroupConsumer, Protocol):
    """The group's consumer, as a worker runs it."""

    failed: asyncio.Event
    """Set once the consumer is of no more use."""
    refused: TaskflowError | None
    """Why no other consumer of ours may take its place; None: another one may do better."""

    async def start(self) -> None: ...
    async def stop(self, *, timeout_s: float) -> None: ...

    async def undone(self, partitions: Iterable[int]) -> set[int]:
        """Asks the broker which of these partitions hold something that was not fetched yet."""


Join = Callable[[Callable[[frozenset[int]], None], Callable[[], Any]], Member]
"""Makes a member from the callbacks for assignments and for revocations."""
NewProcessor = Callable[[int, Member], PartitionProcessor]
NewStandby = Callable[[int], StandbyReplica]


@dataclass(slots=True)
class _ProcessorTask:
    processor: PartitionProcessor
    task: asyncio.Task[None]


@dataclass(slots=True)
class _StandbyTask:
    standby: StandbyReplica
    task: asyncio.Task[None]


@dataclass(slots=True)
class _Stall:
    """Since when a partition with work has stood still."""

    progressed_at: float
    since: float = field(default_factory=time.monotonic)


class Worker:
    """Runs until `stop` is set; whatever fails is started again.

    `new_processor` makes the processor of a partition. Without progress for `watchdog_timeout_s`
    although there is work, the consumer is replaced. `new_standby` makes the standby replica of a
    partition that is another's; None: nothing does.
    `partitions`: how many there are to be followed.

    A partition's table has one user at a time: a processor or a standby replica begins once
    the one that was there before has closed it.
    """

    def __init__(
        self,
        join: Join,
        new_processor: NewProcessor,
        *,
        metrics: Metrics,
        watchdog_timeout_s: float,
        new_standby: NewStandby | None = None,
        partitions: int = 0,
    ) -> None:
        self._join = join
        self._new_processor = new_processor
        self._watchdog_timeout_s = watchdog_timeout_s
        self._new_standby = new_standby
        self._partitions = partitions
        self._processors: dict[int, _ProcessorTask] = {}
        self._standbys: dict[int, _StandbyTask] = {}
        self._leaving: dict[int, asyncio.Task[None]] = {}
        self._member: Member | None = None
        self._joined = asyncio.Event()
        metrics.show(
            assigned=lambda: len(self._processors),
            ready=lambda: sum(
                o.processor.status.phase is PartitionPhase.RUNNING
                for o in self._processors.values()
            ),
            standby=lambda: len(self._standbys),
        )

    # What is seen from outside

    @property
    def ready(self) -> bool:
        """Whether the group has spoken and all that it gave us is running."""
        return self._joined.is_set() and all(
            taken.processor.status.phase is PartitionPhase.RUNNING
            for taken in self._processors.values()
        )

    def report(self) -> dict[str, Any]:
        """What `/ready` says."""
        return {
            "ready": self.ready,
            "joined": self._joined.is_set(),
            "partitions": {
                str(partition): {
                    "phase": taken.processor.status.phase,
                    "lag": taken.processor.lag,
                    "error": taken.processor.status.error,
                    "waits": taken.processor.status.waits,
                }
                for partition, taken in sorted(self._processors.items())
            },
            "standby": {
                str(partition): {
                    "phase": following.standby.phase,
                    "lag": following.standby.lag,
                    "error": following.standby.error,
                }
                for partition, following in sorted(self._standbys.items())
            },
        }

    async def when_ready(self) -> None:
        """Wait until `ready`."""
        await self._joined.wait()
        while not self.ready:  # noqa: ASYNC110 (derived from many phases, asked at start only)
            await asyncio.sleep(0.02)

    # Its life

    def renew(self) -> None:
        """Start again what does not run, instead of when its back-off ends: what it waited for is
        there."""
        if self._member is not None and not (self.ready and self._processors):
            self._member.failed.set()

    async def run(self, stop: asyncio.Event) -> None:
        """Be a member of the group until `stop` is set; then finish the pending batches and leave.

        Raises what the member was refused for.
        """
        try:
            await self._run(stop)
        finally:
            for partition in list(self._standbys):
                self._stop_standby(partition)
            await self._left_all()

    async def _run(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            member = self._member = self._new_member()
            try:
                await member.start()
                await self._until_stopped_or_stalled(member, stop)
            except Exception as error:
                log.error("the consumer failed and is restarted", error=repr(error))
            finally:
                self._joined.clear()
                await self._leave(member)
            if member.refused is not None:
                raise member.refused
            if not stop.is_set():
                await sleep_unless(stop, RESTART_PAUSE_S)

    def _new_member(self) -> Member:
        """One whose word counts until we leave it: while it is stopped it may still join, and an
        owner begun for it would stand in the way of the next one's, with a consumer that is gone.
        """

        def assigned(partitions: frozenset[int]) -> None:
            if member is self._member:
                self._assigned(partitions)

        async def revoked() -> None:
            if member is self._member:
                await self._revoked()

        member = self._join(assigned, revoked)
        return member

    async def _leave(self, member: Member) -> None:
        self._member = None
        for partition in list(self._processors):
            self._give_up(partition)
        try:
            await self._left_all()
        finally:  # also of who is cancelled again meanwhile
            await member.stop(timeout_s=1.0)

    async def _left_all(self) -> None:
        """Wait until all that was given up has ended. Unlike a gather, this passes no cancellation
        on to what waits for their batches."""
        if self._leaving:
            await asyncio.wait(list(self._leaving.values()))

    async def _until_stopped_or_stalled(self, member: Member, stop: asyncio.Event) -> None:
        ends = {
            asyncio.create_task(stop.wait()): "",
            asyncio.create_task(member.failed.wait()): "the consumer failed and is restarted",
            asyncio.create_task(self._stalled(member)): "the consumer is stuck and is restarted",
        }
        try:
            done, _ = await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
                if ends[task]:
                    log.warning(ends[task])
        finally:
            await end_tasks(*ends)

    async def _stalled(self, member: Member) -> None:
        """Return once a running partition holds work that has not moved for the watchdog's time,
        or no broker has responded for so long.

        The broker is asked: a consumer that no longer fetches does not know what it misses.
        """
        stalls: dict[int, _Stall] = {}
        responded_at = time.monotonic()
        while True:
            await asyncio.sleep(self._watchdog_timeout_s / 5)
            running = {
                n: o.processor
                for n, o in self._processors.items()
                if o.processor.status.phase is PartitionPhase.RUNNING
            }
            try:
                async with asyncio.timeout(self._watchdog_timeout_s / 5):
                    undone = await member.undone(running)
            except Exception as error:
                log.warning("the watchdog got no response from the broker", error=repr(error))
                if time.monotonic() - responded_at > self._watchdog_timeout_s:
                    return
                continue
            responded_at = time.monotonic()
            for partition in set(stalls) - undone:
                del stalls[partition]
            for partition in undone & running.keys():
                progressed_at = running[partition].status.progressed_at
                seen = stalls.get(partition)
                if seen is None or seen.progressed_at != progressed_at:
                    stalls[partition] = _Stall(progressed_at)
                elif time.monotonic() - seen.since > self._watchdog_timeout_s:
                    return

    # What the group says

    def _assigned(self, partitions: frozenset[int]) -> None:
        log.info("the group has assigned partitions", partitions=sorted(partitions))
        for partition in self._processors.keys() - partitions:
            self._give_up(partition)
        for partition in partitions - self._processors.keys():
            self._take(partition)
        for taken in self._processors.values():
            taken.processor.share(len(self._processors))
        self._joined.set()
        for partition in range(self._partitions):
            self._stand_by(partition)

    async def _revoked(self) -> None:
        """Let the pending batches finish before the group goes on without us."""
        idle = [
            asyncio.ensure_future(taken.processor.idle()) for taken in self._processors.values()
        ]
        if idle:
            try:
                await asyncio.wait(idle, timeout=REVOKE_TIMEOUT_S)
            finally:
                await end_tasks(*idle)

    def _take(self, partition: int) -> None:
        member = self._member
        assert member is not None, "only a member is assigned partitions"
        self._stop_standby(partition)
        processor = self._new_processor(partition, member)
        earlier = self._leaving.get(partition)

        async def own() -> None:
            if earlier is not None:
                await asyncio.wait([earlier])  # which, unlike a gather, passes no cancellation on
            await processor.run()

        self._processors[partition] = _ProcessorTask(
            processor, asyncio.create_task(own(), name=f"owner-{partition}")
        )

    def _give_up(self, partition: int) -> None:
        taken = self._processors.pop(partition)
        taken.processor.release()
        earlier = self._leaving.get(partition)
        task = asyncio.create_task(_end(taken, earlier), name=f"leaving-{partition}")
        self._leaving[partition] = task
        task.add_done_callback(lambda _: self._left(partition, task))

    def _left(self, partition: int, task: asyncio.Task[None]) -> None:
        if self._leaving.get(partition) is task:
            del self._leaving[partition]
            self._stand_by(partition)

    # Partitions of others

    def _stand_by(self, partition: int) -> None:
        """Follow the partition, unless a part of this worker has it. Not before the group has
        spoken: what it gives us is restored by its processor."""
        if (
            self._new_standby is None
            or not self._joined.is_set()
            or any(partition in some for some in (self._processors, self._leaving, self._standbys))
        ):
            return
        standby = self._new_standby(partition)
        task = asyncio.create_task(standby.run(), name=f"standby-{partition}")
        self._standbys[partition] = _StandbyTask(standby, task)

    def _stop_standby(self, partition: int) -> None:
        """The next owner of the partition waits until its table is closed."""
        following = self._standbys.pop(partition, None)
        if following is not None:
            task = asyncio.create_task(_cancelled(following.task), name=f"leaving-{partition}")
            self._leaving[partition] = task
            task.add_done_callback(lambda _: self._left(partition, task))


async def _end(taken: _ProcessorTask, earlier: asyncio.Task[None] | None) -> None:
    """Wait for the pending batch of a released processor, and for one that owned before and may not
    have ended either."""
    with suppress(TimeoutError):
        async with asyncio.timeout(DRAIN_TIMEOUT_S):
            await taken.processor.idle()
    await _cancelled(taken.task)
    if earlier is not None:
        await asyncio.wait([earlier])


async def _cancelled(task: asyncio.Task[None]) -> None:
    """End `task` and log its error, if it has one."""
    await end_tasks(task)
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error(f"{task.get_name()} ended with an error", exc_info=error)
