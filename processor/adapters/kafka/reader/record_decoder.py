"""Read every record batch that Kafka's protocol allows.

aiokafka fails on some of them, again each time that they are fetched, so a consumer would never get
past them. A header name that is not UTF-8 is read with backslash escapes (`\\xff`), as it then
stands in copies and dead letters too: aiokafka can write no other. Of a batch that unpacks to more
than UNPACKED_MAX_BYTES, the record at the limit is cut, and those behind it are read without key
and value.
"""

import struct
from collections.abc import Iterator
from itertools import islice
from typing import Any, Final

from aiokafka.record.default_records import DefaultRecordBatch
from aiokafka.record.memory_records import MemoryRecords
from aiokafka.record.util import decode_varint_py

from processor.adapters.kafka.internals import (
    RecordBatchReader,
    read_bytes,
    use_record_reader,
)
from processor.adapters.kafka.reader.bounded_decompression import may_exceed, unpacked
from processor.contract.values import COMMAND_MAX_BYTES

_LENGTH: Final = struct.Struct(">i")
_LENGTH_AT: Final = 8
_LENGTH_COUNTS_FROM: Final = 12


def read_any_record() -> None:
    """Have every consumer of this process read any record batch.

    Called when a program starts that reads what others write; importing a client changes nothing.
    """
    use_record_reader(LenientRecords)


class LenientRecords:
    """aiokafka's MemoryRecords, with the bytes of each batch kept at hand."""

    def __init__(self, data: bytes) -> None:
        self._records = MemoryRecords(data)
        self._data = memoryview(data)
        self._at = 0

    def has_next(self) -> bool:
        return bool(self._records.has_next())

    def size_in_bytes(self) -> int:
        return int(self._records.size_in_bytes())

    def next_batch(self) -> Any:
        batch = self._records.next_batch()
        (length,) = _LENGTH.unpack_from(self._data, self._at + _LENGTH_AT)
        start, self._at = self._at, self._at + _LENGTH_COUNTS_FROM + length
        return _Batch(batch, self._data[start : self._at])


class _Batch:
    """aiokafka's batch; where a header's name stops it, or its size would, the rest is read by
    ourselves."""

    def __init__(self, batch: Any, data: memoryview) -> None:
        self._batch = batch
        self._data = data

    def __getattr__(self, name: str) -> Any:
        return getattr(self._batch, name)

    def __next__(self) -> Any:
        return next(self._batch)

    def __iter__(self) -> Iterator[Any]:
        batch, data = self._batch, self._data
        if may_exceed(data):
            plain, whole = unpacked(data)
            if not whole:
                yield from _as_far_as_unpacked(plain)
                return
            batch, data = DefaultRecordBatch(plain), memoryview(plain)
        count = 0
        try:
            for record in batch:
                yield record
                count += 1
        except UnicodeDecodeError:
            yield from islice(RecordBatchReader(data), count, None)


def _as_far_as_unpacked(plain: bytes) -> Iterator[Any]:
    """The records of a batch that goes on behind the end of `plain`. Nothing takes any out of the
    middle of it: producers number them one after the other, and the broker holds them to that."""
    batch = RecordBatchReader(plain)
    count, buffer = batch.record_count, batch.data
    whole = 0
    while whole < count and _ends(buffer, batch.position):
        yield batch.read()
        whole += 1
    key, value = _cut(buffer, batch.position)
    for index in range(whole, count):
        yield batch.record(index, key, value)
        key = value = None


def _ends(buffer: bytearray, at: int) -> bool:
    """Whether the record that begins there ends in `buffer`, too."""
    try:
        length, at = decode_varint_py(buffer, at)
    except IndexError:
        return False
    return bool(at + length <= len(buffer))


def _cut(buffer: bytearray, at: int) -> tuple[bytes | None, bytes | None]:
    """Key and value of the record that does not end in `buffer`, as far as they lie there; neither,
    unless that is enough of the value to see that it is too large for a command."""
    try:
        for _ in range(4):  # length, attributes, time, offset
            _, at = decode_varint_py(buffer, at)
        key, at = read_bytes(buffer, at)
        value, _ = read_bytes(buffer, at)
    except IndexError:
        return None, None
    return (key, value) if len(value or b"") > COMMAND_MAX_BYTES else (None, None)
