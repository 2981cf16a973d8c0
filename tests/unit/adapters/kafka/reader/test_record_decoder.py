"""A header's name that is not UTF-8 is told with escapes, and of a batch that unpacks to too much
no more is read than memory may be spent on; everything else stays as it is."""

from typing import Any

import cramjam
import pytest
from aiokafka.codec import gzip_encode, lz4_encode, zstd_encode
from aiokafka.consumer import fetcher
from aiokafka.record.default_records import DefaultRecordBatchBuilder, _DefaultRecordBatchPy
from aiokafka.record.memory_records import MemoryRecords

from processor.adapters.kafka.internals import BATCH_HEADER_BYTES
from processor.adapters.kafka.reader import bounded_decompression as unpacking
from processor.adapters.kafka.reader.bounded_decompression import EXPANDS_AT_MOST
from processor.adapters.kafka.reader.record_decoder import (
    LenientRecords,
    _cut,
    _ends,
    read_any_record,
)
from processor.contract.values import COMMAND_MAX_BYTES

KIB = 1024
PACKED = sorted(EXPANDS_AT_MOST)


def batch(*records: Any, codec: int = 0) -> Any:
    """The bytes of a record batch, where `\\xff` stands for every ø in a header's name."""
    builder = DefaultRecordBatchBuilder(2, codec, 0, -1, -1, 0, 100_000_000)
    for offset, (key, value, headers) in enumerate(records):
        assert builder.append(offset, 1000 + offset, key, value, headers) is not None
    return bytes(builder.build()).replace("ø".encode(), b"\xff\xfe")


def packed(plain: Any, codec: Any) -> Any:
    """A batch without compression, compressed as it is."""
    pack = {1: gzip_encode, 3: lz4_encode, 4: zstd_encode}[codec]
    header, records = bytearray(plain[:BATCH_HEADER_BYTES]), pack(plain[BATCH_HEADER_BYTES:])
    header[8:12] = (BATCH_HEADER_BYTES - 12 + len(records)).to_bytes(4, "big")
    header[22] |= codec
    return bytes(header) + records


def read(data: Any, reader: Any = LenientRecords) -> Any:
    records = reader(data)
    found: list[Any] = []
    while records.has_next():
        found.extend(
            (r.offset, r.timestamp, r.key, r.value, list(r.headers)) for r in records.next_batch()
        )
    return found


GOOD = [
    (b"k", b"v", [("a", b"1"), ("b", None), ("é", b"")]),
    (None, b"v" * 300, []),
    (b"k", None, []),
]
ODD = (b"k", b"ok", [("x", b"1"), ("ø", None), ("", b"2")])


@pytest.mark.parametrize("codec", range(5))
def test_what_is_utf8_is_read_as_ever(codec: int) -> None:
    data = batch(*GOOD, codec=codec) * 2
    assert read(data) == read(data, MemoryRecords)
    assert len(read(data)) == 6


def test_what_is_not_is_escaped_and_the_rest_follows() -> None:
    data = batch(GOOD[0], ODD, *GOOD) + batch(*GOOD)
    with pytest.raises(UnicodeDecodeError):
        read(data, MemoryRecords)

    found = read(data)

    assert found[1] == (1, 1001, b"k", b"ok", [("x", b"1"), (r"\xff\xfe", None), ("", b"2")])
    plain = batch(GOOD[0], GOOD[0], *GOOD) + batch(*GOOD)
    assert found[:1] + found[2:] == read(plain)[:1] + read(plain)[2:]


def test_the_fetcher_still_reads_with_the_class_that_is_replaced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fetcher, "MemoryRecords", fetcher.MemoryRecords)
    read_any_record()
    assert fetcher.MemoryRecords is LenientRecords
    assert "MemoryRecords" in fetcher.Fetcher._proc_fetch_request.__code__.co_names
    assert hasattr(_DefaultRecordBatchPy, "_read_msg")


@pytest.fixture
def room_for_2_mib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpacking, "UNPACKED_MAX_BYTES", 2 * KIB * KIB)


