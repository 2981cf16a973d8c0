"""The consumer group: who is given which partitions."""

import asyncio
from collections.abc import Callable
from contextvars import Context
from random import Random
from typing import Any, Final, Protocol

from processor.engine.ports import Fetched
from processor.engine.rows import Position
from processor.errors import TaskflowError
from processor.testing.memory.group import MemoryMember
from processor.testing.memory.timed_kafka import wake
from tests.simulation.kafka import HistoryKafka
from tests.simulation.ports import ProcessLife, Unanswered
from tests.support.moments import Fault, Op

SESSION_S: Final = 6.0
REBALANCE_S: Final = 6.0
"""How long a rebalance waits for its members."""


class MemberLife(ProcessLife, Protocol):
    """The worker whose member it is."""

    @property
    def context(self) -> Context | None:
        """In which its tasks are to run, so that they end with it."""

    @property
    def listens(self) -> bool:
        """Whether it runs, and so receives assignments."""


class RebalancingGroup:
    """The group coordinator.

    A rebalance waits for all members to rejoin, and assigns partitions again. A member that does
    not rejoin, because it is stopped or dead, is removed without hearing of it.
    """

    def __init__(self, kafka: HistoryKafka, rng: Random) -> None:
        self.generation = 0
        self.members: list[GroupMember] = []
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

    def join(self, member: "GroupMember") -> None:
        if member not in self.members:
            self.members.append(member)
        self._wanted.set()

    def leave(self, member: "GroupMember") -> None:
        if member in self.members:
            self.members.remove(member)
            self._wanted.set()

    def expire(self, member: "GroupMember") -> None:
        """Remove a member whose session has ended."""
        if member in self.members:
            self.session_ended()
        self.leave(member)

    def knows(self, member: "GroupMember") -> bool:
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
        given: dict[GroupMember, set[int]] = {member: set() for member in self.members}
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


class GroupMember(MemoryMember):
    """A member that gives its partitions back, and what a worker asks of it beside the port."""

    _kafka: HistoryKafka

    def __init__(
        self,
        group: RebalancingGroup,
        kafka: HistoryKafka,
        life: MemberLife,
        on_assigned: Callable[[frozenset[int]], None],
        on_revoked: Callable[[], Any],
    ) -> None:
        super().__init__(kafka)
        self.joined = -1
        """The group's generation that it belongs to."""
        self.failed = asyncio.Event()
        self.refused: TaskflowError | None = None
        self._group = group
        self._life = life
        self._on_assigned = on_assigned
        self._on_revoked = on_revoked
        self._stopped = False

    @property
    def context(self) -> Context | None:
        return self._life.context

    @property
    def belongs(self) -> bool:
        return self._group.knows(self)

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
        self.assign(partitions)
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

    async def confirm(self, partition: int, position: Position) -> None:
        if await self._life.reach(Op.CONFIRM) is Fault.CONFIRM_FAILS:
            raise Unanswered("the group did not answer")
        await super().confirm(partition, position)

    async def fetch(self, partition: int, *, max_records: int, timeout_s: float) -> Fetched:
        fault = await self._life.reach(Op.FETCH)
        if fault is Fault.FETCH_FAILS:
            raise Unanswered("a fetch failed")
        if fault is Fault.FETCH_REPEATS:
            self._rewind(partition)
        fetched = await super().fetch(partition, max_records=max_records, timeout_s=timeout_s)
        if fetched.commands or fetched.control:
            await self._life.at(Op.FETCHED)
        return fetched

    def _drain(self, partition: int, max_records: int) -> Fetched:
        if self._kafka.away:
            return Fetched([], [])
        return super()._drain(partition, max_records)

    async def _looks_again(self) -> None:
        await self._life.reach(Op.FETCHED)

    def _rewind(self, partition: int) -> None:
        for topic in self._topics():
            at = (topic, partition)
            if at in self._next:
                start = self._kafka.log(*at).start
                back = self._life.rng.randrange(4)
                self._next[at] = max(start, self._next[at] - back)

    async def commands_end(self, partition: int) -> int:
        await self._life.reach(Op.FETCH)
        return await super().commands_end(partition)
