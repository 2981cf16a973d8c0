"""The worker's metrics for Prometheus."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from processor.telemetry.exposition import SIZE_BUCKETS, Exposed
from processor.telemetry.step_metrics import StepMetrics


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
        self._lag = self.gauge(
            "taskflow_lag_records",
            "Offsets of commands and control that are not decided yet",
            "partition",
        )
        self._table_bytes = self.gauge(
            "taskflow_table_bytes", "Size of the partition's table", "partition"
        )
        self._cached = self.gauge("taskflow_cached_flows", "Flows kept in memory", "partition")
        self._pending_records = self.gauge(
            "taskflow_in_hand_records",
            "Records that were fetched and are not decided yet",
            "partition",
        )
        self._pending_bytes = self.gauge(
            "taskflow_in_hand_bytes", "Their keys and values", "partition"
        )
        self._armed = self.gauge(
            "taskflow_timers_armed",
            "Waits that end by themselves, and managed steps that have not ended",
            "partition",
        )
        self._due = self.gauge(
            "taskflow_timers_due",
            "Waits that are over and steps whose time has come, without an event yet, as far as "
            "they are in memory",
            "partition",
        )
        self.steps = StepMetrics(self)
        self._steps_pending = self.gauge(
            "taskflow_steps_pending",
            "Managed steps that wait for an executor, or for the time when they may be started",
            "partition",
        )
        self._steps_running = self.gauge(
            "taskflow_steps_running", "Managed steps that an executor holds", "partition"
        )
        self.work_items = self.counter(
            "taskflow_work_items", "Work items written to the topic steps, and acknowledged"
        )
        self.work_item_failures = self.counter(
            "taskflow_work_item_failures",
            "Attempts to write work items that failed; they are tried again",
            "partition",
        )
        self._work_items_waiting = self.gauge(
            "taskflow_work_items_waiting",
            "Work items that are committed and not acknowledged on the topic steps yet",
            "partition",
        )

        self._standby = self.gauge(
            "taskflow_standby_partitions",
            "Partitions of other owners whose tables are kept up to date",
        )
        self._standby_lag = self.gauge(
            "taskflow_standby_lag_records",
            "Offsets of audit and outcomes that a standby's table does not hold yet; NaN before "
            "its first look",
            "partition",
        )
        self._standby_bytes = self.gauge(
            "taskflow_standby_table_bytes", "Size of a standby's table", "partition"
        )

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

    def watch(
        self,
        partition: int,
        *,
        lag: Callable[[], float],
        table_bytes: Callable[[], float],
        cached: Callable[[], float],
        pending_records: Callable[[], float],
        pending_bytes: Callable[[], float],
    ) -> None:
        """Read these of a partition at each scrape."""
        label = str(partition)
        self._lag.labels(label).set_function(lag)
        self._table_bytes.labels(label).set_function(table_bytes)
        self._cached.labels(label).set_function(cached)
        self._pending_records.labels(label).set_function(pending_records)
        self._pending_bytes.labels(label).set_function(pending_bytes)

    def watch_timers(
        self, partition: int, *, armed: Callable[[], float], due: Callable[[], float]
    ) -> None:
        """Read these of a partition at each scrape."""
        label = str(partition)
        self._armed.labels(label).set_function(armed)
        self._due.labels(label).set_function(due)

    def watch_steps(
        self,
        partition: int,
        *,
        pending: Callable[[], float],
        running: Callable[[], float],
        items_waiting: Callable[[], float],
    ) -> None:
        """Read these of a partition at each scrape."""
        label = str(partition)
        self._steps_pending.labels(label).set_function(pending)
        self._steps_running.labels(label).set_function(running)
        self._work_items_waiting.labels(label).set_function(items_waiting)

    def unwatch(self, partition: int) -> None:
        for gauge in (
            *(
                self._lag,
                self._table_bytes,
                self._cached,
                self._pending_records,
                self._pending_bytes,
            ),
            *(self._armed, self._due),
            *(self._steps_pending, self._steps_running, self._work_items_waiting),
        ):
            with suppress(KeyError):
                gauge.remove(str(partition))

    def watch_standby(
        self, partition: int, *, lag: Callable[[], float], table_bytes: Callable[[], float]
    ) -> None:
        """Read these of a standby replica at each scrape."""
        label = str(partition)
        self._standby_lag.labels(label).set_function(lag)
        self._standby_bytes.labels(label).set_function(table_bytes)

    def unwatch_standby(self, partition: int) -> None:
        for gauge in (self._standby_lag, self._standby_bytes):
            with suppress(KeyError):
                gauge.remove(str(partition))
