"""The clock of a running event loop, made to jump. The only file of the kit that touches a private
name: `_selector` of asyncio's loops, as of Python 3.11 to 3.14.

A loop says through its selector that nothing is ready and until when it would wait. There is no
public way to hear that; tests/unit/testing/fake/test_clock.py holds what is used of it.
"""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

_ATTRIBUTE: Final = "taskflow_clock"
"""Of a loop: its clock, so that both end together."""


class LoopClock:
    """The clock of one loop: real time, plus what was jumped over.

    A loop keeps its clock, and so its time, for as long as it lives: a timer of before a jump
    stays comparable with one of after it.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        selector = getattr(loop, "_selector", None)
        if not isinstance(loop, asyncio.BaseEventLoop) or selector is None:
            raise RuntimeError(
                f"The clock of {type(loop).__name__} cannot be moved; run tests that use "
                "`taskflow_fake` on asyncio's own event loop."
            )
        self.ahead_s = 0.0
        """How far it is ahead of real time."""
        self._jumping = 0
        self._idle: list[asyncio.Future[None]] = []
        self._real_time: Callable[[], float] = loop.time
        self._real_select: Callable[[float | None], list[Any]] = selector.select
        self._loop = loop
        loop.time = self.time  # type: ignore[method-assign]
        selector.select = self._select

    @classmethod
    def of(cls, loop: asyncio.AbstractEventLoop) -> "LoopClock":
        """Return the loop's clock. Raises RuntimeError for a loop that is not asyncio's own."""
        clock = getattr(loop, _ATTRIBUTE, None)
        if not isinstance(clock, cls):
            clock = cls(loop)
            setattr(loop, _ATTRIBUTE, clock)
        return clock

    def time(self) -> float:
        """Return seconds, as `loop.time()` and `time.monotonic()` count them."""
        return self._real_time() + self.ahead_s

    @contextmanager
    def jumping(self) -> Iterator[None]:
        """Inside the block time is that of the next timer, at once, whenever nothing is ready."""
        self._jumping += 1
        try:
            yield
        finally:
            self._jumping -= 1

    async def idle(self) -> None:
        """Wait until nothing on the loop can go on without time or an event from outside."""
        future = self._loop.create_future()
        self._idle.append(future)
        await future

    def _select(self, timeout_s: float | None) -> list[Any]:
        if not (self._jumping or self._idle) or timeout_s == 0:
            return self._real_select(timeout_s)
        happened = self._real_select(0)
        if happened:
            return happened
        if self._idle:
            waiting, self._idle = self._idle, []
            for future in waiting:
                if not future.done():
                    future.set_result(None)
            return []
        if timeout_s is None:
            return self._real_select(None)
        self.ahead_s += timeout_s
        return []
