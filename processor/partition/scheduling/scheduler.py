"""Schedule the commands that a partition processor sends to itself: `wake`, `wake_step`, `prune`.

They go to `control` in the transaction of a batch, so that a fenced processor cannot send any, and
are decided when they come back, like every command.
"""

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from processor.contract.commands import Prune, Wake, WakeStep
from processor.contract.headers import Headers
from processor.contract.outcomes import Verdict
from processor.contract.steps import StepStatus
from processor.domain.waits import AT_ONCE_MS, due_ms
from processor.engine.batch import LoadedState, Outgoing, WriteSet
from processor.engine.codec import Readable
from processor.engine.encoding import encode
from processor.engine.ports import Table, Written
from processor.engine.rows import Deadline, FlowRow
from processor.partition.scheduling.broker_clock import BrokerClock
from processor.partition.scheduling.retention import Retention, prune_record
from processor.partition.scheduling.step_timers import (
    Commands,
    Key,
    StepTimers,
    is_due,
    wake_step_record,
)
from processor.partition.scheduling.timers import ACTOR, TimerChange, Timers, WakeOutcome, Wakeup
from processor.telemetry.metrics import Metrics

CLOCK_MAX_AGE_S: Final = 600.0
"""How long to go by our own clock, before the broker is asked for its."""
YEAR_9999_MS: Final = 253_370_764_800_000
"""Later than anything that a timestamp can name, short of its last year."""


class DueTask(NamedTuple):
    """What is to be sent now: flows to wake with the times at which their waits were over, flows to
    prune, and steps to wake with their times, by status."""

    wakes: Mapping[str, int]
    prunes: Sequence[str]
    steps: Mapping[StepStatus, Mapping[Key, int]]

    def __bool__(self) -> bool:
        return bool(self.wakes or self.prunes or self.steps)


NOTHING: Final = DueTask({}, (), {})


class Sent(NamedTuple):
    """What goes out with a batch, by flow id, and by step."""

    records: list[Outgoing]
    wakeups: dict[str, Wakeup]
    prunes: dict[str, str]
    steps: dict[StepStatus, dict[Key, Wakeup]]


