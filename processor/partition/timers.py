"""Time-driven commands: what is due in a partition, when, and how many at a time.

The table knows when each wait ends; here are the near ones only, so that a million waits cost no
memory. What is due is woken by a command on `control`, like any other change; until that is
decided, the flow is not woken again. All times are the broker's, in milliseconds.
"""

import heapq
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

from processor.contract.commands import Wake
from processor.contract.headers import Headers
from processor.domain.waits import AT_ONCE_MS, due_ms
from processor.engine.batch import Outgoing
from processor.engine.codec import encode
from processor.engine.ports import Table
from processor.engine.rows import Deadline, FlowRow

ACTOR: Final = "taskflow:timer"
NEAR_MS: Final = 30_000
"""Waits that end within this time are kept in memory."""
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
CLOCK_WINDOW_S: Final = 60.0
NOTHING_LOADED: Final = Deadline(-1, "")


class BrokerClock:
    """The broker's clock, as append times tell it against a monotonic clock of ours.

    What the broker has appended, it appended before we heard of it: each append time says how far
    its clock was at least. The best word of the last minute or two counts. So no clock that
    somebody may set on this machine has a say in when a flow is woken.
    """

    def __init__(self) -> None:
        self._window_began_s = 0.0
        self._heard_s: float | None = None
        self._ahead_ms: float | None = None
        self._ahead_before_ms: float | None = None

    def heard(self, at_ms: int, at_s: float) -> None:
        """By `at_s` of ours the broker's clock had reached `at_ms`."""
        ahead_ms = at_ms - at_s * 1000
        if at_s - self._window_began_s > CLOCK_WINDOW_S:
            self._ahead_before_ms, self._ahead_ms = self._ahead_ms, None
            self._window_began_s = at_s
        if self._ahead_ms is None or ahead_ms > self._ahead_ms:
            self._ahead_ms = ahead_ms
        self._heard_s = at_s

    def set_back(self, at_ms: int, at_s: float) -> None:
        """The broker's clock is not as far as it was said to be: begin again from this."""
        self._ahead_ms = self._ahead_before_ms = None
        self._window_began_s = at_s
        self.heard(at_ms, at_s)

    def now_ms(self, at_s: float) -> int | None:
        """What the broker's clock says at least; None before it was heard of."""
        known = [ms for ms in (self._ahead_ms, self._ahead_before_ms) if ms is not None]
        return int(max(known) + at_s * 1000) if known else None

    @property
    def latest_ms(self) -> int:
        """What it said when it was last heard of; 0 before that."""
        return 0 if self._heard_s is None else self.now_ms(self._heard_s) or 0

    def age_s(self, at_s: float) -> float:
        """How long nothing was heard of it."""
        return float("inf") if self._heard_s is None else at_s - self._heard_s


class Wakeup(NamedTuple):
    """A wake that is written and not decided."""

    command_id: str
    due_ms: int


class WakeOutcome(NamedTuple):
    """A wake that is decided: when the broker appended it, and whether it was accepted."""

    wake: Wake
    at_ms: int
    accepted: bool


class Decided(NamedTuple):
    """What became of the wakes of a batch."""

    lags_ms: list[int]
    """How late each wait was ended that had a time."""
    ended: int
    retried: int
    too_early: bool
    """Whether a wake came before its wait was over: the broker's clock is not that far yet."""


