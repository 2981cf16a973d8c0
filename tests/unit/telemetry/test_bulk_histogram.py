"""A histogram that says the same as that of prometheus_client."""

from prometheus_client import CollectorRegistry, Histogram, generate_latest

from processor.telemetry.bulk_histogram import BulkHistogram

BOUNDS = (0.01, 0.1, 1.0, 60.0)
AMOUNTS = [0.0, 0.01, 0.0100001, 0.5, 1.0, 59.9, 61.0, 1e9]


def test_it_says_what_prometheus_clients_own_says() -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    bulk = BulkHistogram("taken_seconds", "How long.", "task", BOUNDS, ours)
    one = Histogram("taken_seconds", "How long.", ("task",), buckets=BOUNDS, registry=theirs)
    for task in ("a", 'b "quoted"'):
        bulk.observe(task, AMOUNTS[:3])
        bulk.observe(task, AMOUNTS[3:])
        for amount in AMOUNTS:
            one.labels(task).observe(amount)
    said = [
        line for line in generate_latest(theirs).decode().splitlines() if "_created" not in line
    ]
    assert generate_latest(ours).decode().splitlines() == said
