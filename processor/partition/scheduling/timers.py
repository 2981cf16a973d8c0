"""Time-driven commands: what is due in a partition, when, and how many at a time.

The table knows each time; in memory are the near ones only, so that a million timers take no
memory. What is due is woken by a command on `control`, like any other change; until that is
decided, it is not woken again. All times are the broker's, in milliseconds.
"""

import heapq
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Final, Generic, NamedTuple, TypeVar

from processor.domain.waits import AT_ONCE_MS

K = TypeVar("K", str, tuple[str, str])
"""A flow id, or flow id and run id."""

ACTOR: Final = "taskflow:timer"
NEAR_MS: Final = 30_000
"""What is due within this time is kept in memory."""
NEAR_MAX: Final = 5_000
"""So many at most; the later ones stay in the table until their time is nearer."""
AT_ONCE_MAX: Final = 250
"""Wakes in one transaction."""
UNDECIDED_MAX: Final = 500
"""Wakes that wait for their decision. A herd goes through as one such portion after the other, and
ordinary commands come in between."""
RETRY_MIN_MS: Final = 100
RETRY_MAX_MS: Final = 60_000
REFUSALS_MAX: Final = 10
"""After so many, the pause does not grow any more."""


class Wakeup(NamedTuple):
    """A wake that is written and not decided."""

    command_id: str
    due_ms: int


class WakeOutcome(NamedTuple, Generic[K]):
    """A wake that is decided: of what, when the broker appended it, and whether it was accepted."""

    key: K
    command_id: str
    at_ms: int
    accepted: bool


class TimerChange(NamedTuple, Generic[K]):
    """When `key` was due before a batch and when it is due after it; None: never."""

    key: K
    before_ms: int | None
    after_ms: int | None


# As rows.new_flow_row.
new_timer_change: Final[Callable[[tuple[Any, int | None, int | None]], TimerChange[Any]]] = partial(
    tuple.__new__, TimerChange
)


class DecidedWakes(NamedTuple):
    """What became of the wakes of a batch."""

    lags_ms: list[int]
    """How late each one was accepted that had a time."""
    ended: int
    retried: int
    too_early: bool
    """Whether a wake came before its time: the broker's clock is not that far yet."""


Fetch = Callable[[Any, int, int], Awaitable[Sequence[tuple[int, K]]]]
"""Reads from the table: behind this entry (None: from the first), up to this time, at most so
many; in order of time and key."""


