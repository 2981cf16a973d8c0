"""The worker's metrics for Prometheus."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from processor.telemetry.step_metrics import StepMetrics

LATENCY_BUCKETS_S = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
)  # fmt: skip
SIZE_BUCKETS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)


class Exposed:
    """Metrics in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()

    def text(self) -> bytes:
        """The exposition format."""
        return generate_latest(self.registry)


class Metrics(Exposed):
    """The metrics of one worker."""

    def __init__(self) -> None:
        super().__init__()
        registry = self.registry
        self.commands = Counter(
            "taskflow_commands",
            "Records decided, by kind, verdict and code",
            ("kind", "verdict", "code"),
            registry=registry,
        )
        self.events = Counter("taskflow_events", "FlowEvents written", registry=registry)
        self.batch_size = Histogram(
            "taskflow_batch_records",
            "Records decided in one transaction",
            buckets=SIZE_BUCKETS,
            registry=registry,
        )
        self.commit_seconds = Histogram(
            "taskflow_commit_seconds",
            "From the begin of a Kafka transaction to its acknowledged end",
            buckets=LATENCY_BUCKETS_S,
            registry=registry,
        )
        self.table_seconds = Histogram(
            "taskflow_table_write_seconds",
            "Writing one batch to the local table",
            buckets=LATENCY_BUCKETS_S,
            registry=registry,
        )
        self.end_to_end_seconds = Histogram(
            "taskflow_end_to_end_seconds",
            "From the broker's append of the oldest command of a batch to its committed outcome, "
            "by this machine's clock",
            buckets=LATENCY_BUCKETS_S,
            registry=registry,
        )
        self.timers_fired = Counter(
            "taskflow_timers_fired",
            "Wakes of the processor's own, of flows and of steps, that were accepted",
            registry=registry,
        )
        self.timer_retries = Counter(
            "taskflow_timer_retries",
            "Wakes that were refused while flow or step went on waiting; each is sent again",
            registry=registry,
        )
        self.timer_lag_seconds = Histogram(
            "taskflow_timer_lag_seconds",
            "From the end of a wait or the time of a step to its committed event, by the broker's "
            "clock",
            buckets=LATENCY_BUCKETS_S,
            registry=registry,
        )
        self.waited_seconds = Counter(
            "taskflow_waited_seconds",
            "Time in which a partition did nothing but wait: for commands, for the broker (a quota "
            "shows here, too), or for the disk",
            ("partition", "waits_for"),
            registry=registry,
        )
        self.takeover_seconds = Histogram(
            "taskflow_takeover_seconds",
            "Taking over a partition, until its first fetch",
            buckets=LATENCY_BUCKETS_S,
            registry=registry,
        )
        self.failures = Counter(
            "taskflow_partition_failures",
            "Errors after which a partition was taken over again",
            ("partition", "error"),
            registry=registry,
        )
        self.last_error = Gauge(
            "taskflow_last_error_timestamp_seconds",
            "When the partition last failed; the error stands in /ready",
            ("partition",),
            registry=registry,
        )
        self._owned = Gauge("taskflow_owned_partitions", "Partitions owned", registry=registry)
        self._ready = Gauge(
            "taskflow_ready_partitions", "Partitions taken over and deciding", registry=registry
        )
        self._lag = Gauge(
            "taskflow_lag_records",
            "Offsets of commands and control that are not decided yet",
            ("partition",),
            registry=registry,
        )
        self._table_bytes = Gauge(
            "taskflow_table_bytes", "Size of the partition's table", ("partition",),
            registry=registry,
        )  # fmt: skip
        self._cached = Gauge(
            "taskflow_cached_flows", "Flows kept in memory", ("partition",), registry=registry
        )
        self._pending_records = Gauge(
            "taskflow_in_hand_records",
            "Records that were fetched and are not decided yet",
            ("partition",),
            registry=registry,
        )
        self._pending_bytes = Gauge(
            "taskflow_in_hand_bytes",
            "Their keys and values",
            ("partition",),
            registry=registry,
        )
        self._armed = Gauge(
            "taskflow_timers_armed",
            "Waits that end by themselves, and managed steps that have not ended",
            ("partition",),
            registry=registry,
        )
        self._due = Gauge(
            "taskflow_timers_due",
            "Waits that are over and steps whose time has come, without an event yet, as far as "
            "they are in memory",
            ("partition",),
            registry=registry,
        )
        self.steps = StepMetrics(registry)
        self._steps_pending = Gauge(
            "taskflow_steps_pending",
            "Managed steps that wait for an executor, or for the time when they may be started",
            ("partition",),
            registry=registry,
        )
        self._steps_running = Gauge(
            "taskflow_steps_running",
            "Managed steps that an executor holds",
            ("partition",),
            registry=registry,
        )
        self.work_items = Counter(
            "taskflow_work_items",
            "Work items written to the topic steps, and acknowledged",
            registry=registry,
        )
        self.work_item_failures = Counter(
            "taskflow_work_item_failures",
            "Attempts to write work items that failed; they are tried again",
            ("partition",),
            registry=registry,
        )
        self._work_items_waiting = Gauge(
            "taskflow_work_items_waiting",
            "Work items that are committed and not acknowledged on the topic steps yet",
            ("partition",),
            registry=registry,
        )

        self._standby = Gauge(
            "taskflow_standby_partitions",
            "Partitions of other owners whose tables are kept up to date",
            registry=registry,
        )
        self._standby_lag = Gauge(
            "taskflow_standby_lag_records",
            "Offsets of audit and outcomes that a standby's table does not hold yet; NaN before "
            "its first look",
            ("partition",),
            registry=registry,
        )
        self._standby_bytes = Gauge(
            "taskflow_standby_table_bytes",
            "Size of a standby's table",
            ("partition",),
            registry=registry,
        )

    def show(
        self,
        *,
        owned: Callable[[], float],
        ready: Callable[[], float],
        standby: Callable[[], float],
    ) -> None:
        """Read these whenever somebody asks."""
        self._owned.set_function(owned)
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
        """Read these of a partition whenever somebody asks."""
        label = str(partition)
        self._lag.labels(label).set_function(lag)
        self._table_bytes.labels(label).set_function(table_bytes)
        self._cached.labels(label).set_function(cached)
        self._pending_records.labels(label).set_function(pending_records)
        self._pending_bytes.labels(label).set_function(pending_bytes)

    def watch_timers(
        self, partition: int, *, armed: Callable[[], float], due: Callable[[], float]
    ) -> None:
        """Read these of a partition whenever somebody asks."""
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
        """Read these of a partition whenever somebody asks."""
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
        """Read these of a partition that is followed whenever somebody asks."""
        label = str(partition)
        self._standby_lag.labels(label).set_function(lag)
        self._standby_bytes.labels(label).set_function(table_bytes)

    def unwatch_standby(self, partition: int) -> None:
        for gauge in (self._standby_lag, self._standby_bytes):
            with suppress(KeyError):
                gauge.remove(str(partition))