class Timers:
    """The waits of one partition, from a takeover to the next."""

    def __init__(self) -> None:
        self.armed = 0
        """Waits that end by themselves, in memory or not."""
        self._near: dict[str, int] = {}
        self._queue: list[tuple[int, str]] = []
        # Of what is said twice or too late, an entry of the queue stays until its time comes:
        # what counts is _near.
        self._loaded = NOTHING_LOADED
        self._all_loaded_ms = 0
        self._undecided: dict[str, Wakeup] = {}
        self._refusals: dict[str, int] = {}

    async def load(self, table: Table, now_ms: int) -> None:
        """Fetch from the table what is near and not known yet."""
        until_ms = now_ms + NEAR_MS
        if self._all_loaded_ms - now_ms > NEAR_MS // 2 or len(self._near) > NEAR_MAX // 2:
            return
        found = await table.due(self._loaded, until_ms, NEAR_MAX // 2)
        for due in found:
            # What was left to the table for want of room may have been woken before that.
            if due.flow_id not in self._undecided:
                self._put(due.flow_id, due.at_ms)
        if len(found) < NEAR_MAX // 2:
            self._loaded = max(self._loaded, Deadline(until_ms + 1, ""))
            self._all_loaded_ms = until_ms
        else:
            self._loaded = found[-1]

    def take(self, now_ms: int) -> dict[str, int]:
        """Flows to wake now, with when their waits were over."""
        taken: dict[str, int] = {}
        room = min(AT_ONCE_MAX, UNDECIDED_MAX - len(self._undecided))
        while len(taken) < room and self._queue and self._queue[0][0] <= now_ms:
            at_ms, flow_id = heapq.heappop(self._queue)
            if self._near.get(flow_id) == at_ms:
                del self._near[flow_id]
                taken[flow_id] = at_ms
        return taken

    def next_ms(self) -> int | None:
        """When to look next; None: nothing is near, or enough is under way."""
        while self._queue and self._near.get(self._queue[0][1]) != self._queue[0][0]:
            heapq.heappop(self._queue)
        if not self._queue or len(self._undecided) >= UNDECIDED_MAX:
            return None
        return self._queue[0][0]

    def overdue(self, now_ms: int) -> int:
        """Waits that are over and not ended yet, as far as they are in memory."""
        return len(self._undecided) + sum(at_ms <= now_ms for at_ms in self._near.values())

    def written(
        self,
        waits: Iterable[tuple[FlowRow | None, FlowRow | None]],
        wakeups: Mapping[str, Wakeup],
        answers: Iterable[WakeOutcome],
        flows: Mapping[str, FlowRow | None],
        now_ms: int | None,
    ) -> Decided:
        """A batch is written that changed `waits`, as in Batch: `wakeups` by flow id were sent with
        it, `answers` are its answers to wakes, `flows` what it left of the flows that those are
        about."""
        self._undecided.update(wakeups)
        for flow_id in wakeups:
            # Who was asked to cancel may have been near, too.
            self._near.pop(flow_id, None)
        decided: dict[str, tuple[Wakeup, WakeOutcome]] = {}
        for answer in answers:
            sent = self._undecided.get(answer.wake.flow_id)
            if sent is not None and sent.command_id == answer.wake.command_id:
                decided.setdefault(answer.wake.flow_id, (sent, answer))
        for was, row in waits:
            self._changed(was, row)
        report = self._look_again(decided, flows, now_ms)
        if len(self._near) > NEAR_MAX or len(self._queue) > 2 * NEAR_MAX:
            self._shrink()
        return report

    def _look_again(
        self,
        decided: Mapping[str, tuple[Wakeup, WakeOutcome]],
        flows: Mapping[str, FlowRow | None],
        now_ms: int | None,
    ) -> Decided:
        """Whoever still waits is woken again, or waits again already."""
        lags_ms: list[int] = []
        ended = retried = 0
        too_early = False
        for flow_id, (sent, (_, woken_ms, accepted)) in decided.items():
            known_ms = self._undecided.pop(flow_id).due_ms
            row = flows.get(flow_id)
            over_ms = None if row is None else due_ms(row.flow)
            if accepted:
                ended += 1
                if sent.due_ms != AT_ONCE_MS and now_ms is not None:
                    lags_ms.append(now_ms - sent.due_ms)
            elif over_ms is not None:
                retried += 1
                too_early = too_early or woken_ms < over_ms == sent.due_ms
            if over_ms is None:
                continue
            if over_ms == known_ms and self._is_left_to_the_table(over_ms, flow_id):
                continue
            if accepted:  # and waits for something new
                self._put(flow_id, over_ms)
                continue
            refusals = self._refusals[flow_id] = self._refusals.get(flow_id, -1) + 1
            pause_ms = min(RETRY_MIN_MS * 2 ** min(refusals, REFUSALS_MAX), RETRY_MAX_MS)
            self._put(flow_id, max(over_ms, woken_ms + pause_ms))
        return Decided(lags_ms, ended, retried, too_early)

    def _changed(self, was: FlowRow | None, row: FlowRow | None) -> None:
        before_ms = None if was is None else due_ms(was.flow)
        after_ms = None if row is None else due_ms(row.flow)
        self.armed += (after_ms is not None) - (before_ms is not None)
        if row is None or after_ms is None:
            if was is not None:
                self._near.pop(was.flow.id, None)
                self._refusals.pop(was.flow.id, None)
            return
        flow_id = row.flow.id
        if flow_id in self._undecided:
            # Looked at again once that is decided.
            if after_ms != before_ms:
                self._undecided[flow_id] = self._undecided[flow_id]._replace(due_ms=after_ms)
        elif after_ms != before_ms or flow_id not in self._near:
            self._refusals.pop(flow_id, None)
            if self._is_left_to_the_table(after_ms, flow_id):
                self._near.pop(flow_id, None)
            else:
                self._put(flow_id, after_ms)

    def _is_left_to_the_table(self, at_ms: int, flow_id: str) -> bool:
        return (at_ms, flow_id) > self._loaded

    def _put(self, flow_id: str, at_ms: int) -> None:
        if self._near.get(flow_id) != at_ms:
            self._near[flow_id] = at_ms
            heapq.heappush(self._queue, (at_ms, flow_id))

    def _shrink(self) -> None:
        """Leave the later ones to the table, but for those that were refused: there they stand at
        a time that is over."""
        known = sorted((at_ms, flow_id) for flow_id, at_ms in self._near.items())
        kept = known[: NEAR_MAX // 2]
        if len(known) > len(kept):
            self._loaded = min(self._loaded, Deadline(*kept[-1]))
            self._all_loaded_ms = 0
        kept += [one for one in known[len(kept) :] if one[1] in self._refusals]
        self._near = {flow_id: at_ms for at_ms, flow_id in kept}
        self._queue = kept  # in order, and so a heap


def wake_record(flow_id: str, command_id: str, headers: Headers = ()) -> Outgoing:
    """The command that ends the wait of a flow."""
    wake = {"kind": "wake", "command_id": command_id, "flow_id": flow_id, "issued_by": ACTOR}
    return Outgoing(flow_id.encode(), encode(wake), headers)
