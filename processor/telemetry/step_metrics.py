"""Metrics of managed steps."""

from collections import Counter as Tally
from collections.abc import Iterable
from typing import Final

from processor.contract.events import EventKind
from processor.contract.steps import StepStatus
from processor.contract.values import parse_timestamp
from processor.domain.step import ManagedStep
from processor.engine.batch import StepEvent
from processor.telemetry.exposition import Exposed

SECONDS_BUCKETS: Final = (
    0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0,
    14_400.0, 86_400.0,
)  # fmt: skip
TASKS_MAX: Final = 50
"""Tasks that have a label of their own, the first ones that are seen; the others share one."""
OTHERS: Final = "other tasks"
LEASE_EXPIRED: Final = "lease expired"
# Python 3.11 runs a function whenever an enum is asked for a member.
STARTED, DISPATCHED = EventKind.STEP_STARTED, EventKind.STEP_DISPATCHED
_NAMES: Final = {kind: kind.value.removeprefix("step_") for kind in EventKind}
REOFFER_MAX_MS: Final = 86_400_000


class StepMetrics:
    """Counters and histograms by task."""

    def __init__(self, exposed: Exposed) -> None:
        self._tasks: set[str] = set()
        self._events = exposed.counter(
            "taskflow_step_events",
            "Events of managed steps, by task and event; `reoffered` is a step that no executor "
            "had started since it was offered before",
            "task",
            "event",
        )
        self._leases_expired = exposed.counter(
            "taskflow_step_leases_expired",
            "Leases that ran out: their executor was gone, or too slow",
            "task",
        )
        self._used_up = exposed.counter(
            "taskflow_step_attempts_used_up", "Steps that failed with their last attempt", "task"
        )
        self._start_seconds = exposed.bulk_histogram(
            "taskflow_step_start_seconds",
            "From the first offer of an attempt to its start, by the broker's clock",
            "task",
            buckets=SECONDS_BUCKETS,
        )
        self._end_seconds = exposed.bulk_histogram(
            "taskflow_step_end_seconds",
            "From the scheduling of a step to its end, by the broker's clock",
            "task",
            buckets=SECONDS_BUCKETS,
        )

    def observe(self, events: Iterable[StepEvent]) -> None:
        """Take in events that are committed."""
        tally: Tally[tuple[str, str]] = Tally()
        for kind, was, step, reason in events:
            task = step.task if step.task in self._tasks else self._label(step.task)
            name = _NAMES[kind]
            if kind is DISPATCHED and step.execution.offers > 1:
                name = "reoffered"
            tally[task, name] += 1
            if reason == LEASE_EXPIRED:
                self._leases_expired.labels(task).inc()
            if kind is STARTED and was is not None and was.runtime == "managed":
                self._start_seconds.observe(task, _waited_ms(was, step) / 1000)
            elif step.execution.due_at is None:
                lived_ms = parse_timestamp(step.updated_at) - parse_timestamp(step.created_at)
                self._end_seconds.observe(task, max(0, lived_ms) / 1000)
                execution = step.execution
                if (
                    step.status is StepStatus.FAILED
                    and reason != "timeout"
                    and execution.attempt >= execution.max_attempts
                ):
                    self._used_up.labels(task).inc()
        for labels, count in tally.items():
            self._events.labels(*labels).inc(count)

    def _label(self, task: str) -> str:
        if len(self._tasks) >= TASKS_MAX:
            return OTHERS
        self._tasks.add(task)
        return task


def _waited_ms(was: ManagedStep, step: ManagedStep) -> int:
    """How long a started step had been offered: since the last offer, and the times between the
    offers before it."""
    execution = was.execution
    between_ms = 0
    if execution.offers > 1:
        waits = range(min(execution.offers - 1, 40))
        between_ms = sum(min(execution.lease_ms * 2**n, REOFFER_MAX_MS) for n in waits)
    since_ms = parse_timestamp(step.updated_at) - parse_timestamp(was.updated_at)
    return max(0, since_ms + between_ms)
