"""Prove group membership for many partitions by one commit."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from aiokafka import TopicPartition

TIMEOUT_S: Final = 5.0

Offsets = Mapping[TopicPartition, int]


class CommitCoalescer:
    """Commits offsets, which the group takes only from a member of its generation.

    All that are asked for while one commit is under way share the next: aiokafka sends one after
    the other, and 64 partitions that are taken over at once would wait for as many.
    """

    def __init__(self, commit: Callable[[Offsets], Awaitable[None]]) -> None:
        self._commit = commit
        self._one_at_a_time = asyncio.Lock()
        self._asked: dict[TopicPartition, int] = {}
        self._next: asyncio.Task[None] | None = None

    async def prove(self, offsets: Offsets) -> None:
        """Wait for a commit of `offsets` that began after this was asked. Raises what it raises;
        TimeoutError after TIMEOUT_S."""
        self._asked.update(offsets)
        if self._next is None:
            self._next = asyncio.create_task(self._commit_asked(), name="proof of membership")
            self._next.add_done_callback(_retrieved)
        # A cancelled caller leaves it to the others.
        await asyncio.shield(self._next)

    async def _commit_asked(self) -> None:
        async with self._one_at_a_time:
            offsets, self._asked, self._next = self._asked, {}, None
            async with asyncio.timeout(TIMEOUT_S):
                await self._commit(offsets)


def _retrieved(task: asyncio.Task[None]) -> None:
    """Retrieve the error: the caller may be gone, and asyncio would log it."""
    if not task.cancelled():
        task.exception()
