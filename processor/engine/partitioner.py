"""Compute a flow's partition: Kafka's default hash of the key."""

from functools import lru_cache

from aiokafka.partitioner import murmur2


@lru_cache(maxsize=65_536)
def partition_of(key: bytes, partitions: int) -> int:
    """The partition that Java's and aiokafka's default partitioner give to `key`."""
    return int((murmur2(key) & 0x7FFFFFFF) % partitions)
