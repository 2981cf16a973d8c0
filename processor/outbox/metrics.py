"""The outbox relay's metrics for Prometheus."""

from processor.outbox.rows import UNKNOWN
from processor.telemetry.exposition import Exposed, begin_at_zero


class OutboxMetrics(Exposed):
    """The metrics of one relay."""

    def __init__(self) -> None:
        super().__init__()
        self.sent = self.counter(
            "taskflow_outbox_sent", "Commands written to Kafka, repeated ones included"
        )
        self.outcomes = self.counter(
            "taskflow_outbox_outcomes", "Outcomes written into rows", "verdict"
        )
        begin_at_zero(self.outcomes, UNKNOWN)
        self.renewed = self.counter(
            "taskflow_outbox_renewed",
            "Rows that reached Kafka too late and are sent again under a new command id",
        )
        self.outcome_seconds = self.histogram(
            "taskflow_outbox_outcome_seconds",
            "From the first sending of a command until its outcome is in its row",
        )
        self.pending = self.gauge("taskflow_outbox_pending_rows", "Rows without an outcome")
        self.oldest_seconds = self.gauge(
            "taskflow_outbox_oldest_seconds", "Age of the oldest row without an outcome"
        )
        self.in_flight = self.gauge(
            "taskflow_outbox_in_flight", "Rows that were sent and have no outcome yet"
        )
        self.deleted = self.counter(
            "taskflow_outbox_deleted", "Rows deleted TASKFLOW_OUTBOX_RETAIN after their outcome"
        )
        self.failures = self.counter(
            "taskflow_outbox_failures",
            "Reconnections after the database or the brokers were lost",
        )
        self.ready = self.gauge(
            "taskflow_outbox_ready", "1 while this relay sends and awaits outcomes, else 0"
        )
