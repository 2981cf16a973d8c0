"""The metrics of `taskflow signals` for Prometheus."""

from processor.contract.signals import INVALID, UNCLAIMED, UNDELIVERABLE
from processor.telemetry.exposition import Exposed, begin_at_zero


class SignalMetrics(Exposed):
    """The metrics of one process."""

    def __init__(self) -> None:
        super().__init__()
        self.received = self.counter("taskflow_signals_received", "Signals with a new id")
        self.repeated = self.counter(
            "taskflow_signals_repeated", "Signals with a known id, which are dropped"
        )
        self.sent = self.counter(
            "taskflow_signals_commands",
            "Commands sent to end a wait, by the verdict or code of their outcome",
            "outcome",
        )
        self.dead_letters = self.counter(
            "taskflow_signals_dead_letters", "Signals that became dead letters, by code", "code"
        )
        for code in (UNCLAIMED, UNDELIVERABLE, INVALID):
            begin_at_zero(self.dead_letters, code)
        self.delivery_seconds = self.histogram(
            "taskflow_signals_delivery_seconds",
            "From the broker's append of a signal, or of the wait if that came later, until the "
            "outcome that ends the wait, by this machine's clock",
        )
        self.early = self.gauge("taskflow_signals_early", "Signals that no flow waits for yet")
        self.open = self.gauge("taskflow_signals_open_waits", "Open waits for external events")
        self.pending = self.gauge(
            "taskflow_signals_pending",
            "Signals that a wait takes and whose outcome is not known yet",
        )
        self.lag = self.gauge(
            "taskflow_signals_lag_records",
            "Offsets of a source (audit, signals, log) that are committed and not folded yet",
            "source",
            "partition",
        )
        self.failures = self.counter(
            "taskflow_signals_failures", "Restarts of the service after an error"
        )
        self.rebalances = self.counter(
            "taskflow_signals_rebalances", "Rebalances of the consumer group"
        )
        self.rebalance_seconds = self.histogram(
            "taskflow_signals_rebalance_seconds",
            "Duration of a rebalance, until the partitions are read again",
        )
        self.ready = self.gauge(
            "taskflow_signals_ready", "1 while all assigned partitions are served, else 0"
        )
