"""Clients of Kafka that are never connected."""

from processor.adapters.kafka.consumer.group_consumer import KafkaGroupConsumer
from processor.contract.topics import Topics

NOWHERE = {"bootstrap_servers": "127.0.0.1:1"}


def unconnected_consumer() -> KafkaGroupConsumer:
    """A member of a group that has not started."""
    return KafkaGroupConsumer(
        NOWHERE,
        Topics(),
        group_id="g",
        instance_id=None,
        session_timeout_ms=3_000,
        on_assigned=lambda _: None,
        on_revoked=lambda: None,
    )
