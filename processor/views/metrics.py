"""A view worker's metrics for Prometheus."""

from collections.abc import Callable

from prometheus_client import Counter, Gauge, Histogram

from processor.telemetry.metrics import LATENCY_BUCKETS_S, SIZE_BUCKETS, Exposed


class ViewMetrics(Exposed):
    """The metrics of one view worker."""

    def __init__(self) -> None:
        super().__init__()
        registry = self.registry
        self.events = Counter(
            "taskflow_view_events", "FlowEvents projected, by kind", ("kind",), registry=registry
        )
        self.repeated = Counter(
            "taskflow_view_repeated_events",
            "FlowEvents that were read again and dropped, by their ids",
            registry=registry,
        )
        self.batch_size = Histogram(
            "taskflow_view_batch_events",
            "FlowEvents projected in one transaction",
            buckets=SIZE_BUCKETS,
            registry=registry,
        )
        self.write_seconds = Histogram(
            "taskflow_view_write_seconds",
            "Writing one batch to the view",
            buckets=LATENCY_BUCKETS_S,
            registry=registry,
        )
        self.lag_seconds = Histogram(
            "taskflow_view_lag_seconds",
            "From the broker's append of the oldest event of a batch until answers include it, by "
            "this machine's clock",
            buckets=LATENCY_BUCKETS_S,
            registry=registry,
        )
        self.failures = Counter(
            "taskflow_view_failures",
            "Batches that could not be written, and were tried again",
            ("error",),
            registry=registry,
        )
        self.requests = Histogram(
            "taskflow_view_request_seconds",
            "Answering a request, without streams",
            ("route", "status"),
            buckets=LATENCY_BUCKETS_S,
            registry=registry,
        )
        self.streams = Gauge("taskflow_view_streams", "Streams that are open", registry=registry)
        self.rebalances = Counter(
            "taskflow_view_rebalances", "Times that partitions were shared out", registry=registry
        )
        self.rebalance_seconds = Histogram(
            "taskflow_view_rebalance_seconds",
            "From the begin of sharing out partitions until they are read again",
            buckets=LATENCY_BUCKETS_S,
            registry=registry,
        )
        self._partitions = Gauge(
            "taskflow_view_partitions", "Partitions that this worker projects", registry=registry
        )
        self._behind = Gauge(
            "taskflow_view_behind_records",
            "Offsets of audit that are committed and not projected yet",
            ("partition",),
            registry=registry,
        )
        self._broken = Gauge(
            "taskflow_view_broken_partitions",
            "Partitions that are not projected any further, see /ready",
            registry=registry,
        )

    def show(self, *, partitions: Callable[[], float], broken: Callable[[], float]) -> None:
        """Read these whenever somebody asks."""
        self._partitions.set_function(partitions)
        self._broken.set_function(broken)

    def behind(self, offsets: dict[int, int]) -> None:
        self._behind.clear()
        for partition, behind in offsets.items():
            self._behind.labels(str(partition)).set(behind)
