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
from processor.partition.processor import PartitionPhase, PartitionProcessor
from processor.partition.standby import StandbyReplica
from processor.runtime import end_tasks, sleep_unless
from processor.telemetry.metrics import Metrics

log = structlog.get_logger()

DRAIN_TIMEOUT_S: Final = 4.0
"""What is in hand may take this long to finish; shutting down takes 5 s at most."""
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
"""Makes a member from what hears of assignments and of revocations."""
NewOwner = Callable[[int, Member], PartitionProcessor]
NewFollower = Callable[[int], StandbyReplica]


@dataclass(slots=True)
class _Owned:
    owner: PartitionProcessor
    task: asyncio.Task[None]


@dataclass(slots=True)
class _Followed:
    follower: StandbyReplica
    task: asyncio.Task[None]


@dataclass(slots=True)
class _Stillness:
    """Since when a partition with work has stood still."""

    progressed_at: float
    since: float = field(default_factory=time.monotonic)


class Worker:
    """Runs until `stop` is set; whatever fails is begun anew.

    `new_owner` makes the owner of a partition; `flow_cache_bytes` is shared by those that are
    owned; without progress for `watchdog_timeout_s` although there is work, the consumer is
    replaced. `new_follower` makes what follows a partition that is another's; None: nothing does.
    `partitions`: how many there are to be followed.

    A partition's table has one user at a time: an owner or a follower begins once whoever was
    there before has closed it.
    """

    def __init__(
        self,
        join: Join,
        new_owner: NewOwner,
        *,
        metrics: Metrics,
        flow_cache_bytes: int,
        watchdog_timeout_s: float,
        new_follower: NewFollower | None = None,
        partitions: int = 0,
    ) -> None:
        self._join = join
        self._new_owner = new_owner
        self._flow_cache_bytes = flow_cache_bytes
        self._watchdog_timeout_s = watchdog_timeout_s
        self._new_follower = new_follower
        self._partitions = partitions
        self._owned: dict[int, _Owned] = {}
        self._followed: dict[int, _Followed] = {}
        self._leaving: dict[int, asyncio.Task[None]] = {}
        self._member: Member | None = None
        self._joined = asyncio.Event()
        metrics.show(
            owned=lambda: len(self._owned),
            ready=lambda: sum(
                o.owner.phase is PartitionPhase.RUNNING for o in self._owned.values()
            ),
            standby=lambda: len(self._followed),
        )

    # What is seen from outside

    @property
    def ready(self) -> bool:
        """Whether the group has spoken and all that it gave us is running."""
        return self._joined.is_set() and all(
            owned.owner.phase is PartitionPhase.RUNNING for owned in self._owned.values()
        )

    def report(self) -> dict[str, Any]:
        """What `/ready` says."""
        return {
            "ready": self.ready,
            "joined": self._joined.is_set(),
            "partitions": {
                str(number): {
                    "phase": owned.owner.phase,
                    "lag": owned.owner.lag,
                    "error": owned.owner.error,
                    "waits": owned.owner.waits,
                }
                for number, owned in sorted(self._owned.items())
            },
            "standby": {
                str(number): {
                    "phase": followed.follower.phase,
                    "lag": followed.follower.lag,
                    "error": followed.follower.error,
                }
                for number, followed in sorted(self._followed.items())
            },
        }

    async def when_ready(self) -> None:
        """Wait until `ready`."""
        await self._joined.wait()
        while not self.ready:  # noqa: ASYNC110 (derived from many phases, asked at start only)
            await asyncio.sleep(0.02)

    # Its life

    def renew(self) -> None:
        """Begin anew what does not run, instead of when its back-off ends: what it waited for is
        there."""
        if self._member is not None and not (self.ready and self._owned):
            self._member.failed.set()

    async def run(self, stop: asyncio.Event) -> None:
        """Be a member of the group until `stop` is set; then finish what is in hand and leave.

        Raises what the member was refused for.
        """
        try:
            await self._run(stop)
        finally:
            for number in list(self._followed):
                self._stop_following(number)
            await asyncio.gather(*self._leaving.values(), return_exceptions=True)

    async def _run(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            member = self._member = self._new_member()
            try:
                await member.start()
                await self._until_stopped_or_stuck(member, stop)
            except Exception as error:
                log.error("the consumer failed and is started anew", error=repr(error))
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

        def assigned(numbers: frozenset[int]) -> None:
            if member is self._member:
                self._assigned(numbers)

        async def revoked() -> None:
            if member is self._member:
                await self._revoked()

        member = self._join(assigned, revoked)
        return member

    async def _leave(self, member: Member) -> None:
        self._member = None
        for number in list(self._owned):
            self._give_up(number)
        await asyncio.gather(*self._leaving.values(), return_exceptions=True)
        await member.stop(timeout_s=1.0)

    async def _until_stopped_or_stuck(self, member: Member, stop: asyncio.Event) -> None:
        ends = {
            asyncio.create_task(stop.wait()): "",
            asyncio.create_task(member.failed.wait()): "the consumer failed and is started anew",
            asyncio.create_task(self._stuck(member)): "the consumer is stuck and is started anew",
        }
        try:
            done, _ = await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
                if ends[task]:
                    log.warning(ends[task])
        finally:
            await end_tasks(*ends)

    async def _stuck(self, member: Member) -> None:
        """Return once a running partition holds work that has not moved for the watchdog's time,
        or nobody has answered for so long.

        The broker is asked: a consumer that no longer fetches does not know what it misses.
        """
        still: dict[int, _Stillness] = {}
        answered = time.monotonic()
        while True:
            await asyncio.sleep(self._watchdog_timeout_s / 5)
            running = {
                n: o.owner
                for n, o in self._owned.items()
                if o.owner.phase is PartitionPhase.RUNNING
            }
            try:
                async with asyncio.timeout(self._watchdog_timeout_s / 5):
                    undone = await member.undone(running)
            except Exception as error:
                log.warning("the watchdog got no answer from the broker", error=repr(error))
                if time.monotonic() - answered > self._watchdog_timeout_s:
                    return
                continue
            answered = time.monotonic()
            for number in set(still) - undone:
                del still[number]
            for number in undone & running.keys():
                progressed_at = running[number].progressed_at
                seen = still.get(number)
                if seen is None or seen.progressed_at != progressed_at:
                    still[number] = _Stillness(progressed_at)
                elif time.monotonic() - seen.since > self._watchdog_timeout_s:
                    return

    # What the group says

    def _assigned(self, numbers: frozenset[int]) -> None:
        log.info("the group has assigned partitions", partitions=sorted(numbers))
        for number in self._owned.keys() - numbers:
            self._give_up(number)
        for number in numbers - self._owned.keys():
            self._take(number)
        for owned in self._owned.values():
            owned.owner.cache.limit_bytes = self._flow_cache_bytes // len(self._owned)
            owned.owner.neighbours = len(self._owned)
        self._joined.set()
        for number in range(self._partitions):
            self._stand_by(number)

    async def _revoked(self) -> None:
        """Let the batches in hand finish before the group goes on without us."""
        idle = [asyncio.ensure_future(owned.owner.idle()) for owned in self._owned.values()]
        if idle:
            try:
                await asyncio.wait(idle, timeout=REVOKE_TIMEOUT_S)
            finally:
                await end_tasks(*idle)

    def _take(self, number: int) -> None:
        member = self._member
        assert member is not None, "only a member is assigned partitions"
        self._stop_following(number)
        owner = self._new_owner(number, member)
        earlier = self._leaving.get(number)

        async def own() -> None:
            if earlier is not None:
                await asyncio.wait([earlier])  # which, unlike a gather, passes no cancellation on
            await owner.run()

        self._owned[number] = _Owned(owner, asyncio.create_task(own(), name=f"owner-{number}"))

    def _give_up(self, number: int) -> None:
        owned = self._owned.pop(number)
        owned.owner.release()
        earlier = self._leaving.get(number)
        task = asyncio.create_task(_end(owned, earlier), name=f"leaving-{number}")
        self._leaving[number] = task
        task.add_done_callback(lambda _: self._left(number, task))

    def _left(self, number: int, task: asyncio.Task[None]) -> None:
        if self._leaving.get(number) is task:
            del self._leaving[number]
            self._stand_by(number)

    # Partitions of others

    def _stand_by(self, number: int) -> None:
        """Follow the partition, unless somebody in this worker has it. Not before the group has
        spoken: what it gives us is filled by its owner."""
        if (
            self._new_follower is None
            or not self._joined.is_set()
            or any(number in some for some in (self._owned, self._leaving, self._followed))
        ):
            return
        follower = self._new_follower(number)
        task = asyncio.create_task(follower.run(), name=f"standby-{number}")
        self._followed[number] = _Followed(follower, task)

    def _stop_following(self, number: int) -> None:
        """Whoever takes the partition waits until its table is closed."""
        followed = self._followed.pop(number, None)
        if followed is not None:
            task = asyncio.create_task(_cancelled(followed.task), name=f"leaving-{number}")
            self._leaving[number] = task
            task.add_done_callback(lambda _: self._left(number, task))


async def _end(owned: _Owned, earlier: asyncio.Task[None] | None) -> None:
    """Wait for the batch in hand of a released owner, and for whoever owned before and may not
    have ended either."""
    with suppress(TimeoutError):
        async with asyncio.timeout(DRAIN_TIMEOUT_S):
            await owned.owner.idle()
    await _cancelled(owned.task)
    if earlier is not None:
        await asyncio.wait([earlier])


async def _cancelled(task: asyncio.Task[None]) -> None:
    """End `task` and log its error, if it has one."""
    await end_tasks(task)
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error(f"{task.get_name()} ended with an error", exc_info=error)