class Timers(Generic[K]):
    """The timers of one kind of one partition, from a takeover to the next. `lowest` sorts before
    every key."""

    def __init__(self, lowest: K) -> None:
        self.armed = 0
        """How many have a time, in memory or not."""
        self._lowest: K = lowest
        self._near: dict[K, int] = {}
        self._queue: list[tuple[int, K]] = []
        # Of what is said twice or too late, an entry of the queue stays until its time comes:
        # what counts is _near.
        self._loaded: tuple[int, K] = (-1, lowest)
        self._all_loaded_ms = 0
        self._undecided: dict[K, Wakeup] = {}
        self._refusals: dict[K, int] = {}

    async def load(self, fetch: Fetch[K], now_ms: int) -> None:
        """Fetch from the table what is near and not known yet."""
        until_ms = now_ms + NEAR_MS
        if self._all_loaded_ms - now_ms > NEAR_MS // 2 or len(self._near) > NEAR_MAX // 2:
            return
        found = await fetch(self._loaded, until_ms, NEAR_MAX // 2)
        for at_ms, key in found:
            # What was left to the table for want of room may have been woken before that.
            if key not in self._undecided:
                self._put(key, at_ms)
        if len(found) < NEAR_MAX // 2:
            self._loaded = max(self._loaded, (until_ms + 1, self._lowest))
            self._all_loaded_ms = until_ms
        else:
            self._loaded = found[-1]

    def take(self, until_ms: int) -> dict[K, int]:
        """What was due by `until_ms`, as much of it as may be woken now, with its time."""
        taken: dict[K, int] = {}
        room = min(AT_ONCE_MAX, UNDECIDED_MAX - len(self._undecided))
        while len(taken) < room and self._queue and self._queue[0][0] <= until_ms:
            at_ms, key = heapq.heappop(self._queue)
            if self._near.get(key) == at_ms:
                del self._near[key]
                taken[key] = at_ms
        return taken

    def next_ms(self) -> int | None:
        """When to look next; None: nothing is near, or enough is under way."""
        while self._queue and self._near.get(self._queue[0][1]) != self._queue[0][0]:
            heapq.heappop(self._queue)
        if not self._queue or len(self._undecided) >= UNDECIDED_MAX:
            return None
        return self._queue[0][0]

    def overdue(self, now_ms: int) -> int:
        """How many are due and not decided yet, as far as they are in memory."""
        return len(self._undecided) + sum(at_ms <= now_ms for at_ms in self._near.values())

    def written(
        self,
        changes: Iterable[TimerChange[K]],
        wakeups: Mapping[K, Wakeup],
        outcomes: Iterable[WakeOutcome[K]],
        left: Mapping[K, int | None],
        now_ms: int | None,
    ) -> DecidedWakes:
        """Take in a written batch: its `changes`, the `wakeups` that were sent with it, the
        `outcomes` of earlier wakes that it decided, and when it `left` those due, that they are
        about."""
        self._undecided.update(wakeups)
        for key in wakeups:
            # What was asked to cancel may have been near, too.
            self._near.pop(key, None)
        decided: dict[K, tuple[Wakeup, WakeOutcome[K]]] = {}
        for outcome in outcomes:
            sent = self._undecided.get(outcome.key)
            if sent is not None and sent.command_id == outcome.command_id:
                decided.setdefault(outcome.key, (sent, outcome))
        for change in changes:
            self._changed(*change)
        report = self._look_again(decided, left, now_ms)
        if len(self._near) > NEAR_MAX or len(self._queue) > 2 * NEAR_MAX:
            self._shrink()
        return report

    def _look_again(
        self,
        decided: Mapping[K, tuple[Wakeup, WakeOutcome[K]]],
        left: Mapping[K, int | None],
        now_ms: int | None,
    ) -> DecidedWakes:
        """What still has a time is woken again, or waits for another one already."""
        lags_ms: list[int] = []
        ended = retried = 0
        too_early = False
        for key, (sent, (_, _, woken_ms, accepted)) in decided.items():
            known_ms = self._undecided.pop(key).due_ms
            over_ms = left.get(key)
            if accepted:
                ended += 1
                if sent.due_ms != AT_ONCE_MS and now_ms is not None:
                    lags_ms.append(now_ms - sent.due_ms)
            elif over_ms is not None:
                retried += 1
                too_early = too_early or woken_ms < over_ms == sent.due_ms
            if over_ms is None:
                continue
            if over_ms == known_ms and self._is_left_to_the_table(over_ms, key):
                continue
            if accepted:  # and has a new time
                self._put(key, over_ms)
                continue
            refusals = self._refusals[key] = self._refusals.get(key, -1) + 1
            pause_ms = min(RETRY_MIN_MS * 2 ** min(refusals, REFUSALS_MAX), RETRY_MAX_MS)
            self._put(key, max(over_ms, woken_ms + pause_ms))
        return DecidedWakes(lags_ms, ended, retried, too_early)

    def _changed(self, key: K, before_ms: int | None, after_ms: int | None) -> None:
        self.armed += (after_ms is not None) - (before_ms is not None)
        if after_ms is None:
            self._near.pop(key, None)
            self._refusals.pop(key, None)
            return
        if key in self._undecided:
            # Looked at again once that is decided.
            if after_ms != before_ms:
                self._undecided[key] = self._undecided[key]._replace(due_ms=after_ms)
        elif after_ms != before_ms or key not in self._near:
            self._refusals.pop(key, None)
            if self._is_left_to_the_table(after_ms, key):
                self._near.pop(key, None)
            else:
                self._put(key, after_ms)

    def _is_left_to_the_table(self, at_ms: int, key: K) -> bool:
        return (at_ms, key) > self._loaded

    def _put(self, key: K, at_ms: int) -> None:
        if self._near.get(key) != at_ms:
            self._near[key] = at_ms
            heapq.heappush(self._queue, (at_ms, key))

    def _shrink(self) -> None:
        """Leave the later ones to the table, but for those that were refused: there they stand at
        a time that is over."""
        known = sorted((at_ms, key) for key, at_ms in self._near.items())
        kept = known[: NEAR_MAX // 2]
        if len(known) > len(kept):
            self._loaded = min(self._loaded, kept[-1])
            self._all_loaded_ms = 0
        kept += [one for one in known[len(kept) :] if one[1] in self._refusals]
        self._near = {key: at_ms for at_ms, key in kept}
        self._queue = kept  # in order, and so a heap
