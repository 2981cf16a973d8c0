"""Writing of one record that holds whatever another client wrote."""

from typing import Any

from aiokafka import AIOKafkaProducer

from processor.contract.headers import Headers


async def write_record(
    producer: AIOKafkaProducer,
    topic: str,
    key: bytes | None,
    value: bytes | None,
    headers: Headers,
    *,
    partition: int | None,
    timestamp_ms: int | None = None,
) -> Any:
    """Hand a record over to `producer`; a future of its RecordMetadata.

    `partition` None: by its key. `AIOKafkaProducer.send` takes no record without key and value,
    which Kafka does: such a one goes in a batch of its own, to the partition that must be given.
    """
    if key is not None or value is not None:
        return await producer.send(
            topic,
            value,
            key=key,
            partition=partition,
            timestamp_ms=timestamp_ms,
            headers=list(headers),
        )
    assert partition is not None, "a record without a key has no partition of its own"
    batch = producer.create_batch()
    batch.append(timestamp=timestamp_ms, key=None, value=None, headers=list(headers))
    return await producer.send_batch(batch, topic, partition=partition)
