"""The worker's metrics for Prometheus."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Final

from prometheus_client import Gauge

from processor.contract.commands import MODELS
from processor.contract.outcomes import QUARANTINE, Verdict
from processor.telemetry.exposition import SIZE_BUCKETS, Exposed, begin_at_zero
from processor.telemetry.step_metrics import StepMetrics

UNKNOWN_KIND: Final = "unknown"
"""Of a record that says no kind."""
_OWNED: Final[Mapping[str, tuple[str, str]]] = {
    "lag": ("taskflow_lag_records", "Offsets of commands and control that are not decided yet"),
    "table_bytes": ("taskflow_table_bytes", "Size of the partition's table"),
    "cached": ("taskflow_cached_flows", "Flows kept in memory"),
    "pending_records": (
        "taskflow_in_hand_records",
        "Records that were fetched and are not decided yet",
    ),
    "pending_bytes": ("taskflow_in_hand_bytes", "Their keys and values"),
    "armed": (
        "taskflow_timers_armed",
        "Waits that end by themselves, and managed steps that have not ended",
    ),
    "due": (
        "taskflow_timers_due",
        "Waits that are over and steps whose time has come, without an event yet, as far as they "
        "are in memory",
    ),
    "steps_pending": (
        "taskflow_steps_pending",
        "Managed steps that wait for an executor, or for the time when they may be started",
    ),
    "steps_running": ("taskflow_steps_running", "Managed steps that an executor holds"),
    "items_waiting": (
        "taskflow_work_items_waiting",
        "Work items that are committed and not acknowledged on the topic steps yet",
    ),
}
"""The gauges of a partition that is owned, with their texts."""
_FOLLOWED: Final[Mapping[str, tuple[str, str]]] = {
    "lag": (
        "taskflow_standby_lag_records",
        "Offsets of audit and outcomes that a standby's table does not hold yet; NaN before its "
        "first look",
    ),
    "table_bytes": ("taskflow_standby_table_bytes", "Size of a standby's table"),
}
"""Those of a standby replica."""


class Metrics(Exposed):
    """The metrics of one worker."""

    def __init__(self) -> None:
        super().__init__()
        self.commands = self.counter(
            "taskflow_commands",
            "Records decided, by kind, verdict and code",
            "kind",
            "verdict",
            "code",
        )
        for kind in (*MODELS, UNKNOWN_KIND):
            for code in QUARANTINE:
                begin_at_zero(self.commands, kind, Verdict.QUARANTINED, code)
        self.events = self.counter("taskflow_events", "FlowEvents written")
        self.batch_size = self.histogram(
            "taskflow_batch_records", "Records decided in one transaction", buckets=SIZE_BUCKETS
        )
        self.commit_seconds = self.histogram(
            "taskflow_commit_seconds",
            "From the begin of a Kafka transaction to its acknowledged end",
        )
        self.table_seconds = self.histogram(
            "taskflow_table_write_seconds", "Writing one batch to the local table"
        )
        self.end_to_end_seconds = self.histogram(
            "taskflow_end_to_end_seconds",
            "From the broker's append of the oldest command of a batch to its committed outcome, "
            "by this machine's clock",
        )
        self.timers_fired = self.counter(
            "taskflow_timers_fired",
            "Wakes of the processor's own, of flows and of steps, that were accepted",
        )
        self.timer_retries = self.counter(
            "taskflow_timer_retries",
            "Wakes that were refused while flow or step went on waiting; each is sent again",
        )
        self.timer_lag_seconds = self.histogram(
            "taskflow_timer_lag_seconds",
            "From the end of a wait or the time of a step to its committed event, by the broker's "
            "clock",
        )
        self.waited_seconds = self.counter(
            "taskflow_waited_seconds",
            "Time in which a partition did nothing but wait: for commands, for the broker (a quota "
            "shows here, too), or for the disk",
            "partition",
            "waits_for",
        )
        self.takeover_seconds = self.histogram(
            "taskflow_takeover_seconds", "Taking over a partition, until its first fetch"
        )
        self.failures = self.counter(
            "taskflow_partition_failures",
            "Errors after which a partition was taken over again",
            "partition",
            "error",
        )
        self.last_error = self.gauge(
            "taskflow_last_error_timestamp_seconds",
            "When the partition last failed; the error stands in /ready",
            "partition",
        )
        self._assigned = self.gauge("taskflow_owned_partitions", "Partitions owned")
        self._ready = self.gauge("taskflow_ready_partitions", "Partitions taken over and deciding")
        self._owned = {
            name: self.gauge(metric, text, "partition") for name, (metric, text) in _OWNED.items()
        }
        self.steps = StepMetrics(self)
        self.work_items = self.counter(
            "taskflow_work_items", "Work items written to the topic steps, and acknowledged"
        )
        self.work_item_failures = self.counter(
            "taskflow_work_item_failures",
            "Attempts to write work items that failed; they are tried again",
            "partition",
        )
        self._standby = self.gauge(
            "taskflow_standby_partitions",
            "Partitions of other owners whose tables are kept up to date",
        )
        self._followed = {
            name: self.gauge(metric, text, "partition")
            for name, (metric, text) in _FOLLOWED.items()
        }

    def show(
        self,
        *,
        assigned: Callable[[], float],
        ready: Callable[[], float],
        standby: Callable[[], float],
    ) -> None:
        """Read these at each scrape."""
        self._assigned.set_function(assigned)
        self._ready.set_function(ready)
        self._standby.set_function(standby)

    @contextmanager
    def waiting(self, partition: int, waits_for: str, clock: Callable[[], float]) -> Iterator[None]:
        """Count the time, by `clock`, as one in which the partition waits for that."""
        began = clock()
        try:
            yield
        finally:
            waited_s = max(0.0, clock() - began)
            self.waited_seconds.labels(str(partition), waits_for).inc(waited_s)

    def watch(self, partition: int, **read: Callable[[], float]) -> None:
        """Read these of an owned partition at each scrape: some of _OWNED, by their names."""
        _watch(self._owned, partition, read)

    def unwatch(self, partition: int) -> None:
        _unwatch(self._owned, partition)

    def watch_standby(self, partition: int, **read: Callable[[], float]) -> None:
        """Read these of a standby replica at each scrape: some of _FOLLOWED, by their names."""
        _watch(self._followed, partition, read)

    def unwatch_standby(self, partition: int) -> None:
        _unwatch(self._followed, partition)


def _watch(
    gauges: Mapping[str, Gauge], partition: int, read: Mapping[str, Callable[[], float]]
) -> None:
    for name, function in read.items():
        gauges[name].labels(str(partition)).set_function(function)


def _unwatch(gauges: Mapping[str, Gauge], partition: int) -> None:
    for gauge in gauges.values():
        with suppress(KeyError):
            gauge.remove(str(partition))
