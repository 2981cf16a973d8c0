"""Timers of managed steps: leases, times from which they may be started, and when they are offered
again."""

from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Final, NamedTuple

from processor.contract.steps import StepStatus
from processor.domain.steps import step_due_ms
from processor.engine.batch import Outgoing, WriteSet
from processor.engine.encoding import encode
from processor.engine.ports import Table
from processor.engine.rows import StepDue, StepRow
from processor.partition.scheduling.timers import (
    ACTOR,
    DecidedWakes,
    TimerChange,
    Timers,
    WakeOutcome,
    Wakeup,
    new_timer_change,
)

Key = tuple[str, str]
"""Flow id and run id."""
TIMED: Final = (StepStatus.PENDING, StepStatus.RUNNING)
"""The statuses of steps that have a time, and a queue of their own each: leases may have to wait
for commands that were sent in time, and nothing else waits behind them."""
ASK_AGAIN_MS: Final = 50
"""How often to look whether the end of `commands` is reached."""


class Commands(NamedTuple):
    """The partition's `commands`, as far as leases depend on them: `decided` says up to which
    offset all records are decided, markers included; `in_hand` whether some are fetched and not
    decided; `end` asks where the topic ends now, open transactions included, which is its high
    watermark."""

    decided: Callable[[], int]
    pending: Callable[[], bool]
    end: Callable[[], Awaitable[int]]


class CommandsHorizon:
    """A lower bound, in ms of the broker's clock: each record of `commands` that was appended up to
    it is decided.

    A lease may only be ended once its end lies within it. Two things move it: the newest decided
    record, behind which nothing older is appended; and the end of the topic, asked for at a known
    time, once the partition is decided up to there. The end must be the high watermark: an open
    transaction of a producer may hide records that were appended long ago.
    """

    def __init__(self) -> None:
        self.at_ms = -1
        self._end: int | None = None
        self._asked_ms = 0

    @property
    def awaits_end(self) -> bool:
        """Whether an end that was asked for is not reached yet."""
        return self._end is not None

    def decided(self, newest_ms: int) -> None:
        """Take in the append time of the newest decided record. One more may have the same."""
        self.at_ms = max(self.at_ms, newest_ms - 1)

    def ends(self, end: int, asked_ms: int) -> None:
        """Take in where the topic ended when it was asked for at `asked_ms` or later."""
        self._end, self._asked_ms = end, asked_ms

    def reached(self, offset: int) -> None:
        """Take in that everything below `offset` is decided."""
        if self._end is not None and offset >= self._end:
            self._end = None
            self.at_ms = max(self.at_ms, self._asked_ms - 1)


