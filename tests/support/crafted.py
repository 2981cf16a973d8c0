"""Record batches that no decent client writes."""

import struct
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.record.util import calc_crc32c

_CRC_AT, _CRC_COVERS_FROM = 17, 21


def with_other_bytes(
    producer: AIOKafkaProducer, old: bytes, new: bytes, *records: tuple[Any, ...]
) -> Any:
    """A batch of `records` (key, value, headers), with `new` in place of each `old`, which is as
    long. `producer` must be neither idempotent nor compressing; it sends it with `send_batch`."""
    assert len(old) == len(new)
    batch = producer.create_batch()
    for key, value, headers in records:
        batch.append(timestamp=None, key=key, value=value, headers=headers)
    data = bytearray(batch._build())
    data = data.replace(old, new)
    struct.pack_into(">I", data, _CRC_AT, calc_crc32c(bytes(data[_CRC_COVERS_FROM:])))
    batch._buffer = data
    return batch
