"""Start a producer that writes outside of any transaction."""

from typing import Any, Final

from aiokafka import AIOKafkaProducer

from processor.adapters.kafka.internals import quiet_failures
from processor.adapters.kafka.metadata_backoff import back_off_metadata
from processor.adapters.kafka.shutdown import stop_producer

STOP_TIMEOUT_S: Final = 2.0


async def start_producer(**options: Any) -> AIOKafkaProducer:
    """Return an idempotent producer that waits for all replicas, and has `options`."""
    producer = AIOKafkaProducer(**options, enable_idempotence=True, acks="all")
    back_off_metadata(producer.client)
    quiet_failures(producer)
    try:
        await producer.start()
    except BaseException:
        await stop_producer(producer, timeout_s=STOP_TIMEOUT_S)
        raise
    return producer