def zeros(count: Any) -> Any:
    return [(b"key %d" % n, bytes(500 * KIB), [("n", b"%d" % n)]) for n in range(count)]


@pytest.mark.parametrize("codec", PACKED)
def test_what_might_be_too_much_and_is_not_is_read_as_ever(codec: Any, room_for_2_mib: Any) -> None:
    data = batch(*zeros(4), codec=codec) + batch(*GOOD)
    assert unpacking.may_exceed(memoryview(data))
    assert read(data) == read(data, MemoryRecords)


@pytest.mark.parametrize("codec", PACKED)
def test_a_header_name_is_escaped_in_such_a_batch_too(codec: Any, room_for_2_mib: Any) -> None:
    data = packed(batch(*zeros(4), ODD), codec)
    assert unpacking.may_exceed(memoryview(data))

    assert read(data)[4][4] == [("x", b"1"), (r"\xff\xfe", None), ("", b"2")]


@pytest.mark.parametrize("codec", PACKED)
def test_records_behind_the_limit_are_told_without_key_and_value(
    codec: Any, room_for_2_mib: Any
) -> None:
    data = batch(*zeros(9), codec=codec) + batch(*GOOD)

    found = read(data)

    assert found[:4] == read(data, MemoryRecords)[:4]
    assert [(offset, *rest) for offset, _, *rest in found[4:9]] == [
        (n, None, None, []) for n in range(4, 9)
    ]
    assert found[9:] == read(batch(*GOOD))


@pytest.mark.parametrize("codec", PACKED)
def test_a_value_that_goes_on_behind_the_limit_is_cut_there(
    codec: Any, room_for_2_mib: Any
) -> None:
    data = batch(*GOOD, (b"key", bytes(9 * KIB * KIB), []), *GOOD, codec=codec)

    found = read(data)

    assert found[:3] == read(data, MemoryRecords)[:3]
    offset, _, key, value, headers = found[3]
    assert (offset, key, headers) == (3, b"key", [])
    assert COMMAND_MAX_BYTES < len(value) <= 2 * KIB * KIB
    assert value.strip(b"\0") == b""
    assert [one[2:4] for one in found[4:]] == [(None, None)] * 3


@pytest.mark.parametrize("codec", PACKED)
def test_so_is_one_of_which_not_even_the_length_is_there(
    codec: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = batch((b"k", b"v" * 70, []), (b"k", b"v", []))
    size = len(batch((b"k", b"v" * 70, [])))
    for limit in range(size - BATCH_HEADER_BYTES, len(plain) - BATCH_HEADER_BYTES):
        monkeypatch.setattr(unpacking, "UNPACKED_MAX_BYTES", limit)
        found = read(batch((b"k", b"v" * 70, []), (b"k", b"v", []), codec=codec))
        assert [one[2:4] for one in found] == [(b"k", b"v" * 70), (None, None)], limit


def test_nothing_is_read_from_behind_the_end() -> None:
    buffer = bytearray(200) + bytes(4) + b"\xfe\xff\xff\xff\xff\xff\xff\x7f" * 10
    del buffer[200:]  # which leaves the bytes where they are

    assert not _ends(buffer, 200)
    assert _cut(buffer, 200) == (None, None)


@pytest.mark.parametrize("codec", PACKED)
def test_what_is_damaged_is_not_taken_for_too_much(codec: Any, room_for_2_mib: Any) -> None:
    data = bytearray(batch(*zeros(9), codec=codec))
    data[BATCH_HEADER_BYTES:] = b"rubbish" * 5_000
    data[8:12] = (len(data) - 12).to_bytes(4, "big")
    with pytest.raises((cramjam.DecompressionError, OSError)):
        read(bytes(data))


def test_no_codec_makes_less_of_anything_than_is_said() -> None:
    for codec, expands in EXPANDS_AT_MOST.items():
        plain = batch((b"k", bytes(16 * KIB * KIB), []))
        assert len(plain) / len(batch((b"k", bytes(16 * KIB * KIB), []), codec=codec)) < expands
