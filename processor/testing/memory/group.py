"""The consumer group: who is given which partitions, and what its members see of the topics."""

import asyncio
from collections.abc import Callable, Iterable
from contextvars import Context
from random import Random
from typing import Any, Final

from processor.engine.ports import Fetched, HiddenRecords
from processor.engine.rows import Position
from processor.errors import OwnershipLost, TaskflowError
from processor.testing.memory.moments import Fault, Op
from processor.testing.memory.ports import ProcessLife, Unanswered
from processor.testing.memory.timed_kafka import At, SimKafka, wake

SESSION_S: Final = 6.0
REBALANCE_S: Final = 6.0
"""How long a rebalance waits for its members."""
COMMIT_EVERY_S: Final = 1.0


class SimGroup:
    """The group coordinator.

    A rebalance waits for all members to rejoin, and assigns partitions again. A member that does
    not rejoin, because it is stopped or dead, is removed without hearing of it.
    """

    def __init__(self, kafka: SimKafka, rng: Random) -> None:
        self.generation = 0
        self.members: list[SimMember] = []
        self.session_ended: Callable[[], None] = lambda: None
        self._kafka = kafka
        self._rng = rng
        self._wanted = asyncio.Event()
        self._balancing = False

    async def run(self) -> None:
        """Rebalance whenever a member joins, leaves, or asks for it."""
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            await self._balance()

    def rebalance(self) -> None:
        self._wanted.set()

    def join(self, member: "SimMember") -> None:
        if member not in self.members:
            self.members.append(member)
        self._wanted.set()

    def admit(self, member: "SimMember") -> None:
        """Assign all partitions to `member` as the only one, at once."""
        self.members, member.joined = [member], self.generation
        member.assigned_again(self.generation, frozenset(range(self._kafka.partitions)))

    def leave(self, member: "SimMember") -> None:
        if member in self.members:
            self.members.remove(member)
            self._wanted.set()

    def expire(self, member: "SimMember") -> None:
        """Remove a member whose session has ended."""
        if member in self.members:
            self.session_ended()
        self.leave(member)

    def knows(self, member: "SimMember") -> bool:
        """Return whether it is in the current generation, and no rebalance is under way."""
        return member in self.members and member.joined == self.generation and not self._balancing

    async def _balance(self) -> None:
        self._balancing = True
        loop = asyncio.get_running_loop()
        asked = {
            loop.create_task(one.come_back(), context=one.context): one for one in self.members
        }
        if asked:
            await asyncio.wait(asked, timeout=REBALANCE_S)
        for task, member in asked.items():
            came = task.done() and not task.cancelled()
            task.cancel()
            # Who is stopped or dead does not come back.
            if not came and member in self.members:
                self.members.remove(member)
        self.generation += 1
        self._balancing = False
        given: dict[SimMember, set[int]] = {member: set() for member in self.members}
        for partition in range(self._kafka.partitions) if self.members else ():
            given[self._rng.choice(self.members)].add(partition)
        for member, partitions in given.items():
            member.joined = self.generation
            delay_s = self._rng.choice((0.0, 0.01, 0.3))
            loop.call_later(
                delay_s,
                member.assigned_again,
                self.generation,
                frozenset(partitions),
                context=member.context,
            )


