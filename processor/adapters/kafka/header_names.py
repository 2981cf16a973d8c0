"""Headers whose names are not UTF-8, which Kafka's protocol lets anyone write.

aiokafka raises UnicodeDecodeError on such a record, and again each time it is fetched: nobody
would ever get past it. Here its name is told with backslash escapes (`\\xff`) instead, as it then
stands in copies and dead letters too: aiokafka can write no other. No public setting does it, so
the class that the fetcher reads batches with is replaced; the version is pinned and a test guards
the names.
"""

import struct
from collections.abc import Iterator
from itertools import islice
from typing import Any, Final

from aiokafka.consumer import fetcher
from aiokafka.record.default_records import _DefaultRecordBatchPy, _DefaultRecordPy
from aiokafka.record.memory_records import MemoryRecords
from aiokafka.record.util import decode_varint

_LENGTH: Final = struct.Struct(">i")
_LENGTH_AT: Final = 8
_LENGTH_COUNTS_FROM: Final = 12


def read_any_header_name() -> None:
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
    """aiokafka's batch; where a header's name stops it, the rest is read by ourselves."""

    def __init__(self, batch: Any, data: memoryview) -> None:
        self._batch = batch
        self._data = data

    def __getattr__(self, name: str) -> Any:
        return getattr(self._batch, name)

    def __next__(self) -> Any:
        return next(self._batch)

    def __iter__(self) -> Iterator[Any]:
        told = 0
        try:
            for record in self._batch:
                yield record
                told += 1
        except UnicodeDecodeError:
            yield from islice(_AnyHeaderName(self._data), told, None)


class _AnyHeaderName(_DefaultRecordBatchPy):  # type: ignore[misc]
    """aiokafka's own reader in Python; of a record it reads what `_read_msg` does."""

    _pos: int

    def _read_msg(self, *_unused: Any) -> Any:
        buffer = self._buffer
        length, at = decode_varint(buffer, self._pos)
        end = at + length
        _, at = decode_varint(buffer, at)  # attributes
        later_ms, at = decode_varint(buffer, at)
        offset_delta, at = decode_varint(buffer, at)
        key, at = _bytes(buffer, at)
        value, at = _bytes(buffer, at)
        count, at = decode_varint(buffer, at)
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


def _bytes(buffer: bytearray, at: int) -> tuple[bytes | None, int]:
    size, at = decode_varint(buffer, at)
    if size < 0:
        return None, at
    return bytes(buffer[at : at + size]), at + size
