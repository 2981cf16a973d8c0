"""Metrics of managed steps."""

from typing import Final

from processor.engine.batch import StepTally
from processor.telemetry.exposition import Exposed, begin_at_zero

SECONDS_BUCKETS: Final = (
    0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0,
    14_400.0, 86_400.0,
)  # fmt: skip
TASKS_MAX: Final = 50
"""Tasks that have a label of their own, the first ones that are seen; the others share one."""
OTHERS: Final = "other tasks"


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

    def observe(self, tally: StepTally) -> None:
        """Take in what is committed."""
        for (task, event), count in tally.events.items():
            self._events.labels(self._label(task), event).inc(count)
        for counter, counts in (
            (self._leases_expired, tally.leases_expired),
            (self._used_up, tally.used_up),
        ):
            for task, count in counts.items():
                counter.labels(self._label(task)).inc(count)
        for histogram, times_ms in (
            (self._start_seconds, tally.start_ms),
            (self._end_seconds, tally.end_ms),
        ):
            for task, some_ms in times_ms.items():
                histogram.observe(self._label(task), [ms / 1000 for ms in some_ms])

    def _label(self, task: str) -> str:
        if task not in self._tasks:
            if len(self._tasks) >= TASKS_MAX:
                task = OTHERS
            else:
                self._tasks.add(task)
            for counter in (self._leases_expired, self._used_up):
                begin_at_zero(counter, task)
            for event in ("started", "reoffered"):
                begin_at_zero(self._events, task, event)
        return task
