"""A registry of metrics, in Prometheus' format."""

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from processor.telemetry.bulk_histogram import BulkHistogram

LATENCY_BUCKETS_S: Final = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
)  # fmt: skip
SIZE_BUCKETS: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)


def begin_at_zero(counter: Counter, *labels: str) -> None:
    """Show a series as 0 from now on: of one that begins with 1, Prometheus sees no increase, and
    an alert that waits for the first time does not ring."""
    counter.labels(*labels)


class Exposed:
    """Metrics in a registry of their own; each is made with its name, its help and its labels."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()

    def counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, registry=self.registry)

    def gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(name, text, labels, registry=self.registry)

    def histogram(
        self, name: str, text: str, *labels: str, buckets: tuple[float, ...] = LATENCY_BUCKETS_S
    ) -> Histogram:
        return Histogram(name, text, labels, registry=self.registry, buckets=buckets)

    def bulk_histogram(
        self, name: str, text: str, label: str, *, buckets: tuple[float, ...]
    ) -> BulkHistogram:
        return BulkHistogram(name, text, label, buckets, registry=self.registry)

    def text(self) -> bytes:
        """The exposition format."""
        return generate_latest(self.registry)
