"""Record batches that no decent client writes."""

import struct
from typing import Any

import cramjam
from aiokafka import AIOKafkaProducer
from aiokafka.record.default_records import _DefaultRecordBatchPy
from aiokafka.record.util import calc_crc32c

_LENGTH_AT, _LENGTH_COUNTS_FROM = 8, 12
_CRC_AT, _CRC_COVERS_FROM = 17, 21
_CODEC_AT, _ZSTD = 22, 4
_HEADER_BYTES = _DefaultRecordBatchPy.HEADER_STRUCT.size
_NO_HEADERS = b"\0"
_MIB = 1024 * 1024


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
    batch._buffer = _signed(data.replace(old, new))
    return batch


def bomb(
    producer: AIOKafkaProducer, key: bytes, size_mib: int, *around: tuple[bytes, bytes]
) -> Any:
    """A batch of three records, packed by zstd: between the two `around` (key, value), one with
    `key` and that many zeros, which take no memory here. `producer` as above."""
    batch = producer.create_batch()
    for _ in range(3):
        batch.append(timestamp=None, key=None, value=None, headers=[])
    header = bytearray(batch._build())[:_HEADER_BYTES]
    (first_key, first), (last_key, last) = around
    packer = cramjam.zstd.Compressor()
    packer.compress(_record(0, first_key, len(first), first) + _NO_HEADERS)
    packer.compress(_record(1, key, size_mib * _MIB))
    for _ in range(size_mib):
        packer.compress(bytes(_MIB))
    packer.compress(_NO_HEADERS + _record(2, last_key, len(last), last) + _NO_HEADERS)
    records = bytes(packer.finish())
    struct.pack_into(">I", header, _LENGTH_AT, _HEADER_BYTES - _LENGTH_COUNTS_FROM + len(records))
    header[_CODEC_AT] |= _ZSTD
    batch._buffer = _signed(header + records)
    return batch


def _record(number: int, key: bytes, value_bytes: int, value: bytes = b"") -> bytes:
    """Up to its headers, with as much of its value as is given."""
    head = b"\0\0" + _varint(number) + _varint(len(key)) + key + _varint(value_bytes)
    return _varint(len(head) + value_bytes + len(_NO_HEADERS)) + head + value


def _varint(number: int) -> bytes:
    number, encoded = number << 1, b""
    while number > 0x7F:
        encoded, number = encoded + bytes([number & 0x7F | 0x80]), number >> 7
    return encoded + bytes([number])


def _signed(data: bytearray) -> bytearray:
    struct.pack_into(">I", data, _CRC_AT, calc_crc32c(bytes(data[_CRC_COVERS_FROM:])))
    return data
