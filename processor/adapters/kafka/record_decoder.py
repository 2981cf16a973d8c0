"""What Kafka's protocol lets anyone write, and aiokafka would never get past: it would fail on it
again each time it is fetched.

A header's name that is not UTF-8 is told with backslash escapes (`\\xff`), as it then stands in
copies and dead letters too: aiokafka can write no other. Of a batch that unpacks to more than
UNPACKED_MAX_BYTES, the record that lies there is cut, and those behind it are told without key and
value. No public setting does either, so the class that the fetcher reads batches with is replaced;
the version is pinned and a test guards the names.

Numbers are read by aiokafka's decoder in Python: the one in C does not ask where the buffer ends,
and what lies behind leads it anywhere.
"""

import struct
from collections.abc import Iterator
from itertools import islice
from typing import Any, Final

from aiokafka.consumer import fetcher
from aiokafka.record.default_records import (
    DefaultRecordBatch,
    _DefaultRecordBatchPy,
    _DefaultRecordPy,
)
from aiokafka.record.memory_records import MemoryRecords
from aiokafka.record.util import decode_varint_py

from processor.adapters.kafka.bounded_decompression import may_exceed, unpacked
from processor.contract.values import COMMAND_MAX_BYTES

_LENGTH: Final = struct.Struct(">i")
_LENGTH_AT: Final = 8
_LENGTH_COUNTS_FROM: Final = 12


def read_whatever_comes() -> None:
    """From now on, every consumer of this process does."""
    fetcher.MemoryRecords = _Records


class _Records:
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
        told = 0
        try:
            for record in batch:
                yield record
                told += 1
        except UnicodeDecodeError:
            yield from islice(_AnyHeaderName(data), told, None)


class _AnyHeaderName(_DefaultRecordBatchPy):  # type: ignore[misc]
    """aiokafka's own reader in Python; of a record it reads what `_read_msg` does."""

    _pos: int
    _num_records: int
    _buffer: bytearray

    def _read_msg(self, *_unused: Any) -> Any:
        buffer = self._buffer
        length, at = decode_varint_py(buffer, self._pos)
        end = at + length
        _, at = decode_varint_py(buffer, at)  # attributes
        later_ms, at = decode_varint_py(buffer, at)
        offset_delta, at = decode_varint_py(buffer, at)
        key, at = _bytes(buffer, at)
        value, at = _bytes(buffer, at)
        count, at = decode_varint_py(buffer, at)
        headers = []
        for _ in range(count):
            name, at = _bytes(buffer, at)
            content, at = _bytes(buffer, at)
            headers.append(((name or b"").decode("utf-8", "backslashreplace"), content))
        self._pos = end
        appended = self.timestamp_type == self.LOG_APPEND_TIME
        return _DefaultRecordPy(
            self.base_offset + offset_delta,
            self.max_timestamp if appended else self.first_timestamp + later_ms,
            self.timestamp_type,
            key,
            value,
            headers,
        )


def _as_far_as_unpacked(plain: bytes) -> Iterator[Any]:
    """The records of a batch that goes on behind the end of `plain`. Nothing takes any out of the
    middle of it: producers number them one after the other, and the broker holds them to that."""
    batch = _AnyHeaderName(plain)
    count, buffer = batch._num_records, batch._buffer
    told = 0
    while told < count and _ends(buffer, batch._pos):
        yield batch._read_msg()
        told += 1
    key, value = _cut(buffer, batch._pos)
    for n in range(told, count):
        yield _DefaultRecordPy(
            batch.base_offset + n, batch.max_timestamp, batch.timestamp_type, key, value, []
        )
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
        key, at = _bytes(buffer, at)
        value, _ = _bytes(buffer, at)
    except IndexError:
        return None, None
    return (key, value) if len(value or b"") > COMMAND_MAX_BYTES else (None, None)


def _bytes(buffer: bytearray, at: int) -> tuple[bytes | None, int]:
    size, at = decode_varint_py(buffer, at)
    if size < 0:
        return None, at
    return bytes(buffer[at : at + size]), at + size
