"""A view worker's metrics for Prometheus."""

from collections.abc import Callable

from processor.telemetry.exposition import SIZE_BUCKETS, Exposed


class ViewMetrics(Exposed):
    """The metrics of one view worker."""

    def __init__(self) -> None:
        super().__init__()
        self.events = self.counter("taskflow_view_events", "FlowEvents projected, by kind", "kind")
        self.repeated = self.counter(
            "taskflow_view_repeated_events",
            "FlowEvents that were read again and dropped, by their ids",
        )
        self.batch_size = self.histogram(
            "taskflow_view_batch_events",
            "FlowEvents projected in one transaction",
            buckets=SIZE_BUCKETS,
        )
        self.write_seconds = self.histogram(
            "taskflow_view_write_seconds", "Writing one batch to the view"
        )
        self.lag_seconds = self.histogram(
            "taskflow_view_lag_seconds",
            "From the broker's append of the oldest event of a batch until answers include it, by "
            "this machine's clock",
        )
        self.failures = self.counter(
            "taskflow_view_failures",
            "Batches that could not be written, and were tried again",
            "error",
        )
        self.requests = self.histogram(
            "taskflow_view_request_seconds",
            "Answering a request, without streams",
            "route",
            "status",
        )
        self.streams = self.gauge("taskflow_view_streams", "Streams that are open")
        self.rebalances = self.counter(
            "taskflow_view_rebalances", "Times that partitions were shared out"
        )
        self.rebalance_seconds = self.histogram(
            "taskflow_view_rebalance_seconds",
            "From the begin of sharing out partitions until they are read again",
        )
        self._partitions = self.gauge(
            "taskflow_view_partitions", "Partitions that this worker projects"
        )
        self._behind = self.gauge(
            "taskflow_view_behind_records",
            "Offsets of audit that are committed and not projected yet",
            "partition",
        )
        self._broken = self.gauge(
            "taskflow_view_broken_partitions",
            "Partitions that are not projected any further, see /ready",
        )

    def show(self, *, partitions: Callable[[], float], broken: Callable[[], float]) -> None:
        """Read these at each scrape."""
        self._partitions.set_function(partitions)
        self._broken.set_function(broken)

    def behind(self, offsets: dict[int, int]) -> None:
        self._behind.clear()
        for partition, behind in offsets.items():
            self._behind.labels(str(partition)).set(behind)
