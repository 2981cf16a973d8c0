"""Schedule the commands that a partition processor sends to itself, such as `wake` and `prune`.

They go to `control` in the transaction of a batch, so that a late owner cannot send any, and are
decided when they come back, like everybody's.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

from processor.contract.commands import Prune, Wake
from processor.contract.outcomes import Verdict
from processor.domain.waits import AT_ONCE_MS, due_ms
from processor.engine.batch import Outgoing, WriteSet
from processor.engine.codec import Readable
from processor.engine.ports import Table, Written
from processor.engine.rows import FlowRow
from processor.partition.retention import Retention, prune_record
from processor.partition.timers import BrokerClock, Timers, WakeOutcome, Wakeup, wake_record
from processor.telemetry.metrics import Metrics

CLOCK_MAX_AGE_S: Final = 600.0
"""How long to go by our own clock, before the broker is asked for its."""
YEAR_9999_MS: Final = 253_370_764_800_000
"""Later than anything that a timestamp can name, short of its last year."""


class DueTask(NamedTuple):
    """What is to be sent now: flows to wake with the times at which their waits were over, and
    flows to prune."""

    wakes: Mapping[str, int]
    prunes: Sequence[str]

    def __bool__(self) -> bool:
        return bool(self.wakes or self.prunes)


NOTHING: Final = DueTask({}, ())


class Sent(NamedTuple):
    """What goes out with a batch, by flow id."""

    records: list[Outgoing]
    wakeups: dict[str, Wakeup]
    prunes: dict[str, str]


class Scheduler:
    """The errands of one partition, from a takeover to the next.

    `retain_ms` is how long a flow is kept after its end, None for ever; `new_id` gives command ids.
    """

    def __init__(
        self,
        partition: int,
        *,
        retain_ms: int | None,
        metrics: Metrics,
        new_id: Callable[[], str],
    ) -> None:
        self._partition = partition
        self._retain_ms = retain_ms
        self._metrics = metrics
        self._new_id = new_id
        self._forget()

    def _forget(self) -> None:
        self._clock = BrokerClock()
        self._timers = Timers()
        self._retention = Retention(self._retain_ms)
        self._held_until: int | None = None
        self._needs_clock = False

    async def begin(self, table: Table, control_end: int) -> None:
        """After a takeover. Up to `control_end` there may be errands of the last owner: none of
        ours is sent before those are decided."""
        self._forget()
        self._held_until = control_end
        self._timers.armed = await table.armed()
        self._needs_clock = bool(self._timers.armed) or (
            self._retention.on and bool(await table.ended(None, YEAR_9999_MS, 1))
        )
        self._metrics.watch_timers(
            self._partition,
            armed=lambda: self._timers.armed,
            due=lambda: self._timers.overdue(self._clock.latest_ms),
        )

    def asks_the_time(self, at_s: float) -> bool:
        """Whether the broker should be made to tell its clock, by any transaction; `at_s` is our
        monotonic clock, here and below."""
        if self._clock.age_s(at_s) == float("inf"):
            return self._needs_clock
        # Also while all waits are far off by our clock: the broker's may have been put forward, and
        # ours stands still while the machine sleeps.
        return bool(self._timers.armed) and self._clock.age_s(at_s) > CLOCK_MAX_AGE_S

    def heard(self, at_ms: int, at_s: float) -> None:
        """The broker's clock had reached `at_ms` by `at_s`."""
        self._clock.heard(at_ms, at_s)

    def wait_s(self, at_s: float) -> float | None:
        """How long until something is due; None: for as long as is known."""
        now_ms, next_ms = self._clock.now_ms(at_s), self._timers.next_ms()
        if now_ms is None or next_ms is None or self._held_until is not None:
            return None
        return max(0, next_ms - now_ms) / 1000

    async def due(self, table: Table, control_done: Callable[[], int], at_s: float) -> DueTask:
        """What to send now. `control_done` says up to which offset `control` is decided."""
        if self._held_until is not None:
            if control_done() < self._held_until:
                return NOTHING
            self._held_until = None
        now_ms = self._clock.now_ms(at_s)
        if now_ms is None:
            return NOTHING
        await self._timers.load(table, now_ms)
        wakes = self._timers.take(now_ms)
        return DueTask(wakes, await self._retention.take(table, now_ms, at_s))

    def send(self, batch: WriteSet, due: DueTask) -> Sent:
        """What goes out with `batch`, which may itself have asked for wakes, or changed what was
        due."""
        sent = Sent([], {}, {})
        for flow_id, headers in batch.wakes:
            wakeup = sent.wakeups[flow_id] = Wakeup(self._new_id(), AT_ONCE_MS)
            sent.records.append(wake_record(flow_id, wakeup.command_id, headers))
        for flow_id, over_ms in due.wakes.items():
            if flow_id not in sent.wakeups and _still_over(batch, flow_id, over_ms):
                wakeup = sent.wakeups[flow_id] = Wakeup(self._new_id(), over_ms)
                sent.records.append(wake_record(flow_id, wakeup.command_id))
        for flow_id in due.prunes:
            if flow_id not in batch.flows:
                command_id = sent.prunes[flow_id] = self._new_id()
                sent.records.append(prune_record(flow_id, command_id))
        return sent

    def written(
        self,
        batch: WriteSet,
        sent: Sent,
        written: Written,
        flows: Mapping[str, FlowRow | None],
        at_s: float,
    ) -> None:
        """A batch is written that was decided on `flows`."""
        told_s = at_s - written.age_s
        self.heard(written.at_ms, told_s)
        answers: list[WakeOutcome] = []
        prunes: list[Prune] = []
        for item, verdict in batch.answered:
            if isinstance(item, Readable):
                if isinstance(item.command, Wake):
                    accepted = verdict is Verdict.ACCEPTED
                    answers.append(WakeOutcome(item.command, item.record.timestamp, accepted))
                elif isinstance(item.command, Prune):
                    prunes.append(item.command)
        self._retention.written(sent.prunes, prunes)
        left = {
            flow_id: batch.flows[flow_id] if flow_id in batch.flows else flows.get(flow_id)
            for flow_id in (answer.wake.flow_id for answer in answers)
        }
        result = self._timers.written(
            batch.waits, sent.wakeups, answers, left, self._clock.now_ms(at_s)
        )
        if result.too_early:
            self._clock.set_back(written.at_ms, told_s)
        self._metrics.timers_fired.inc(result.ended)
        self._metrics.timer_retries.inc(result.retried)
        for lag_ms in result.lags_ms:
            self._metrics.timer_lag_seconds.observe(max(0, lag_ms) / 1000)


def _still_over(batch: WriteSet, flow_id: str, over_ms: int) -> bool:
    """Whether the wait that was over at `over_ms` still is, after `batch`."""
    if flow_id not in batch.flows:
        return True
    row = batch.flows[flow_id]
    ends_ms = None if row is None else due_ms(row.flow)
    return ends_ms is not None and ends_ms <= over_ms
