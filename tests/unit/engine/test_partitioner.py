"""Keys lie where Kafka's clients put them."""

import random

from aiokafka.partitioner import murmur2

from processor.engine.partitioner import hashed_partition, partition_of


def test_a_key_of_any_length_lies_where_other_clients_put_it() -> None:
    rng = random.Random(3)
    for size in range(80):
        key = rng.randbytes(size)
        expected = (murmur2(key) & 0x7FFFFFFF) % 97
        assert hashed_partition(key, 97) == partition_of(key, 97) == expected