class StepTimers:
    """The timers of one partition's managed steps, from a takeover to the next."""

    def __init__(self) -> None:
        self.horizon = CommandsHorizon()
        self._timers: dict[StepStatus, Timers[Key]] = {status: Timers(("", "")) for status in TIMED}

    async def begin(self, table: Table) -> None:
        for status, count in zip(TIMED, await table.count_live(), strict=True):
            self._timers[status].armed = count

    def live(self, status: StepStatus) -> int:
        """How many managed steps are pending, or running."""
        return self._timers[status].armed

    @property
    def armed(self) -> int:
        """How many steps have a time, in memory or not."""
        return sum(timers.armed for timers in self._timers.values())

    def overdue(self, now_ms: int) -> int:
        """How many are due and not decided yet, as far as they are in memory."""
        return sum(timers.overdue(now_ms) for timers in self._timers.values())

    def wait_ms(self, now_ms: int) -> int | None:
        """How long until something is due; None: for as long as is known."""
        waits = []
        pending = self._timers[StepStatus.PENDING].next_ms()
        if pending is not None:
            waits.append(max(0, pending - now_ms))
        running = self._timers[StepStatus.RUNNING].next_ms()
        if running is not None:
            # A lease lasts to the end of its last millisecond, and what was sent in it counts.
            wait_ms = running + 1 - now_ms
            if wait_ms <= 0 and self.horizon.awaits_end and running > self.horizon.at_ms:
                wait_ms = ASK_AGAIN_MS
            waits.append(max(0, wait_ms))
        return min(waits, default=None)

    async def due(
        self, table: Table, commands: Commands, now_ms: int
    ) -> dict[StepStatus, dict[Key, int]]:
        """What to wake now, with its time, by status. A lease is due once every record of
        `commands` that was appended up to its end is decided."""
        for status, timers in self._timers.items():
            if timers.armed:
                await timers.load(_fetch(table, status), now_ms)
        await self._move_horizon(commands, now_ms)
        until_ms = {StepStatus.RUNNING: min(now_ms, self.horizon.at_ms)}
        return {
            status: taken
            for status, timers in self._timers.items()
            if (taken := timers.take(until_ms.get(status, now_ms)))
        }

    async def _move_horizon(self, commands: Commands, now_ms: int) -> None:
        horizon = self.horizon
        next_ms = self._timers[StepStatus.RUNNING].next_ms()
        if next_ms is None or next_ms >= now_ms or next_ms <= horizon.at_ms:
            return
        horizon.reached(commands.decided())
        if next_ms <= horizon.at_ms or horizon.awaits_end or commands.pending():
            return  # pending records move it further, without a question
        horizon.ends(await commands.end(), now_ms)
        horizon.reached(commands.decided())

    def written(
        self,
        batch: WriteSet,
        wakeups: Mapping[StepStatus, Mapping[Key, Wakeup]],
        outcomes: Iterable[WakeOutcome[Key]],
        loaded: Mapping[Key, StepRow],
        now_ms: int | None,
    ) -> list[DecidedWakes]:
        """Take in a written batch; see `Timers.written`. It was decided on the `loaded` steps."""
        outcomes = list(outcomes)
        left = [
            (key, batch.steps[key].row if key in batch.steps else loaded.get(key))
            for key in (outcome.key for outcome in outcomes)
        ]
        changes = _changes(batch)
        return [
            timers.written(
                changes[status],
                wakeups.get(status, {}),
                outcomes,
                {key: _due_ms(row, status) for key, row in left},
                now_ms,
            )
            for status, timers in self._timers.items()
        ]


def _fetch(
    table: Table, status: StepStatus
) -> Callable[[tuple[int, Key], int, int], Awaitable[list[tuple[int, Key]]]]:
    async def fetch(after: tuple[int, Key], until_ms: int, limit: int) -> list[tuple[int, Key]]:
        found = await table.steps_due(status, StepDue(after[0], *after[1]), until_ms, limit)
        return [(at_ms, (flow_id, run_id)) for at_ms, flow_id, run_id in found]

    return fetch


def _changes(batch: WriteSet) -> dict[StepStatus, list[TimerChange[Key]]]:
    """When the steps that `batch` touched were due and are, by the status that they were or are
    in."""
    changes: dict[StepStatus, list[TimerChange[Key]]] = {status: [] for status in TIMED}
    for key, (_, _, before, after) in batch.steps.items():
        if before is not None and after is not None and before[0] is after[0]:
            changes[after[0]].append(new_timer_change((key, before[1], after[1])))
            continue
        if before is not None:
            changes[before[0]].append(new_timer_change((key, before[1], None)))
        if after is not None:
            changes[after[0]].append(new_timer_change((key, None, after[1])))
    return changes


def _due_ms(row: StepRow | None, status: StepStatus) -> int | None:
    return None if row is None or row.step.status is not status else step_due_ms(row.step)


def is_due(batch: WriteSet, key: Key, status: StepStatus, due_ms: int) -> bool:
    """Whether the step that was due at `due_ms` still is, after `batch`."""
    if key not in batch.steps:
        return True
    after_ms = _due_ms(batch.steps[key].row, status)
    return after_ms is not None and after_ms <= due_ms


def wake_step_record(key: Key, command_id: str) -> Outgoing:
    """The command that has a step looked at."""
    flow_id, run_id = key
    wake = {
        "kind": "wake_step",
        "command_id": command_id,
        "flow_id": flow_id,
        "issued_by": ACTOR,
        "run_id": run_id,
    }
    return Outgoing(flow_id.encode(), encode(wake), ())
