"""The sink's metrics for Prometheus."""

from processor.telemetry.exposition import SIZE_BUCKETS, Exposed


class SinkMetrics(Exposed):
    """The metrics of one sink."""

    def __init__(self) -> None:
        super().__init__()
        self.events = self.counter("taskflow_sink_events", "FlowEvents written")
        self.batch_size = self.histogram(
            "taskflow_sink_batch_events",
            "FlowEvents written in one transaction",
            buckets=SIZE_BUCKETS,
        )
        self.write_seconds = self.histogram(
            "taskflow_sink_write_seconds", "One transaction of the database"
        )
        self.lag_seconds = self.histogram(
            "taskflow_sink_lag_seconds",
            "From the broker's append of the oldest event of a batch until its rows are there, by "
            "this machine's clock",
        )
        self.failures = self.counter(
            "taskflow_sink_failures",
            "Times that database or brokers were lost, and connected to again",
        )
        self.event_id = self.gauge(
            "taskflow_sink_event_id", "The newest event that is written", "partition"
        )
        self.ready = self.gauge(
            "taskflow_sink_ready", "1 once all that was there at the start is written, else 0"
        )
