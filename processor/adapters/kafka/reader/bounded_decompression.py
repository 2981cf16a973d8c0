"""Decompress record batches up to a bound of memory.

aiokafka unpacks a batch whole. Of zeros, zstd makes 32,000 times less, so that one record batch of
1 MiB would need 32 GiB, again each time that it is fetched: no consumer would get past it. The
packed size alone tells of most batches that they are harmless; others are unpacked into a buffer
that has an end.
"""

import gzip
import io
from typing import Final

import cramjam
from aiokafka.record.default_records import DefaultRecordBatch

from processor.adapters.kafka.internals import BATCH_HEADER_BYTES

UNPACKED_MAX_BYTES: Final = 32 * 1024 * 1024
"""Thirty times the largest record batch that a topic of ours takes."""
EXPANDS_AT_MOST: Final = {
    DefaultRecordBatch.CODEC_GZIP: 1_032,
    DefaultRecordBatch.CODEC_LZ4: 255,
    DefaultRecordBatch.CODEC_ZSTD: 32_768,
}
"""By their formats. Snappy (22) is not among them: 1 MiB of it stays below the limit."""
FULL: Final = "failed to write whole buffer"
"""How cramjam says that its output buffer is too small; a test guards the words."""

_ATTRIBUTES_AT: Final = 22
_CODEC_MASK: Final = 0x07


def may_exceed(data: memoryview) -> bool:
    """Whether the record batch `data` may unpack to more than UNPACKED_MAX_BYTES."""
    expands = EXPANDS_AT_MOST.get(data[_ATTRIBUTES_AT] & _CODEC_MASK, 0)
    return len(data) * expands > UNPACKED_MAX_BYTES


def unpacked(data: memoryview) -> tuple[bytes, bool]:
    """The record batch `data`, of a codec in EXPANDS_AT_MOST, as one without compression, and
    whether it is whole: its records end after UNPACKED_MAX_BYTES.

    Raises what the codec does if it is damaged.
    """
    header, packed = bytearray(data[:BATCH_HEADER_BYTES]), data[BATCH_HEADER_BYTES:]
    codec = header[_ATTRIBUTES_AT] & _CODEC_MASK
    header[_ATTRIBUTES_AT] &= ~_CODEC_MASK
    if codec == DefaultRecordBatch.CODEC_GZIP:
        with gzip.GzipFile(fileobj=io.BytesIO(packed)) as file:
            records = file.read(UNPACKED_MAX_BYTES)
            return bytes(header) + records, not file.read(1)
    into = cramjam.lz4 if codec == DefaultRecordBatch.CODEC_LZ4 else cramjam.zstd
    # Pages that nothing is written to take no memory.
    buffer = bytearray(UNPACKED_MAX_BYTES)
    try:
        size, whole = into.decompress_into(bytes(packed), buffer), True
    except cramjam.DecompressionError as error:
        if str(error) != FULL:
            raise
        size, whole = UNPACKED_MAX_BYTES, False
    return b"".join((header, memoryview(buffer)[:size])), whole