class SimMember:
    """The port GroupConsumer, and what a worker asks of its member beside it."""

    def __init__(
        self,
        group: SimGroup,
        kafka: SimKafka,
        life: ProcessLife,
        on_assigned: Callable[[frozenset[int]], None],
        on_revoked: Callable[[], Any],
    ) -> None:
        self.generation = 0
        self.joined = -1
        """The group's generation that it belongs to."""
        self.failed = asyncio.Event()
        self.refused: TaskflowError | None = None
        self._group = group
        self._kafka = kafka
        self._life = life
        self._on_assigned = on_assigned
        self._on_revoked = on_revoked
        self._assigned: frozenset[int] = frozenset()
        self._changed = asyncio.Event()
        self._next: dict[At, int] = {}
        self._stable: dict[At, int] = {}
        self._waiting: dict[int, asyncio.Future[None]] = {}
        self._committed_s: dict[int, float] = {}
        self._stopped = False

    @property
    def context(self) -> Context | None:
        return self._life.context

    # The group

    async def start(self) -> None:
        await self._life.at(Op.CONFIRM)
        self._group.join(self)

    async def stop(self, *, timeout_s: float) -> None:
        self._stopped = True
        self._group.leave(self)

    async def come_back(self) -> None:
        """Give all partitions back and finish the batches under way, to rejoin the group."""
        await self._life.at(Op.CONFIRM)
        await self._let_go()

    async def _let_go(self) -> None:
        self.generation += 1
        self._assigned = frozenset()
        self._changed.clear()
        for waiting in list(self._waiting.values()):
            wake(waiting)
        await self._on_revoked()

    def assigned_again(self, generation: int, partitions: frozenset[int]) -> None:
        """Take an assignment, unless it is of an older generation or the worker is stopped."""
        if generation != self._group.generation or self._stopped or not self._life.listens:
            return
        self._next.clear()
        self._stable.clear()
        self.generation += 1
        self._assigned = partitions
        self._changed.set()
        self._on_assigned(partitions)

    async def heartbeat(self) -> None:
        """What a worker that was stopped hears when it goes on: that it is no member any more, or
        what it was given meanwhile."""
        if self._stopped:
            return
        if self not in self._group.members:
            await self._let_go()
            if not self._stopped:
                self._group.join(self)
        elif self.joined != self._group.generation or not self._assigned:
            self._group.rebalance()

    # The port

    async def assigned(self, partition: int) -> int:
        while partition not in self._assigned:
            self._changed.clear()
            await self._changed.wait()
        return self.generation

    async def confirm(self, partition: int, position: Position) -> None:
        fault = await self._life.reach(Op.CONFIRM)
        if fault is Fault.CONFIRM_FAILS:
            raise Unanswered("the group did not answer")
        if partition not in self._assigned or not self._group.knows(self):
            raise OwnershipLost(f"partition {partition} may belong to another by now")
        self._commit_decided(partition, position)

    def attach(self, partition: int, position: Position) -> None:
        if partition not in self._assigned:
            raise OwnershipLost(f"partition {partition} is not assigned any more")
        for topic, offset in zip(self._topics(), position, strict=False):
            self._next[topic, partition] = offset

    def decided(self, partition: int, position: Position) -> None:
        now_s = asyncio.get_running_loop().time()
        if now_s - self._committed_s.get(partition, -COMMIT_EVERY_S) >= COMMIT_EVERY_S:
            self._committed_s[partition] = now_s
            if self._group.knows(self):
                self._commit_decided(partition, position)

    def _commit_decided(self, partition: int, position: Position) -> None:
        for topic, offset in zip(self._topics(), position, strict=False):
            self._kafka.group_offsets[topic, partition] = offset

    async def fetch(self, partition: int, *, max_records: int, timeout_s: float) -> Fetched:
        fault = await self._life.reach(Op.FETCH)
        if fault is Fault.FETCH_FAILS:
            raise Unanswered("a fetch failed")
        if fault is Fault.FETCH_REPEATS:
            self._rewind(partition)
        loop = asyncio.get_running_loop()
        ends_s = loop.time() + timeout_s
        generation = self.generation
        fetched = self._drain(partition, max_records)
        while not (fetched.commands or fetched.control):
            left_s = ends_s - loop.time()
            if left_s <= 0 or generation != self.generation:
                return fetched
            waiting = self._kafka.watch((topic, partition) for topic in self._topics())
            self._waiting[partition] = waiting
            timer = loop.call_later(left_s, wake, waiting)
            try:
                await waiting
            finally:
                timer.cancel()
            await self._life.reach(Op.FETCHED)
            fetched = self._drain(partition, max_records)
        await self._life.at(Op.FETCHED)
        return fetched

    def _rewind(self, partition: int) -> None:
        for topic in self._topics():
            at = (topic, partition)
            if at in self._next:
                start = self._kafka.log(*at).start
                back = self._life.rng.randrange(4)
                self._next[at] = max(start, self._next[at] - back)

    def _drain(self, partition: int, max_records: int) -> Fetched:
        taken: list[list[Any]] = []
        for topic in self._topics():
            at = (topic, partition)
            start = self._next.get(at)
            if start is None or self._kafka.away:
                taken.append([])
                continue
            log = self._kafka.log(*at)
            stable = self._stable[at] = log.stable_end
            some = list(log.committed(start, stable)) if stable > start else []
            if len(some) <= max_records:
                self._next[at] = max(start, stable)
            elif max_records:
                self._next[at] = some[max_records].offset
            some = some[:max_records]
            max_records -= len(some)
            taken.append(some)
        return Fetched(*taken)

    async def commands_end(self, partition: int) -> int:
        await self._life.reach(Op.FETCH)
        return self._kafka.log(self._kafka.topics.commands, partition).end

    def ahead(self, partition: int) -> Position | None:
        commands, control = (self._next.get((topic, partition)) for topic in self._topics())
        return None if commands is None or control is None else Position(commands, control, 0)

    def lags(self, partition: int) -> tuple[int | None, int | None]:
        commands, control = (
            self._stable[topic, partition] - self._next[topic, partition]
            if (topic, partition) in self._stable
            else None
            for topic in self._topics()
        )
        return commands, control

    def hidden(self, partition: int) -> list[HiddenRecords]:
        return []

    async def undone(self, partitions: Iterable[int]) -> set[int]:
        return set()

    def _topics(self) -> tuple[str, str]:
        return self._kafka.topics.commands, self._kafka.topics.control
