"""An event loop without a machine under it: one thread, no I/O, and a clock that jumps."""

import asyncio
from collections.abc import Sequence
from typing import Any, Final

TURNS_MAX: Final = 500_000
"""So often the loop turns at most in one history; each takes microseconds."""


class Deadlock(AssertionError):
    """Everybody waits, and there is no timer that could wake anyone."""


class Endless(AssertionError):
    """Somebody is always ready, and nothing comes to an end."""


class VirtualLoop(asyncio.BaseEventLoop):
    """When nobody is ready, time is that of the next timer, at once. `time()` begins with 0.

    What runs on it depends on nothing but its own beginnings: the order in which callbacks are
    ready is the order in which they were asked for.
    """

    def __init__(self) -> None:
        super().__init__()
        self._now_s = 0.0
        self._turns = 0
        # Timers that lie closer together than floats can tell are due together.
        self._clock_resolution = 1e-6
        self._selector = self

    def time(self) -> float:
        return self._now_s

    # What a BaseEventLoop asks of its selector and of its subclass

    def select(self, timeout_s: float | None) -> Sequence[Any]:
        if timeout_s is None:
            raise Deadlock("everybody waits for somebody else")
        self._now_s += timeout_s
        self._turns += 1
        if self._turns > TURNS_MAX:
            raise Endless(f"{TURNS_MAX} turns of the loop, and no end")
        return ()

    def _process_events(self, event_list: Sequence[Any]) -> None:
        """There are none."""

    def _write_to_self(self) -> None:
        """Nobody sleeps who could be woken from another thread."""