class Scheduler:
    """The commands of one partition to itself, from a takeover to the next.

    `retain_ms` is how long a flow is kept after its end, None for ever; `new_id` gives command ids;
    `commands_topic` is the full name of `commands`.
    """

    def __init__(
        self,
        partition: int,
        *,
        commands_topic: str,
        retain_ms: int | None,
        metrics: Metrics,
        new_id: Callable[[], str],
    ) -> None:
        self._partition = partition
        self._commands_topic = commands_topic
        self._retain_ms = retain_ms
        self._metrics = metrics
        self._new_id = new_id
        self._forget()

    def _forget(self) -> None:
        self._clock = BrokerClock()
        self._timers: Timers[str] = Timers("")
        self._steps = StepTimers()
        self._retention = Retention(self._retain_ms)
        self._held_until: int | None = None
        self._needs_clock = False

    async def begin(self, table: Table, control_end: int) -> None:
        """Start again after a takeover. Up to `control_end` there may be commands of the last owner
        to itself: none is sent before those are decided."""
        self._forget()
        self._held_until = control_end
        self._timers.armed = await table.armed()
        await self._steps.begin(table)
        self._needs_clock = self._armed or (
            self._retention.on and bool(await table.ended(None, YEAR_9999_MS, 1))
        )
        self._metrics.watch(
            self._partition,
            armed=lambda: self._timers.armed + self._steps.armed,
            due=lambda: (
                self._timers.overdue(self._clock.latest_ms)
                + self._steps.overdue(self._clock.latest_ms)
            ),
        )

    def live_steps(self, status: StepStatus) -> int:
        """How many managed steps are pending, or running."""
        return self._steps.live(status)

    @property
    def _armed(self) -> bool:
        return bool(self._timers.armed or self._steps.armed)

    def asks_the_time(self, at_s: float) -> bool:
        """Whether the broker should be asked for its clock, by any transaction; `at_s` is our
        monotonic clock, here and below."""
        if self._clock.age_s(at_s) == float("inf"):
            return self._needs_clock
        # Also while all times are far off by our clock: the broker's may have been put forward, and
        # ours stands still while the machine sleeps.
        return self._armed and self._clock.age_s(at_s) > CLOCK_MAX_AGE_S

    def observe(self, at_ms: int, at_s: float) -> None:
        """Take in that the broker's clock had reached `at_ms` by `at_s`."""
        self._clock.observe(at_ms, at_s)

    def wait_s(self, at_s: float) -> float | None:
        """How long until something is due; None: for as long as is known."""
        now_ms = self._clock.now_ms(at_s)
        if now_ms is None or self._held_until is not None:
            return None
        next_ms, waits = self._timers.next_ms(), []
        if next_ms is not None:
            waits.append(max(0, next_ms - now_ms))
        if (steps_ms := self._steps.wait_ms(now_ms)) is not None:
            waits.append(steps_ms)
        return min(waits) / 1000 if waits else None

    async def due(
        self, table: Table, control_done: Callable[[], int], commands: Commands, at_s: float
    ) -> DueTask:
        """What to send now. `control_done` says up to which offset `control` is decided."""
        if self._held_until is not None:
            if control_done() < self._held_until:
                return NOTHING
            self._held_until = None
        now_ms = self._clock.now_ms(at_s)
        if now_ms is None:
            return NOTHING
        await self._timers.load(_waits(table), now_ms)
        wakes = self._timers.take(now_ms)
        steps = await self._steps.due(table, commands, now_ms)
        return DueTask(wakes, await self._retention.take(table, now_ms, at_s), steps)

    def send(self, batch: WriteSet, due: DueTask) -> Sent:
        """What goes out with `batch`, which may itself have asked for wakes, or changed what was
        due."""
        sent = Sent([], {}, {}, {})
        for flow_id, headers in batch.wakes:
            wakeup = sent.wakeups[flow_id] = Wakeup(self._new_id(), AT_ONCE_MS)
            sent.records.append(wake_record(flow_id, wakeup.command_id, headers))
        for flow_id, over_ms in due.wakes.items():
            if flow_id not in sent.wakeups and _is_over(batch, flow_id, over_ms):
                wakeup = sent.wakeups[flow_id] = Wakeup(self._new_id(), over_ms)
                sent.records.append(wake_record(flow_id, wakeup.command_id))
        for status, steps in due.steps.items():
            wakeups = sent.steps[status] = {}
            for key, over_ms in steps.items():
                if is_due(batch, key, status, over_ms):
                    wakeup = wakeups[key] = Wakeup(self._new_id(), over_ms)
                    sent.records.append(wake_step_record(key, wakeup.command_id))
        for flow_id in due.prunes:
            if flow_id not in batch.flows:
                command_id = sent.prunes[flow_id] = self._new_id()
                sent.records.append(prune_record(flow_id, command_id))
        return sent

    def written(
        self, batch: WriteSet, sent: Sent, written: Written, loaded: LoadedState, at_s: float
    ) -> None:
        """Take in a written batch that was decided on what was `loaded`."""
        acknowledged_s = at_s - written.age_s
        self.observe(written.at_ms, acknowledged_s)
        if (newest_ms := batch.newest.get(self._commands_topic)) is not None:
            self._steps.horizon.decided(newest_ms)
        wakes: list[WakeOutcome[str]] = []
        steps: list[WakeOutcome[Key]] = []
        prunes: list[Prune] = []
        for item, verdict in batch.control_verdicts:
            if not isinstance(item, Readable):
                continue
            command, at_ms = item.command, item.record.timestamp
            accepted = verdict is Verdict.ACCEPTED
            if isinstance(command, Wake):
                wakes.append(WakeOutcome(command.flow_id, command.command_id, at_ms, accepted))
            elif isinstance(command, WakeStep):
                key = (command.flow_id, command.run_id)
                steps.append(WakeOutcome(key, command.command_id, at_ms, accepted))
            elif isinstance(command, Prune):
                prunes.append(command)
        self._retention.written(sent.prunes, prunes)
        flows, now_ms = loaded.flows, self._clock.now_ms(at_s)
        left = {
            flow_id: _due_ms(batch.flows[flow_id] if flow_id in batch.flows else flows.get(flow_id))
            for flow_id in (outcome.key for outcome in wakes)
        }
        for result in (
            self._timers.written(_changes(batch), sent.wakeups, wakes, left, now_ms),
            *self._steps.written(batch, sent.steps, steps, loaded.steps, now_ms),
        ):
            if result.too_early:
                self._clock.set_back(written.at_ms, acknowledged_s)
            self._metrics.timers_fired.inc(result.ended)
            self._metrics.timer_retries.inc(result.retried)
            for lag_ms in result.lags_ms:
                self._metrics.timer_lag_seconds.observe(max(0, lag_ms) / 1000)


def _waits(
    table: Table,
) -> Callable[[tuple[int, str], int, int], Awaitable[list[tuple[int, str]]]]:
    async def fetch(after: tuple[int, str], until_ms: int, limit: int) -> list[tuple[int, str]]:
        return [*await table.due(Deadline(*after), until_ms, limit)]

    return fetch


def _changes(batch: WriteSet) -> Iterator[TimerChange[str]]:
    for was, row in batch.waits:
        known = was or row
        if known is not None:
            yield TimerChange(known.flow.id, _due_ms(was), _due_ms(row))


def _due_ms(row: FlowRow | None) -> int | None:
    return None if row is None else due_ms(row.flow)


def _is_over(batch: WriteSet, flow_id: str, over_ms: int) -> bool:
    """Whether the wait that was over at `over_ms` still is, after `batch`."""
    if flow_id not in batch.flows:
        return True
    ends_ms = _due_ms(batch.flows[flow_id])
    return ends_ms is not None and ends_ms <= over_ms


def wake_record(flow_id: str, command_id: str, headers: Headers = ()) -> Outgoing:
    """The command that ends the wait of a flow."""
    wake = {"kind": "wake", "command_id": command_id, "flow_id": flow_id, "issued_by": ACTOR}
    return Outgoing(flow_id.encode(), encode(wake), headers)
